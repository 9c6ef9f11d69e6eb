//! What somebody else changed in the kernel is as it should be again, and nobody has to say anything.

use std::{fs, os::fd::AsFd, path::PathBuf, time::Duration};

use redirect::sys::bpf;
use redirect_tests::{Pod, cgroup, eventually};

use crate::stage::{Fate, Stage};

const SOON: Duration = Duration::from_secs(20);

fn becomes_captured(stage: &Stage, client: &Pod) {
    eventually("captured again", SOON, || match stage.fate_of(client) {
        Fate::Captured => Ok(()),
        fate => Err(format!("{fate:?}")),
    });
}

/// The pinned links of the client.
fn links(stage: &Stage) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![stage.daemon.spec().bpffs()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("readable").flatten() {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path if path.to_string_lossy().contains("/pods/") => found.push(path),
                _ => {}
            }
        }
    }
    found
}

#[test]
fn links_that_were_detached_or_unpinned() {
    let stage = Stage::set();
    stage.add(&stage.client, &[]);
    assert!(links(&stage).len() > 10, "{:?}", links(&stage));
    for name in ["connect4", "sk_lookup", "sock_ops"] {
        for is_unpinned in [false, true] {
            let repairs = repaired(&stage);
            let named = |path: &&PathBuf| path.file_name().is_some_and(|file| file == name);
            let pin = links(&stage).iter().find(named).expect(name).clone();
            bpf::detach(bpf::open_link(&pin).expect("a link").as_fd()).expect("detached");
            if is_unpinned {
                fs::remove_file(&pin).expect("removed");
            }
            eventually(&format!("{name} is repaired"), SOON, || {
                match repaired(&stage) > repairs {
                    true => Ok(()),
                    false => Err("not counted"),
                }
            });
            assert_eq!(
                stage.fate(),
                Fate::Captured,
                "{name}, unpinned: {is_unpinned}"
            );
        }
    }
}

fn repaired(stage: &Stage) -> f64 {
    let metrics = stage.daemon.metrics();
    metrics.sum("redirect_capture_repairs_total", &[])
}

#[test]
fn routes_and_sysctls_that_were_reset() {
    let stage = Stage::set();
    stage.add(&stage.client, &[]);
    let before = stage.state_of(&stage.client);
    let sysctl = "net.ipv4.tcp_fwmark_accept";
    stage.client.sysctl(sysctl, "0");
    stage.client.ip("route flush table 100\n");
    stage
        .client
        .ip("route del local 127.128.0.0/10 dev lo table local\n");
    eventually("as it was", SOON, || {
        let differences = before.differences(&stage.state_of(&stage.client));
        match differences.is_empty() {
            true => Ok(()),
            false => Err(differences.join("; ")),
        }
    });
    assert_eq!(stage.fate(), Fate::Captured);
}

#[test]
fn a_cgroup_that_was_made_anew() {
    let stage = Stage::set();
    stage.add(&stage.client, &[]);
    assert_eq!(stage.fate(), Fate::Captured);
    let path = stage.client.cgroup();
    cgroup::kill_all(&path).expect("killed");
    eventually("the cgroup is gone", SOON, || cgroup::remove(&path));
    fs::create_dir_all(stage.client.container("app")).expect("made anew");
    becomes_captured(&stage, &stage.client);
    assert_eq!(stage.list().len(), 1);
}

#[test]
fn a_pod_that_is_somewhere_else_under_the_same_uid() {
    let stage = Stage::set();
    let moved = stage.node.pod("moved");
    let before = stage.state_of(&stage.client);
    stage.add(&stage.client, &["--uid", "b5c0"]);
    assert_eq!(stage.fate(), Fate::Captured);
    stage.add(&moved, &["--uid", "b5c0"]);
    assert_eq!(stage.fate_of(&moved), Fate::Captured);
    assert_eq!(stage.fate(), Fate::Direct);
    assert_eq!(stage.list().len(), 1);
    let left = before.differences(&stage.state_of(&stage.client));
    assert_eq!(left, Vec::<String>::new());
}
