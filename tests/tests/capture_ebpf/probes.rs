//! Whoever probes a captured pod reaches its app, at declared ports, and nobody else does.

use std::{
    fs,
    path::{Path, PathBuf},
};

use redirect::pod::PodOptions;
use redirect_tests::{App, Process, Testbed, app_binary, wait_until};
use serde_json::json;

use crate::{
    fixture::{Fixture, PATIENCE, load_with, pins},
    inbound::{both, expect_app, expect_captured, expect_refused, greeter},
};

/// The fixture with a cgroup for the prober, like kubelet's in the node's own namespace.
fn fixture(probe_ports: Option<Vec<u16>>) -> (Fixture, PathBuf) {
    let mut fixture = Fixture::with(|_, _| PodOptions {
        probe_ports,
        ..PodOptions::default()
    });
    let kubelet = fixture.client.node().cgroup().join("kubelet");
    fs::create_dir_all(kubelet.join("below")).expect("make the prober's cgroup");
    reload(&mut fixture, vec![kubelet.clone()]);
    (fixture, kubelet)
}

/// As when the daemon is started again with another configuration.
fn reload(fixture: &mut Fixture, probers: Vec<PathBuf>) {
    fixture.capture = None;
    fixture.capture = Some(load_with(&fixture.bpffs, &fixture.proxy_cgroup, probers));
    fixture.apply();
}

/// Connects from the node's namespace, in a cgroup.
fn probe(fixture: &Fixture, cgroup: &Path, target: std::net::SocketAddr) -> App {
    let node = fixture.client.node();
    let mut command = node.command_in(cgroup, app_binary());
    command.args(["connect", &target.to_string(), "recv-line"]);
    App::new(Process::spawn("prober", command))
}

#[test]
fn the_prober_reaches_the_app_and_its_neighbours_do_not() {
    let (fixture, kubelet) = fixture(None);
    let _app = greeter(&fixture, 8080);
    let node = fixture.client.node().cgroup();
    for (target, _) in both(&fixture, 8080) {
        expect_app(&probe(&fixture, &kubelet, target));
        expect_app(&probe(&fixture, &kubelet.join("below"), target));
        // The same addresses, another cgroup.
        let from = probe(&fixture, &node.join("host"), target);
        let gateway = match target.is_ipv4() {
            true => "10.244.1.1",
            false => "fd00:10:244:1::1",
        };
        expect_captured(&from, target, gateway.parse().expect("an address"));
    }
    assert_eq!(
        (fixture.count("registered"), fixture.count("probe")),
        (4, 4)
    );
    assert!(wait_until(PATIENCE, || fixture.entries("rdr_pass") == 0));
}

#[test]
fn only_declared_ports_can_be_probed() {
    let (mut fixture, kubelet) = fixture(Some(vec![8081]));
    let _apps = (greeter(&fixture, 8080), greeter(&fixture, 8081));
    for (target, _) in both(&fixture, 8081) {
        expect_app(&probe(&fixture, &kubelet, target));
    }
    for (target, _) in both(&fixture, 8080) {
        let source = probe(&fixture, &kubelet, target);
        let answer = crate::fixture::Answer::parse(source.event("received").text());
        assert_eq!(answer.local, target);
    }
    assert_eq!(fixture.count("no_probe_port"), 2);
    // Our own ports are not for probing, whatever is declared.
    fixture.options.probe_ports = None;
    fixture.apply();
    for (target, _) in both(&fixture, 15_006) {
        expect_refused(&probe(&fixture, &kubelet, target));
    }
}

#[test]
fn a_probe_of_a_closed_port_fails_and_leaves_nothing() {
    let (fixture, kubelet) = fixture(None);
    for (target, _) in both(&fixture, 9) {
        expect_refused(&probe(&fixture, &kubelet, target));
    }
    assert!(wait_until(PATIENCE, || fixture.entries("rdr_pass") == 0));
}

#[test]
fn programs_follow_the_configuration() {
    let (mut fixture, kubelet) = fixture(None);
    let _app = greeter(&fixture, 8080);
    let folder = pins(&fixture.bpffs).join("prober");
    let count = || fs::read_dir(&folder).expect("readable").count();
    assert_eq!(count(), 1);
    let other = kubelet.with_file_name("kubelet-2");
    fs::create_dir(&other).expect("make a cgroup");
    reload(&mut fixture, vec![other.clone()]);
    assert_eq!(count(), 1);
    let target = fixture.client.at(8080);
    expect_app(&probe(&fixture, &other, target));
    let gateway = "10.244.1.1".parse().expect("an address");
    expect_captured(&probe(&fixture, &kubelet, target), target, gateway);
    reload(&mut fixture, Vec::new());
    assert_eq!(count(), 0);
    expect_captured(&probe(&fixture, &other, target), target, gateway);
    // Pods and probers are let go of together.
    reload(&mut fixture, vec![other]);
    fixture.stop_listening();
    fixture.capture = None;
    assert_eq!(
        redirect::capture::uninstall(&fixture.bpffs).expect("uninstall"),
        40
    );
}

/// A service that is started anew runs in a new cgroup of the same name.
#[test]
fn a_prober_that_is_started_anew_is_found_again() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let pod = node.pod("client");
    let kubelet = node.cgroup().join("kubelet");
    fs::create_dir_all(&kubelet).expect("make the prober's cgroup");
    bed.workloads().hbone(&pod).write();
    let daemon = node
        .daemon()
        .capture(&pod)
        .config(json!({ "capture": { "probes": { "cgroups": [kubelet] } } }))
        .start();
    let app = pod.app(["serve", "--listen", "[::]:8080", "--mode", "greet"]);
    app.event("listening");
    let probe = || {
        let mut command = node.command_in(&kubelet, app_binary());
        command.args(["connect", &pod.at(8080).to_string(), "recv-line"]);
        expect_app(&App::new(Process::spawn("prober", command)));
    };
    let registered = || {
        daemon.metrics().sum(
            "redirect_capture_verdicts_total",
            &[("hook", "prober"), ("reason", "registered")],
        )
    };
    probe();
    assert!(wait_until(PATIENCE, || registered() == 1.0));
    let lines = daemon.process().line_count();
    assert!(
        wait_until(PATIENCE, || fs::remove_dir(&kubelet).is_ok()),
        "the prober's processes stay"
    );
    fs::create_dir(&kubelet).expect("make the cgroup anew");
    daemon.wait_log_from(lines, "word of the new cgroup", |line| {
        line.contains("ports that are declared for probes pass")
    });
    probe();
    assert!(wait_until(PATIENCE, || registered() == 2.0));
}
