//! Ordinary sockets that capture did not see, and those that it let pass.

use std::{net::SocketAddr, process::Command};

use redirect_tests::{
    App, Mesh, Pod, Process, Testbed, app_binary, eventually,
    exchange::{greeted, greeter},
    namespace,
    process::PATIENCE,
};
use serde_json::json;

use crate::stage::{Counter, PORT, Stage, as_in_a_container};

#[test]
fn a_process_of_another_cgroup() {
    let stage = Stage::set();
    let server = greeter(stage.outsider(), PORT);
    let seen = Counter::of(stage.outsider(), "tcp dport 9000");
    for (count, (_, dst)) in (1..).zip(stage.ends()) {
        let dst = dst.to_string();
        let app = stage
            .client()
            .app_outside(["connect", "--nonblocking", &dst]);
        stage.wait_dropped("uncaptured", count);
        drop(app);
    }
    assert_eq!(seen.packets(), 0);
    assert!(server.events("accepted").is_empty());
}

/// A socket is of the cgroup in which it was made, whoever it is passed to.
#[test]
fn a_socket_that_was_passed_in() {
    let stage = Stage::set();
    let server = greeter(stage.outsider(), PORT);
    let seen = Counter::of(stage.outsider(), "tcp dport 9000");
    let pod = stage.client().container("app");
    let pod = pod.to_str().expect("text");
    for (count, (_, dst)) in (1..).zip(stage.ends()) {
        let args = ["connect", "--nonblocking", "--join", pod, &dst.to_string()];
        let app = stage.client().app_outside(args);
        stage.wait_dropped("uncaptured", count);
        drop(app);
    }
    assert_eq!(seen.packets(), 0);
    assert!(server.events("accepted").is_empty());
}

/// IP_TRANSPARENT, which CAP_NET_RAW allows: a connection from an address that is not the pod's.
#[test]
fn a_source_that_is_not_the_pods() {
    let stage = Stage::set();
    let seen = Counter::of(stage.outsider(), "tcp dport 9000");
    for (source, (_, dst)) in ["203.0.113.9:0", "[2001:db8::9]:0"]
        .into_iter()
        .zip(stage.ends())
    {
        let dst = dst.to_string();
        let args = ["connect", "--transparent", "--bind", source, &dst];
        let command = as_in_a_container(stage.client(), &args);
        let app = App::new(Process::spawn("transparent", command));
        let error = app.event("error");
        assert_eq!((error.str("call"), error.str("name")), ("connect", "EPERM"));
    }
    assert_eq!(stage.verdicts("connect4", "refuse", "foreign_source"), 1);
    assert_eq!(stage.verdicts("connect6", "refuse", "foreign_source"), 1);
    assert_eq!(seen.packets(), 0);
}

/// The mark that leads the proxy's connections past capture, on a socket of the pod's.
#[test]
fn our_marks_help_nobody() {
    let stage = Stage::set();
    let _server = greeter(&stage.mesh.server, 8080);
    let seen = Counter::of(stage.outsider(), "tcp dport 9000");
    for mark in ["273", "1337"] {
        let dst = stage.outsider().at(PORT).to_string();
        let args = ["connect", "--mark", mark, &dst, "recv-all"];
        let app = App::new(Process::spawn(
            "marked",
            as_in_a_container(stage.client(), &args),
        ));
        app.event("error");
    }
    // The proxy itself tried to reach the outsider for them, where nobody listens.
    assert_eq!(stage.guarded("pass", "known"), 0);
    assert!(seen.packets() <= stage.guarded("pass", "proxy"));
}

#[test]
fn a_connection_older_than_capture() {
    for reset in [false, true] {
        let bed = Testbed::new();
        let node = bed.node("a");
        let (client, outsider) = (node.pod("client"), node.pod("outsider"));
        bed.workloads().hbone(&client).write();
        // Both ways: made by the pod, and accepted by it.
        let _servers = (greeter(&outsider, PORT), greeter(&client, 8080));
        let mut outbound = talk(&client, outsider.at(PORT));
        let mut inbound = talk(&outsider, client.at6(8080));
        let options = json!({ "resetOlderConnections": reset });
        let daemon = node.daemon().capture_with(&client, options).start();
        if reset {
            // What tcp_abort() tells the owner; the other end gets a reset.
            assert_eq!(outbound.event("error").str("name"), "ECONNABORTED");
            assert_eq!(inbound.event("error").str("name"), "ECONNRESET");
            daemon.wait_log("line that says that two were reset", |line| {
                line.contains("reset older connections") && line.contains("count=2")
            });
            continue;
        }
        let seen = Counter::of(&outsider, "tcp dport 9000");
        let dropped = || {
            let labels = [("verdict", "refuse"), ("reason", "uncaptured")];
            daemon
                .metrics()
                .sum("redirect_capture_verdicts_total", &labels)
        };
        for (app, count) in [(&mut outbound, 1.0), (&mut inbound, dropped() + 1.0)] {
            app.write("secret\n");
            eventually("a drop", PATIENCE, || {
                let dropped = dropped();
                (dropped >= count).then_some(()).ok_or(dropped)
            });
        }
        assert_eq!(seen.packets(), 0);
        assert_eq!(outbound.events("received").len(), 1);
        assert_eq!(inbound.events("received").len(), 1);
    }
}

/// A connection to a greeter, established.
fn talk(client: &Pod, dst: SocketAddr) -> App {
    let app = client.app(["talk", &dst.to_string()]);
    assert!(app.event("received").text().starts_with("hello "));
    app
}

#[test]
fn what_a_nested_namespace_sends() {
    for (options, may) in [
        (json!({}), false),
        (json!({ "allowForwarding": true }), true),
    ] {
        let stage = Stage::on(Mesh::builder().client(options));
        let nested = nest(&stage);
        let seen = Counter::of(stage.outsider(), "tcp dport 9000");
        let dst = stage.outsider().at(PORT).to_string();
        let mut command = Command::new(app_binary());
        command.arg("enter").arg(stage.client().container("app"));
        command.arg(namespace::path(&nested)).arg(app_binary());
        command.args(["connect", "--nonblocking", &dst]);
        let app = App::new(Process::spawn("nested", command));
        if may {
            seen.wait(1);
            assert!(stage.guarded("pass", "forwarded") >= 1);
        } else {
            stage.wait_dropped("forwarded", 1);
            assert_eq!(seen.packets(), 0);
        }
        drop(app);
    }
}

/// A network namespace behind the client, which forwards for it. Goes with the testbed, by its name.
fn nest(stage: &Stage) -> String {
    let name = format!("{}-nested", stage.mesh.bed.id());
    let nested = namespace::create(&name);
    stage.client().ip(&format!(
        "link add inner type veth peer name outer netns {name}\n\
         addr add 10.99.0.1/24 dev inner\nlink set inner up\n"
    ));
    namespace::ip(
        Some(&nested),
        "addr add 10.99.0.2/24 dev outer\nlink set outer up\nroute add default via 10.99.0.1\n",
    );
    stage.client().sysctl("net.ipv4.ip_forward", "1");
    name
}

/// What the options leave alone is not the guard's to drop.
#[test]
fn excluded_destinations_and_exempt_cgroups() {
    let stage = Stage::on(
        Mesh::builder()
            .client(json!({ "excludeOutboundPorts": [PORT] }))
            .client_of(|pod| {
                let exempt = pod.container("exempt");
                std::fs::create_dir_all(&exempt).expect("make the cgroup");
                json!({ "exemptCgroups": [exempt] })
            }),
    );
    let server = greeter(stage.outsider(), PORT);
    let other = greeter(stage.outsider(), 9001);
    for (_, dst) in stage.ends() {
        greeted(stage.client(), dst, &[]);
        assert_eq!(
            server.event("accepted").addr("peer").ip(),
            family_of(&stage, dst)
        );
    }
    let dst = stage.outsider().at(9001).to_string();
    let app = stage
        .client()
        .app_in("exempt", ["connect", &dst, "recv-line"]);
    assert!(app.event("received").text().starts_with("hello "));
    assert_eq!(
        other.event("accepted").addr("peer").ip(),
        stage.client().ipv4()
    );
    assert!(stage.guarded("pass", "known") > 0);
    assert_eq!(stage.guarded("refuse", "uncaptured"), 0);
}

fn family_of(stage: &Stage, dst: std::net::SocketAddr) -> std::net::IpAddr {
    if dst.is_ipv4() {
        stage.client().ipv4()
    } else {
        stage.client().ipv6()
    }
}

/// Answers to who was let in: the app's own, and the kernel's where nobody listens.
#[test]
fn inbound_that_is_let_pass() {
    let stage = Stage::on(Mesh::builder().client(json!({ "bypassInbound": true })));
    let _server = greeter(stage.client(), 8080);
    for dst in [stage.client().at(8080), stage.client().at6(8080)] {
        greeted(stage.outsider(), dst, &[]);
    }
    assert!(stage.guarded("pass", "known") > 0);
    let closed = stage.client().at(8081).to_string();
    let app = stage.outsider().app(["connect", &closed]);
    assert_eq!(app.event("error").str("name"), "ECONNREFUSED");
    assert_eq!(stage.guarded("refuse", "uncaptured"), 0);
    assert_eq!(stage.guarded("refuse", "no_socket"), 0);
}
