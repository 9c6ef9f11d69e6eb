//! Daemons that fail or are killed while one takes over from the other.

use std::{path::Path, thread, time::Duration};

use redirect_tests::{
    Daemon, Mesh, PATIENCE, eventually,
    exchange::{Held, greeted},
    state::State,
    way::{Backend, Mode},
};
use serde_json::json;

use super::stage::{ECHO, GREETER, Load, mesh, next, take_over, wait_settled};

#[test]
fn a_second_daemon_is_refused_clearly() {
    let (mesh, _servers) = mesh(Backend::Ebpf, Mode::Shared, "5s");
    let mut second = mesh.daemon_a.spec().clone().in_cgroup("redirect-2").spawn();
    assert_eq!(second.wait().code(), Some(1));
    let said = second.log().join("\n");
    let pid = format!("another daemon (pid {})", mesh.daemon_a.pid());
    assert!(
        said.contains(&pid) && said.contains("--take-over"),
        "{said}"
    );
    greeted(&mesh.client, mesh.server.at(GREETER), &[]);
}

#[test]
fn without_a_daemon_there_is_nothing_to_take_over() {
    let (mut mesh, _servers) = mesh(Backend::Ebpf, Mode::Shared, "5s");
    mesh.daemon_a.sigkill();
    mesh.daemon_a = next(&mesh.daemon_a, 2).start();
    greeted(&mesh.client, mesh.server.at(GREETER), &[]);
}

#[test]
fn another_backend_does_not_take_over() {
    let (mesh, _servers) = mesh(Backend::Ebpf, Mode::Shared, "5s");
    let load = Load::start(&mesh.client, &[mesh.server.at(ECHO)]);
    let spec = next(&mesh.daemon_a, 2).config(Backend::Nftables.config());
    let mut other = spec.spawn();
    assert_eq!(other.wait().code(), Some(1));
    let said = other.log().join("\n");
    assert!(
        said.contains("captures by ebpf") && said.contains("this one by nftables"),
        "{said}"
    );
    goes_on(&mesh.daemon_a);
    assert_eq!(load.end().1, "{}");
}

#[track_caller]
fn goes_on(daemon: &Daemon) {
    daemon.wait_log("line that says that it goes on", |line| {
        line.contains("this one goes on")
    });
}

/// The one that runs goes on with all it has, whatever the other did before it failed.
#[track_caller]
fn a_successor_that_fails_changes_nothing(backend: Backend, mode: Mode) {
    let (mut mesh, _servers) = mesh(backend, mode, "5s");
    let mut held = Held::open(&mesh.client, mesh.server.at(GREETER));
    let load = Load::start(&mesh.client, &[mesh.server.at(ECHO), mesh.server.at6(ECHO)]);
    // It captures nothing of what it wants.
    let nowhere = json!({
        "name": "nowhere", "namespace": "default", "serviceAccount": "default",
        "netns": "/run/netns/rdt-nowhere", "cgroup": mesh.client.cgroup(), "ips": ["10.255.0.1"],
    });
    let spec = next(&mesh.daemon_a, 2).without_pods().raw_pod(nowhere);
    let mut failing = spec.spawn();
    assert_eq!(failing.wait().code(), Some(1));
    let said = failing.log().join("\n");
    assert!(said.contains("not taking over"), "{said}");
    goes_on(&mesh.daemon_a);
    held.echo("as before").expect("the connection goes on");
    let mut old = take_over(&mut mesh.daemon_a, 3);
    held.close();
    wait_settled(&mut old, &mesh.daemon_a);
    let (ok, errors) = load.end();
    assert_eq!(errors, "{}", "beside {ok} connections without an error");
    assert_eq!(mesh.wall.leaked(), 0);
}

#[test]
fn a_successor_that_fails_changes_nothing_ebpf() {
    a_successor_that_fails_changes_nothing(Backend::Ebpf, Mode::Shared);
}

#[test]
fn a_successor_that_fails_changes_nothing_nftables() {
    a_successor_that_fails_changes_nothing(Backend::Nftables, Mode::Shared);
}

/// Killed at moments from its start to some time after it has taken over.
#[track_caller]
fn successors_are_killed(backend: Backend) {
    let (mut mesh, _servers) = mesh(backend, Mode::Shared, "1s");
    let mut generation = 2;
    for delay in [0, 20, 40, 60, 80, 100, 130, 160, 200, 250, 300, 400, 600] {
        let mut killed = next(&mesh.daemon_a, generation).spawn();
        generation += 1;
        thread::sleep(Duration::from_millis(delay));
        killed.sigkill();
        if has_taken_over(&mesh.daemon_a) {
            // Nobody is left: the next one starts as after any crash, also beside the one that drains.
            mesh.daemon_a = next(&mesh.daemon_a, generation).start();
            generation += 1;
        }
        serves(&mesh, delay);
    }
    assert_eq!(mesh.wall.leaked(), 0);
}

/// How it ended for the one that runs, as far as it began.
#[track_caller]
fn has_taken_over(daemon: &Daemon) -> bool {
    eventually("what became of a take-over", PATIENCE, || {
        let log = daemon.log();
        let count = |text| log.iter().filter(|line| line.contains(text)).count();
        if count("has taken over") > 0 {
            return Ok(true);
        }
        match count("is taking over") == count("this one goes on") {
            true => Ok(false),
            false => Err("it is not known yet"),
        }
    })
}

/// Within a moment: what the killed one had in its queue is lost.
#[track_caller]
fn serves(mesh: &Mesh, delay: u64) {
    let what = format!("a connection after a kill at {delay} ms");
    eventually(&what, PATIENCE, || {
        let dst = mesh.server.at(GREETER).to_string();
        let mut app = mesh.client.app(["connect", &dst, "recv-line"]);
        match app.wait().success() && app.events("received").len() == 1 {
            true => Ok(()),
            false => Err("refused"),
        }
    });
}

#[test]
fn successors_are_killed_at_any_moment_ebpf() {
    successors_are_killed(Backend::Ebpf);
}

#[test]
fn successors_are_killed_at_any_moment_nftables() {
    successors_are_killed(Backend::Nftables);
}

/// The predecessor is killed at moments from the beginning of the take-over to after it.
#[track_caller]
fn predecessors_are_killed(backend: Backend) {
    let (mut mesh, _servers) = mesh(backend, Mode::Shared, "5s");
    for (generation, delay) in [10, 30, 60, 90, 120, 160, 220, 400].into_iter().enumerate() {
        let new = next(&mesh.daemon_a, generation + 2).spawn();
        thread::sleep(Duration::from_millis(delay));
        mesh.daemon_a.sigkill();
        new.wait_ready();
        mesh.daemon_a = new;
        serves(&mesh, delay);
        greeted(&mesh.client, mesh.server.at6(GREETER), &[]);
    }
    assert_eq!(mesh.wall.leaked(), 0);
}

#[test]
fn predecessors_are_killed_at_any_moment_ebpf() {
    predecessors_are_killed(Backend::Ebpf);
}

#[test]
fn predecessors_are_killed_at_any_moment_nftables() {
    predecessors_are_killed(Backend::Nftables);
}

/// Both are killed in the midst: `uninstall` leaves the node as it was.
#[test]
fn uninstall_after_a_crash_in_the_midst() {
    for backend in [Backend::Ebpf, Backend::Nftables] {
        let bed = redirect_tests::Testbed::new();
        let node = bed.node("a");
        let pod = node.pod("client");
        bed.workloads().hbone(&pod).write();
        let cgroups = [pod.cgroup()];
        let before = State::of(pod.netns(), &cgroups);
        for delay in [20, 60, 100, 150, 250] {
            let spec = node.daemon().capture(&pod).config(backend.config());
            let mut old = spec.start();
            let mut new = next(&old, 2).spawn();
            thread::sleep(Duration::from_millis(delay));
            old.sigkill();
            new.sigkill();
            spec.uninstall();
            let after = State::of(pod.netns(), &cgroups);
            let differences = before.differences(&after);
            assert!(
                differences.is_empty(),
                "{backend}, {delay} ms: {differences:#?}"
            );
            assert!(is_gone(&spec.state_dir()), "{backend}, {delay} ms");
        }
    }
}

fn is_gone(state_dir: &Path) -> bool {
    !state_dir.exists()
}
