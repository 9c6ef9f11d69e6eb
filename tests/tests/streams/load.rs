//! Many connections, much data, and peers that do not read.

use std::time::Instant;
use std::{net::SocketAddr, time::Duration};

use redirect_tests::{
    App, Mesh, eventually,
    exchange::{greeted, greeter, refused, serve},
    sockets::established,
};
use serde_json::json;

use super::SOON;

#[test]
fn bytes_arrive_whole_and_in_order_both_ways() {
    for workers in [1, 2] {
        let mesh = Mesh::builder()
            .config(json!({ "workers": workers }))
            .start();
        let server = serve(&mesh.server, 8080, "echo");
        for dst in [mesh.server.at(8080), mesh.server.at6(8080)] {
            // Each connection checks its own content.
            let options = [
                "stress",
                &dst.to_string(),
                "--connections",
                "8",
                "--bytes",
                "6000000",
            ];
            let app = mesh.client.app(options);
            let done = app.event_within("stressed", Duration::from_secs(60));
            assert_eq!(
                (done.u64("ok"), done.u64("failed")),
                (8, 0),
                "{workers} workers: {done:?}"
            );
            for _ in 0..8 {
                assert_eq!(server.event("closed").u64("bytes"), 6_000_000);
            }
        }
    }
}

#[test]
fn stalled_readers_stop_nobody_else() {
    let mesh = Mesh::start();
    let _source = serve(&mesh.server, 8081, "source");
    let _hold = serve(&mesh.server, 8082, "hold");
    let _greeter = greeter(&mesh.server, 8080);
    let (source, hold) = (
        mesh.server.at(8081).to_string(),
        mesh.server.at(8082).to_string(),
    );
    let mut stalled: Vec<App> = Vec::new();
    // Clients that never read what a source sends, and a server that never reads what clients send.
    for _ in 0..12 {
        let app = mesh
            .client
            .app(["connect", &source, "recv-bytes:1", "wait"]);
        app.event("waiting");
        stalled.push(app);
        let app = mesh.client.app(["connect", &hold, "send-bytes:100000000"]);
        app.event("connected");
        stalled.push(app);
    }
    let echo_rounds = || {
        for _ in 0..20 {
            let started = Instant::now();
            greeted(&mesh.client, mesh.server.at(8080), &[]);
            let took = started.elapsed();
            assert!(
                took < Duration::from_secs(3),
                "a new connection took {took:?} beside stalled ones"
            );
        }
    };
    echo_rounds();
    // The windows are full now at the latest: memory stays, and it still goes on.
    let before = [mesh.daemon_a.rss_kib(), mesh.daemon_b.rss_kib()];
    echo_rounds();
    for (daemon, before) in [&mesh.daemon_a, &mesh.daemon_b].into_iter().zip(before) {
        let grown = daemon.rss_kib().saturating_sub(before);
        assert!(
            grown < 20_000,
            "memory grew by {grown} KiB with stalled streams"
        );
    }
}

#[test]
fn five_thousand_connections_at_once() {
    let mesh = Mesh::start();
    let server = mesh
        .server
        .app(["serve", "--quiet", "--listen", "[::]:8080"]);
    server.event("listening");
    let dst = mesh.server.at(8080).to_string();
    let limit = Duration::from_secs(90);
    let mut app = mesh
        .client
        .app(["many", "--count", "5000", "--limit", "60", &dst]);
    let held = app.event_within("held", limit);
    assert_eq!(held.u64("ok"), 5000, "{held:?}");
    assert_eq!(held.u64("wrongPeers"), 0);
    app.write("again\n");
    let again = app.event_within("again", limit);
    assert_eq!(again.u64("ok"), 5000, "{again:?}");
    app.close_stdin();
    app.wait();
    // Everything is given back.
    eventually(
        "connections are closed",
        Duration::from_secs(30),
        || match established(mesh.server.netns(), 8080) {
            0 => Ok(()),
            n => Err(format!("{n} are open")),
        },
    );
    greeted_echo(&mesh, mesh.server.at(8080));
}

/// One echo on a server that does not greet.
#[track_caller]
fn greeted_echo(mesh: &Mesh, dst: SocketAddr) {
    let app = mesh
        .client
        .app(["connect", &dst.to_string(), "send:ping\\n", "recv-line"]);
    assert_eq!(app.event("received").text(), "ping");
}

#[test]
fn a_pod_has_a_limit_of_connections() {
    let mesh = Mesh::builder()
        .config_a(json!({ "proxy": { "maxConnectionsPerPod": 10 } }))
        .start();
    let server = mesh
        .server
        .app(["serve", "--quiet", "--listen", "[::]:8080"]);
    server.event("listening");
    let dst = mesh.server.at(8080).to_string();
    let mut app = mesh.client.app(["many", "--count", "10", &dst]);
    assert_eq!(app.event("held").u64("ok"), 10);
    refused(&mesh.client, mesh.server.at(8080));
    mesh.daemon_a
        .wait_failed("outbound", "pod_connection_limit", 1);
    app.close_stdin();
    app.wait();
    eventually("there is room again", SOON, || {
        let app = mesh
            .client
            .app(["connect", &dst, "send:ping\\n", "recv-line"]);
        let event = [app.next_event(), app.next_event()]
            .into_iter()
            .find(|event| event.name() == "received");
        event.map(|_| ()).ok_or("refused")
    });
}
