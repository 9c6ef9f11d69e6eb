//! Ways to connect, all of which are captured.

use std::net::SocketAddr;

use redirect_tests::{
    App, Mesh,
    exchange::{greeted, greeter},
    sockets::netstat,
};

use super::{is_direct, mapped};

#[test]
fn names_are_what_the_app_asked_for() {
    let mesh = Mesh::start();
    let server = greeter(&mesh.server, 8080);
    let (v4, v6) = (mesh.server.at(8080), mesh.server.at6(8080));
    let own4 = SocketAddr::new(mesh.client.ipv4(), 0);
    let own6 = SocketAddr::new(mesh.client.ipv6(), 0);
    for (dst, own, arrives_at) in [
        (v4, own4, v4),
        (v6, own6, v6),
        (mapped(v4), mapped(own4), v4),
    ] {
        let connected = greeted(&mesh.client, dst, &[]);
        assert_eq!(connected.addr("peername"), dst, "getpeername");
        assert_eq!(connected.addr("sockname").ip(), own.ip(), "getsockname");
        let accepted = server.event("accepted");
        assert_eq!(accepted.addr("local"), arrives_at);
        assert_eq!(
            accepted.addr("peer").ip(),
            own.ip().to_canonical(),
            "the server sees the client's IP"
        );
    }
    assert_eq!(
        mesh.wall.leaked(),
        0,
        "packets in plaintext between the nodes"
    );
}

#[test]
fn nonblocking_connect() {
    let mesh = Mesh::start();
    let _server = greeter(&mesh.server, 8080);
    for dst in [
        mesh.server.at(8080),
        mesh.server.at6(8080),
        mapped(mesh.server.at(8080)),
    ] {
        let connected = greeted(&mesh.client, dst, &["--nonblocking"]);
        assert_eq!(connected.addr("peername"), dst);
    }
}

#[test]
fn tcp_fast_open() {
    // Client and server side, without cookies, on every listener.
    let mesh = Mesh::builder()
        .start_with(|client, _| client.sysctl("net.ipv4.tcp_fastopen", &0x607.to_string()));
    let server = mesh.server.app(["serve", "--listen", "[::]:8080"]);
    server.event("listening");
    for dst in [
        mesh.server.at(8080),
        mesh.server.at6(8080),
        mapped(mesh.server.at(8080)),
    ] {
        for round in 0..5 {
            let text = format!("early {round}");
            let dst = dst.to_string();
            let app = mesh.client.app([
                "connect",
                &dst,
                "--fastopen",
                &format!("{text}\n"),
                "recv-line",
                "names",
            ]);
            assert_eq!(app.event("received").text(), text);
            assert_eq!(app.event("names").str("peername"), dst);
        }
    }
    let passive = netstat(mesh.client.netns(), "TcpExt", "TCPFastOpenPassive");
    assert!(
        passive >= 15,
        "only {passive} connections came with data in their SYN: this tested nothing"
    );
    assert_eq!(mesh.wall.leaked(), 0);
}

#[test]
fn syn_cookies() {
    // 2: always, not only under pressure.
    let mesh =
        Mesh::builder().start_with(|client, _| client.sysctl("net.ipv4.tcp_syncookies", "2"));
    let _server = greeter(&mesh.server, 8080);
    for dst in [mesh.server.at(8080), mesh.server.at6(8080)] {
        for _ in 0..3 {
            assert_eq!(greeted(&mesh.client, dst, &[]).addr("peername"), dst);
        }
    }
    let received = netstat(mesh.client.netns(), "TcpExt", "SyncookiesRecv");
    assert!(
        received >= 6,
        "only {received} cookies came back: this tested nothing"
    );
}

#[test]
fn bind_before_connect() {
    let mesh = Mesh::start();
    let _server = greeter(&mesh.server, 8080);
    let (ip4, ip6) = (mesh.client.ipv4(), mesh.client.ipv6());
    // Ports below the ephemeral range, which no other socket is given by chance.
    for (bind, dst) in [
        (SocketAddr::new(ip4, 0), mesh.server.at(8080)),
        (SocketAddr::new(ip4, 20_000), mesh.server.at(8080)),
        (
            "0.0.0.0:20001".parse().expect("an address"),
            mesh.server.at(8080),
        ),
        (SocketAddr::new(ip6, 20_002), mesh.server.at6(8080)),
        (
            "[::]:20003".parse().expect("an address"),
            mesh.server.at6(8080),
        ),
        (
            mapped(SocketAddr::new(ip4, 20_004)),
            mapped(mesh.server.at(8080)),
        ),
    ] {
        let connected = greeted(&mesh.client, dst, &["--bind", &bind.to_string()]);
        assert_eq!(connected.addr("peername"), dst, "bound to {bind}");
        if bind.port() != 0 {
            assert_eq!(
                connected.addr("sockname").port(),
                bind.port(),
                "bound to {bind}"
            );
        }
    }
    assert_eq!(mesh.wall.leaked(), 0);
}

#[test]
fn bound_to_a_device() {
    let mesh = Mesh::start();
    let _server = greeter(&mesh.server, 8080);
    for dst in [
        mesh.server.at(8080),
        mesh.server.at6(8080),
        mapped(mesh.server.at(8080)),
    ] {
        let connected = greeted(&mesh.client, dst, &["--device", "eth0"]);
        assert_eq!(connected.addr("peername"), dst);
    }
    assert_eq!(mesh.wall.leaked(), 0);
}

#[test]
fn one_socket_connects_again_and_again() {
    let mesh = Mesh::start();
    let (_one, _two) = (greeter(&mesh.server, 8081), greeter(&mesh.server, 8082));
    let own = mesh
        .client
        .app(["serve", "--mode", "greet", "--listen", "127.0.0.1:8083"]);
    own.event("listening");
    let (first, second) = (
        mesh.server.at(8081).to_string(),
        mesh.server.at(8082).to_string(),
    );
    let (to_second, to_own) = (format!("connect:{second}"), "connect:127.0.0.1:8083");
    let app = mesh.client.app([
        "connect",
        &first,
        "recv-line",
        "disconnect",
        &to_second,
        "recv-line",
        "disconnect",
        to_own,
        "recv-line",
        "names",
        "disconnect",
        &format!("connect:{first}"),
        "recv-line",
    ]);
    for expected in [first.as_str(), second.as_str(), "127.0.0.1:8083"] {
        assert_eq!(app.event("connected").str("peername"), expected);
        assert!(app.event("received").text().starts_with("hello "));
    }
    // Nothing of the redirected connects is left in the socket: the kernel's answer is the right one.
    assert_eq!(app.event("names").str("peername"), "127.0.0.1:8083");
    assert_eq!(app.event("connected").str("peername"), first);
    assert!(app.event("received").text().starts_with("hello "));
    app.event("done");
}

#[test]
fn a_reused_source_port_never_gets_another_connections_destination() {
    let mesh = Mesh::start();
    let servers: Vec<App> = (8081..8085)
        .map(|port| greeter(&mesh.server, port))
        .collect();
    let bind = SocketAddr::new(mesh.client.ipv4(), 21_000).to_string();
    for round in 0..12 {
        let at = round % servers.len();
        let dst = mesh.server.at(8081 + at as u16).to_string();
        // A reset leaves no TIME_WAIT: the next one gets the same port at once.
        let app = mesh.client.app([
            "connect",
            &dst,
            "--bind",
            &bind,
            "--reuse",
            "recv-line",
            "send:x\\n",
            "recv-line",
            "reset",
        ]);
        assert_eq!(app.event("connected").str("peername"), dst);
        app.event("done");
        assert_eq!(servers[at].event("accepted").addr("local").to_string(), dst);
    }
}

#[test]
fn many_destinations_with_few_source_ports() {
    let mesh = Mesh::builder()
        .start_with(|client, _| client.sysctl("net.ipv4.ip_local_port_range", "40000 40099"));
    for ip in [mesh.server.ipv4(), mesh.server.ipv6()] {
        let ip = ip.to_string();
        let server = mesh
            .server
            .app(["serve", "--quiet", "--range", &format!("{ip},9000-9149")]);
        server.event("listening");
        let app = mesh
            .client
            .app(["many", "--count", "150", "--range", &ip, "9000", "150"]);
        let held = app.event("held");
        assert_eq!(held.u64("ok"), 150, "{held:?}");
        assert_eq!(held.u64("wrongPeers"), 0);
    }
}

#[test]
fn destinations_outside_the_mesh_are_passed_through() {
    let mesh = Mesh::start();
    let server = greeter(&mesh.outsider, 8080);
    for dst in [
        mesh.outsider.at(8080),
        mesh.outsider.at6(8080),
        mapped(mesh.outsider.at(8080)),
    ] {
        let connected = greeted(&mesh.client, dst, &[]);
        assert_eq!(connected.addr("peername"), dst);
        assert!(!is_direct(&server, &connected), "{dst} missed the proxy");
    }
}

#[test]
fn multipath_tcp_is_carried() {
    let mesh = Mesh::builder().start_with(|client, _| client.sysctl("net.mptcp.enabled", "1"));
    let _server = greeter(&mesh.server, 8080);
    greeted(&mesh.client, mesh.server.at(8080), &["--mptcp"]);
    assert_eq!(mesh.wall.leaked(), 0);
}
