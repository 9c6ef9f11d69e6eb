//! HTTP/2 requests that a pod's listener does not take.

use std::io;

use http::{Method, Request};
use redirect_tests::{
    hbone::{Rejected, TlsStream, Tunnel, frames, run_in},
    wait_until,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{SOON, Stage, stage::with_raw};

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
