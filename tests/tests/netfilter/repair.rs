//! Capture that something else took away comes back by itself.

use redirect_tests::{
    Daemon, Pod, Testbed,
    exchange::{greeted, greeter},
};
use serde_json::json;

use crate::state;

/// Backend, variant, and what a firewall's reload does with each.
const WAYS: [(&str, &str, &str); 3] = [
    (
        "iptables",
        "nft",
        "for p in iptables-nft ip6tables-nft; do $p -t nat -F OUTPUT; $p -t nat -F REDIRECT_OUTPUT; done",
    ),
    (
        "iptables",
        "legacy",
        "for p in iptables-legacy ip6tables-legacy; do $p -t nat -I OUTPUT 1 -p tcp -j ACCEPT; done",
    ),
    ("nftables", "auto", "nft flush ruleset"),
];

fn is_captured(client: &Pod, server: &redirect_tests::App, outside: &Pod) -> bool {
    let connected = greeted(client, outside.at(8080), &[]);
    server.event("accepted").addr("peer").port() != connected.addr("sockname").port()
}

fn repaired(daemon: &Daemon) -> f64 {
    daemon.metrics().sum("redirect_capture_repairs_total", &[])
}

#[test]
fn rules_that_a_firewall_flushed_or_moved_come_back() {
    for (backend, iptables, tampering) in WAYS {
        let bed = Testbed::new();
        let node = bed.node("a");
        let (client, outside) = (node.pod("client"), node.pod("outside"));
        bed.workloads().hbone(&client).write();
        let server = greeter(&outside, 8080);
        let daemon = node
            .daemon()
            .capture(&client)
            .config(json!({ "capture": {
                "backend": backend, "iptables": iptables, "verifyInterval": "200ms",
            } }))
            .start();
        let told = format!("{backend} {iptables}");
        assert!(is_captured(&client, &server, &outside), "{told}");
        assert_eq!(repaired(&daemon), 0.0, "{told}");
        for round in 1..=2 {
            let line = daemon.process().line_count();
            state::run(client.netns(), tampering);
            let log = daemon.wait_log_from(line, "repair", |line| {
                line.contains("again as it was applied")
            });
            assert!(log.contains(client.name()), "{told}: {log}");
            assert!(is_captured(&client, &server, &outside), "{told}");
            assert_eq!(repaired(&daemon), f64::from(round), "{told}");
        }
    }
}

#[test]
fn a_hangup_looks_after_all_pods_at_once() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let (client, outside) = (node.pod("client"), node.pod("outside"));
    bed.workloads().hbone(&client).write();
    let server = greeter(&outside, 8080);
    let daemon = node
        .daemon()
        .capture(&client)
        .config(json!({ "capture": { "backend": "nftables", "verifyInterval": "1h" } }))
        .start();
    state::run(client.netns(), "nft delete table inet redirect-nat");
    assert!(!is_captured(&client, &server, &outside));
    daemon.process().signal(nix::sys::signal::Signal::SIGHUP);
    let log = daemon.wait_log("repair", |line| line.contains("again as it was applied"));
    assert!(log.contains("redirect-nat is missing"), "{log}");
    assert!(is_captured(&client, &server, &outside));
}

#[test]
fn routes_for_clients_addresses_come_back() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let client = node.pod("client");
    bed.workloads().hbone(&client).write();
    let daemon = node
        .daemon()
        .capture(&client)
        .config(json!({ "capture": { "backend": "nftables", "verifyInterval": "200ms" } }))
        .start();
    let list = || {
        state::run(
            client.netns(),
            "ip rule; ip route show table 100; ip -6 rule",
        )
    };
    let before = list();
    for tampering in [
        "ip rule del pref 32764",
        "ip route flush table 100",
        "ip -6 rule del pref 32764",
    ] {
        let line = daemon.process().line_count();
        state::run(client.netns(), tampering);
        daemon.wait_log_from(line, "repair", |line| line.contains("clients' addresses"));
        assert_eq!(list(), before, "{tampering}");
    }
}

#[test]
fn routes_of_ebpf_capture_come_back() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let client = node.pod("client");
    bed.workloads().hbone(&client).write();
    let daemon = node
        .daemon()
        .capture(&client)
        .config(json!({ "capture": { "verifyInterval": "200ms" } }))
        .start();
    let list = || {
        state::run(
            client.netns(),
            "ip route show table local proto 114; ip -6 route show table local proto 114",
        )
    };
    let before = list();
    assert!(before.contains("127.128.0.0/10"), "{before}");
    for tampering in [
        "ip route flush table local proto 114",
        "ip -6 route flush table local proto 114",
    ] {
        let line = daemon.process().line_count();
        state::run(client.netns(), tampering);
        daemon.wait_log_from(line, "repair", |line| line.contains("targets was missing"));
        assert_eq!(list(), before, "{tampering}");
    }
}

#[test]
fn what_cannot_be_repaired_is_told_and_counted() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let client = node.pod("client");
    bed.workloads().hbone(&client).write();
    let daemon = node
        .daemon()
        .capture(&client)
        .config(json!({ "capture": {
            "backend": "iptables", "iptables": "nft", "verifyInterval": "200ms",
        } }))
        .start();
    // Rules of nft's own in the place of iptables-nft's.
    state::run(
        client.netns(),
        "nft 'flush ruleset; table ip nat { chain OUTPUT { type nat hook output priority -50; meta mark 1 accept; }; }'",
    );
    let log = daemon.wait_log("a reason", |line| line.contains("it cannot be repaired"));
    assert!(log.contains("nftables backend"), "{log}");
    assert!(
        daemon
            .metrics()
            .sum("redirect_capture_repairs_failed_total", &[])
            >= 1.0
    );
}

#[test]
fn pods_that_may_go_on_without_a_proxy_are_let_go_at_an_orderly_end() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let (client, outside) = (node.pod("client"), node.pod("outside"));
    bed.workloads().hbone(&client).write();
    let server = greeter(&outside, 8080);
    let mut daemon = node
        .daemon()
        .capture_with(&client, json!({ "onProxyFailure": "pass" }))
        .config(json!({ "capture": { "backend": "nftables" } }))
        .start();
    assert!(is_captured(&client, &server, &outside));
    assert!(daemon.stop().success());
    assert!(!is_captured(&client, &server, &outside));
    let _daemon = daemon.spec().start();
    assert!(is_captured(&client, &server, &outside));
}
