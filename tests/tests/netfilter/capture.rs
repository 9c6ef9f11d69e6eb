//! The daemon with the netfilter backends: what is captured, what is not, and what stays.

use std::net::SocketAddr;

use redirect_tests::{
    App, Daemon, Event, Mesh, MeshBuilder, Node, Pod, Testbed,
    exchange::{greeted, greeter, refused},
};
use serde_json::json;

use crate::state;

/// Backend of the daemon, and the tool that it is to choose.
const WAYS: [(&str, &str); 3] = [
    ("iptables", "iptables-nft"),
    ("iptables", "iptables-legacy"),
    ("nftables", "nftables"),
];

fn mesh(backend: &str) -> MeshBuilder {
    Mesh::builder().config(json!({ "capture": { "backend": backend } }))
}

/// Makes `tool` the one that is in use in the pod.
fn prefer(pod: &Pod, tool: &str) {
    if tool == "iptables-legacy" {
        for program in ["iptables-legacy", "ip6tables-legacy"] {
            state::run(
                pod.netns(),
                &format!("{program} -A INPUT -p udp --dport 1 -j ACCEPT"),
            );
        }
    }
}

fn start(backend: &str, tool: &str, builder: MeshBuilder) -> Mesh {
    let preferred = tool.to_owned();
    let mesh = builder.start_with(move |client, server| {
        prefer(client, &preferred);
        prefer(server, &preferred);
    });
    for pod in [&mesh.client, &mesh.server] {
        assert_eq!(state::tools_in_use(pod.netns()), [tool], "{backend}");
    }
    mesh
}

fn mapped(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        SocketAddr::V6(_) => addr,
    }
}

fn is_direct(server: &App, connected: &Event) -> bool {
    server.event("accepted").addr("peer").port() == connected.addr("sockname").port()
}

#[test]
fn outbound_is_captured_with_its_original_destination_and_the_clients_ip() {
    for (backend, tool) in WAYS {
        let mesh = start(backend, tool, mesh(backend));
        let server = greeter(&mesh.server, 8080);
        let (v4, v6) = (mesh.server.at(8080), mesh.server.at6(8080));
        for (dst, arrives_at, client) in [
            (v4, v4, mesh.client.ipv4()),
            (v6, v6, mesh.client.ipv6()),
            (mapped(v4), v4, mesh.client.ipv4()),
        ] {
            let connected = greeted(&mesh.client, dst, &[]);
            assert_eq!(connected.addr("peername"), dst, "{tool}");
            assert_eq!(connected.addr("sockname").ip().to_canonical(), client);
            let accepted = server.event("accepted");
            assert_eq!(accepted.addr("local"), arrives_at, "{tool}");
            assert_eq!(accepted.addr("peer").ip(), client, "{tool}");
        }
        for dst in [mesh.server.at(9), mesh.server.at6(9)] {
            refused(&mesh.client, dst);
        }
        let outside = greeter(&mesh.outsider, 8080);
        for dst in [mesh.outsider.at(8080), mesh.outsider.at6(8080)] {
            let connected = greeted(&mesh.client, dst, &[]);
            assert!(
                !is_direct(&outside, &connected),
                "{tool}: {dst} missed the proxy"
            );
        }
        assert_eq!(mesh.wall.leaked(), 0, "{tool}");
    }
}

#[test]
fn the_proxy_never_captures_itself() {
    for (backend, tool) in WAYS {
        let mesh = start(backend, tool, mesh(backend));
        let (_server, _outside) = (greeter(&mesh.server, 8080), greeter(&mesh.outsider, 8080));
        // Through a tunnel, and passed through: each would come back to the listener if it were captured.
        for dst in [
            mesh.server.at(8080),
            mesh.server.at6(8080),
            mesh.outsider.at(8080),
            mesh.outsider.at6(8080),
        ] {
            greeted(&mesh.client, dst, &[]);
        }
        for (daemon, direction, expected) in [
            (&mesh.daemon_a, "outbound", 4.0),
            (&mesh.daemon_b, "outbound", 0.0),
        ] {
            let opened = daemon.metrics().sum(
                "redirect_connections_opened_total",
                &[("direction", direction)],
            );
            assert_eq!(opened, expected, "{tool}: {}", daemon.metrics().text());
        }
    }
}

#[test]
fn loopback_own_addresses_and_what_is_excluded_are_left_alone() {
    for (backend, tool) in WAYS {
        let builder = mesh(backend).client_of(|client| {
            let exempt = client.container("exempt");
            std::fs::create_dir_all(&exempt).expect("make the exempt cgroup");
            json!({
                "excludeOutboundPorts": [2222],
                "excludeOutboundCidrs": ["10.99.0.0/16", "fd00:99::/32"],
                "exemptCgroups": [exempt],
            })
        });
        let mesh = start(backend, tool, builder);
        let own = greeter(&mesh.client, 8080);
        let local = |text: &str| text.parse::<SocketAddr>().expect("an address");
        for dst in [
            local("127.0.0.1:8080"),
            local("[::1]:8080"),
            local("[::ffff:127.0.0.1]:8080"),
            local("0.0.0.0:8080"),
            mesh.client.at(8080),
            mesh.client.at6(8080),
        ] {
            assert!(
                is_direct(&own, &greeted(&mesh.client, dst, &[])),
                "{tool}: {dst}"
            );
        }
        mesh.outsider.ip(
            "addr add 10.99.1.1/32 dev eth0\naddr add fd00:99::1/128 dev eth0 nodad\naddr add 169.254.169.254/32 dev eth0\n",
        );
        mesh.client.ip(
            "route add 10.99.0.0/16 dev eth0\nroute add fd00:99::/32 dev eth0\nroute add 169.254.169.254/32 dev eth0\n",
        );
        let (server, excluded) = (greeter(&mesh.outsider, 8080), greeter(&mesh.outsider, 2222));
        for dst in [mesh.outsider.at(2222), mesh.outsider.at6(2222)] {
            assert!(
                is_direct(&excluded, &greeted(&mesh.client, dst, &[])),
                "{tool}: {dst}"
            );
        }
        for dst in [
            local("10.99.1.1:8080"),
            local("[fd00:99::1]:8080"),
            local("169.254.169.254:8080"),
        ] {
            assert!(
                is_direct(&server, &greeted(&mesh.client, dst, &[])),
                "{tool}: {dst}"
            );
        }
        for (container, direct) in [("exempt", true), ("app", false)] {
            let dst = mesh.outsider.at(8080).to_string();
            let app = mesh
                .client
                .app_in(container, ["connect", &dst, "recv-line"]);
            let connected = app.event("connected");
            app.event("received");
            assert_eq!(
                is_direct(&server, &connected),
                direct,
                "{tool}: container {container}"
            );
        }
    }
}

#[test]
fn connections_older_than_the_rules_go_on() {
    for (backend, tool) in WAYS {
        let stage = Stage::new(tool);
        let mut held = redirect_tests::exchange::Held::open(&stage.client, stage.outside.at(8080));
        let own = greeter(&stage.client, 8080);
        let mut inbound =
            redirect_tests::exchange::Held::open(&stage.outside, stage.client.at(8080));
        let _daemon = stage.daemon(backend, &[]);
        for connection in [&mut held, &mut inbound] {
            for round in 0..3 {
                connection
                    .echo(&format!("round {round}"))
                    .unwrap_or_else(|e| panic!("{tool}: {e}"));
            }
        }
        drop(own);
    }
}

/// One node with a client, which is to be captured, and a server that no daemon knows.
struct Stage {
    server: App,
    client: Pod,
    outside: Pod,
    node: Node,
    before: String,
    _bed: Testbed,
}

impl Stage {
    fn new(tool: &str) -> Self {
        let bed = Testbed::new();
        let node = bed.node("a");
        let (client, outside) = (node.pod("client"), node.pod("outside"));
        bed.workloads().hbone(&client).write();
        prefer(&client, tool);
        let before = state::all(client.netns());
        Self {
            server: greeter(&outside, 8080),
            client,
            outside,
            node,
            before,
            _bed: bed,
        }
    }

    fn daemon(&self, backend: &str, args: &[&str]) -> Daemon {
        let spec = self.node.daemon().capture(&self.client);
        let spec = args.iter().fold(spec, |spec, arg| spec.arg(arg));
        spec.config(json!({ "capture": { "backend": backend } }))
            .start()
    }

    /// How connects of the client fare.
    #[track_caller]
    fn expect(&self, fate: Fate) {
        for dst in [self.outside.at(8080), self.outside.at6(8080)] {
            let app = self.client.app(["connect", &dst.to_string(), "recv-line"]);
            let first = app.next_event();
            let found = match first.name() {
                "error" => {
                    assert_eq!(first.str("name"), "ECONNREFUSED");
                    Fate::Refused
                }
                _ => {
                    app.event("received");
                    match is_direct(&self.server, &first) {
                        true => Fate::Direct,
                        false => Fate::Captured,
                    }
                }
            };
            assert_eq!(found, fate, "{dst}");
        }
    }

    #[track_caller]
    fn expect_as_before(&self) {
        self.expect(Fate::Direct);
        assert_eq!(state::all(self.client.netns()), self.before);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Captured,
    Direct,
    Refused,
}

#[test]
fn without_a_daemon_connections_are_refused_and_a_new_one_goes_on() {
    for (backend, tool) in WAYS {
        let stage = Stage::new(tool);
        let mut daemon = stage.daemon(backend, &[]);
        stage.expect(Fate::Captured);
        daemon.sigkill();
        stage.expect(Fate::Refused);
        let mut daemon = daemon.spec().start();
        stage.expect(Fate::Captured);
        daemon.wait_log("adopted", |line| line.contains("adopt"));
        assert!(daemon.stop().success());
        stage.expect(Fate::Refused);
    }
}

#[test]
fn detach_on_exit_and_uninstall_leave_all_as_before() {
    for (backend, tool) in WAYS {
        let stage = Stage::new(tool);
        let mut daemon = stage.daemon(backend, &["--detach-on-exit"]);
        stage.expect(Fate::Captured);
        assert!(daemon.stop().success());
        stage.expect_as_before();

        let mut daemon = stage.daemon(backend, &[]);
        daemon.sigkill();
        stage.expect(Fate::Refused);
        for _ in 0..2 {
            let mut uninstall = daemon.spec().command();
            uninstall
                .arg("uninstall")
                .arg("--bpffs")
                .arg(daemon.spec().bpffs());
            let state = stage.node.directory().join("state");
            let output = uninstall
                .arg("--state-dir")
                .arg(state)
                .output()
                .expect("start redirect");
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            stage.expect_as_before();
        }
    }
}

#[test]
fn a_pod_that_is_no_longer_listed_is_let_go() {
    for (backend, tool) in WAYS {
        let stage = Stage::new(tool);
        let mut daemon = stage.daemon(backend, &[]);
        assert!(daemon.stop().success());
        stage.expect(Fate::Refused);
        let _daemon = daemon.spec().clone().without_pods().start();
        stage.expect_as_before();
    }
}

#[test]
fn a_daemon_with_another_backend_takes_over() {
    let stage = Stage::new("");
    for (backend, tools) in [
        ("ebpf", &[][..]),
        ("iptables", &["iptables-nft"]),
        ("nftables", &["nftables"]),
        ("ebpf", &[]),
        ("nftables", &["nftables"]),
    ] {
        let mut daemon = stage.daemon(backend, &[]);
        stage.expect(Fate::Captured);
        assert_eq!(
            state::tools_in_use(stage.client.netns()),
            tools,
            "{backend}"
        );
        assert!(daemon.stop().success());
        stage.expect(Fate::Refused);
    }
    let mut daemon = stage.daemon("iptables", &["--detach-on-exit"]);
    assert!(daemon.stop().success());
    stage.expect_as_before();
}

#[test]
fn rules_that_cannot_be_made_leave_the_pod_as_it_was() {
    let stage = Stage::new("");
    // A chain of nft's own where iptables-nft would need one.
    let table =
        "table ip nat { chain OUTPUT { type nat hook output priority -50; meta mark 1 accept; }; }";
    state::run(stage.client.netns(), &format!("nft '{table}'"));
    let before = state::all(stage.client.netns());
    let daemon = stage.daemon("iptables", &[]);
    daemon.wait_log("a reason", |line| {
        line.contains("cannot capture pod") && line.contains("nftables backend")
    });
    stage.expect(Fate::Direct);
    assert_eq!(state::all(stage.client.netns()), before);
}
