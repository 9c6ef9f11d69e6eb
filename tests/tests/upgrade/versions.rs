//! Upgrade and downgrade to a daemon whose programs and maps are of another version: it replaces what is pinned, pod by pod.

use std::fs;

use redirect_common::ABI_VERSION;
use redirect_tests::{
    Daemon, DaemonSpec, PATIENCE, eventually,
    exchange::{Held, greeted},
    way::{Backend, Mode},
};
use serde_json::json;

use super::stage::{ECHO, GREETER, Load, mesh, next, wait_settled};

#[track_caller]
fn versions_replace_each_other(mode: Mode) {
    let (mut mesh, _servers) = mesh(Backend::Ebpf, mode, "30s");
    let held: Vec<_> = [mesh.server.at(GREETER), mesh.server.at6(GREETER)]
        .map(|dst| Held::open(&mesh.client, dst))
        .into();
    let mut held = held;
    let load = Load::start(&mesh.client, &[mesh.server.at(ECHO), mesh.server.at6(ECHO)]);
    for (generation, abi) in [(2, ABI_VERSION + 1), (3, ABI_VERSION)] {
        for daemon in [&mut mesh.daemon_a, &mut mesh.daemon_b] {
            let next = of_version(next(daemon, generation), abi).start();
            let mut old = std::mem::replace(daemon, next);
            for connection in &mut held {
                connection.echo("still here").expect("it may go on");
            }
            held.drain(..).for_each(Held::close);
            wait_settled(&mut old, daemon);
            only(daemon, abi);
            held = vec![Held::open(&mesh.client, mesh.server.at(GREETER))];
        }
    }
    let (ok, errors) = load.end();
    assert_eq!(errors, "{}", "beside {ok} connections without an error");
    greeted(&mesh.client, mesh.server.at(GREETER), &[]);
    assert_eq!(mesh.wall.leaked(), 0);
}

fn of_version(spec: DaemonSpec, abi: u32) -> DaemonSpec {
    spec.config(json!({ "capture": { "abi": abi } }))
}

/// Nothing of another version is left, soon.
#[track_caller]
fn only(daemon: &Daemon, abi: u32) {
    eventually(&format!("only pins of version {abi}"), PATIENCE, || {
        let versions = versions(daemon);
        match versions == [format!("v{abi}")] {
            true => Ok(()),
            false => Err(versions.join(", ")),
        }
    });
}

/// Of which there are pins.
fn versions(daemon: &Daemon) -> Vec<String> {
    let ours = daemon.spec().bpffs().join("redirect");
    let entries = fs::read_dir(ours).expect("pins");
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    entries
        .map(|entry| name(entry.expect("an entry")))
        .collect()
}

#[test]
fn versions_replace_each_other_in_pods() {
    versions_replace_each_other(Mode::Shared);
}

#[test]
fn versions_replace_each_other_on_the_node() {
    versions_replace_each_other(Mode::Node);
}

/// Without a daemon in between: what is pinned holds connections back until the other version's programs are there.
#[test]
fn a_restart_with_another_version_replaces_what_is_pinned() {
    let (mut mesh, _servers) = mesh(Backend::Ebpf, Mode::Shared, "5s");
    for abi in [ABI_VERSION + 1, ABI_VERSION] {
        mesh.daemon_a.sigkill();
        redirect_tests::exchange::refused(&mesh.client, mesh.server.at(GREETER));
        mesh.daemon_a = of_version(mesh.daemon_a.spec().clone(), abi).start();
        greeted(&mesh.client, mesh.server.at(GREETER), &[]);
        only(&mesh.daemon_a, abi);
    }
    assert_eq!(mesh.wall.leaked(), 0);
}
