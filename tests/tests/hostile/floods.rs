//! Peers that send too much, or nothing at all.

use std::{
    io::{self, Read},
    net::TcpStream,
    time::{Duration, Instant},
};

use redirect_tests::{
    Mesh,
    hbone::{Credentials, frames},
    wait_until,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{SOON, Stage, stage::with_raw};

#[test]
fn stalled_handshakes_are_limited_per_source_and_in_time() {
    let mesh = Mesh::builder()
        .config_b(json!({ "hbone": { "maxHandshakesPerSource": 4, "handshakeTimeout": "4s" } }))
        .start();
    let stage = Stage::on(mesh);
    let to = stage.hbone();
    let (stalled, beyond) = stage
        .mallory
        .netns()
        .run(|| {
            let connect = || TcpStream::connect(to).expect("the listener accepts");
            let stalled: Vec<TcpStream> = (0..4).map(|_| connect()).collect();
            (stalled, connect())
        })
        .expect("the namespace can be entered");
    let read_end = |mut stream: &TcpStream, limit: Duration| {
        stream
            .set_read_timeout(Some(limit))
            .expect("a valid timeout");
        match stream.read(&mut [0; 16]) {
            Ok(n) => n == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    };
    assert!(
        read_end(&beyond, Duration::from_secs(2)),
        "a fifth handshake of one source is refused at once"
    );
    stage
        .mesh
        .daemon_b
        .wait_failed("inbound", "handshake_limit", 1);
    // Another source is served meanwhile.
    stage.still_works();
    for stream in &stalled {
        assert!(
            read_end(stream, Duration::from_secs(10)),
            "a stalled handshake is given up"
        );
    }
    stage
        .mesh
        .daemon_b
        .wait_failed("inbound", "handshake_timeout", 4);
    assert!(
        stage
            .try_connect(&stage.forge.identity("mallory"), &stage.authority())
            .is_ok(),
        "the source is free again"
    );
}

#[test]
fn floods_end_their_own_tunnel_or_nothing() {
    let stage = Stage::set();
    let credentials = stage.forge.identity("mallory");
    stage.still_works();
    let before = stage.mesh.daemon_b.rss_kib();
    let open = stage.mesh.daemon_b.fds();
    let block = frames::connect_block(stage.mesh.server.at(8080));

    // Rapid reset: open and cancel, faster than connections to the app can be made.
    let resets = (0..20_000u32).flat_map(|n| {
        [
            frames::headers(2 * n + 1, &block, true),
            frames::reset(2 * n + 1),
        ]
        .concat()
    });
    flood(&stage, &credentials, "rapid reset", resets.collect());
    // One header block without end.
    let mut continuations = frames::headers(1, &block, false);
    for n in 0..20_000 {
        continuations.extend(frames::continuation(
            1,
            &frames::literal(&format!("x-{n}"), &"y".repeat(900)),
            false,
        ));
    }
    flood(&stage, &credentials, "CONTINUATION", continuations);
    flood(
        &stage,
        &credentials,
        "SETTINGS",
        (0..200_000).flat_map(|_| frames::settings()).collect(),
    );
    flood(
        &stage,
        &credentials,
        "PING",
        (0..200_000).flat_map(frames::ping).collect(),
    );
    let mut headers = block.clone();
    headers.extend(frames::literal("x-large", &"z".repeat(15_000)));
    headers.extend(frames::literal("x-larger", &"z".repeat(200_000)));
    let mut oversized = Vec::new();
    for (number, part) in headers.chunks(16_000).enumerate() {
        let last = (number + 1) * 16_000 >= headers.len();
        oversized.extend(if number == 0 {
            frames::headers(1, part, last)
        } else {
            frames::continuation(1, part, last)
        });
    }
    flood(&stage, &credentials, "oversized headers", oversized);
    // Empty DATA frames on a stream that stands.
    let mut empty = frames::headers(1, &block, true);
    empty.extend((0..200_000).flat_map(|_| frames::frame(0, 0, 1, &[])));
    flood(&stage, &credentials, "empty DATA", empty);

    let after = stage.mesh.daemon_b.rss_kib();
    assert!(
        after < before + 60_000,
        "memory went from {before} to {after} KiB"
    );
    let fds = stage.mesh.daemon_b.fds();
    assert!(
        wait_until(SOON, || stage.mesh.daemon_b.fds() < open + 10),
        "{fds} descriptors stay open, of {open} before"
    );
    // The clock of a flooded tunnel is not the others': its sender is served again too.
    assert!(stage.try_connect(&credentials, &stage.authority()).is_ok());
}

/// Sends `bytes` on a raw connection, never reading more than needed, while a good client is served.
#[track_caller]
fn flood(stage: &Stage, credentials: &Credentials, what: &str, bytes: Vec<u8>) {
    let cpu = stage.mesh.daemon_b.cpu();
    let started = Instant::now();
    std::thread::scope(|scope| {
        let flooding = scope.spawn(|| {
            with_raw(stage, credentials, async |tls| {
                // The peer may close at any moment: that is a good answer.
                let _ = timeout(Duration::from_secs(10), tls.write_all(&bytes)).await;
                let mut sink = vec![0; 65536];
                let _ = timeout(Duration::from_millis(500), async {
                    while tls.read(&mut sink).await? > 0 {}
                    Ok::<_, io::Error>(())
                })
                .await;
                Ok(())
            })
        });
        while !flooding.is_finished() {
            stage.still_works();
        }
        flooding
            .join()
            .expect("does not panic")
            .unwrap_or_else(|error| panic!("{what}: no tunnel: {error}"));
    });
    stage.still_works();
    println!(
        "{what}: {:?}, {:?} of CPU",
        started.elapsed(),
        stage.mesh.daemon_b.cpu() - cpu
    );
}
