//! How many tunnels there are, and how long.

use redirect_tests::{
    Mesh, eventually,
    exchange::{Held, greeted, greeter},
    hbone,
    sockets::established,
    wait_until,
};
use serde_json::json;
use std::time::Duration;

use super::SOON;

#[test]
fn connections_share_tunnels() {
    let mesh = Mesh::builder()
        .config(json!({ "hbone": { "maxStreamsPerTunnel": 50 } }))
        .start();
    let server = mesh
        .server
        .app(["serve", "--quiet", "--listen", "[::]:8080"]);
    server.event("listening");
    let dst = mesh.server.at(8080).to_string();
    let tunnels = || established(mesh.client.netns(), hbone::PORT);

    let one = mesh.client.app(["many", "--count", "1", &dst]);
    assert_eq!(one.event("held").u64("ok"), 1);
    assert_eq!(tunnels(), 1);
    let more = mesh.client.app(["many", "--count", "40", &dst]);
    assert_eq!(more.event("held").u64("ok"), 40);
    assert_eq!(tunnels(), 1, "41 streams fit in the tunnel that is there");
    let beyond = mesh
        .client
        .app(["many", "--count", "100", "--parallel", "4", &dst]);
    assert_eq!(beyond.event("held").u64("ok"), 100);
    assert!(
        (3..=8).contains(&tunnels()),
        "141 streams of at most 50 in {} tunnels",
        tunnels()
    );
}

#[test]
fn an_idle_tunnel_is_closed() {
    let mesh = Mesh::builder()
        .config_a(json!({ "hbone": { "idleTimeout": "1s" } }))
        .start();
    let _server = greeter(&mesh.server, 8080);
    let mut held = Held::open(&mesh.client, mesh.server.at(8080));
    assert!(established(mesh.client.netns(), hbone::PORT) > 0);
    // A stream that says nothing keeps it open, for longer than the limit.
    assert!(!wait_until(Duration::from_secs(3), || established(
        mesh.client.netns(),
        hbone::PORT
    ) == 0));
    held.echo("still here").expect("the connection goes on");
    held.close();
    assert!(
        wait_until(SOON, || established(mesh.client.netns(), hbone::PORT) == 0),
        "the tunnel stays open"
    );
    greeted(&mesh.client, mesh.server.at(8080), &[]);
}

#[test]
fn a_peer_that_no_longer_answers_pings_is_given_up() {
    use nix::sys::signal::Signal;
    let mesh = Mesh::builder()
        .config_a(json!({ "hbone": { "pingInterval": "500ms", "pingTimeout": "1s" } }))
        .start();
    let _server = greeter(&mesh.server, 8080);
    let mut held = Held::open(&mesh.client, mesh.server.at(8080));
    held.echo("works").expect("works");
    mesh.daemon_b.process().signal(Signal::SIGSTOP);
    let error = held.app().event("error");
    assert_eq!(
        error.str("name"),
        "ECONNRESET",
        "a lost peer is no clean end"
    );
    mesh.daemon_b.process().signal(Signal::SIGCONT);
    eventually("connections work again", SOON, || {
        let mut held = Held::open(&mesh.client, mesh.server.at(8080));
        held.echo("again")
    });
}

#[test]
fn both_access_logs_tell_of_a_connection_under_one_trace_id() {
    let mesh = Mesh::start();
    let _server = greeter(&mesh.server, 8080);
    greeted(&mesh.client, mesh.server.at(8080), &[]);
    let id = |daemon: &redirect_tests::Daemon, direction: &str| {
        let line = daemon.wait_log(
            &format!("access log line of an {direction} connection"),
            |line| {
                line.contains(&format!("direction=\"{direction}\""))
                    || line.contains(&format!("direction={direction}"))
            },
        );
        let (_, rest) = line
            .split_once("trace_id=")
            .unwrap_or_else(|| panic!("no trace_id in: {line}"));
        rest.split([' ', '"'])
            .find(|part| !part.is_empty())
            .expect("an id")
            .to_owned()
    };
    let (outbound, inbound) = (
        id(&mesh.daemon_a, "outbound"),
        id(&mesh.daemon_b, "inbound"),
    );
    assert_eq!(outbound, inbound);
    assert_eq!(outbound.len(), 32, "a W3C trace id: {outbound}");
}
