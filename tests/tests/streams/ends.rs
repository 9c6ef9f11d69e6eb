//! Ends of data, resets and refusals: over HBONE and passed through, as without us.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use redirect_tests::{
    App, Mesh, Pod,
    exchange::{greeter, refused, serve},
};

/// A mesh, and a server in the mesh and one outside it that treat connections as `mode` says.
fn both_ways(mode: &str) -> (Mesh, [(Pod, App); 2]) {
    let mesh = Mesh::start();
    let servers = [&mesh.server, &mesh.outsider].map(|pod| (pod.clone(), serve(pod, 8080, mode)));
    (mesh, servers)
}

fn addresses(pod: &Pod) -> [SocketAddr; 2] {
    [pod.at(8080), pod.at6(8080)]
}

#[test]
fn the_client_may_finish_first() {
    let (mesh, servers) = both_ways("count");
    for dst in servers.iter().flat_map(|(pod, _)| addresses(pod)) {
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
    let (mesh, servers) = both_ways("send:300000");
    for (pod, server) in &servers {
        for dst in addresses(pod) {
            let app = mesh.client.app([
                "connect",
                &dst.to_string(),
                "recv-all",
                "send-bytes:200000",
                "shutdown",
            ]);
            assert_eq!(app.event("received").u64("bytes"), 300_000);
            app.event("eof");
            let closed = server.event("closed");
            assert_eq!((closed.u64("bytes"), closed.str("how")), (200_000, "eof"));
        }
    }
}

#[test]
fn a_reset_by_the_server_is_a_reset() {
    let (mesh, servers) = both_ways("reset");
    for dst in servers.iter().flat_map(|(pod, _)| addresses(pod)) {
        let app = mesh
            .client
            .app(["connect", &dst.to_string(), "send:xyz", "recv-all"]);
        assert_eq!(app.event("error").str("name"), "ECONNRESET", "{dst}");
    }
}

#[test]
fn a_reset_after_the_clients_end_is_a_reset() {
    let (mesh, servers) = both_ways("reset-at-end");
    for dst in servers.iter().flat_map(|(pod, _)| addresses(pod)) {
        let app = mesh.client.app([
            "connect",
            &dst.to_string(),
            "send-bytes:100000",
            "shutdown",
            "recv-all",
        ]);
        assert_eq!(app.event("error").str("name"), "ECONNRESET", "{dst}");
    }
}

#[test]
fn a_reset_by_the_client_is_a_reset() {
    let (mesh, servers) = both_ways("sink");
    for (pod, server) in &servers {
        for dst in addresses(pod) {
            let mut app =
                mesh.client
                    .app(["connect", &dst.to_string(), "send:xyz", "wait", "reset"]);
            app.event("waiting");
            server.event("accepted");
            app.write("\n");
            assert_eq!(server.event("closed").str("how"), "ECONNRESET", "{dst}");
        }
    }
}

#[test]
fn a_reset_after_the_servers_end_is_a_reset() {
    let (mesh, servers) = both_ways("send:100000");
    for (pod, server) in &servers {
        for dst in addresses(pod) {
            let app = mesh
                .client
                .app(["connect", &dst.to_string(), "recv-all", "send:x", "reset"]);
            app.event("eof");
            assert_eq!(server.event("closed").str("how"), "ECONNRESET", "{dst}");
        }
    }
}

#[test]
fn a_reset_by_a_client_that_has_finished_is_a_reset() {
    let (mesh, servers) = both_ways("wait-at-end");
    for (pod, server) in &servers {
        for dst in addresses(pod) {
            let steps = [
                "connect",
                &dst.to_string(),
                "send:x",
                "shutdown",
                "wait",
                "reset",
            ];
            let mut app = mesh.client.app(steps);
            server.event("ended");
            app.write("\n");
            // What the kernel says of a reset after the peer's end of data.
            assert_eq!(server.event("closed").str("how"), "EPIPE", "{dst}");
        }
    }
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
