//! Outbound capture: every way in which an app may connect, and what is left alone.

use std::{net::SocketAddr, process::Command};

use redirect_tests::{
    App, Event, Mesh, Process,
    exchange::{greeted, greeter, nginx},
    sockets::netstat,
};
use serde_json::json;

/// Whether the server's last connection is the client's own socket, not one of a proxy: they have the same port.
#[track_caller]
fn is_direct(server: &App, connected: &Event) -> bool {
    server.event("accepted").addr("peer").port() == connected.addr("sockname").port()
}

fn mapped(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        SocketAddr::V6(_) => addr,
    }
}

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
    for (bind, dst) in [
        (SocketAddr::new(ip4, 0), mesh.server.at(8080)),
        (SocketAddr::new(ip4, 40_000), mesh.server.at(8080)),
        (
            "0.0.0.0:40001".parse().expect("an address"),
            mesh.server.at(8080),
        ),
        (SocketAddr::new(ip6, 40_002), mesh.server.at6(8080)),
        (
            "[::]:40003".parse().expect("an address"),
            mesh.server.at6(8080),
        ),
        (
            mapped(SocketAddr::new(ip4, 40_004)),
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
    let bind = SocketAddr::new(mesh.client.ipv4(), 41_000).to_string();
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
fn loopback_and_the_pods_own_addresses_are_left_alone() {
    let mesh = Mesh::start();
    let server = greeter(&mesh.client, 8080);
    let (own4, own6) = (mesh.client.at(8080), mesh.client.at6(8080));
    let local = |text: &str| text.parse::<SocketAddr>().expect("an address");
    for dst in [
        local("127.0.0.1:8080"),
        local("127.1.2.3:8080"),
        local("[::1]:8080"),
        local("[::ffff:127.0.0.1]:8080"),
        own4,
        own6,
        mapped(own4),
    ] {
        let connected = greeted(&mesh.client, dst, &[]);
        assert!(
            is_direct(&server, &connected),
            "{dst} went through the proxy"
        );
        assert_eq!(connected.addr("peername"), dst);
    }
    for dst in ["0.0.0.0:8080", "[::]:8080"] {
        assert!(
            is_direct(&server, &greeted(&mesh.client, local(dst), &[])),
            "{dst}"
        );
    }
}

#[test]
fn excluded_ports_and_networks_are_left_alone() {
    let mesh = Mesh::builder()
        .client(json!({
            "excludeOutboundPorts": [2222],
            "excludeOutboundCidrs": ["10.99.0.0/16", "fd00:99::/32"],
        }))
        .start();
    mesh.outsider
        .ip("addr add 10.99.1.1/32 dev eth0\naddr add fd00:99::1/128 dev eth0 nodad\n");
    mesh.client
        .ip("route add 10.99.0.0/16 dev eth0\nroute add fd00:99::/32 dev eth0\n");
    let server = greeter(&mesh.outsider, 8080);
    let excluded = greeter(&mesh.outsider, 2222);
    for dst in [mesh.outsider.at(2222), mesh.outsider.at6(2222)] {
        assert!(
            is_direct(&excluded, &greeted(&mesh.client, dst, &[])),
            "excluded port of {dst}"
        );
    }
    for dst in [
        "10.99.1.1:8080",
        "[fd00:99::1]:8080",
        "[::ffff:10.99.1.1]:8080",
    ] {
        let dst = dst.parse().expect("an address");
        assert!(
            is_direct(&server, &greeted(&mesh.client, dst, &[])),
            "excluded network of {dst}"
        );
    }
    // And what is not excluded is not.
    for dst in [mesh.outsider.at(8080), mesh.outsider.at6(8080)] {
        assert!(
            !is_direct(&server, &greeted(&mesh.client, dst, &[])),
            "{dst} missed the proxy"
        );
    }
}

#[test]
fn exempt_cgroups_are_left_alone() {
    let mesh = Mesh::builder().client_of(|client| {
        let cgroup = client.container("exempt");
        std::fs::create_dir_all(cgroup.join("inner")).expect("make the exempt cgroup");
        json!({ "exemptCgroups": [cgroup] })
    });
    let mesh = mesh.start();
    let server = greeter(&mesh.outsider, 8080);
    let dst = mesh.outsider.at(8080).to_string();
    for (container, direct) in [("exempt", true), ("exempt/inner", true), ("app", false)] {
        let app = mesh
            .client
            .app_in(container, ["connect", &dst, "recv-line"]);
        let connected = app.event("connected");
        app.event("received");
        assert_eq!(
            is_direct(&server, &connected),
            direct,
            "container {container}"
        );
    }
}

#[test]
fn the_metadata_address_is_left_alone_unless_asked_for() {
    for captured in [false, true] {
        let mesh = Mesh::builder()
            .client(json!({ "captureMetadataAddress": captured }))
            .start();
        mesh.outsider.ip("addr add 169.254.169.254/32 dev eth0\n");
        mesh.client.ip("route add 169.254.169.254/32 dev eth0\n");
        let server = greeter(&mesh.outsider, 80);
        let connected = greeted(
            &mesh.client,
            "169.254.169.254:80".parse().expect("an address"),
            &[],
        );
        assert_eq!(
            is_direct(&server, &connected),
            !captured,
            "captureMetadataAddress: {captured}"
        );
    }
}

#[test]
fn a_process_outside_the_pods_cgroup_is_not_captured() {
    let mesh = Mesh::start();
    let server = greeter(&mesh.outsider, 8080);
    let app =
        mesh.client
            .app_outside(["connect", &mesh.outsider.at(8080).to_string(), "recv-line"]);
    let connected = app.event("connected");
    assert!(is_direct(&server, &connected));
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

#[test]
fn failed_connects_leave_nothing_in_the_table_of_flows() {
    let mut mesh = Mesh::start();
    let _server = greeter(&mesh.server, 8080);
    greeted(&mesh.client, mesh.server.at(8080), &[]);
    assert_eq!(flows(&mesh), 0, "after a connection that worked");
    mesh.daemon_a.sigkill();
    for dst in [
        mesh.server.at(8080),
        mesh.server.at6(8080),
        mapped(mesh.server.at(8080)),
    ] {
        for options in [
            &[][..],
            &["--nonblocking"],
            &["--fastopen", "x"],
            &["--device", "eth0"],
        ] {
            let dst = dst.to_string();
            let app = mesh
                .client
                .app([&["connect", &dst, "recv-all"], options].concat());
            let error = app.event("error");
            assert!(
                ["ECONNREFUSED", "ECONNRESET"].contains(&error.str("name")),
                "{options:?}: {error:?}"
            );
        }
    }
    assert_eq!(flows(&mesh), 0, "after connects that failed");
}

#[test]
fn every_decision_is_counted_and_told_with_its_reason() {
    let mesh = Mesh::builder()
        .config_a(json!({ "capture": { "events": true } }))
        .client(json!({ "excludeOutboundPorts": [2222] }))
        .start();
    let _server = greeter(&mesh.server, 8080);
    let own = mesh
        .client
        .app(["serve", "--mode", "greet", "--listen", "[::]:8080"]);
    own.event("listening");
    let excluded = greeter(&mesh.outsider, 2222);
    greeted(&mesh.client, mesh.server.at(8080), &[]);
    greeted(&mesh.client, mesh.server.at6(8080), &[]);
    greeted(
        &mesh.client,
        "127.0.0.1:8080".parse().expect("an address"),
        &[],
    );
    greeted(&mesh.client, mesh.client.at6(8080), &[]);
    greeted(&mesh.client, mesh.outsider.at(2222), &[]);
    drop(excluded);
    let metrics = mesh.daemon_a.metrics();
    for (hook, verdict, reason) in [
        ("connect4", "redirect", "captured"),
        ("connect6", "redirect", "captured"),
        ("connect4", "pass", "loopback"),
        ("connect6", "pass", "own_address"),
        ("connect4", "pass", "excluded_port"),
    ] {
        let labels = [("hook", hook), ("verdict", verdict), ("reason", reason)];
        let count = metrics.sum("redirect_capture_verdicts_total", &labels);
        assert_eq!(count, 1.0, "{labels:?} in\n{}", metrics.text());
        mesh.daemon_a
            .wait_log(&format!("event of {labels:?}"), |line| {
                line.contains("redirect::capture::event")
                    && [hook, verdict, reason]
                        .iter()
                        .all(|word| line.contains(&format!("\"{word}\"")))
            });
    }
}

/// Entries of the map of flows, by the pins that the daemon left.
fn flows(mesh: &Mesh) -> usize {
    let mut found = Vec::new();
    let mut dirs = vec![mesh.daemon_a.spec().bpffs()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir)
            .expect("bpffs is readable")
            .flatten()
        {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().to_lowercase().ends_with("flows"))
            {
                found.push(path);
            }
        }
    }
    assert_eq!(found.len(), 1, "pinned maps of flows: {found:?}");
    let mut command = Command::new("bpftool");
    command.args(["-j", "map", "dump", "pinned"]).arg(&found[0]);
    let output = command
        .output()
        .expect("bpftool is installed (`cargo xtask setup`)");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice::<Vec<serde_json::Value>>(&output.stdout)
        .expect("JSON")
        .len()
}

#[test]
fn unmodified_programs() {
    let mesh = Mesh::start();
    let dir = mesh.bed.directory().join("www");
    std::fs::create_dir(&dir).expect("make the web root");
    let content: Vec<u8> = (0..4_000_000u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(dir.join("big"), &content).expect("write the content");
    let _nginx = nginx(&mesh.server, 8080, &dir);
    for dst in [mesh.server.at(8080), mesh.server.at6(8080)] {
        let received = mesh.bed.directory().join("received");
        let mut curl = mesh.client.command("curl");
        curl.args([
            "-sS",
            "--max-time",
            "30",
            "-w",
            "%{http_code} %{remote_ip} %{remote_port}",
            "-o",
        ]);
        curl.arg(&received).arg(format!("http://{dst}/big"));
        let output = curl
            .output()
            .expect("curl is installed (`cargo xtask setup`)");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(
            told,
            format!("200 {} 8080", dst.ip()),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            std::fs::read(&received).expect("curl wrote it") == content,
            "the content differs"
        );
    }
    for (direction, option) in [("to the server", None), ("from the server", Some("-R"))] {
        let mut server = mesh.server.command("iperf3");
        server.args(["-s", "-1", "--forceflush"]);
        let server = Process::spawn("iperf3 server", server);
        server.wait_line("listening line", |line| {
            line.contains("listening").then_some(())
        });
        let mut client = mesh.client.command("iperf3");
        client
            .args([
                "-c",
                &mesh.server.ipv4().to_string(),
                "-t",
                "2",
                "-P",
                "8",
                "-J",
            ])
            .args(option);
        let output = client
            .output()
            .expect("iperf3 is installed (`cargo xtask setup`)");
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(result.get("error"), None, "{direction}");
        let bits = result["end"]["sum_received"]["bits_per_second"]
            .as_f64()
            .expect("a figure");
        assert!(bits > 1e8, "{direction}: {bits} bit/s");
    }
    assert_eq!(mesh.wall.leaked(), 0);
}
