//! Inbound from HBONE: what the app sees, and what of the pod is reachable.

use std::time::{Duration, Instant};

use redirect_tests::{
    Mesh,
    exchange::{greeted, greeter, refused},
};
use serde_json::json;

#[test]
fn the_app_sees_the_clients_address() {
    let mesh = Mesh::start();
    let server = greeter(&mesh.server, 8080);
    for (dst, client) in [
        (mesh.server.at(8080), mesh.client.ipv4()),
        (mesh.server.at6(8080), mesh.client.ipv6()),
    ] {
        let app = mesh.client.app(["connect", &dst.to_string(), "recv-line"]);
        let seen = app.event("received").text().to_owned();
        assert!(
            seen.starts_with("hello ") && seen.contains(&client.to_string()),
            "{seen}"
        );
        assert_eq!(server.event("accepted").addr("peer").ip(), client);
    }
}

#[test]
fn an_address_that_is_not_the_pods_cannot_pose_as_a_client() {
    let mesh = Mesh::builder().start_with(|client, _| {
        client.ip("addr add 10.244.1.99/24 dev eth0\n");
    });
    let server = greeter(&mesh.server, 8080);
    // The interface has it, but by the configuration it is not the pod's.
    let dst = mesh.server.at(8080).to_string();
    let app = mesh
        .client
        .app(["connect", &dst, "--bind", "10.244.1.99:0", "recv-all"]);
    app.event("error");
    greeted(&mesh.client, mesh.server.at(8080), &[]);
    assert_eq!(
        server.event("accepted").addr("peer").ip(),
        mesh.client.ipv4()
    );
    assert_eq!(server.events("accepted").len(), 1);
}

#[test]
fn without_preserve_client_ip_the_app_sees_its_own_pod() {
    let mesh = Mesh::builder()
        .server(json!({ "preserveClientIp": false }))
        .start();
    let server = greeter(&mesh.server, 8080);
    for (dst, own) in [
        (mesh.server.at(8080), mesh.server.ipv4()),
        (mesh.server.at6(8080), mesh.server.ipv6()),
    ] {
        greeted(&mesh.client, dst, &[]);
        let peer = server.event("accepted").addr("peer").ip();
        assert!(peer == own || peer.is_loopback(), "the app saw {peer}");
    }
}

#[test]
fn a_closed_port_is_refused_at_once() {
    for preserve in [true, false] {
        let mesh = Mesh::builder()
            .server(json!({ "preserveClientIp": preserve }))
            .start();
        for dst in [mesh.server.at(9), mesh.server.at6(9)] {
            let started = Instant::now();
            refused(&mesh.client, dst);
            let took = started.elapsed();
            assert!(
                took < Duration::from_secs(2),
                "{dst} refused after {took:?}, preserveClientIp {preserve}"
            );
        }
        mesh.daemon_b.wait_failed("inbound", "app_refused", 2);
    }
}

#[test]
fn an_app_on_loopback_stays_private() {
    let mesh = Mesh::start();
    for listen in ["127.0.0.1:8080", "[::1]:8080"] {
        let app = mesh.server.app(["serve", "--listen", listen]);
        app.event("listening");
        for dst in [mesh.server.at(8080), mesh.server.at6(8080)] {
            refused(&mesh.client, dst);
        }
        assert_eq!(app.events("accepted"), []);
    }
}

#[test]
fn a_pod_is_client_and_server_at_once() {
    let mesh = Mesh::start();
    let server = greeter(&mesh.client, 8080);
    greeted(&mesh.server, mesh.client.at(8080), &[]);
    assert_eq!(
        server.event("accepted").addr("peer").ip(),
        mesh.server.ipv4()
    );
    assert_eq!(mesh.wall.leaked(), 0);
}
