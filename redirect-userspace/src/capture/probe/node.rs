//! What the node gives the daemon: cgroup v2, a BPF file system, capabilities, limits and sysctls.

use std::{fs, io, path::Path};

use super::finding::{Finding, Found, Group, Use, Way, Weight};
use crate::sys::{bpffs, cgroup, netns, sysctl};

/// capabilities(7), by number.
const NET_ADMIN: u32 = 12;
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// Each carried connection has two sockets, and a busy node some ten thousand connections.
const ENOUGH_FILES: u64 = 65_536;

/// What pods that keep their clients' addresses have set in their namespaces.
const SYSCTL: &str = "net/ipv4/tcp_fwmark_accept";

pub fn probe(bpffs: &Path) -> Vec<Finding> {
    let all = Way::ALL.map(|way| way.needs(Weight::Required)).to_vec();
    let ebpf = vec![Way::Ebpf.needs(Weight::Required)];
    let row = |name: &str, needed_for: &str, result: Result<(), String>, uses: &[Use]| Finding {
        group: Group::Node,
        name: name.to_owned(),
        needed_for: needed_for.to_owned(),
        found: match result {
            Ok(()) => Found::Yes,
            Err(why) => Found::No(why),
        },
        uses: uses.to_vec(),
        without: "",
    };
    let effective = effective_capabilities();
    let capability = |any: &[u32]| match &effective {
        Ok(mask) if any.iter().any(|bit| mask & (1 << bit) != 0) => Ok(()),
        Ok(_) => Err("not among this process's".to_owned()),
        Err(error) => Err(error.clone()),
    };
    vec![
        row(
            "cgroup v2",
            "telling pods and the daemon apart",
            cgroup::current()
                .map(drop)
                .map_err(|error| error.to_string()),
            &all,
        ),
        row(
            "CAP_SYS_ADMIN",
            "entering pods' namespaces",
            capability(&[SYS_ADMIN]),
            &all,
        ),
        row(
            "CAP_NET_ADMIN",
            "routes and rules in pods",
            capability(&[NET_ADMIN]),
            &all,
        ),
        row(
            "CAP_BPF or CAP_SYS_ADMIN",
            "loading programs",
            capability(&[BPF, SYS_ADMIN]),
            &ebpf,
        ),
        row(
            "CAP_PERFMON or CAP_SYS_ADMIN",
            "loading programs",
            capability(&[PERFMON, SYS_ADMIN]),
            &ebpf,
        ),
        row(
            "BPF file system",
            "capture that outlives the daemon",
            mountable(bpffs),
            &ebpf,
        ),
        Finding {
            uses: Way::ALL.map(|way| way.needs(Weight::Optional)).to_vec(),
            without: "pods need `preserveClientIp: false`: apps see the proxy in place of their clients",
            ..row(
                "sysctls can be written",
                "the client's address",
                writable_sysctls(),
                &[],
            )
        },
    ]
}

/// What does not stand against capture, but is worth an operator's look.
pub fn warnings(bpffs: &Path) -> Vec<String> {
    let mut told = Vec::new();
    if bpffs::is_bpffs(bpffs).is_ok_and(|is| !is) {
        told.push(format!(
            "{} is no BPF file system: the daemon mounts one there when it starts, which is gone with its mount namespace; \
             mount it on the node",
            bpffs.display()
        ));
    }
    if let Ok((_, hard)) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        && hard < ENOUGH_FILES
    {
        told.push(format!(
            "at most {hard} open files: each connection takes two; raise the limit (LimitNOFILE=) to {ENOUGH_FILES} or more"
        ));
    }
    let strict = sysctl::read("net/ipv4/conf/all/rp_filter");
    if strict.is_ok_and(|value| value.trim() == "1") {
        told.push(
            "net.ipv4.conf.all.rp_filter is 1 (strict): connections that keep their client's address may be dropped on their \
             way to the app; set it to 2 (loose)"
                .to_owned(),
        );
    }
    told
}

fn effective_capabilities() -> Result<u64, String> {
    let status = fs::read_to_string("/proc/thread-self/status").map_err(|e| e.to_string())?;
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.ok_or_else(|| "no line CapEff in /proc/thread-self/status".to_owned())
}

/// There, or to be mounted by a daemon.
fn mountable(path: &Path) -> Result<(), String> {
    if bpffs::is_bpffs(path).map_err(|error| format!("{}: {error}", path.display()))? {
        return Ok(());
    }
    let known = fs::read_to_string("/proc/filesystems").map_err(|error| error.to_string())?;
    match known.lines().any(|line| line.ends_with("\tbpf")) {
        true => Ok(()),
        false => Err("not known to the kernel".to_owned()),
    }
}

fn writable_sysctls() -> Result<(), String> {
    let written: io::Result<()> =
        netns::in_new(|| sysctl::write(SYSCTL, "1")).and_then(|result| result);
    written.map_err(|error| format!("{SYSCTL}: {error}"))
}
