//! Peers that are not our daemon: what the client's daemon makes of their behaviour.

use std::time::{Duration, Instant};

use redirect_tests::{
    App, Mesh, Pod, eventually,
    exchange::refused,
    hbone::{self, Behaviour, Forge, Leaf, Server},
};
use serde_json::json;

use super::SOON;

/// A workload whose HBONE server is ours: a pod that no daemon captures, but the workload file knows.
fn with_peer(behaviour: Behaviour, identity: &str) -> (Mesh, Pod, Server) {
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
