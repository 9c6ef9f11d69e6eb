//! `mode: node`: rules in the node's own namespace, for pods whose namespaces nobody enters.

use redirect_tests::{
    Mesh, Node, Pod, Testbed,
    exchange::{greeted, greeter, refused},
    way::{Backend, Mode},
};

use crate::{
    stage::{TOOLS, apply, connect, connect_from_node, serve_on_node, try_connect},
    state,
};

/// A pod whose interface has its host's side to itself, not on a bridge. It is the node's first.
fn alone(node: &Node) -> Pod {
    let pod = node.pod("pod");
    node.ip(&format!(
        "link set veth11 nomaster\n\
         addr add fd00:10:244:1::1/128 dev veth11 nodad\n\
         route add {}/32 dev veth11\n\
         route add {}/128 dev veth11\n",
        pod.ipv4(),
        pod.ipv6()
    ));
    pod
}

#[test]
fn both_directions_come_to_the_node_and_nothing_is_forged() {
    for tool in TOOLS {
        let bed = Testbed::new();
        let (node, far) = (bed.node("a"), bed.node("b"));
        let (pod, other) = (alone(&node), far.pod("other"));
        let before = state::all(node.netns());
        let ips = format!("veth11={},{}", pod.ipv4(), pod.ipv6());
        let flags = [
            "--mode",
            "node",
            "--pod",
            &ips,
            "--node-ips",
            "10.244.1.1,fd00:10:244:1::1",
            "--own-interfaces",
            "--capture-inbound",
            "--exclude-outbound-ports",
            "2222",
            "--exclude-inbound-ports",
            "3333",
        ];
        apply(node.netns(), tool, &flags);
        let _proxy =
            [15001, 15006, 15008].map(|port| serve_on_node(&node, port, "original-destination"));
        let _apps = [8080, 3333].map(|port| greeter(&pod, port));
        let _servers = [8080, 2222].map(|port| greeter(&other, port));
        for (theirs, ours) in [
            (other.at(8080), pod.at(8080)),
            (other.at6(8080), pod.at6(8080)),
        ] {
            let captured = |dst| format!("original destination {dst}");
            let at = |mut dst: std::net::SocketAddr, port| {
                dst.set_port(port);
                dst
            };
            assert_eq!(connect(&pod, theirs), captured(theirs), "{tool}");
            assert_eq!(connect(&other, ours), captured(ours), "{tool}");
            let hbone = at(ours, 15008);
            assert_eq!(connect(&other, hbone), captured(hbone), "{tool}");
            for (from, dst) in [(&pod, at(theirs, 2222)), (&other, at(ours, 3333))] {
                assert!(connect(from, dst).starts_with("hello "), "{tool} {dst}");
            }
            // The node's own, probes among them.
            let own = connect_from_node(&node, &node.cgroup().join("host"), ours);
            assert!(own.starts_with("hello "), "{tool}: {own}");
        }
        for direct in ["10.244.1.1:15001", "[fd00:10:244:1::1]:15006"] {
            let direct = direct.parse().expect("an address");
            for from in [&pod, &other] {
                assert_eq!(
                    try_connect(from, direct),
                    "",
                    "{tool}: {direct} from {}",
                    from.name()
                );
            }
        }
        // Another's address, from the pod.
        pod.ip("addr add 10.244.1.99/32 dev eth0\nroute del default\nroute add default via 10.244.1.1 src 10.244.1.99\n");
        node.ip("route add 10.244.1.99/32 dev veth11\n");
        assert_eq!(try_connect(&pod, other.at(8080)), "", "{tool}");
        let dropped = state::counted(node.netns(), tool, &["veth11", "drop"]);
        assert!(dropped > 0, "{tool}");
        let mut clean = std::process::Command::new(redirect_tests::redirect_binary());
        clean
            .args(["rules", "clean", "--netns"])
            .arg(node.netns().path());
        assert!(clean.status().expect("start redirect").success());
        assert_eq!(state::all(node.netns()), before, "{tool}");
    }
}

#[test]
fn the_daemon_captures_from_the_node_and_lets_go_again() {
    for backend in [
        Backend::IptablesNft,
        Backend::IptablesLegacy,
        Backend::Nftables,
    ] {
        let mut mesh = Mesh::builder().way(backend, Mode::Node).start();
        let (server, client) = (greeter(&mesh.server, 8080), greeter(&mesh.client, 8080));
        let outside = greeter(&mesh.outsider, 8080);
        for (there, here, out) in [
            (
                mesh.server.at(8080),
                mesh.client.at(8080),
                mesh.outsider.at(8080),
            ),
            (
                mesh.server.at6(8080),
                mesh.client.at6(8080),
                mesh.outsider.at6(8080),
            ),
        ] {
            let connected = greeted(&mesh.client, there, &[]);
            assert_eq!(connected.addr("peername"), there, "{backend}");
            server.event("accepted");
            for (from, to, app) in [
                (&mesh.client, out, &outside),
                (&mesh.outsider, here, &client),
            ] {
                let connected = greeted(from, to, &[]);
                let peer = app.event("accepted").addr("peer");
                assert_ne!(
                    peer,
                    connected.addr("sockname"),
                    "{backend}: {to} missed the proxy"
                );
            }
        }
        assert_eq!(mesh.wall.leaked(), 0, "{backend}");
        assert_eq!(
            state::all(mesh.client.netns()),
            "",
            "{backend}: rules in the pod"
        );
        mesh.daemon_a.sigkill();
        refused(&mesh.client, mesh.server.at(8080));
        refused(&mesh.outsider, mesh.client.at6(8080));
        let mut uninstall = mesh.daemon_a.spec().command();
        uninstall
            .arg("uninstall")
            .arg("--bpffs")
            .arg(mesh.daemon_a.spec().bpffs());
        uninstall
            .arg("--state-dir")
            .arg(mesh.daemon_a.spec().state_dir());
        let output = uninstall.output().expect("start redirect");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let connected = greeted(&mesh.client, mesh.outsider.at(8080), &[]);
        let peer = outside.event("accepted").addr("peer");
        assert_eq!(peer, connected.addr("sockname"), "{backend}");
        assert!(state::tools_in_use(mesh.a.netns()).is_empty(), "{backend}");
    }
}
