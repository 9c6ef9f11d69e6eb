//! Connections in plaintext to a captured pod: judged with an empty identity, carried from the client's address.
//!
//! Captured by rules of the tests' own, so that what is shown is the proxy's part; how each backend brings connections here is
//! the contract suite's matter.

use std::{fs, net::SocketAddr};

use redirect_tests::{
    Daemon, Mesh, Pod,
    exchange::{Held, greeted, greeter, refused, serve},
    namespace,
};
use serde_json::json;

/// The mesh of two nodes, and on the server's node a pod that is in no mesh.
struct Plain {
    mesh: Mesh,
    stranger: Pod,
}

impl Plain {
    #[track_caller]
    fn start() -> Self {
        let builder = Mesh::builder().config_b(json!({ "capture": { "backend": "none" } }));
        let mesh = builder.start_with(|_, server| capture_inbound(server));
        let stranger = mesh.b.pod("stranger");
        Self { mesh, stranger }
    }

    fn daemon(&self) -> &Daemon {
        &self.mesh.daemon_b
    }

    /// The server's addresses, with a port.
    fn at(&self, port: u16) -> [SocketAddr; 2] {
        [self.mesh.server.at(port), self.mesh.server.at6(port)]
    }

    /// Makes this policy the only one, and waits until it counts.
    #[track_caller]
    fn policy(&self, action: &str, conditions: serde_json::Value, fields: serde_json::Value) {
        let lines = self.daemon().process().line_count();
        let workloads = self.mesh.workloads.clone();
        workloads
            .policy_with("the-policy", action, conditions, fields)
            .write();
        self.daemon()
            .wait_log_from(lines, "line of the reloaded file", |line| {
                line.contains("workload file loaded") && line.contains("policies=1")
            });
    }
}

/// Connections from outside go to 15006, except HBONE.
fn capture_inbound(pod: &Pod) {
    let table = "*nat\n-A PREROUTING -i lo -j RETURN\n-A PREROUTING -p tcp --dport 15008 -j RETURN\n\
                 -A PREROUTING -p tcp -j REDIRECT --to-ports 15006\nCOMMIT\n";
    for program in ["iptables-restore", "ip6tables-restore"] {
        namespace::run_with_input(pod.netns(), program, &[], table);
    }
}

#[test]
fn the_app_sees_the_clients_address_and_the_log_has_no_identity() {
    let plain = Plain::start();
    let server = greeter(&plain.mesh.server, 8080);
    for (dst, client) in plain
        .at(8080)
        .into_iter()
        .zip([plain.stranger.ipv4(), plain.stranger.ipv6()])
    {
        let connected = greeted(&plain.stranger, dst, &[]);
        assert_eq!(connected.addr("peername"), dst);
        let accepted = server.event("accepted").addr("peer");
        assert_eq!(accepted.ip(), client);
        // The proxy's own socket, not the client's.
        assert_ne!(accepted.port(), connected.addr("sockname").port());
        let line = plain.daemon().wait_log("access log line", |line| {
            line.contains("plaintext connection closed") && line.contains(&format!("={dst}"))
        });
        assert!(
            line.contains(&connected.str("sockname").to_owned()),
            "{line}"
        );
        assert!(!line.contains("src.identity"), "{line}");
        assert!(
            line.contains("dst.identity=spiffe://cluster.local/ns/default/sa/server"),
            "{line}"
        );
    }
    // HBONE goes on beside it.
    greeted(&plain.mesh.client, plain.mesh.server.at(8080), &[]);
}

#[test]
fn ends_and_resets_are_passed_on() {
    let plain = Plain::start();
    let _count = serve(&plain.mesh.server, 8080, "count");
    let _reset = serve(&plain.mesh.server, 8081, "reset");
    let sink = serve(&plain.mesh.server, 8082, "sink");
    for (dst, resetting) in plain.at(8080).into_iter().zip(plain.at(8081)) {
        let dst = dst.to_string();
        let steps = ["connect", &dst, "send-bytes:300000", "shutdown", "recv-all"];
        let app = plain.stranger.app(steps);
        assert_eq!(app.event("received").text(), "300000");
        app.event("eof");
        let resetting = resetting.to_string();
        let app = plain
            .stranger
            .app(["connect", &resetting, "send:xyz", "recv-all"]);
        assert_eq!(app.event("error").str("name"), "ECONNRESET");
    }
    let dst = plain.mesh.server.at(8082).to_string();
    let mut app = plain
        .stranger
        .app(["connect", &dst, "send:xyz", "wait", "reset"]);
    app.event("waiting");
    sink.event("accepted");
    app.write("\n");
    assert_eq!(sink.event("closed").str("how"), "ECONNRESET");
}

#[test]
fn a_policy_denies_whom_it_names_and_says_so() {
    let plain = Plain::start();
    let (_open, closed) = (
        greeter(&plain.mesh.server, 8080),
        greeter(&plain.mesh.server, 8081),
    );
    plain.policy("Deny", json!({ "destinationPorts": [8081] }), json!({}));
    for (open, denied) in plain.at(8080).into_iter().zip(plain.at(8081)) {
        greeted(&plain.stranger, open, &[]);
        refused(&plain.stranger, denied);
    }
    plain.daemon().wait_failed("inbound", "policy_denied", 2);
    plain.daemon().wait_log("line of the denial", |line| {
        line.contains("policy default/the-policy denies it")
            && line.contains("reason=\"policy_denied\"")
            && line.contains(&plain.stranger.ipv4().to_string())
    });
    assert_eq!(closed.events("accepted"), []);
}

#[test]
fn a_policy_on_source_addresses_knows_the_clients() {
    let plain = Plain::start();
    let _server = greeter(&plain.mesh.server, 8080);
    let sources = json!([
        format!("{}/32", plain.stranger.ipv4()),
        format!("{}/128", plain.stranger.ipv6())
    ]);
    plain.policy("Allow", json!({ "sourceIps": sources }), json!({}));
    let other = plain.mesh.b.pod("other");
    for dst in plain.at(8080) {
        greeted(&plain.stranger, dst, &[]);
        refused(&other, dst);
    }
}

#[test]
fn who_must_prove_an_identity_cannot_come_in_plaintext() {
    let plain = Plain::start();
    let server = greeter(&plain.mesh.server, 8080);
    plain.policy(
        "Allow",
        json!({ "principals": [{ "Presence": {} }] }),
        json!({}),
    );
    greeted(&plain.mesh.client, plain.mesh.server.at(8080), &[]);
    for dst in plain.at(8080) {
        refused(&plain.stranger, dst);
    }
    assert_eq!(server.events("accepted").len(), 1);
    plain.daemon().wait_log("line of the denial", |line| {
        line.contains("no ALLOW policy matches it")
    });
}

#[test]
fn a_policy_in_dry_run_only_tells() {
    let plain = Plain::start();
    let _server = greeter(&plain.mesh.server, 8080);
    let fields = json!({ "dryRun": true });
    plain.policy("Deny", json!({ "destinationPorts": [8080] }), fields);
    greeted(&plain.stranger, plain.mesh.server.at(8080), &[]);
    plain.daemon().wait_log("line of the dry run", |line| {
        line.contains("dry-run would deny") && line.contains("default/the-policy")
    });
    assert_eq!(plain.daemon().failed("inbound", "policy_denied"), 0);
}

#[test]
fn a_policy_ends_connections_that_it_would_now_deny() {
    let plain = Plain::start();
    let (_denied, _allowed) = (
        greeter(&plain.mesh.server, 8080),
        greeter(&plain.mesh.server, 8081),
    );
    for at in 0..2 {
        let mut denied = Held::open(&plain.stranger, plain.at(8080)[at]);
        let mut allowed = Held::open(&plain.stranger, plain.at(8081)[at]);
        denied.echo("before").expect("no policy yet");
        plain.policy("Deny", json!({ "destinationPorts": [8080] }), json!({}));
        assert_eq!(denied.app().event("error").str("name"), "ECONNRESET");
        allowed.echo("still here").expect("this port is not denied");
        let lines = plain.daemon().process().line_count();
        plain.mesh.workloads.write();
        plain
            .daemon()
            .wait_log_from(lines, "line of the reloaded file", |line| {
                line.contains("workload file loaded") && line.contains("policies=0")
            });
    }
}

#[test]
fn a_connection_to_our_own_port_is_nobodys() {
    let plain = Plain::start();
    // A client in the pod's namespace reaches 15006 without being redirected.
    for dst in plain.at(15006) {
        let app = plain
            .mesh
            .server
            .app_outside(["connect", &dst.to_string(), "recv-all"]);
        assert_eq!(app.event("error").str("name"), "ECONNRESET");
    }
    // From outside, rules bring these to 15006 like any other port.
    for port in [15001, 15006, 15053] {
        for dst in plain.at(port) {
            refused(&plain.stranger, dst);
        }
    }
    plain
        .daemon()
        .wait_failed("inbound", "no_original_destination", 8);
}

#[test]
fn where_no_app_listens_the_client_is_refused() {
    let plain = Plain::start();
    let private = plain.mesh.server.app([
        "serve",
        "--listen",
        "127.0.0.1:8080",
        "--listen",
        "[::1]:8080",
    ]);
    private.event("listening");
    for dst in plain.at(9).into_iter().chain(plain.at(8080)) {
        refused(&plain.stranger, dst);
    }
    plain.daemon().wait_failed("inbound", "app_refused", 4);
    assert_eq!(private.events("accepted"), []);
}

#[test]
fn without_workload_data_nobody_knows_the_policies() {
    let builder = Mesh::builder().config_b(json!({
        "capture": { "backend": "none" },
        "proxy": { "hold": "15s" },
    }));
    let mesh = builder.start_with(|_, server| capture_inbound(server));
    let Mesh { mut daemon_b, .. } = mesh;
    assert!(daemon_b.stop().success());
    fs::remove_file(mesh.workloads.path()).expect("there is a workload file");
    let _server = greeter(&mesh.server, 8080);
    let stranger = mesh.b.pod("stranger");
    let daemon = daemon_b.spec().start();
    let dst = mesh.server.at(8080).to_string();
    let app = stranger.app(["connect", &dst, "recv-line"]);
    app.event("connected");
    assert_eq!(app.events("received"), []);
    let policy = json!({ "destinationPorts": [8081] });
    let workloads = mesh.workloads.clone();
    workloads.policy("other-port", "Deny", policy).write();
    assert!(app.event("received").text().starts_with("hello "));
    drop(daemon);

    let spec = daemon_b.spec().clone();
    let daemon = spec.config(json!({ "proxy": { "hold": "10ms" } }));
    fs::remove_file(mesh.workloads.path()).expect("there is a workload file");
    let daemon = daemon.start();
    refused(&stranger, mesh.server.at(8080));
    daemon.wait_failed("inbound", "workloads_not_ready", 1);
}

#[test]
fn a_drain_lets_connections_finish() {
    let mut plain = Plain::start();
    let _server = greeter(&plain.mesh.server, 8080);
    let mut held = Held::open(&plain.stranger, plain.mesh.server.at(8080));
    plain.mesh.daemon_b.sigterm();
    plain
        .mesh
        .daemon_b
        .wait_log("line of the drain", |line| line.contains("draining"));
    held.echo("while draining").expect("it may finish");
    refused(&plain.stranger, plain.mesh.server.at(8080));
    held.close();
    plain
        .mesh
        .daemon_b
        .process()
        .wait_line("end", |line| line.contains("stopped").then_some(()));
    assert!(plain.mesh.daemon_b.wait().success());
}
