//! Finding and removing what testbeds made: the same code serves `Drop`, the sweep at start and the final check.

use std::{collections::BTreeSet, env, fs, path::PathBuf, process::Command, time::Duration};

use nix::mount::{MntFlags, umount2};

use crate::{cgroup, namespace, run_id::RunId, wait::wait_until};

/// What there is of testbeds whose maker is dead, one line each.
pub fn stale() -> Vec<String> {
    let mut found = Vec::new();
    for id in ids().into_iter().filter(|id| !id.is_alive()) {
        found.extend(
            namespaces(&id)
                .into_iter()
                .map(|name| format!("network namespace {name}")),
        );
        found.extend(
            mounts(&id)
                .into_iter()
                .map(|path| format!("mount {}", path.display())),
        );
        for path in [cgroup_root(&id), directory(&id)] {
            if path.exists() {
                found.push(format!("directory {}", path.display()));
            }
        }
    }
    found
}

/// BPF programs with our names that nothing accounts for. While any testbed, daemon or pin of one is there, they may belong
/// to it: none then.
pub fn orphan_programs() -> Vec<String> {
    let accounted = || ids().iter().any(RunId::is_alive) || a_daemon_runs() || pins_exist();
    let mut found = Vec::new();
    // The kernel frees programs a moment after their last link is gone.
    let _ = wait_until(Duration::from_secs(10), || {
        found = programs();
        found.is_empty() || accounted()
    });
    if accounted() { Vec::new() } else { found }
}

fn programs() -> Vec<String> {
    let output = Command::new("bpftool")
        .args(["-j", "prog", "show"])
        .output();
    let output = output.expect("bpftool is installed (`cargo xtask setup`)");
    let programs: Vec<serde_json::Value> =
        serde_json::from_slice(&output.stdout).expect("bpftool writes JSON");
    let named = programs
        .iter()
        .filter_map(|program| Some((program["name"].as_str()?, &program["id"])));
    let ours = named.filter(|(name, _)| name.starts_with("rdr_"));
    ours.map(|(name, id)| format!("BPF program {id} {name}"))
        .collect()
}

fn a_daemon_runs() -> bool {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path().join("comm"))
        .any(|comm| fs::read_to_string(comm).is_ok_and(|c| c == "redirect\n"))
}

/// Whether any bpffs holds the folder in which a daemon pins.
fn pins_exist() -> bool {
    let table = redirect::sys::mountinfo::read().expect("mountinfo is readable");
    let bpffs = table.lines().filter(|line| line.contains(" - bpf "));
    bpffs
        .filter_map(|line| line.split(' ').nth(4))
        .any(|point| PathBuf::from(point).join("redirect").exists())
}

/// What capture would leave in the machine's own network namespace, where no test may capture anything: rules, routing rules
/// and programs with our names.
pub fn in_own_namespace() -> Vec<String> {
    let mut found = Vec::new();
    for (command, marks) in [
        ("nft list tables", &["redirect"][..]),
        ("iptables-nft-save", &["REDIRECT_", "ISTIO_"]),
        ("ip6tables-nft-save", &["REDIRECT_", "ISTIO_"]),
        ("iptables-legacy-save", &["REDIRECT_", "ISTIO_"]),
        ("ip6tables-legacy-save", &["REDIRECT_", "ISTIO_"]),
        ("ip rule", &["fwmark 0x111/0xfff"]),
        ("ip -6 rule", &["fwmark 0x111/0xfff"]),
        ("bpftool net show", &["rdr_"]),
    ] {
        let (program, args) = command.split_once(' ').unwrap_or((command, ""));
        // Where a program is not there, it has made nothing.
        let Ok(output) = Command::new(program).args(args.split_whitespace()).output() else {
            continue;
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let ours = text
            .lines()
            .filter(|line| marks.iter().any(|mark| line.contains(mark)));
        found.extend(ours.map(|line| format!("{command}: {}", line.trim())));
    }
    found
}

/// Removes everything of dead makers; returns what could not be removed.
pub fn sweep() -> Vec<String> {
    ids()
        .into_iter()
        .filter(|id| !id.is_alive())
        .flat_map(|id| remove(&id))
        .collect()
}

/// Removes everything of `id`: processes, then mounts with their pins, cgroups, namespaces, files. Goes on after an error;
/// returns what failed.
pub fn remove(id: &RunId) -> Vec<String> {
    let mut failed = Vec::new();
    let mut note = |what: String, result: Result<(), String>| {
        if let Err(error) = result {
            failed.push(format!("{what}: {error}"));
        }
    };
    let root = cgroup_root(id);
    if root.exists() {
        note(
            format!("kill processes in {}", root.display()),
            cgroup::kill_all(&root).map_err(|e| e.to_string()),
        );
    }
    for path in mounts(id).into_iter().rev() {
        let unmounted = umount2(&path, MntFlags::MNT_DETACH).map_err(|e| e.to_string());
        note(format!("unmount {}", path.display()), unmounted);
    }
    if root.exists() {
        note(
            format!("remove cgroup {}", root.display()),
            cgroup::remove(&root).map_err(|e| e.to_string()),
        );
    }
    for name in namespaces(id) {
        let deleted = namespace::delete(&name);
        note(format!("delete namespace {name}"), deleted);
    }
    let directory = directory(id);
    if directory.exists() {
        let removed = fs::remove_dir_all(&directory).map_err(|e| e.to_string());
        note(format!("remove {}", directory.display()), removed);
    }
    failed
}

/// The cgroup that holds all processes of a testbed.
pub fn cgroup_root(id: &RunId) -> PathBuf {
    cgroup::mount_point().join(id.as_str())
}

/// The directory of a testbed's files.
pub fn directory(id: &RunId) -> PathBuf {
    env::temp_dir().join(id.as_str())
}

fn ids() -> BTreeSet<RunId> {
    let in_dir = |dir: PathBuf| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect::<Vec<_>>()
    };
    let mut names = namespace::names();
    names.extend(in_dir(cgroup::mount_point()));
    names.extend(in_dir(env::temp_dir()));
    names.iter().filter_map(|name| RunId::of(name)).collect()
}

fn namespaces(id: &RunId) -> Vec<String> {
    namespace::names()
        .into_iter()
        .filter(|name| RunId::of(name).as_ref() == Some(id))
        .collect()
}

/// Mounts below the testbed's directory, in the order in which they were made.
fn mounts(id: &RunId) -> Vec<PathBuf> {
    let directory = directory(id);
    let table = redirect::sys::mountinfo::read().expect("mountinfo is readable");
    let points = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from);
    points
        .filter(|point| point.starts_with(&directory))
        .collect()
}
