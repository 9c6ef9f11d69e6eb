//! What a connection through both daemons must be like: as a TCP connection to the server itself.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use redirect_tests::{
    App, Mesh, eventually,
    exchange::{Held, greeted, greeter, refused, serve},
    hbone::{self, Behaviour, Forge, Leaf, Server},
    sockets::established,
    wait_until,
};
use serde_json::json;

const SOON: Duration = Duration::from_secs(10);

#[test]
fn the_client_may_finish_first() {
    let mesh = Mesh::start();
    let _server = serve(&mesh.server, 8080, "count");
    for dst in [mesh.server.at(8080), mesh.server.at6(8080)] {
        let app = mesh.client.app([
            "connect",
            &dst.to_string(),
            "send-bytes:300000",
            "shutdown",
            "recv-all",
        ]);
        assert_eq!(app.event("received").text(), "300000");
        app.event("eof");
    }
}

#[test]
fn the_server_may_finish_first() {
    let mesh = Mesh::start();
    let server = serve(&mesh.server, 8080, "send:300000");
    let dst = mesh.server.at(8080).to_string();
    let app = mesh
        .client
        .app(["connect", &dst, "recv-all", "send-bytes:200000", "shutdown"]);
    assert_eq!(app.event("received").u64("bytes"), 300_000);
    app.event("eof");
    let closed = server.event("closed");
    assert_eq!((closed.u64("bytes"), closed.str("how")), (200_000, "eof"));
}

#[test]
fn a_reset_by_the_server_is_a_reset() {
    let mesh = Mesh::start();
    let _server = serve(&mesh.server, 8080, "reset");
    let dst = mesh.server.at(8080).to_string();
    let app = mesh.client.app(["connect", &dst, "send:xyz", "recv-all"]);
    assert_eq!(app.event("error").str("name"), "ECONNRESET");
}

#[test]
fn a_reset_by_the_client_is_a_reset() {
    let mesh = Mesh::start();
    let server = serve(&mesh.server, 8080, "sink");
    let dst = mesh.server.at(8080).to_string();
    let app = mesh
        .client
        .app(["connect", &dst, "send:xyz", "wait", "reset"]);
    app.event("waiting");
    server.event("accepted");
    let mut app = app;
    app.write("\n");
    assert_eq!(server.event("closed").str("how"), "ECONNRESET");
}

#[test]
fn a_refusal_is_a_reset_and_never_a_clean_end() {
    let mesh = Mesh::start();
    for dst in [
        mesh.server.at(9),
        mesh.server.at6(9),
        mesh.outsider.at(9),
        mesh.outsider.at6(9),
    ] {
        let started = Instant::now();
        refused(&mesh.client, dst);
        assert!(
            started.elapsed() < Duration::from_secs(3),
            "{dst}: refused only after {:?}",
            started.elapsed()
        );
    }
}

#[test]
fn a_peer_without_a_daemon_is_refused() {
    let mut mesh = Mesh::start();
    let _server = greeter(&mesh.server, 8080);
    mesh.daemon_b.sigkill();
    refused(&mesh.client, mesh.server.at(8080));
    assert_eq!(mesh.wall.leaked(), 0, "tried again in plaintext");
}

#[test]
fn bytes_arrive_whole_and_in_order_both_ways() {
    let mesh = Mesh::start();
    let server = serve(&mesh.server, 8080, "echo");
    let dst = mesh.server.at(8080).to_string();
    // Each connection checks its own content.
    let app = mesh
        .client
        .app(["stress", &dst, "--connections", "8", "--bytes", "8000000"]);
    let done = app.event_within("stressed", Duration::from_secs(60));
    assert_eq!((done.u64("ok"), done.u64("failed")), (8, 0), "{done:?}");
    for _ in 0..8 {
        assert_eq!(server.event("closed").u64("bytes"), 8_000_000);
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

/// A workload whose HBONE server is ours: a pod that no daemon captures, but the workload file knows.
fn with_peer(behaviour: Behaviour, identity: &str) -> (Mesh, redirect_tests::Pod, Server) {
    let mesh = Mesh::start();
    let peer = mesh.b.pod("peer");
    let credentials = Forge::of(mesh.bed.ca()).leaf(&Leaf::new(identity));
    let server = Server::start(peer.netns(), peer.at(hbone::PORT), &credentials, behaviour);
    mesh.workloads.clone().hbone(&peer).write();
    (mesh, peer, server)
}

/// The workload file is read again within a second or so; until then the peer is no mesh member.
#[track_caller]
fn until_known(server: &Server, mut attempt: impl FnMut()) {
    eventually("the new workload is known", SOON, || {
        attempt();
        if server.connections() > 0 {
            Ok(())
        } else {
            Err("no connection yet")
        }
    });
}

#[test]
fn goaway_ends_no_stream_and_new_ones_go_elsewhere() {
    let (mesh, peer, server) = with_peer(
        Behaviour::GoAwayAfter(2),
        "spiffe://cluster.local/ns/default/sa/peer",
    );
    let dst = peer.at(8080).to_string();
    let talk = || mesh.client.app(["talk", &dst]);
    until_known(&server, || drop(talk().event("connected")));
    // Each is answered before the next one, so that word of a GOAWAY can arrive between two of them.
    let mut apps: Vec<App> = Vec::new();
    while server.connections() < 4 {
        assert!(
            apps.len() < 60,
            "{} streams of 2 per tunnel in {} tunnels",
            apps.len(),
            server.connections()
        );
        let mut app = talk();
        app.write("first\n");
        assert_eq!(app.event("received").text(), "first");
        apps.push(app);
    }
    // All are open still, over several tunnels, the first of which have said GOAWAY.
    for round in 0..3 {
        for (number, app) in apps.iter_mut().enumerate() {
            let text = format!("{number} in round {round}");
            app.write(&format!("{text}\n"));
            assert_eq!(app.event("received").text(), text);
        }
    }
}

#[test]
fn a_server_with_another_identity_is_refused() {
    let (mesh, peer, server) = with_peer(
        Behaviour::Echo,
        "spiffe://cluster.local/ns/default/sa/impostor",
    );
    until_known(&server, || drop(refused(&mesh.client, peer.at(8080))));
    refused(&mesh.client, peer.at(8080));
    assert_eq!(
        server.streams(),
        0,
        "the impostor was asked for a connection"
    );
}

#[test]
fn what_the_peer_refuses_is_refused() {
    for status in [400, 401, 503] {
        let identity = "spiffe://cluster.local/ns/default/sa/peer";
        let (mesh, peer, server) = with_peer(Behaviour::Status(status), identity);
        until_known(&server, || drop(refused(&mesh.client, peer.at(8080))));
        assert_eq!(
            refused(&mesh.client, peer.at(8080)).str("name"),
            "ECONNRESET"
        );
    }
}

#[test]
fn a_mute_peer_is_given_up_after_the_handshake_timeout() {
    let mesh = Mesh::builder()
        .config_a(json!({ "hbone": { "handshakeTimeout": "1s" } }))
        .start();
    let peer = mesh.b.pod("peer");
    let credentials = Forge::of(mesh.bed.ca()).identity("peer");
    let server = Server::start(
        peer.netns(),
        peer.at(hbone::PORT),
        &credentials,
        Behaviour::Mute,
    );
    mesh.workloads.clone().hbone(&peer).write();
    until_known(&server, || drop(refused(&mesh.client, peer.at(8080))));
    let started = Instant::now();
    refused(&mesh.client, peer.at(8080));
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "given up after {:?}",
        started.elapsed()
    );
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
