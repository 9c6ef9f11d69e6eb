//! Authorization policies: who may connect to a pod over HBONE, and that a change counts at once.

use std::time::Duration;

use redirect_tests::{
    Mesh, eventually,
    exchange::{Held, greeted, greeter, refused},
};
use serde_json::json;

const SOON: Duration = Duration::from_secs(10);
const CLIENT: &str = "cluster.local/ns/default/sa/client";

/// Waits until daemon B has read a file with so many policies.
#[track_caller]
fn wait_for_policies(mesh: &Mesh, from: usize, count: usize) {
    mesh.daemon_b
        .wait_log_from(from, "line of the reloaded file", |line| {
            line.contains("workload file loaded") && line.contains(&format!("policies={count}"))
        });
}

#[test]
fn a_deny_policy_refuses_what_it_names_and_nothing_else() {
    let mesh = Mesh::start();
    let (_open, closed) = (greeter(&mesh.server, 8080), greeter(&mesh.server, 8081));
    let lines = mesh.daemon_b.process().line_count();
    mesh.workloads
        .clone()
        .policy("no-8081", "Deny", json!({ "destinationPorts": [8081] }))
        .write();
    wait_for_policies(&mesh, lines, 1);
    for _ in 0..3 {
        greeted(&mesh.client, mesh.server.at(8080), &[]);
        refused(&mesh.client, mesh.server.at(8081));
        refused(&mesh.client, mesh.server.at6(8081));
    }
    mesh.daemon_a.wait_failed("outbound", "peer_status_401", 6);
    mesh.daemon_b.wait_failed("inbound", "policy_denied", 6);
    assert_eq!(closed.events("accepted"), []);
}

#[test]
fn an_allow_policy_refuses_whom_it_does_not_name() {
    let mesh = Mesh::start();
    let _server = greeter(&mesh.server, 8080);
    for (name, allowed) in [
        ("cluster.local/ns/default/sa/somebody-else", false),
        (CLIENT, true),
    ] {
        let lines = mesh.daemon_b.process().line_count();
        let condition = json!({ "principals": [{ "Exact": name }] });
        mesh.workloads
            .clone()
            .policy("only", "Allow", condition)
            .write();
        wait_for_policies(&mesh, lines, 1);
        if allowed {
            greeted(&mesh.client, mesh.server.at(8080), &[]);
        } else {
            refused(&mesh.client, mesh.server.at(8080));
        }
    }
}

#[test]
fn a_policy_ends_connections_that_it_would_now_deny() {
    let mesh = Mesh::start();
    let (_denied, _allowed) = (greeter(&mesh.server, 8080), greeter(&mesh.server, 8081));
    let mut denied = Held::open(&mesh.client, mesh.server.at(8080));
    let mut allowed = Held::open(&mesh.client, mesh.server.at(8081));
    denied.echo("before").expect("no policy yet");
    let condition = json!({ "destinationPorts": [8080], "principals": [{ "Exact": CLIENT }] });
    mesh.workloads
        .clone()
        .policy("not-the-client", "Deny", condition)
        .write();
    assert_eq!(denied.app().event("error").str("name"), "ECONNRESET");
    allowed
        .echo("still here")
        .expect("another port is not denied");
    refused(&mesh.client, mesh.server.at(8080));
    mesh.workloads.write();
    eventually("connections are allowed again", SOON, || {
        let app = mesh
            .client
            .app(["connect", &mesh.server.at(8080).to_string(), "recv-line"]);
        let last = [app.next_event(), app.next_event()]
            .into_iter()
            .find(|event| event.name() == "received");
        last.map(|_| ()).ok_or("refused")
    });
}
