//! Connects that are captured: the proxy learns where they were meant to go, and the app sees what it asked for.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use redirect_tests::Event;

use crate::fixture::{Answer, Fixture, cgroup_id};

/// Addresses that nobody has: a connect that is not captured fails.
const NOWHERE4: &str = "192.0.2.7:8080";
const NOWHERE6: &str = "[2001:db8::7]:8080";

fn addr(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// The proxy knows `original`, whose app sees a connection from `source` to `original`.
#[track_caller]
fn expect_captured(answer: &Answer, connected: &Event, original: SocketAddr, source: IpAddr) {
    assert_eq!(answer.original, Some(original));
    assert_eq!(answer.sockopt, original.to_string());
    assert_eq!(answer.peer.ip(), source);
    let canonical = |addr: SocketAddr| SocketAddr::new(addr.ip().to_canonical(), addr.port());
    assert_eq!(canonical(connected.addr("peername")), original);
    assert_eq!(canonical(connected.addr("sockname")), answer.peer);
}

#[test]
fn ipv4_ipv6_and_v4_mapped() {
    let fixture = Fixture::new();
    let app_cgroup = cgroup_id(&fixture.client.container("app"));
    for (target, original, source) in [
        (NOWHERE4, NOWHERE4, fixture.client.ipv4()),
        (NOWHERE6, NOWHERE6, fixture.client.ipv6()),
        ("[::ffff:192.0.2.7]:8080", NOWHERE4, fixture.client.ipv4()),
    ] {
        let (answer, connected) = fixture.connect(addr(target), &[]);
        expect_captured(&answer, &connected, addr(original), source);
        assert_eq!(answer.cgroup, Some(app_cgroup));
        assert_eq!(answer.local.port(), 15001);
        assert!(
            answer
                .local
                .ip()
                .to_string()
                .starts_with(if answer.local.is_ipv4() {
                    "127."
                } else {
                    "fd72:"
                })
        );
        // An IPv6 socket sees IPv6 addresses, also those that stand for IPv4.
        assert_eq!(connected.addr("peername"), addr(target));
    }
    fixture.expect_no_flows();
    assert_eq!(
        (
            fixture.count("captured"),
            fixture.count("published"),
            fixture.count("accepted")
        ),
        (3, 3, 3)
    );
}

#[test]
fn a_peer_that_exists_gets_nothing() {
    let fixture = Fixture::new();
    let peer = fixture.peer.app(["serve", "--listen", "[::]:8080"]);
    peer.event("listening");
    for (target, source) in [
        (fixture.peer.at(8080), fixture.client.ipv4()),
        (fixture.peer.at6(8080), fixture.client.ipv6()),
    ] {
        let (answer, connected) = fixture.connect(target, &[]);
        expect_captured(&answer, &connected, target, source);
    }
    assert!(peer.events("accepted").is_empty());
}

#[test]
fn non_blocking_connects() {
    let fixture = Fixture::new();
    for (target, source) in [
        (NOWHERE4, fixture.client.ipv4()),
        (NOWHERE6, fixture.client.ipv6()),
    ] {
        let (answer, connected) = fixture.connect(addr(target), &["--nonblocking"]);
        expect_captured(&answer, &connected, addr(target), source);
    }
}

#[test]
fn tcp_fast_open() {
    let mut fixture = Fixture::new();
    // Client, server, all listeners made from now on, and neither side needs a cookie: the first SYN carries data.
    fixture.stop_listening();
    fixture.client.sysctl("net.ipv4.tcp_fastopen", "1543");
    fixture.listen();
    for (target, source) in [
        (NOWHERE4, fixture.client.ipv4()),
        (NOWHERE6, fixture.client.ipv6()),
    ] {
        let app = fixture.start(
            addr(target),
            &["--fastopen", "early\n"],
            &["recv-line", "recv-line", "names"],
        );
        let answer = Answer::parse(app.event("received").text());
        assert_eq!(app.event("received").text(), "early");
        expect_captured(&answer, &app.event("names"), addr(target), source);
    }
    let (active, passive) = (
        tcp_ext(&fixture, "TCPFastOpenActive"),
        tcp_ext(&fixture, "TCPFastOpenPassive"),
    );
    assert_eq!((active, passive), (2, 2), "Fast Open was not used");
}

/// The hook runs on the subflow, where the app's `getpeername` does not look: it shows the proxy.
#[test]
fn multipath_tcp() {
    let fixture = Fixture::new();
    let (answer, _) = fixture.connect(addr(NOWHERE4), &["--mptcp"]);
    assert_eq!(answer.original, Some(addr(NOWHERE4)));
    assert_eq!(answer.peer.ip(), fixture.client.ipv4());
}

#[test]
fn syn_cookies() {
    let fixture = Fixture::new();
    fixture.client.sysctl("net.ipv4.tcp_syncookies", "2");
    for (target, source) in [
        (NOWHERE4, fixture.client.ipv4()),
        (NOWHERE6, fixture.client.ipv6()),
    ] {
        let (answer, connected) = fixture.connect(addr(target), &[]);
        expect_captured(&answer, &connected, addr(target), source);
    }
    assert_eq!(
        tcp_ext(&fixture, "SyncookiesRecv"),
        2,
        "SYN cookies were not used"
    );
}

#[test]
fn bound_before_connecting() {
    let fixture = Fixture::new();
    let (ipv4, ipv6) = (fixture.client.ipv4(), fixture.client.ipv6());
    for (target, bind, port, source) in [
        (NOWHERE4, format!("{ipv4}:0"), None, ipv4),
        (NOWHERE4, format!("{ipv4}:5001"), Some(5001), ipv4),
        (NOWHERE4, "0.0.0.0:5002".into(), Some(5002), ipv4),
        (NOWHERE6, format!("[{ipv6}]:0"), None, ipv6),
        (NOWHERE6, format!("[{ipv6}]:5003"), Some(5003), ipv6),
        (NOWHERE6, "[::]:5004".into(), Some(5004), ipv6),
        (
            "[::ffff:192.0.2.7]:8080",
            "[::]:5005".into(),
            Some(5005),
            ipv4,
        ),
    ] {
        let (answer, connected) = fixture.connect(addr(target), &["--bind", &bind]);
        let original = SocketAddr::new(addr(target).ip().to_canonical(), 8080);
        expect_captured(&answer, &connected, original, source);
        if let Some(port) = port {
            assert_eq!(answer.peer.port(), port, "bound to {bind}");
        }
    }
}

#[test]
fn bound_to_a_foreign_address_is_refused() {
    let fixture = Fixture::new();
    fixture.client.sysctl("net.ipv4.ip_nonlocal_bind", "1");
    let app = fixture.start(addr(NOWHERE4), &["--bind", "203.0.113.9:0"], &[]);
    assert_eq!(app.event("error").str("name"), "EPERM");
    assert_eq!(fixture.count("foreign_source"), 1);
}

#[test]
fn bound_to_a_device() {
    let fixture = Fixture::new();
    for (target, source) in [
        (NOWHERE4, fixture.client.ipv4()),
        (NOWHERE6, fixture.client.ipv6()),
        ("[::ffff:192.0.2.7]:8080", fixture.client.ipv4()),
    ] {
        let (answer, connected) = fixture.connect(addr(target), &["--device", "eth0"]);
        let original = SocketAddr::new(addr(target).ip().to_canonical(), 8080);
        expect_captured(&answer, &connected, original, source);
    }
}

#[test]
fn one_socket_connects_again_and_again() {
    let fixture = Fixture::new();
    let peer = fixture
        .peer
        .app(["serve", "--listen", "0.0.0.0:9000", "--mode", "greet"]);
    peer.event("listening");
    let own = fixture
        .client
        .app(["serve", "--listen", "0.0.0.0:9000", "--mode", "greet"]);
    own.event("listening");
    let own_addr = fixture.client.at(9000);
    let app = fixture.start(
        addr("192.0.2.1:1"),
        &[],
        &[
            "recv-line",
            "disconnect",
            "connect:192.0.2.2:2",
            "recv-line",
            "disconnect",
            // Not captured, so nothing of the last connect may stay on the socket.
            &format!("connect:{own_addr}"),
            "recv-line",
            "names",
            "disconnect",
            "connect:192.0.2.3:3",
            "recv-line",
        ],
    );
    assert_eq!(
        Answer::parse(app.event("received").text()).original,
        Some(addr("192.0.2.1:1"))
    );
    assert_eq!(
        Answer::parse(app.event("received").text()).original,
        Some(addr("192.0.2.2:2"))
    );
    assert!(app.event("received").text().starts_with("hello "));
    assert_eq!(app.event("names").addr("peername"), own_addr);
    assert_eq!(
        Answer::parse(app.event("received").text()).original,
        Some(addr("192.0.2.3:3"))
    );
    fixture.expect_no_flows();
}

#[test]
fn a_port_is_used_for_several_destinations_at_once() {
    let fixture = Fixture::new();
    let bind = ["--reuse", "--bind", "0.0.0.0:5100"];
    let first = fixture.start(addr("192.0.2.1:80"), &bind, &["recv-line", "wait"]);
    first.event("waiting");
    let second = fixture.start(addr("192.0.2.2:80"), &bind, &["recv-line", "wait"]);
    second.event("waiting");
    for (app, original) in [(&first, "192.0.2.1:80"), (&second, "192.0.2.2:80")] {
        let answer = Answer::parse(app.event("received").text());
        assert_eq!(
            (answer.original, answer.peer.port()),
            (Some(addr(original)), 5100)
        );
    }
}

#[test]
fn many_destinations_with_few_source_ports() {
    let fixture = Fixture::new();
    fixture
        .client
        .sysctl("net.ipv4.ip_local_port_range", "40000 40099");
    for first in ["192.0.2.1", "2001:db8::1"] {
        let app = fixture.client.app([
            "many", "--count", "150", "--silent", "--range", first, "1000", "150",
        ]);
        let held = app.event("held");
        assert_eq!(held.u64("ok"), 150, "{}", held.json());
    }
    fixture.expect_no_flows();
}

#[test]
fn a_pod_without_ipv4_addresses_is_captured_all_the_same() {
    let mut fixture = Fixture::new();
    let mut pod = fixture.spec();
    pod.ips.retain(IpAddr::is_ipv6);
    let netns = fixture.client.netns().clone();
    crate::fixture::apply(fixture.capture(), &pod, &netns).expect("apply");
    let (answer, _) = fixture.connect(addr(NOWHERE4), &[]);
    assert_eq!(answer.original, Some(addr(NOWHERE4)));
    assert_eq!(answer.peer.ip(), IpAddr::V4(Ipv4Addr::LOCALHOST));
    let app = fixture.start(addr(NOWHERE4), &["--device", "eth0"], &[]);
    assert_eq!(app.event("error").str("name"), "EPERM");
    assert_eq!(fixture.count("no_address"), 1);
}

/// A counter of the pod's /proc/net/netstat.
fn tcp_ext(fixture: &Fixture, name: &str) -> u64 {
    let text = fixture
        .client
        .netns()
        .run(|| std::fs::read_to_string("/proc/thread-self/net/netstat"));
    let text = text.expect("enter the pod").expect("read netstat");
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let found = names
        .split(' ')
        .zip(values.split(' '))
        .find(|(found, _)| *found == name);
    found
        .unwrap_or_else(|| panic!("no counter {name}"))
        .1
        .parse()
        .expect("a number")
}
