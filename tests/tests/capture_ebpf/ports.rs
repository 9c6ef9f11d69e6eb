//! Our ports and marks are not for processes of a captured pod, also while nobody of ours listens.

use redirect::{
    capture::Capture,
    sys::{netns::Netns, socket},
};
use redirect_tests::App;

use crate::fixture::{Fixture, listener};

/// What comes of binding `addr` in the pod: `None` if it goes well.
fn bind(fixture: &Fixture, addr: &str) -> Option<String> {
    let nowhere = match addr.starts_with('[') {
        true => "[::1]:9",
        false => "127.0.0.1:9",
    };
    error_of(
        &fixture
            .client
            .app(["connect", "--reuse", "--bind", addr, nowhere]),
        "bind",
    )
}

/// The error of one call; a later one is none.
fn error_of(app: &App, call: &str) -> Option<String> {
    let event = app.next_event();
    (event.str("event") == "error" && event.str("call") == call).then(|| event.str("name").into())
}

const OURS: [u16; 4] = [15_001, 15_006, 15_008, 15_053];

#[test]
fn our_ports_are_taken() {
    let mut fixture = Fixture::new();
    let check = |fixture: &Fixture| {
        for port in OURS {
            let ipv4 = fixture.client.ipv4();
            for addr in [
                format!("0.0.0.0:{port}"),
                format!("127.0.0.1:{port}"),
                format!("127.130.1.1:{port}"),
                format!("{ipv4}:{port}"),
                format!("[::]:{port}"),
                format!("[::1]:{port}"),
            ] {
                assert_eq!(
                    bind(fixture, &addr).as_deref(),
                    Some("EADDRINUSE"),
                    "{addr}"
                );
            }
        }
    };
    check(&fixture);
    // Also when no daemon runs.
    fixture.stop_listening();
    fixture.capture = None;
    check(&fixture);
    for addr in ["0.0.0.0:15000", "[::]:15020", "0.0.0.0:0"] {
        assert_eq!(bind(&fixture, addr), None, "{addr}");
    }
    // The daemon's own are not in the way.
    drop(listener(&fixture.client, &fixture.proxy_cgroup, 15_001));
}

#[test]
fn ports_are_free_again_when_the_pod_is_let_go() {
    let mut fixture = Fixture::new();
    fixture.stop_listening();
    let uid = fixture.uid();
    fixture.capture().clean(&uid).expect("clean");
    assert_eq!(bind(&fixture, "0.0.0.0:15001"), None);
}

#[test]
fn our_marks_are_refused() {
    let fixture = Fixture::new();
    let mark = |mark: &str| {
        let app = fixture
            .client
            .app(["connect", "--mark", mark, "127.0.0.1:9"]);
        error_of(&app, "SO_MARK")
    };
    // 0x539, 0x111, and the first with bits that rules do not look at.
    for ours in ["1337", "273", "66873"] {
        assert_eq!(mark(ours).as_deref(), Some("EPERM"), "{ours}");
    }
    for other in ["0", "1", "1338"] {
        assert_eq!(mark(other), None, "{other}");
    }
    assert_eq!(fixture.count("own_mark"), 3);
}

/// A range of ports that begins below ours, as operators set it for many connections.
#[test]
fn the_kernel_does_not_choose_our_ports() {
    let mut fixture = Fixture::new();
    let uid = fixture.uid();
    fixture.capture().clean(&uid).expect("clean");
    let reserved = |netns: &Netns| {
        let read = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports");
        let text = netns.run(read).expect("enter").expect("readable");
        text.trim().to_owned()
    };
    let netns = fixture.client.netns().clone();
    // The usual range: nothing to do.
    fixture.apply();
    assert_eq!(reserved(&netns), "");
    fixture
        .client
        .sysctl("net.ipv4.ip_local_port_range", "15001 15009");
    fixture
        .client
        .sysctl("net.ipv4.ip_local_reserved_ports", "15002-15003");
    fixture.apply();
    assert_eq!(reserved(&netns), "15001-15003,15006,15008");
    fixture.stop_listening();
    for _ in 0..8 {
        let chosen = netns
            .run(|| std::net::TcpListener::bind("127.0.0.1:0"))
            .expect("enter")
            .and_then(|listener| listener.local_addr())
            .expect("a port is left");
        assert!(!OURS.contains(&chosen.port()), "{chosen}");
    }
    drop(socket::listen(&netns, 15_006, Default::default()).expect("reserved is not taken"));
    fixture.capture().clean(&uid).expect("clean");
    assert_eq!(reserved(&netns), "15002-15003");
}
