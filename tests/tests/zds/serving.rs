//! Our capture for a proxy that is not ours, from end to end: netfilter redirects, the other proxy carries.

use std::path::PathBuf;

use redirect_tests::{
    Daemon, Node, Pod, Testbed, eventually,
    exchange::{greeted, greeter, refused},
    process::PATIENCE,
    state::State,
};
use serde_json::json;

use crate::proxy::Proxy;

const WAYS: [(&str, &str); 3] = [
    ("iptables", "nft"),
    ("iptables", "legacy"),
    ("nftables", "auto"),
];

fn socket(node: &Node) -> PathBuf {
    node.directory().join("ztunnel.sock")
}

/// A daemon that captures `pod` for the proxy at its socket.
fn daemon(node: &Node, pod: &Pod, backend: &str, iptables: &str) -> Daemon {
    node.daemon()
        .config(json!({
            "capture": { "backend": backend, "iptables": iptables, "verifyInterval": "100ms" },
            "agent": { "zds": { "serve": socket(node) } },
            "dns": { "enabled": false },
        }))
        .capture(pod)
        .spawn()
}

fn wait_captured(daemon: &Daemon) {
    daemon.wait_log("line that says that the pod is captured", |line| {
        line.contains("steps: captured")
    });
}

#[test]
fn a_proxy_that_marks_its_sockets_carries_what_we_capture_and_speaks_as_the_client() {
    for (backend, iptables) in WAYS {
        let bed = Testbed::new();
        let node = bed.node("a");
        let (pod, other) = (node.pod("pod"), node.pod("other"));
        bed.workloads().write();
        let before = State::of(pod.netns(), &[]);
        let mut daemon = daemon(&node, &pod, backend, iptables);
        let proxy = Proxy::start(&socket(&node));
        wait_captured(&daemon);
        let (inside, outside) = (greeter(&pod, 8080), greeter(&other, 8080));
        for (dst, own) in [(other.at(8080), pod.ipv4()), (other.at6(8080), pod.ipv6())] {
            let connected = greeted(&pod, dst, &[]);
            let accepted = outside.event("accepted");
            assert_eq!(connected.addr("sockname").ip(), own, "{backend}");
            assert_eq!(accepted.addr("peer").ip(), own, "{backend}");
            assert_ne!(
                accepted.addr("peer"),
                connected.addr("sockname"),
                "{backend} {iptables}: a direct connection"
            );
        }
        for dst in [pod.at(8080), pod.at6(8080)] {
            let connected = greeted(&other, dst, &[]);
            let (client, accepted) = (connected.addr("sockname"), inside.event("accepted"));
            assert_eq!(accepted.addr("peer").ip(), client.ip(), "{backend}");
            assert_ne!(
                accepted.addr("peer").port(),
                client.port(),
                "{backend} {iptables}: a direct connection"
            );
            assert_eq!(accepted.addr("local"), dst, "{backend}");
        }
        // Without its proxy the pod is closed, and its state says why.
        let from = daemon.process().line_count();
        drop(proxy);
        refused(&pod, other.at(8080));
        daemon.wait_log_from(from, "line that says that no proxy is there", |line| {
            line.contains("no proxy is connected")
        });
        drop((inside, outside));
        assert!(daemon.stop().success());
        assert!(!socket(&node).exists());
        daemon.spec().uninstall();
        let left = before.differences(&State::of(pod.netns(), &[]));
        assert_eq!(left, Vec::<String>::new(), "{backend} {iptables}");
    }
}

#[test]
fn a_proxy_that_comes_again_is_told_again_also_by_an_agent_that_was_started_again() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let (pod, other) = (node.pod("pod"), node.pod("other"));
    bed.workloads().write();
    let mut daemon = daemon(&node, &pod, "nftables", "auto");
    let works = |what: &str| {
        eventually(what, PATIENCE, || {
            let asked = other.at(8080).to_string();
            let app = pod.app(["connect", &asked, "recv-line"]);
            let connected = app.next_event();
            if connected.name() != "connected" {
                return Err(format!("{connected:?}"));
            }
            match app.next_event() {
                received if received.name() == "received" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    };
    let proxy = Proxy::start(&socket(&node));
    wait_captured(&daemon);
    let _server = greeter(&other, 8080);
    works("the first proxy carries");
    drop(proxy);
    let second = Proxy::start(&socket(&node));
    works("the second proxy carries");
    // The agent's end leaves the pod captured and the proxy at work.
    daemon.sigkill();
    works("without an agent");
    drop(second);
    refused(&pod, other.at(8080));
    let again = daemon.spec().spawn();
    let _third = Proxy::start(&socket(&node));
    wait_captured(&again);
    works("the third proxy carries");
}

#[test]
fn what_does_not_fit_together_is_refused_by_the_configuration() {
    let bed = Testbed::new();
    let node = bed.node("a");
    bed.workloads().write();
    for (capture, zds, reason) in [
        ("ebpf", "serve", "nftables or iptables"),
        ("auto", "serve", "nftables or iptables"),
        ("nftables", "connect", "capture.backend: none"),
    ] {
        let mut daemon = node
            .daemon()
            .config(json!({
                "capture": { "backend": capture },
                "agent": { "zds": { zds: "/run/rdt-none.sock" } },
            }))
            .spawn();
        assert!(!daemon.wait().success());
        let log = daemon.log().join("\n");
        assert!(log.contains(reason), "{capture} {zds}: {log}");
    }
}
