//! Finds the cgroup of whoever probes pods on this node: kubelet, on its own or inside k3s and the like.
//!
//! A name alone is nothing, since a process may call itself what it likes: only root's processes in the node's own network
//! namespace count, and none in a pod's cgroup. Root on the node can do as it likes anyway.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

/// Names of processes (`/proc/PID/comm`) that have kubelet in them: Kubernetes, k3s, microk8s. RKE2 and k0s start the first.
const NAMES: [&str; 4] = ["kubelet", "k3s-server", "k3s-agent", "kubelite"];

/// A process, as /proc has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub name: String,
    /// The effective user.
    pub uid: u32,
    /// The cgroup v2, as the kernel calls it.
    pub cgroup: String,
    /// Whether it is in the network namespace of the first process, which is the node's.
    pub on_node: bool,
}

/// Reads all processes below `proc`; one that ends meanwhile is none.
pub fn processes(proc: &Path) -> io::Result<Vec<Process>> {
    let node = fs::read_link(proc.join("1/ns/net"))?;
    let mut all = Vec::new();
    for entry in fs::read_dir(proc)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(pid) = name.and_then(|name| name.parse().ok()) {
            all.extend(process(&path, pid, &node));
        }
    }
    Ok(all)
}

fn process(path: &Path, pid: u32, node: &Path) -> Option<Process> {
    let read = |file: &str| fs::read_to_string(path.join(file)).ok();
    let status = read("status")?;
    // Real, effective, saved and file system's.
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let cgroups = read("cgroup")?;
    Some(Process {
        pid,
        name: read("comm")?.trim_end().to_owned(),
        uid: uids.split_whitespace().nth(1)?.parse().ok()?,
        cgroup: cgroups
            .lines()
            .find_map(|line| line.strip_prefix("0::"))?
            .to_owned(),
        on_node: fs::read_link(path.join("ns/net")).is_ok_and(|netns| netns == node),
    })
}

/// The cgroups of probers, as the kernel calls them.
pub fn cgroups(processes: &[Process]) -> BTreeSet<String> {
    let probers = processes.iter().filter(|process| is_prober(process));
    probers.map(|process| process.cgroup.clone()).collect()
}

fn is_prober(process: &Process) -> bool {
    let in_pod = process
        .cgroup
        .split('/')
        .any(|part| part.starts_with("kubepods"));
    // All of the node's processes are below the root: it stands for nobody.
    let in_root = process.cgroup == "/";
    NAMES.contains(&process.name.as_str())
        && process.uid == 0
        && process.on_node
        && !in_pod
        && !in_root
}

/// Other processes in `cgroup` or below it: what they connect counts as probes, too.
pub fn sharers<'a>(processes: &'a [Process], cgroup: &str) -> Vec<&'a Process> {
    let is_in = |process: &&Process| Path::new(&process.cgroup).starts_with(cgroup);
    let processes = processes.iter().filter(is_in);
    processes
        .filter(|process| !NAMES.contains(&process.name.as_str()))
        .collect()
}

/// What is known without looking at processes: the paths of a configuration that are there now.
pub fn present(paths: &[PathBuf]) -> Vec<PathBuf> {
    paths.iter().filter(|path| path.is_dir()).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, name: &str, cgroup: &str) -> Process {
        Process {
            pid,
            name: name.into(),
            uid: 0,
            cgroup: cgroup.into(),
            on_node: true,
        }
    }

    #[test]
    fn probers_by_how_the_node_is_made() {
        let systemd = process(1, "kubelet", "/system.slice/kubelet.service");
        let forged = process(2, "kubelet", "/kubepods.slice/kubepods-pod1.slice/c1");
        let forged_v1 = process(3, "kubelet", "/kubepods/burstable/pod1/c1");
        let user = Process {
            uid: 1000,
            ..process(4, "kubelet", "/user.slice")
        };
        let elsewhere = Process {
            on_node: false,
            ..process(5, "kubelet", "/machine.slice/x")
        };
        for (processes, expected) in [
            (vec![], vec![]),
            (vec![systemd.clone()], vec!["/system.slice/kubelet.service"]),
            (vec![process(1, "kubelet", "/kubelet")], vec!["/kubelet"]),
            (
                vec![process(1, "k3s-server", "/system.slice/k3s.service")],
                vec!["/system.slice/k3s.service"],
            ),
            (
                vec![process(1, "kubelet", "/system.slice/rke2-agent.service")],
                vec!["/system.slice/rke2-agent.service"],
            ),
            (vec![process(1, "kubelet", "/")], vec![]),
            (vec![process(1, "kubelet2", "/x")], vec![]),
            (vec![forged, forged_v1, user, elsewhere], vec![]),
        ] {
            let found = cgroups(&processes);
            assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{processes:?}");
        }
    }

    #[test]
    fn who_shares_the_probers_cgroup() {
        let k3s = "/system.slice/k3s.service";
        let processes = [
            process(1, "k3s-server", k3s),
            process(2, "containerd", k3s),
            process(3, "containerd-shim", "/system.slice/k3s.service/shims"),
            process(4, "sshd", "/system.slice/k3s.service2"),
        ];
        let sharers = sharers(&processes, k3s);
        let pids: Vec<_> = sharers.iter().map(|process| process.pid).collect();
        assert_eq!(pids, [2, 3]);
    }

    #[test]
    fn processes_as_proc_shows_them() {
        let proc = tempfile::tempdir().unwrap();
        let add = |pid: &str, comm: &str, cgroup: &str, netns: &str| {
            let path = proc.path().join(pid);
            fs::create_dir_all(path.join("ns")).unwrap();
            fs::write(path.join("comm"), format!("{comm}\n")).unwrap();
            fs::write(path.join("status"), "Name:\tx\nUid:\t0\t5\t0\t0\n").unwrap();
            fs::write(path.join("cgroup"), cgroup).unwrap();
            std::os::unix::fs::symlink(netns, path.join("ns/net")).unwrap();
        };
        add("1", "init", "0::/init.scope\n", "net:[1]");
        add("77", "kubelet", "1:cpu:/a\n0::/kubelet\n", "net:[1]");
        add("78", "app", "0::/kubepods/x\n", "net:[2]");
        add("79", "old", "1:cpu:/a\n", "net:[1]");
        fs::create_dir(proc.path().join("self")).unwrap();
        let mut found = processes(proc.path()).unwrap();
        found.sort_by_key(|process| process.pid);
        let shown: Vec<_> = found
            .iter()
            .map(|p| (p.pid, p.name.as_str(), p.cgroup.as_str(), p.uid, p.on_node))
            .collect();
        assert_eq!(
            shown,
            [
                (1, "init", "/init.scope", 5, true),
                (77, "kubelet", "/kubelet", 5, true),
                (78, "app", "/kubepods/x", 5, false),
            ]
        );
    }
}
