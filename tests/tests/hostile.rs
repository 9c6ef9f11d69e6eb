//! Peers and pods that mean harm, or are broken: each is refused, counted, and stops nobody else.

use std::{
    io,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use http::{Method, Request};
use rcgen::ExtendedKeyUsagePurpose;
use redirect_tests::{
    Mesh, Pod,
    exchange::{greeted, greeter},
    hbone::{self, Credentials, Forge, Leaf, Rejected, TlsStream, Tunnel, frames, run_in},
    wait_until,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

const SOON: Duration = Duration::from_secs(10);

/// A mesh with a greeter on the server's port 8080, and a pod that no daemon captures, next to the server.
struct Stage {
    _greeter: redirect_tests::App,
    mallory: Pod,
    forge: Forge,
    mesh: Mesh,
}

impl Stage {
    fn set() -> Self {
        Self::on(Mesh::start())
    }

    fn on(mesh: Mesh) -> Self {
        let mallory = mesh.b.pod("mallory");
        let forge = Forge::of(mesh.bed.ca());
        Self {
            _greeter: greeter(&mesh.server, 8080),
            mallory,
            forge,
            mesh,
        }
    }

    fn hbone(&self) -> SocketAddr {
        self.mesh.server.at(hbone::PORT)
    }

    fn authority(&self) -> String {
        self.mesh.server.at(8080).to_string()
    }

    /// Whether a well-behaved client is served as ever.
    #[track_caller]
    fn still_works(&self) {
        let started = Instant::now();
        greeted(&self.mesh.client, self.mesh.server.at(8080), &[]);
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "took {:?}",
            started.elapsed()
        );
    }

    /// A whole CONNECT with these credentials, up to the greeting.
    fn try_connect(&self, credentials: &Credentials, authority: &str) -> Result<String, String> {
        run_in(self.mallory.netns(), || async {
            let mut tunnel = Tunnel::open(self.hbone(), credentials)
                .await
                .map_err(|e| e.to_string())?;
            let mut stream = tunnel.connect(authority).await.map_err(|e| e.to_string())?;
            stream.receive_line().await.map_err(|e| e.to_string())
        })
    }
}

#[test]
fn certificates_are_judged() {
    let stage = Stage::set();
    let id = "spiffe://cluster.local/ns/default/sa/mallory";
    let greeting = stage.try_connect(&stage.forge.identity("mallory"), &stage.authority());
    assert!(
        greeting
            .as_deref()
            .is_ok_and(|text| text.starts_with("hello ")),
        "{greeting:?}"
    );

    let uris = |uris: &[&str]| Leaf {
        uris: uris.iter().map(ToString::to_string).collect(),
        ..Leaf::new(id)
    };
    let usage = |usage| Leaf {
        usages: vec![usage],
        ..Leaf::new(id)
    };
    for (what, leaf) in [
        (
            "another trust domain",
            Leaf::new("spiffe://other.local/ns/default/sa/mallory"),
        ),
        (
            "a trust domain that begins the same",
            Leaf::new("spiffe://cluster.local.evil/ns/default/sa/mallory"),
        ),
        (
            "expired",
            Leaf {
                valid: (2020, 2021),
                ..Leaf::new(id)
            },
        ),
        (
            "not yet valid",
            Leaf {
                valid: (2090, 2099),
                ..Leaf::new(id)
            },
        ),
        ("no SAN", uris(&[])),
        (
            "a SAN that is no SPIFFE identity",
            uris(&["https://cluster.local/ns/default/sa/mallory"]),
        ),
        (
            "two identities",
            uris(&[id, "spiffe://cluster.local/ns/default/sa/client"]),
        ),
        (
            "not for clients",
            usage(ExtendedKeyUsagePurpose::ServerAuth),
        ),
    ] {
        let result = stage.try_connect(&stage.forge.leaf(&leaf), &stage.authority());
        assert!(result.is_err(), "{what}: accepted");
    }
    let stranger = stage.try_connect(&Forge::stranger().identity("mallory"), &stage.authority());
    assert!(stranger.is_err(), "a stranger's root: accepted");
    let metrics = stage.mesh.daemon_b.metrics();
    let refused = metrics.sum(
        "redirect_connections_failed_total",
        &[("direction", "inbound")],
    );
    assert!(refused >= 9.0, "{refused} counted in\n{}", metrics.text());
    stage.still_works();
}

#[test]
fn requests_other_than_connect_to_the_pod_are_answered_with_their_status() {
    let stage = Stage::set();
    let mesh = &stage.mesh;
    mesh.workloads
        .clone()
        .service("shop", &["10.96.0.10"], 80, &[&mesh.server], 8080)
        .write();
    let server4 = mesh.server.ipv4();
    let credentials = stage.forge.identity("mallory");
    let by_name = "shop.default.svc.cluster.local:80";
    let known = wait_until(SOON, || stage.try_connect(&credentials, by_name).is_ok());
    assert!(
        known,
        "a service's name: {:?}",
        stage.try_connect(&credentials, by_name)
    );

    for (authority, expected) in [
        (mesh.server.at(8080).to_string(), 200),
        (mesh.server.at6(8080).to_string(), 200),
        (format!("[{}]:8080", mesh.server.ipv6()), 200),
        (by_name.to_owned(), 200),
        (mesh.client.at(8080).to_string(), 400),
        ("127.0.0.1:8080".to_owned(), 400),
        ("[::1]:8080".to_owned(), 400),
        ("10.96.0.10:80".to_owned(), 400),
        (format!("{server4}:15001"), 400),
        (format!("{server4}:15006"), 400),
        (format!("{server4}:15008"), 400),
        (format!("{server4}:15053"), 400),
        ("nobody.default.svc.cluster.local:80".to_owned(), 503),
        (format!("{server4}:9"), 503),
    ] {
        let status = run_in(stage.mallory.netns(), || async {
            let mut tunnel = Tunnel::open(stage.hbone(), &credentials)
                .await
                .expect("the tunnel opens");
            tunnel
                .connect(&authority)
                .await
                .map_or_else(|rejected| rejected.status(), |_| 200)
        });
        assert_eq!(status, expected, "CONNECT {authority}");
    }
    for method in [Method::GET, Method::POST, Method::OPTIONS] {
        let request = Request::builder()
            .method(&method)
            .uri(format!("https://{}/", stage.authority()));
        let rejected = run_in(stage.mallory.netns(), || async {
            let mut tunnel = Tunnel::open(stage.hbone(), &credentials)
                .await
                .expect("the tunnel opens");
            tunnel
                .request(request.body(()).expect("a request"))
                .await
                .map(|_| ())
        });
        assert!(
            matches!(rejected, Err(Rejected::Status(400))),
            "{method}: {rejected:?}"
        );
    }
    stage.still_works();
}

#[test]
fn malformed_authorities_are_answered_with_400() {
    let stage = Stage::set();
    let credentials = stage.forge.identity("mallory");
    let server = stage.mesh.server.ipv4();
    for authority in [
        String::new(),
        server.to_string(),
        format!("{server}:"),
        format!("{server}:0"),
        format!("{server}:65536"),
        format!("{server}:+80"),
        format!("user@{server}:8080"),
        format!("{server}:8080/path"),
        "[::1:8080".to_owned(),
        "fd00::1:8080".to_owned(),
        "10.0.0.300:80".to_owned(),
        "\u{7f}:80".to_owned(),
    ] {
        let mut block = frames::literal(":method", "CONNECT");
        block.extend(frames::literal(":authority", &authority));
        let answer = with_raw(&stage, &credentials, async |tls| {
            tls.write_all(&frames::headers(1, &block, true)).await?;
            read_answer(tls, 1).await
        });
        // What is no authority for the HTTP/2 layer either is a stream error.
        assert!(
            matches!(answer, Ok(Answer::Status400 | Answer::Reset)),
            "{authority:?}: {answer:?}"
        );
    }
    stage.still_works();
}

#[test]
fn garbage_on_the_proxys_ports_stops_nobody() {
    let stage = Stage::set();
    for port in [15001, 15008] {
        for garbage in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0; 4096],
            b"\x16\x03\x01\xff\xff\x01",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ] {
            let to = stage.mesh.server.at(port);
            let ended = stage
                .mallory
                .netns()
                .run(|| ends_after(to, garbage))
                .expect("the namespace can be entered");
            assert!(
                ended,
                "port {port} keeps a connection open that sent {garbage:?}"
            );
        }
    }
    stage.still_works();
}

/// Sends `garbage`; whether the other side ends the connection then.
fn ends_after(to: SocketAddr, garbage: &[u8]) -> bool {
    let Ok(mut stream) = TcpStream::connect(to) else {
        return true;
    };
    stream
        .set_read_timeout(Some(Duration::from_secs(15)))
        .expect("a valid timeout");
    let _ = stream.write_all(garbage);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    !matches!(stream.read_to_end(&mut answer), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

#[test]
fn a_direct_connection_to_the_outbound_port_is_refused_and_counted() {
    let stage = Stage::set();
    let server = &stage.mesh.server;
    for (to, count) in [(server.at(15001), 1), (server.at6(15001), 2)] {
        let app = stage
            .mallory
            .app(["connect", &to.to_string(), "send:hello", "recv-all"]);
        assert_eq!(app.event("error").str("name"), "ECONNRESET");
        stage
            .mesh
            .daemon_b
            .wait_failed("outbound", "no_original_destination", count);
    }
    // From inside the captured pod, by its own address and by loopback: capture leaves these alone.
    for to in [
        server.at(15001).to_string(),
        "127.0.0.1:15001".to_owned(),
        "127.128.0.1:15001".to_owned(),
    ] {
        let app = server.app(["connect", &to, "send:hello", "recv-all"]);
        app.event("error");
    }
    stage
        .mesh
        .daemon_b
        .wait_failed("outbound", "no_original_destination", 5);
    stage.still_works();
}

#[test]
fn connections_to_the_proxys_ports_of_a_workload_are_refused() {
    let stage = Stage::set();
    for port in [15001, 15006, 15008, 15053] {
        let to = stage.mesh.server.at(port).to_string();
        let app = stage
            .mesh
            .client
            .app(["connect", &to, "send:hello", "recv-all"]);
        app.event("error");
    }
    stage.mesh.daemon_a.wait_failed("outbound", "own_port", 4);
    stage.still_works();
}

#[test]
fn tls_1_2_is_refused() {
    let stage = Stage::set();
    let dir = stage.mesh.bed.directory().join("issued");
    let mut issue = stage.mesh.daemon_b.spec().command();
    issue
        .arg("ca")
        .arg("issue")
        .arg(stage.mesh.bed.ca())
        .args(["--identity", "default/mallory", "--out"])
        .arg(&dir);
    let issued = issue.output().expect("start redirect");
    assert!(
        issued.status.success(),
        "{}",
        String::from_utf8_lossy(&issued.stderr)
    );
    let leaf = dir.join("default/mallory");
    let handshake = |version: &str| {
        let mut command: Command = stage.mallory.command("openssl");
        command.args([
            "s_client",
            "-brief",
            version,
            "-alpn",
            "h2",
            "-connect",
            &stage.hbone().to_string(),
        ]);
        command
            .arg("-cert")
            .arg(leaf.join("cert.pem"))
            .arg("-key")
            .arg(leaf.join("key.pem"));
        command.arg("-CAfile").arg(dir.join("roots.pem"));
        let output = command
            .stdin(std::process::Stdio::null())
            .output()
            .expect("openssl is installed");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let modern = handshake("-tls1_3");
    assert!(modern.contains("Protocol version: TLSv1.3"), "{modern}");
    assert!(modern.contains("Verification: OK"), "{modern}");
    for version in ["-tls1_2", "-tls1_1"] {
        let refused = handshake(version);
        assert!(
            !refused.contains("Protocol version"),
            "{version}: {refused}"
        );
    }
    stage.still_works();
}

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
        wait_until(SOON, || stage.mesh.daemon_b.fds() < 60),
        "{fds} descriptors stay open"
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

#[derive(Debug)]
enum Answer {
    Status400,
    Reset,
    #[expect(dead_code, reason = "shown by a failing test")]
    Other(u8),
    Closed,
}

/// The first frame about `stream`, as far as it matters here.
async fn read_answer(tls: &mut TlsStream, stream: u32) -> io::Result<Answer> {
    loop {
        let mut head = [0; 9];
        if let Err(error) = tls.read_exact(&mut head).await {
            return if error.kind() == io::ErrorKind::UnexpectedEof {
                Ok(Answer::Closed)
            } else {
                Err(error)
            };
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        tls.read_exact(&mut payload).await?;
        let of = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if of == stream {
            return Ok(match head[3] {
                // HPACK: index 12 of the static table is `:status: 400`.
                1 if payload.contains(&0x8c) => Answer::Status400,
                3 => Answer::Reset,
                other => Answer::Other(other),
            });
        }
    }
}

/// Runs `f` on a TLS connection on which the HTTP/2 preface was sent.
fn with_raw<T: Send>(
    stage: &Stage,
    credentials: &Credentials,
    f: impl AsyncFnOnce(&mut TlsStream) -> io::Result<T> + Send,
) -> io::Result<T> {
    run_in(stage.mallory.netns(), || async {
        let mut tls = hbone::handshake(stage.hbone(), credentials).await?;
        tls.write_all(&frames::preface()).await?;
        f(&mut tls).await
    })
}
