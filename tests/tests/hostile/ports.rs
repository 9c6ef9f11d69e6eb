//! Connections to the proxy's ports that are none of its business.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use super::Stage;

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
    for to in [server.at(15001), server.at6(15001), server.at(15006)] {
        let app = stage
            .mallory
            .app(["connect", &to.to_string(), "send:hello", "recv-all"]);
        assert_eq!(app.event("error").str("name"), "ECONNREFUSED");
    }
    // From inside the captured pod, by its own address and by loopback: capture leaves these alone, and the proxy does not.
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
        .wait_failed("outbound", "no_original_destination", 3);
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
