//! What the kernel's BPF can do, found by trying: each hook and helper of the embedded programs, their maps, attaching, and in
//! the end the programs themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixDatagram,
    },
};

use aya::sys::is_map_supported;

use super::{
    finding::{Finding, Found, Group, Use, Way, Weight},
    names,
};
use crate::{
    capture::ebpf::needs::{self, Needs},
    sys::{
        bpf,
        bpf_probe::{self, Does, Kind, Refused},
        cgroup::Scratch,
        netns,
    },
};

const CONNECT4: Kind = Kind {
    program_type: needs::SOCK_ADDR,
    attach_type: 10,
};
/// `BPF_SK_LOOKUP`, and `BPF_TCX_EGRESS` as the attach type of a link.
const SK_LOOKUP: Kind = Kind {
    program_type: needs::SK_LOOKUP,
    attach_type: 36,
};
const SCHED_CLS: Kind = Kind {
    program_type: needs::SCHED_CLS,
    attach_type: 0,
};
const TCX_EGRESS: u32 = 47;
/// The loopback interface of each network namespace.
const LOOPBACK: u32 = 1;
/// `ingress_ifindex` in `struct bpf_sk_lookup`.
const INGRESS_IFINDEX: i16 = 64;

const NEEDED: &[Use] = &[Way::Ebpf.needs(Weight::Required)];
const OPTIONAL: &[Use] = &[Way::Ebpf.needs(Weight::Optional)];

/// `programs` is the embedded object, if there is one; `load` loads it as a daemon would.
pub fn probe(programs: Option<&[u8]>, load: impl FnOnce() -> Result<(), String>) -> Vec<Finding> {
    let needs = match programs.map(needs::of) {
        Some(Ok(needs)) => needs,
        Some(Err(error)) => return vec![in_build(Err(error))],
        None => {
            return vec![in_build(Err(
                "build with `cargo xtask build-ebpf`".to_owned()
            ))];
        }
    };
    let mut found = hooks(&needs);
    found.extend(helpers(&needs));
    found.extend(maps(&needs));
    found.extend(links(&needs));
    found.push(Finding {
        group: Group::Links,
        name: "verifier's consent".to_owned(),
        ..finding("all programs together", load())
    });
    found
}

fn in_build(result: Result<(), String>) -> Finding {
    Finding {
        name: "eBPF programs in this build".to_owned(),
        ..finding("capture by eBPF", result)
    }
}

fn hooks(needs: &Needs) -> Vec<Finding> {
    let each = needs.hooks.keys().map(|kind| {
        let (name, purpose) = names::hook(*kind);
        Finding {
            name,
            ..finding(purpose, loads(*kind))
        }
    });
    each.collect()
}

/// One line for all hooks of a program type, since they have their helpers in common but for few.
fn helpers(needs: &Needs) -> Vec<Finding> {
    let mut callers: BTreeMap<(u32, u32), Vec<Kind>> = BTreeMap::new();
    for (kind, helpers) in &needs.hooks {
        for helper in helpers {
            let of_type = callers.entry((kind.program_type, *helper)).or_default();
            of_type.push(*kind);
        }
    }
    let loadable: BTreeSet<Kind> = needs
        .hooks
        .keys()
        .filter(|kind| loads(**kind).is_ok())
        .copied()
        .collect();
    let each = callers.into_iter().map(|((program_type, helper), kinds)| {
        let (name, purpose) = names::helper(helper);
        // Where the hook itself is missing, that is told already.
        let asked = kinds.iter().filter(|kind| loadable.contains(kind));
        let refused: Vec<(String, String)> = asked
            .filter_map(|kind| {
                let error = calls(*kind, helper).err()?;
                Some((names::hook(*kind).0, error))
            })
            .collect();
        let lost = names::lost_without(helper);
        Finding {
            group: Group::Helpers,
            name: format!("{name} in {}", names::program_type(program_type)),
            uses: lost.map_or(NEEDED, |_| OPTIONAL).to_vec(),
            without: lost.unwrap_or_default(),
            ..finding(purpose, all(refused, kinds.len()))
        }
    });
    each.collect()
}

/// The first error, with the hooks that it is about if these are not all.
fn all(refused: Vec<(String, String)>, asked: usize) -> Result<(), String> {
    let Some((_, error)) = refused.first() else {
        return Ok(());
    };
    let hooks: Vec<&str> = refused.iter().map(|(hook, _)| hook.as_str()).collect();
    Err(match hooks.len() == asked {
        true => error.clone(),
        false => format!("{error} (in {})", hooks.join(", ")),
    })
}

fn maps(needs: &Needs) -> Vec<Finding> {
    let known = needs.maps.iter().filter_map(|number| names::map(*number));
    let each = known.map(|(map, name, purpose)| {
        let result = match is_map_supported(map) {
            Ok(true) => Ok(()),
            Ok(false) => Err("not known to the kernel".to_owned()),
            Err(error) => Err(error.io_error.to_string()),
        };
        Finding {
            group: Group::Maps,
            name: format!("{name} map"),
            ..finding(purpose, result)
        }
    });
    each.collect()
}

/// Attaching, to a cgroup and a namespace of our own that are gone when this returns.
fn links(needs: &Needs) -> Vec<Finding> {
    let row = |name: &str, purpose: &str, result: Result<(), String>| Finding {
        group: Group::Links,
        name: name.to_owned(),
        ..finding(purpose, result)
    };
    let cookie = UnixDatagram::unbound().and_then(|socket| bpf::netns_cookie(socket.as_fd()));
    let mut found = vec![row(
        "SO_NETNS_COOKIE",
        "which namespace is a pod's",
        cookie.map(drop).map_err(|error| error.to_string()),
    )];
    let [linked, replaced, detached] = cgroup_link();
    found.push(row(
        "links to cgroups",
        "capture that outlives the daemon",
        linked,
    ));
    found.push(row(
        "replacing a link's program",
        "upgrades without a gap",
        replaced,
    ));
    found.push(Finding {
        uses: OPTIONAL.to_vec(),
        without: "letting go of a pod takes effect a moment later",
        ..row("detaching links", "letting go at once", detached)
    });
    let uses_type = |program_type| {
        let mut kinds = needs.hooks.keys();
        kinds.any(|kind| kind.program_type == program_type)
    };
    if uses_type(needs::SK_LOOKUP) {
        found.push(row("links to namespaces", "inbound", namespace_link()));
        found.push(Finding {
            uses: OPTIONAL.to_vec(),
            without: "arriving connections are told from the pod's own by their flow alone",
            ..row("ingress_ifindex in sk_lookup", "inbound", reads_ifindex())
        });
    }
    if uses_type(needs::SCHED_CLS) {
        let (tcx, clsact) = (tcx_link(), clsact());
        let either = match (&tcx, &clsact) {
            (Err(tcx), Err(clsact)) => Err(format!("tcx: {tcx}; clsact: {clsact}")),
            _ => Ok(()),
        };
        found.push(Finding {
            uses: OPTIONAL.to_vec(),
            without: "clsact is used in its place, which other programs can remove",
            ..row("tcx links", "leak guard, node mode", tcx)
        });
        found.push(row("tcx or clsact", "leak guard, node mode", either));
    }
    found
}

fn cgroup_link() -> [Result<(), String>; 3] {
    let mut steps = [const { None }; 3];
    let mut note = |step: usize, result: io::Result<()>| {
        let result = result.map_err(|error| error.to_string());
        steps[step] = Some(result);
    };
    let linked = || -> io::Result<(OwnedFd, OwnedFd)> {
        let scratch = Scratch::create().map_err(io::Error::other)?;
        let program = bpf_probe::load(CONNECT4, Does::Nothing).map_err(io::Error::other)?;
        let cgroup = File::open(scratch.path())?;
        let link = bpf_probe::link(program.as_fd(), fd(&cgroup), CONNECT4.attach_type)?;
        Ok((link, program))
    };
    match linked() {
        Ok((link, program)) => {
            note(0, Ok(()));
            note(1, bpf::replace_program(link.as_fd(), program.as_fd()));
            note(2, bpf::detach_now(link.as_fd()));
        }
        Err(error) => note(0, Err(error)),
    }
    steps
        .map(|step| step.unwrap_or_else(|| Err("without links there is nothing to try".to_owned())))
}

fn namespace_link() -> Result<(), String> {
    in_new_namespace(|| {
        let program = bpf_probe::load(SK_LOOKUP, Does::Nothing).map_err(io::Error::other)?;
        let own = File::open("/proc/thread-self/ns/net")?;
        bpf_probe::link(program.as_fd(), fd(&own), SK_LOOKUP.attach_type).map(drop)
    })
}

fn tcx_link() -> Result<(), String> {
    in_new_namespace(|| {
        let program = bpf_probe::load(SCHED_CLS, Does::Nothing).map_err(io::Error::other)?;
        bpf_probe::link(program.as_fd(), LOOPBACK, TCX_EGRESS).map(drop)
    })
}

fn clsact() -> Result<(), String> {
    in_new_namespace(|| aya::programs::tc::qdisc_add_clsact("lo").map_err(io::Error::other))
}

fn reads_ifindex() -> Result<(), String> {
    tried(bpf_probe::load(SK_LOOKUP, Does::Read(INGRESS_IFINDEX)))
}

fn in_new_namespace(f: impl FnOnce() -> io::Result<()> + Send) -> Result<(), String> {
    let result = netns::in_new(f).and_then(|result| result);
    result.map_err(|error| error.to_string())
}

fn loads(kind: Kind) -> Result<(), String> {
    tried(bpf_probe::load(kind, Does::Nothing))
}

/// What the verifier says of a call that has no fitting arguments tells whether it knows the helper there.
fn calls(kind: Kind, helper: u32) -> Result<(), String> {
    match bpf_probe::load(kind, Does::Call(helper)) {
        Err(refused) if is_unknown_helper(&refused) => Err("unknown to the kernel".to_owned()),
        Err(refused) if refused.log.is_empty() => Err(refused.error.to_string()),
        _ => Ok(()),
    }
}

/// The words of the verifier's `check_helper_call`, of this kernel and of older ones.
fn is_unknown_helper(refused: &Refused) -> bool {
    let words = [
        "invalid func ",
        "unknown func ",
        "program of this type cannot use helper ",
    ];
    words.iter().any(|words| refused.log.contains(words))
}

fn tried(result: Result<OwnedFd, Refused>) -> Result<(), String> {
    match result {
        Ok(_) => Ok(()),
        Err(refused) => Err(match refused.log.lines().find(|line| !line.is_empty()) {
            Some(line) => format!("{}: {line}", refused.error),
            None => refused.error.to_string(),
        }),
    }
}

fn fd(file: &File) -> u32 {
    file.as_raw_fd().cast_unsigned()
}

/// A finding that eBPF capture needs; its group and name are the caller's.
fn finding(needed_for: &str, result: Result<(), String>) -> Finding {
    Finding {
        group: Group::Hooks,
        name: String::new(),
        needed_for: needed_for.to_owned(),
        found: match result {
            Ok(()) => Found::Yes,
            Err(why) => Found::No(why),
        },
        uses: NEEDED.to_vec(),
        without: "",
    }
}
