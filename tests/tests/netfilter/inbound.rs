//! Inbound connections, probes, DNS and what is refused: rules by hand with stand-ins, and the daemon.

use std::net::SocketAddr;

use redirect_tests::{
    Mesh, Pod, Testbed,
    exchange::{greeted, greeter, serve},
};
use serde_json::json;

use crate::{
    stage::{TOOLS, apply, connect, connect_from_node, try_connect},
    state,
};

const WAYS: [(&str, &str); 3] = [
    ("iptables", "nft"),
    ("iptables", "legacy"),
    ("nftables", "auto"),
];

fn both(pod: &Pod, port: u16) -> [SocketAddr; 2] {
    [pod.at(port), pod.at6(port)]
}

fn captured(dst: SocketAddr) -> String {
    format!("original destination {dst}")
}

/// Flags of a pod in shared mode, where nothing is exempt that a test makes.
fn shared<'a>(exempt: &'a str, flags: &[&'a str]) -> Vec<&'a str> {
    [&["--capture-inbound", "--exempt-cgroup", exempt], flags].concat()
}

fn exempt(pod: &Pod) -> String {
    let cgroup = pod.container("proxy");
    std::fs::create_dir_all(&cgroup).expect("make the proxy's cgroup");
    cgroup.to_string_lossy().into_owned()
}

#[test]
fn the_daemon_takes_plaintext_and_keeps_the_clients_address() {
    for (backend, iptables) in WAYS {
        let mesh = Mesh::builder()
            .config(json!({ "capture": { "backend": backend, "iptables": iptables } }))
            .client(json!({ "excludeInboundPorts": [9090] }))
            .start();
        let told = format!("{backend} {iptables}");
        let (app, excluded) = (greeter(&mesh.client, 8080), greeter(&mesh.client, 9090));
        for dst in both(&mesh.client, 8080) {
            let connected = greeted(&mesh.outsider, dst, &[]);
            let (client, accepted) = (connected.addr("sockname"), app.event("accepted"));
            assert_eq!(accepted.addr("peer").ip(), client.ip(), "{told}");
            assert_ne!(
                accepted.addr("peer").port(),
                client.port(),
                "{told}: not captured"
            );
            assert_eq!(accepted.addr("local"), dst, "{told}");
            assert_eq!(connected.addr("peername"), dst, "{told}");
        }
        for dst in both(&mesh.client, 9090) {
            let connected = greeted(&mesh.outsider, dst, &[]);
            let accepted = excluded.event("accepted");
            assert_eq!(accepted.addr("peer"), connected.addr("sockname"), "{told}");
        }
        let opened = mesh.daemon_a.metrics().sum(
            "redirect_connections_opened_total",
            &[("direction", "inbound")],
        );
        assert_eq!(opened, 2.0, "{told}");
    }
}

#[test]
fn bypassed_inbound_connections_are_the_apps_own() {
    for (backend, iptables) in WAYS {
        let mesh = Mesh::builder()
            .config(json!({ "capture": { "backend": backend, "iptables": iptables } }))
            .client(json!({ "bypassInbound": true }))
            .start();
        let app = greeter(&mesh.client, 8080);
        for dst in both(&mesh.client, 8080) {
            let connected = greeted(&mesh.outsider, dst, &[]);
            let accepted = app.event("accepted");
            assert_eq!(
                accepted.addr("peer"),
                connected.addr("sockname"),
                "{backend}"
            );
        }
    }
}

#[test]
fn what_is_included_is_captured_and_nothing_else() {
    for tool in TOOLS {
        let bed = Testbed::new();
        let node = bed.node("a");
        let (pod, other, third) = (node.pod("pod"), node.pod("other"), node.pod("third"));
        let (net, net6) = (
            format!("{}/32", third.ipv4()),
            format!("{}/128", third.ipv6()),
        );
        let nets = format!("{net},{net6}");
        let exempt = exempt(&pod);
        let flags = [
            "--include-outbound-ports",
            "80",
            "--include-outbound-cidrs",
            &nets,
            "--include-inbound-ports",
            "8080",
            "--include-inbound-cidrs",
            &nets,
            "--exclude-inbound-ports",
            "9999",
        ];
        apply(pod.netns(), tool, &shared(&exempt, &flags));
        let _outbound = serve(&pod, 15001, "original-destination");
        let _inbound = serve(&pod, 15006, "original-destination");
        let servers =
            [&pod, &other, &third].map(|pod| [80, 8080, 9090, 9999].map(|port| greeter(pod, port)));
        for (from, to, port, is_captured) in [
            (&pod, &other, 80, true),
            (&pod, &other, 9090, false),
            (&pod, &third, 9090, true),
            (&other, &pod, 8080, true),
            (&other, &pod, 9090, false),
            (&third, &pod, 9090, true),
            (&third, &pod, 9999, false),
        ] {
            for dst in both(to, port) {
                let answer = connect(from, dst);
                assert_eq!(
                    answer == captured(dst),
                    is_captured,
                    "{tool} {dst}: {answer}"
                );
            }
        }
        drop(servers);
    }
}

#[test]
fn our_ports_are_dropped_unless_the_pod_itself_asks() {
    for tool in TOOLS {
        let bed = Testbed::new();
        let node = bed.node("a");
        let (pod, other) = (node.pod("pod"), node.pod("other"));
        let exempt = exempt(&pod);
        apply(pod.netns(), tool, &shared(&exempt, &[]));
        let _listeners = [15001, 15006, 15053].map(|port| greeter(&pod, port));
        for (dropped, port) in [(2, 15001), (2, 15006), (2, 15053)] {
            for dst in both(&pod, port) {
                assert_eq!(try_connect(&other, dst), "", "{tool} {dst}");
                assert!(connect(&pod, dst).starts_with("hello "), "{tool} {dst}");
            }
            let words = [format!("dport {port} "), "drop".to_owned()];
            let count = state::counted(pod.netns(), tool, &words.each_ref().map(|w| w.as_str()));
            assert!(count >= dropped, "{tool} {port}: {count}");
        }
    }
}

#[test]
fn probes_of_the_node_reach_the_app_and_nobody_else_does() {
    for tool in TOOLS {
        let bed = Testbed::new();
        let (node, far) = (bed.node("a"), bed.node("b"));
        let (pod, remote) = (node.pod("pod"), far.pod("remote"));
        let (exempt, kubelet) = (exempt(&pod), node.cgroup().join("kubelet"));
        std::fs::create_dir_all(&kubelet).expect("make the prober's cgroup");
        apply(
            pod.netns(),
            tool,
            &shared(&exempt, &["--probe-ports", "8080"]),
        );
        let before = state::all(node.netns());
        let (ips, prober) = (
            format!("{},{}", pod.ipv4(), pod.ipv6()),
            kubelet.to_string_lossy().into_owned(),
        );
        let flags = ["--mode", "probes", "--prober", &prober, "--pod", &ips];
        let flags = [&flags[..], &["--probe-ports", "8080,9090"]].concat();
        apply(node.netns(), tool, &flags);
        let _inbound = serve(&pod, 15006, "original-destination");
        let _apps = [8080, 9090, 9091].map(|port| greeter(&pod, port));
        for (at, source) in [
            (0, "hello 169.254.7.127:"),
            (1, "hello [fd16:9254:7127:1337:ffff:ffff:ffff:ffff]:"),
        ] {
            let said = connect_from_node(&node, &kubelet, both(&pod, 8080)[at]);
            assert!(said.starts_with(source), "{tool}: {said:?}");
            // What the pod does not declare is captured, whoever asks, and so is everybody else.
            for (cgroup, port) in [
                (kubelet.clone(), 9090),
                (kubelet.clone(), 9091),
                (node.cgroup().join("host"), 8080),
            ] {
                let dst = both(&pod, port)[at];
                let said = connect_from_node(&node, &cgroup, dst);
                assert_eq!(said, captured(dst), "{tool} {}", cgroup.display());
            }
        }
        // One that takes the address of probes, elsewhere.
        remote.ip("addr add 169.254.7.127/32 dev eth0\nroute del default\nroute add default via 10.244.2.1 src 169.254.7.127\n");
        far.ip("route add 169.254.7.127/32 dev br0\n");
        assert_eq!(try_connect(&remote, pod.at(8080)), "", "{tool}");
        let spoofed = state::counted(node.netns(), tool, &["169.254.7.127", "drop"]);
        assert!(
            spoofed > 0,
            "{tool}: nothing of {} was dropped",
            remote.name()
        );
        let mut clean = std::process::Command::new(redirect_tests::redirect_binary());
        clean
            .args(["rules", "clean", "--netns"])
            .arg(node.netns().path());
        assert!(clean.status().expect("start redirect").success());
        assert_eq!(state::all(node.netns()), before, "{tool}");
    }
}

#[test]
fn the_daemon_knows_the_nodes_prober_also_after_it_was_started_anew() {
    for (backend, iptables) in WAYS {
        let bed = Testbed::new();
        let node = bed.node("a");
        let pod = node.pod("pod");
        bed.workloads().hbone(&pod).write();
        let (kubelet, host) = (node.cgroup().join("kubelet"), node.cgroup().join("host"));
        std::fs::create_dir_all(&kubelet).expect("make the prober's cgroup");
        let before = state::all(node.netns());
        let mut daemon = node
            .daemon()
            .capture_with(&pod, json!({ "probePorts": [8080] }))
            .config(json!({ "capture": {
                "backend": backend, "iptables": iptables, "verifyInterval": "200ms",
                "probes": { "cgroups": [kubelet] }, "detachOnExit": true,
            } }))
            .start();
        let told = format!("{backend} {iptables}");
        let _apps = [8080, 9090].map(|port| greeter(&pod, port));
        for (at, source) in [
            (0, "hello 169.254.7.127:"),
            (1, "hello [fd16:9254:7127:1337:ffff:ffff:ffff:ffff]:"),
        ] {
            let [probed, other] = [8080, 9090].map(|port| both(&pod, port)[at]);
            let said = connect_from_node(&node, &kubelet, probed);
            assert!(said.starts_with(source), "{told}: {said:?}");
            for (cgroup, dst) in [(&kubelet, other), (&host, probed)] {
                let said = connect_from_node(&node, cgroup, dst);
                assert!(
                    said.starts_with("hello ") && !said.starts_with(source),
                    "{told}: {said:?}"
                );
            }
        }
        let inbound = || {
            let labels = [("direction", "inbound")];
            daemon
                .metrics()
                .sum("redirect_connections_opened_total", &labels)
        };
        assert_eq!(
            inbound(),
            4.0,
            "{told}: a probe went through the proxy, or another did not"
        );
        // Its service was started anew: the same name, another cgroup.
        let line = daemon.process().line_count();
        std::fs::remove_dir(&kubelet).expect("it is empty");
        std::fs::create_dir(&kubelet).expect("make the prober's cgroup");
        daemon.wait_log_from(line, "rules for the new cgroup", |line| {
            line.contains("made anew")
        });
        for dst in both(&pod, 8080) {
            let said = connect_from_node(&node, &kubelet, dst);
            assert!(
                said.contains("7127:1337") || said.contains("169.254.7.127"),
                "{told}: {said:?}"
            );
        }
        // A firewall's reload on the node.
        let line = daemon.process().line_count();
        state::run(
            node.netns(),
            "nft flush ruleset; iptables-legacy -t mangle -F; ip6tables-legacy -t mangle -F",
        );
        daemon.wait_log_from(line, "repair", |line| {
            line.contains("again as it was applied") && line.contains("node")
        });
        let said = connect_from_node(&node, &kubelet, pod.at(8080));
        assert!(said.starts_with("hello 169.254.7.127:"), "{told}: {said:?}");
        assert!(daemon.stop().success());
        assert_eq!(state::all(node.netns()), before, "{told}");
    }
}

#[test]
fn dns_goes_to_the_proxy_and_other_udp_is_refused_where_that_is_wanted() {
    for tool in TOOLS {
        let bed = Testbed::new();
        let node = bed.node("a");
        let (pod, other) = (node.pod("pod"), node.pod("other"));
        let exempt = exempt(&pod);
        let flags = ["--capture-dns", "--refuse-udp", "--refuse-sctp"];
        apply(pod.netns(), tool, &shared(&exempt, &flags));
        let _dns = serve(&pod, 15053, "original-destination");
        for dst in both(&other, 53) {
            assert_eq!(connect(&pod, dst), captured(dst), "{tool}");
            let (sent, _) = send_udp(&pod, "app", dst);
            assert!(sent, "{tool}: {dst}");
            // The proxy's own goes to the server, in a zone of its own.
            let (sent, _) = send_udp(&pod, "proxy", dst);
            assert!(sent, "{tool}: {dst}");
        }
        for (words, least, most) in [
            (&["udp", "dport 53 ", "15053"][..], 2, 2),
            (&["udp", "dport 53 ", "zone"], 2, 2),
        ] {
            let count = state::counted(pod.netns(), tool, words);
            // iptables counts the jump to the chain in no rule that has these words.
            assert!((least..=most).contains(&count), "{tool} {words:?}: {count}");
        }
        for dst in both(&other, 4000) {
            let (sent, error) = send_udp(&pod, "app", dst);
            assert!(
                !sent && error.contains("not permitted"),
                "{tool} {dst}: {error}"
            );
            let (sent, error) = send_udp(&pod, "proxy", dst);
            assert!(sent, "{tool} {dst}: {error}");
        }
    }
}

/// Sends one datagram from a container of the pod; what went wrong.
fn send_udp(pod: &Pod, container: &str, dst: SocketAddr) -> (bool, String) {
    let script = r#"exec 3>"/dev/udp/$0/$1" && echo query >&3"#;
    let (ip, port) = (dst.ip().to_string(), dst.port().to_string());
    let mut command = pod.command_in(container, "bash");
    let output = command.args(["-c", script, &ip, &port]).output();
    let output = output.expect("bash is installed");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), error)
}
