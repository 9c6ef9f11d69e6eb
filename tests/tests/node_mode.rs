//! Mode `node`: the proxy listens on the node, and pods are captured on the node's side of their interfaces.

use std::{net::SocketAddr, process::Command};

use redirect_tests::{
    Daemon, Mesh, Node, Pod, Testbed,
    exchange::{greeted, greeter, refused},
};
use serde_json::{Value, json};

fn mode_node() -> Value {
    json!({ "capture": { "mode": "node" } })
}

fn mesh() -> Mesh {
    Mesh::builder().config(mode_node()).start()
}

/// How often the programs decided so about a connection.
#[track_caller]
fn decided(daemon: &Daemon, verdict: &str, reason: &str) -> u64 {
    let labels = [
        ("hook", "node_side"),
        ("verdict", verdict),
        ("reason", reason),
    ];
    daemon
        .metrics()
        .sum("redirect_capture_verdicts_total", &labels) as u64
}

/// What a command prints in the namespace of a node or pod.
#[track_caller]
fn shown(netns: &redirect::sys::netns::Netns, command: &str) -> String {
    let run = || Command::new("sh").args(["-c", command]).output();
    let output = netns.run(run).expect("the namespace can be entered");
    String::from_utf8_lossy(&output.expect("start sh").stdout).into_owned()
}

/// All that mode `node` may change on a node.
fn state(node: &Node) -> String {
    shown(
        node.netns(),
        "ip rule; ip -6 rule; ip route show table 115; ip -6 route show table 115; ip -o link | grep -c .; \
         nft --stateless list ruleset; bpftool net show; cat /proc/sys/net/ipv4/tcp_early_demux",
    )
}

/// Connects to a greeter; gives the address that the greeter saw, and the client's own.
#[track_caller]
fn seen(server: &redirect_tests::App, client: &Pod, dst: SocketAddr) -> (SocketAddr, SocketAddr) {
    let connected = greeted(client, dst, &[]);
    assert_eq!(connected.addr("peername"), dst);
    (
        server.event("accepted").addr("peer"),
        connected.addr("sockname"),
    )
}

#[test]
fn pods_of_two_nodes_speak_through_the_proxies_and_see_each_other() {
    let mesh = mesh();
    let server = greeter(&mesh.server, 8080);
    for (dst, client) in [
        (mesh.server.at(8080), mesh.client.ipv4()),
        (mesh.server.at6(8080), mesh.client.ipv6()),
    ] {
        let (peer, own) = seen(&server, &mesh.client, dst);
        assert_eq!((peer.ip(), own.ip()), (client, client));
        assert_ne!(peer, own, "not through the proxies");
    }
    assert_eq!(mesh.wall.leaked(), 0);
    mesh.daemon_b
        .wait_log("the identity of the caller", |line| {
            line.contains("connection closed") && line.contains(&mesh.client.identity())
        });
}

#[test]
fn nothing_is_done_inside_of_a_pod() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let pod = node.pod("pod");
    bed.workloads().hbone(&pod).write();
    let all = "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all | grep -v fe80:; \
               ss -Hltn; nft list ruleset; cat /proc/sys/net/ipv4/tcp_fwmark_accept";
    let before = shown(pod.netns(), all);
    let _daemon = node.daemon().config(mode_node()).capture(&pod).start();
    assert_eq!(shown(pod.netns(), all), before);
}

#[test]
fn what_is_not_in_the_mesh_passes_through_the_proxy_with_the_pods_address() {
    let mesh = mesh();
    let server = greeter(&mesh.outsider, 8080);
    for dst in [mesh.outsider.at(8080), mesh.outsider.at6(8080)] {
        let (peer, own) = seen(&server, &mesh.client, dst);
        assert_eq!(peer.ip(), own.ip());
        assert_ne!(peer.port(), own.port(), "not through the proxy");
    }
    // Closed ports are refused as ever.
    refused(&mesh.client, mesh.outsider.at(9));
}

#[test]
fn plaintext_to_a_pod_comes_to_the_proxy_first_and_to_the_app_from_its_client() {
    let mesh = mesh();
    let server = greeter(&mesh.client, 8080);
    for dst in [mesh.client.at(8080), mesh.client.at6(8080)] {
        let (peer, own) = seen(&server, &mesh.outsider, dst);
        assert_eq!(peer.ip(), own.ip());
        assert_ne!(peer.port(), own.port(), "not through the proxy");
    }
    assert_eq!(decided(&mesh.daemon_a, "redirect", "captured"), 2);
    refused(&mesh.outsider, mesh.client.at(9));
    for port in [15001, 15006] {
        refused(&mesh.outsider, mesh.client.at(port));
        refused(&mesh.outsider, mesh.client.at6(port));
    }
}

#[test]
fn pods_of_one_node_speak_through_the_proxy() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let (client, server) = (node.pod("client"), node.pod("server"));
    // One on the bridge, the other behind an interface of its own.
    node.ip(&format!(
        "link set veth12 nomaster\nroute add {}/32 dev veth12\nroute add {}/128 dev veth12\n",
        server.ipv4(),
        server.ipv6()
    ));
    server.ip(&format!(
        "neigh add 10.244.1.1 lladdr {0} dev eth0\nneigh add fd00:10:244:1::1 lladdr {0} dev eth0\n\
         route add {1}/32 via 10.244.1.1\nroute add {2}/128 via fd00:10:244:1::1\n",
        shown(
            node.netns(),
            "cat /proc/self/net/dev >/dev/null; ip -o link show veth12"
        )
        .split_whitespace()
        .skip_while(|word| *word != "link/ether")
        .nth(1)
        .expect("an Ethernet address"),
        client.ipv4(),
        client.ipv6()
    ));
    client.ip(&format!(
        "route add {}/32 via 10.244.1.1\nroute add {}/128 via fd00:10:244:1::1\n",
        server.ipv4(),
        server.ipv6()
    ));
    let workloads = bed.workloads();
    workloads.write();
    let daemon = node
        .daemon()
        .config(mode_node())
        .capture(&client)
        .capture(&server)
        .start();
    let app = greeter(&server, 8080);
    // Unknown to the mesh: out through the proxy, in through the proxy, twice.
    for dst in [server.at(8080), server.at6(8080)] {
        let (peer, own) = seen(&app, &client, dst);
        assert_eq!(peer.ip(), own.ip());
    }
    assert_eq!(decided(&daemon, "redirect", "captured"), 4);
    // And each to itself, without leaving the pod.
    seen(&app, &server, server.at(8080));
    assert_eq!(decided(&daemon, "redirect", "captured"), 4);
}

#[test]
fn pods_of_one_node_speak_hbone() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let (client, server) = (node.pod("client"), node.pod("server"));
    bed.workloads().hbone(&client).hbone(&server).write();
    let daemon = node
        .daemon()
        .config(mode_node())
        .capture(&client)
        .capture(&server)
        .start();
    let app = greeter(&server, 8080);
    for dst in [server.at(8080), server.at6(8080)] {
        let (peer, own) = seen(&app, &client, dst);
        assert_eq!(peer.ip(), own.ip());
        daemon.wait_log("the identity of the caller", |line| {
            line.contains("direction=\"inbound\"")
                && line.contains(&client.identity())
                && line.contains(&dst.to_string())
        });
    }
}

#[test]
fn options_leave_connections_alone() {
    let mesh = Mesh::builder()
        .config(mode_node())
        .client(json!({
            "excludeOutboundPorts": [2222], "excludeInboundPorts": [3333],
            "excludeOutboundCidrs": ["fd00:10:244:1::/64"],
        }))
        .start();
    let (client, outsider) = (&mesh.client, &mesh.outsider);
    let server = greeter(outsider, 2222);
    let (peer, own) = seen(&server, client, outsider.at(2222));
    assert_eq!(peer, own, "an excluded port is the app's own connection");
    let (peer, own) = seen(&server, client, outsider.at6(2222));
    assert_eq!(peer, own, "an excluded network is, too");
    let app = greeter(client, 3333);
    let (peer, own) = seen(&app, outsider, client.at(3333));
    assert_eq!(peer, own, "an excluded port of the pod's");
    assert_eq!(decided(&mesh.daemon_a, "pass", "excluded_port"), 3);
}

#[test]
fn it_does_not_matter_who_in_the_pod_connects() {
    let mesh = mesh();
    let server = greeter(&mesh.server, 8080);
    // In the pod's namespace, but in no cgroup of the pod's.
    let dst = mesh.server.at(8080).to_string();
    let app = mesh
        .client
        .app_outside(["connect", &dst, "recv-line", "send:ping\\n", "recv-line"]);
    app.event("done");
    assert_eq!(
        server.event("accepted").addr("peer").ip(),
        mesh.client.ipv4()
    );
    assert_eq!(mesh.wall.leaked(), 0);
}

#[test]
fn a_foreign_source_address_gets_nowhere() {
    let mesh = mesh();
    let _server = greeter(&mesh.outsider, 8080);
    for (dst, foreign) in [
        (mesh.outsider.at(8080), "10.244.1.77:0"),
        (mesh.outsider.at6(8080), "[fd00:10:244:1::77]:0"),
    ] {
        let dst = dst.to_string();
        let app = mesh.client.app([
            "connect",
            &dst,
            "--transparent",
            "--bind",
            foreign,
            "--nonblocking",
            "--timeout",
            "2",
            "recv-line",
        ]);
        app.event("error");
    }
    assert!(decided(&mesh.daemon_a, "refuse", "foreign_source") >= 2);
}

#[test]
fn no_address_leads_to_the_proxys_ports() {
    let mesh = mesh();
    for port in [15001, 15006, 15008] {
        for at in [
            format!("10.244.1.1:{port}"),
            format!("[fd00:10:244:1::1]:{port}"),
        ] {
            let at: SocketAddr = at.parse().expect("an address");
            refused(&mesh.client, at);
            refused(&mesh.outsider, at);
        }
    }
    // What is on the node can reach the listener, and is no pod.
    let own = mesh.a.command(redirect_tests::app_binary());
    let mut own = own;
    own.args(["connect", "[::1]:15001", "recv-all"]);
    let output = own.output().expect("start the app");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("ECONNRESET"), "{said}");
    assert_eq!(mesh.daemon_a.failed("outbound", "unknown_pod"), 1);
}

#[test]
fn without_a_daemon_everything_is_refused_and_nothing_leaks() {
    let mut mesh = mesh();
    let _server = greeter(&mesh.server, 8080);
    let _app = greeter(&mesh.client, 8080);
    let mut held = redirect_tests::exchange::Held::open(&mesh.client, mesh.server.at(8080));
    held.echo("before").expect("the connection is up");
    mesh.daemon_a.sigkill();
    for dst in [mesh.server.at(8080), mesh.server.at6(8080)] {
        refused(&mesh.client, dst);
    }
    for dst in [mesh.client.at(8080), mesh.client.at6(8080)] {
        refused(&mesh.outsider, dst);
    }
    held.echo("after").expect_err("the proxy is gone");
    assert_eq!(mesh.wall.leaked(), 0);
    // The next daemon goes on where this one was.
    let daemon = mesh.daemon_a.spec().start();
    daemon.wait_log("adoption", |line| line.contains("adopted"));
    greeted(&mesh.client, mesh.server.at(8080), &[]);
}

#[test]
fn uninstall_leaves_the_node_as_it_was() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let (pod, other) = (node.pod("pod"), node.pod("other"));
    bed.workloads().write();
    let before = state(&node);
    let spec = node.daemon().config(mode_node()).capture(&pod);
    let mut daemon = spec.start();
    let during = state(&node);
    assert!(
        during.contains("lookup 115") && during.contains("notrack"),
        "{during}"
    );
    let server = greeter(&other, 8080);
    seen(&server, &pod, other.at(8080));
    daemon.stop();
    let output = spec
        .command()
        .args(["uninstall", "--bpffs"])
        .arg(spec.bpffs())
        .arg("--state-dir")
        .arg(spec.state_dir())
        .output()
        .expect("start redirect");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(state(&node), before);
    let (peer, own) = seen(&server, &pod, other.at(8080));
    assert_eq!(peer, own, "uncaptured");
}

#[test]
fn the_nodes_own_translation_of_addresses_does_not_come_between() {
    let mesh = Mesh::builder()
        .config(mode_node())
        .start_with(|client, server| {
            let (pod, server) = (client.ipv4(), server.ipv4());
            shown(
                client.node().netns(),
                &format!(
                    "nft 'table ip services {{
                    chain prerouting {{ type nat hook prerouting priority -100;
                      ip daddr 10.96.0.1 tcp dport 80 dnat to {server}:8080;
                      ip daddr 172.30.12.1 tcp dport 30080 dnat to {pod}:8080; }}
                    chain output {{ type nat hook output priority -100;
                      ip daddr 10.96.0.1 tcp dport 80 dnat to {server}:8080; }}
                    chain forward {{ type filter hook forward priority 0; ct state invalid drop; }}
                    chain local {{ type filter hook output priority 0; ct state invalid drop; }}
                 }}'"
                ),
            );
        });
    mesh.wall.clone().remove();
    // By the address of a service: it is what the proxy learns.
    let _server = greeter(&mesh.server, 8080);
    mesh.a.ip("route add default via 172.30.12.2\n");
    let dst: SocketAddr = "10.96.0.1:80".parse().expect("an address");
    greeted(&mesh.client, dst, &[]);
    mesh.daemon_a.wait_log("the service's address", |line| {
        line.contains("dst.addr=10.96.0.1:80") && line.contains("outbound")
    });
    // By a port of the node.
    let app = greeter(&mesh.client, 8080);
    let outside = mesh.server.at(0).ip();
    let dst = "172.30.12.1:30080".parse().expect("an address");
    greeted(&mesh.server, dst, &[]);
    assert_eq!(app.event("accepted").addr("peer").ip(), outside);
}

#[test]
fn what_cannot_be_done_on_the_node_is_refused_with_the_reason() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let pod = node.pod("pod");
    bed.workloads().write();
    let exempt = pod.container("sidecar");
    std::fs::create_dir_all(&exempt).expect("make a cgroup");
    let mut daemon = node
        .daemon()
        .config(mode_node())
        .capture_with(&pod, json!({ "exemptCgroups": [exempt] }))
        .start();
    daemon.wait_log("the reason", |line| {
        line.contains("cannot capture pod") && line.contains("exemptCgroups")
    });
    daemon.stop();
    let daemon = node
        .daemon()
        .config(mode_node())
        .capture_with(&pod, json!({ "cgroupOnly": {} }))
        .start();
    daemon.wait_log("the reason", |line| {
        line.contains("`cgroupOnly` needs capture.backend: ebpf and capture.mode: shared")
    });
}

#[test]
fn a_pod_can_be_captured_in_one_mode_after_the_other() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let (pod, other) = (node.pod("pod"), node.pod("other"));
    bed.workloads().write();
    let server = greeter(&other, 8080);
    for mode in ["shared", "node", "shared"] {
        let spec = node
            .daemon()
            .config(json!({ "capture": { "mode": mode } }))
            .capture(&pod);
        let mut daemon = spec.start();
        let (peer, own) = seen(&server, &pod, other.at(8080));
        assert_ne!(peer, own, "not captured in mode {mode}");
        daemon.stop();
    }
}

/// Somebody sets the network up anew, or cleans up what he does not know.
#[test]
fn what_somebody_takes_from_the_node_is_put_back() {
    let mesh = mesh();
    let server = greeter(&mesh.server, 8080);
    let dst = mesh.server.at(8080);
    seen(&server, &mesh.client, dst);
    let node = mesh.a.netns();
    let pins = mesh.daemon_a.spec().bpffs();
    let detach = format!(
        "find {} -name 'from-pod-*' -exec bpftool link detach pinned {{}} ';'",
        pins.display()
    );
    for (command, words) in [
        ("ip link del redirect0", "redirect0 was not there"),
        ("ip rule del pref 5", "the rule for table 115 was missing"),
        (
            "ip -6 route flush table 115",
            "the route in table 115 was missing",
        ),
        (
            "nft delete table inet redirect-node",
            "the rules that keep connection tracking off were missing",
        ),
        (
            "echo 1 > /proc/sys/net/ipv4/tcp_early_demux",
            "tcp_early_demux was not 0",
        ),
        (detach.as_str(), "was not captured"),
    ] {
        let from = mesh.daemon_a.process().line_count();
        shown(node, command);
        mesh.daemon_a
            .process()
            .signal(nix::sys::signal::Signal::SIGHUP);
        mesh.daemon_a.wait_log_from(from, "a repair", |line| {
            line.contains("again as it was applied") && line.contains(words)
        });
        for dst in [dst, mesh.server.at6(8080)] {
            let (peer, own) = seen(&server, &mesh.client, dst);
            assert_ne!(peer, own, "not through the proxies after {command}");
        }
    }
    assert_eq!(mesh.wall.leaked(), 0);
}
