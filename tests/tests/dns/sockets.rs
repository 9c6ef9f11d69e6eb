//! The sockets that resolvers use, and what they see.

use std::net::SocketAddr;

use redirect_tests::App;
use serde_json::json;

use crate::fixture::{Fixture, lines, serve};

/// The servers' addresses in the family, of dns1 and dns2.
fn servers(fixture: &Fixture, v6: bool) -> [SocketAddr; 2] {
    [0, 1].map(|number| match v6 {
        true => fixture.servers[number].at6(53),
        false => fixture.servers[number].at(53),
    })
}

/// Who answered: the address that the app sees, and the name that the server gave itself.
#[track_caller]
fn answers(app: &App, count: usize) -> Vec<(SocketAddr, String)> {
    let mut all: Vec<_> = (0..count)
        .map(|_| {
            let answer = app.event("answer");
            let from = answer.addr("from");
            let data = answer.json()["data"][0]
                .as_str()
                .unwrap_or_default()
                .trim_matches('"')
                .to_owned();
            (SocketAddr::new(from.ip().to_canonical(), from.port()), data)
        })
        .collect();
    all.sort();
    all
}

#[test]
fn two_servers_on_one_socket_of_each_family() {
    let fixture = Fixture::new();
    for (v6, options) in [
        (false, &[][..]),
        (true, &[]),
        (false, &["--mapped"]),
        (false, &["--connected"]),
        (true, &["--connected"]),
        (false, &["--connected", "--mapped"]),
    ] {
        let [one, two] = servers(&fixture, v6);
        let (first, second) = (one.to_string(), two.to_string());
        let mut args = vec![
            "whoami.test.",
            "--type",
            "TXT",
            "--server",
            &first,
            "--server",
            &second,
        ];
        args.extend(options);
        let app = fixture.ask(&args);
        let expected = vec![(one, "dns1".to_owned()), (two, "dns2".to_owned())];
        assert_eq!(answers(&app, 2), expected, "IPv6 {v6} {options:?}");
        for event in app.events("connected") {
            let peer = event.addr("peername");
            let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
            assert!([one, two].contains(&peer), "{peer}");
        }
    }
    // None of it went around the proxy.
    fixture.wait_counted("server", "answered", 2.0);
}

#[test]
fn many_servers_are_told_apart() {
    let fixture = Fixture::new();
    let mut servers = Vec::new();
    for number in 1..=40 {
        fixture.servers[0].ip(&format!("addr add 10.77.0.{number}/32 dev eth0\n"));
        servers.push(SocketAddr::from(([10, 77, 0, number], 53)));
    }
    fixture.client.ip("route add 10.77.0.0/16 dev eth0\n");
    let _many = serve(&fixture.servers[0], "many", &servers);
    let texts: Vec<_> = servers.iter().map(ToString::to_string).collect();
    let mut args = vec!["whoami.test.", "--type", "TXT"];
    texts
        .iter()
        .for_each(|server| args.extend(["--server", server]));
    let app = fixture.ask(&args);
    let expected: Vec<_> = servers
        .into_iter()
        .map(|server| (server, "many".to_owned()))
        .collect();
    assert_eq!(answers(&app, 40), expected);
}

#[test]
fn tcp_with_several_queries_on_the_way() {
    let fixture = Fixture::new();
    let server = fixture.server();
    let app = fixture.ask(&[
        "x.test.",
        "--type",
        "MX",
        "--server",
        &server.to_string(),
        "--pipelined",
        "8",
    ]);
    assert_eq!(app.event("pipelined").u64("ids"), 8);
    assert!(
        app.events("answer")
            .iter()
            .all(|answer| answer.addr("from") == server)
    );
}

#[test]
fn loopback_is_left_alone() {
    let fixture = Fixture::new();
    // As Docker's embedded server, and systemd's: what listens on loopback is the pod's own.
    let _own = serve(
        &fixture.client,
        "own",
        &["127.0.0.11:53".parse().expect("an address")],
    );
    let found = fixture.run("dig", &["@127.0.0.11", "+short", "whoami.test", "TXT"]);
    assert_eq!(lines(&String::from_utf8_lossy(&found.stdout)), ["\"own\""]);
    let app = fixture.ask(&[
        "whoami.test.",
        "--type",
        "TXT",
        "--server",
        "127.0.0.11:53",
        "--server",
        &fixture.server().to_string(),
    ]);
    let names: Vec<_> = answers(&app, 2).into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["dns1", "own"]);
}

#[test]
fn a_link_local_server_is_captured_as_any() {
    let fixture = Fixture::new();
    fixture.servers[0].ip("addr add 169.254.20.10/32 dev eth0\n");
    fixture.client.ip("route add 169.254.20.10/32 dev eth0\n");
    let local = "169.254.20.10:53".parse().expect("an address");
    let _local = serve(&fixture.servers[0], "local", &[local]);
    let found = fixture.run(
        "dig",
        &["@169.254.20.10", "+short", "web.default.svc.cluster.local"],
    );
    assert_eq!(
        lines(&String::from_utf8_lossy(&found.stdout)),
        ["10.96.0.20"]
    );
    let found = fixture.run("dig", &["@169.254.20.10", "+short", "whoami.test", "TXT"]);
    assert_eq!(
        lines(&String::from_utf8_lossy(&found.stdout)),
        ["\"local\""]
    );
}

#[test]
fn a_socket_that_is_bound_to_a_device_is_refused() {
    let fixture = Fixture::new();
    let app = fixture.ask(&[
        "a.test.",
        "--server",
        &fixture.server().to_string(),
        "--device",
        "eth0",
    ]);
    assert_eq!(app.event("error").str("name"), "EPERM");
    assert_eq!(fixture.seen("a.test.").len(), 0);
}

#[test]
fn other_datagrams_and_excluded_servers_are_left_alone() {
    let fixture = Fixture::with(
        json!({}),
        json!({ "excludeOutboundCidrs": ["10.88.0.0/16"] }),
    );
    fixture.servers[1].ip("addr add 10.88.0.1/32 dev eth0\n");
    fixture.client.ip("route add 10.88.0.0/16 dev eth0\n");
    let excluded = "10.88.0.1:53".parse().expect("an address");
    let _excluded = serve(&fixture.servers[1], "excluded", &[excluded]);
    let found = fixture.run("dig", &["@10.88.0.1", "web.default.svc.cluster.local"]);
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(found.contains("status: NXDOMAIN"), "{found}");
    let elsewhere = [fixture.servers[0].at(5300), fixture.servers[0].at6(5300)];
    let _elsewhere = serve(&fixture.servers[0], "elsewhere", &elsewhere);
    for server in elsewhere {
        let app = fixture.ask(&[
            "whoami.test.",
            "--type",
            "TXT",
            "--server",
            &server.to_string(),
        ]);
        assert_eq!(answers(&app, 1), [(server, "elsewhere".to_owned())]);
    }
    let metrics = fixture.daemon.metrics();
    assert_eq!(metrics.sum("redirect_dns_queries_total", &[]), 0.0);
}

#[test]
fn nobody_outside_of_the_pod_can_ask() {
    let fixture = Fixture::new();
    let target = |ip: std::net::IpAddr| SocketAddr::new(ip, 15053).to_string();
    for ip in [fixture.client.ipv4(), fixture.client.ipv6()] {
        let args = [
            "dns-ask",
            "web.default.svc.cluster.local.",
            "--timeout",
            "0.5",
            "--connected",
            "--server",
            &target(ip),
        ];
        let app = fixture.servers[0].app(args);
        let error = app.event("error");
        assert!(
            ["ECONNREFUSED", "EAGAIN"].contains(&error.str("name")),
            "{error:?}"
        );
        let args = [
            "dns-ask",
            "web.default.svc.cluster.local.",
            "--pipelined",
            "1",
            "--server",
            &target(ip),
        ];
        let app = fixture.servers[0].app(args);
        app.event("error");
    }
    assert_eq!(
        fixture
            .daemon
            .metrics()
            .sum("redirect_dns_queries_total", &[("result", "answered")]),
        0.0
    );
}
