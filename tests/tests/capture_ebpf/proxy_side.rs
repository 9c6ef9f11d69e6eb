//! What reaches the proxy, and what never does.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd,
    process::Command,
};

use redirect::capture::Capture;
use redirect_tests::{sys, wait_until};

use crate::fixture::{Fixture, PATIENCE, error_name, listener, pins};

fn addr(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// What the kernel answers by itself: without conntrack, and with.
const NO_ANSWER: [&str; 2] = ["ENOPROTOOPT", "ENOENT"];

#[test]
fn a_direct_connection_has_no_original_destination() {
    let fixture = Fixture::new();
    // From elsewhere nobody comes to it, see `inbound`; from the pod itself, by its own address.
    for target in [fixture.client.at(15001), fixture.client.at6(15001)] {
        let (answer, _) = fixture.connect(target, &[]);
        assert_eq!(answer.original, None);
        assert!(
            NO_ANSWER.contains(&answer.sockopt.as_str()),
            "{}",
            answer.sockopt
        );
    }
    // And to the listener's loopback address and to one of the addresses that stand for destinations.
    for target in [
        "127.0.0.1:15001",
        "127.130.1.1:15001",
        "[::1]:15001",
        "[fd72:6472:6374::9]:15001",
    ] {
        let (answer, _) = fixture.connect(addr(target), &[]);
        assert_eq!(answer.original, None, "{target}");
    }
    assert_eq!(fixture.count("no_flow"), 6);
}

#[test]
fn refused_connects_leave_nothing() {
    let mut fixture = Fixture::new();
    fixture.stop_listening();
    for target in ["192.0.2.7:80", "[2001:db8::7]:80", "[::ffff:192.0.2.7]:80"] {
        for option in [&[][..], &["--nonblocking"], &["--device", "eth0"]] {
            let app = fixture.start(addr(target), option, &[]);
            assert_eq!(
                app.event("error").str("name"),
                "ECONNREFUSED",
                "{target} {option:?}"
            );
        }
    }
    fixture.expect_no_flows();
    assert_eq!(
        (fixture.count("published"), fixture.count("abandoned")),
        (9, 9)
    );
}

#[test]
fn a_connect_that_is_given_up_leaves_nothing() {
    let fixture = Fixture::new();
    // The SYN is dropped on its way to the proxy, so the connect hangs until its process is killed.
    nft(&fixture, DROP_SYN);
    let mut app = fixture.start(addr("192.0.2.7:80"), &[], &[]);
    assert!(
        wait_until(PATIENCE, || fixture.flows() == 1),
        "{} flows",
        fixture.flows()
    );
    app.kill();
    fixture.expect_no_flows();
    assert_eq!(fixture.count("abandoned"), 1);
}

const DROP_SYN: &str = "add table inet t; add chain inet t i { type filter hook input priority 0; }; \
                        add rule inet t i tcp dport 15001 drop";

/// Runs commands of nft in the pod's network namespace.
fn nft(fixture: &Fixture, commands: &str) {
    let run = || Command::new("/usr/sbin/nft").arg(commands).output();
    let output = fixture
        .client
        .netns()
        .run(run)
        .expect("enter the pod")
        .expect("start nft");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn one_pod_cannot_take_all_of_the_table() {
    let fixture = Fixture::new();
    // No events, and one connect at a time under way.
    let settings = pins(&fixture.bpffs).join("maps/rdr_settings");
    let output = Command::new("/usr/sbin/bpftool")
        .args(["map", "update", "pinned"])
        .arg(settings)
        .args("key 0 0 0 0 value 0 0 0 0 1 0 0 0".split(' '))
        .output()
        .expect("run bpftool");
    assert!(output.status.success(), "{output:?}");
    nft(&fixture, DROP_SYN);
    let mut first = fixture.start(addr("192.0.2.1:80"), &[], &[]);
    assert!(
        wait_until(PATIENCE, || fixture.flows() == 1),
        "{} flows",
        fixture.flows()
    );
    let mut second = fixture.start(addr("192.0.2.2:80"), &[], &[]);
    assert!(wait_until(PATIENCE, || fixture.count("flow_limit") == 1));
    assert_eq!(fixture.flows(), 1);
    second.kill();
    first.kill();
    fixture.expect_no_flows();
    // The place is free again.
    nft(&fixture, "delete table inet t");
    let (answer, _) = fixture.connect(addr("192.0.2.3:80"), &[]);
    assert_eq!(answer.original, Some(addr("192.0.2.3:80")));
}

/// `getsockopt` with every length is answered as netfilter does; other options are as without the program.
#[test]
fn getsockopt_with_any_length() {
    const SOL_IP: i32 = 0;
    const SOL_IPV6: i32 = 41;
    const ORIGINAL_DST: i32 = 80;
    let mut fixture = Fixture::new();
    let resolver = fixture.capture().resolver();
    fixture.stop_listening();
    let listener = listener(&fixture.client, &fixture.proxy_cgroup, 15001);
    listener
        .set_nonblocking(false)
        .expect("a blocking listener");
    let accept = |target: &str| -> (TcpStream, redirect_tests::App) {
        let app = fixture.start(addr(target), &[], &["wait"]);
        (listener.accept().expect("accept").0, app)
    };
    let (v4, _app4) = accept("192.0.2.7:80");
    let (v6, _app6) = accept("[2001:db8::7]:80");
    assert!(
        resolver
            .resolve(std::os::fd::AsFd::as_fd(&v4))
            .expect("ask")
            .is_some()
    );

    let ask = |socket: &TcpStream, level, option, len: usize| -> Result<Vec<u8>, String> {
        sys::getsockopt(socket.as_raw_fd(), level, option, len)
            .map_err(|error: io::Error| error_name(&error))
    };
    let sockaddr4: [u8; 16] = [2, 0, 0, 80, 192, 0, 2, 7, 0, 0, 0, 0, 0, 0, 0, 0];
    for len in [16, 17, 28, 64, 128, 4096, 5000, 70_000] {
        assert_eq!(
            ask(&v4, SOL_IP, ORIGINAL_DST, len).as_deref(),
            Ok(&sockaddr4[..]),
            "length {len}"
        );
    }
    for len in [0, 1, 15] {
        assert_eq!(
            ask(&v4, SOL_IP, ORIGINAL_DST, len),
            Err("EINVAL".into()),
            "length {len}"
        );
    }
    let mut sockaddr6 = [0; 28];
    sockaddr6[..4].copy_from_slice(&[10, 0, 0, 80]);
    sockaddr6[8..12].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    sockaddr6[23] = 7;
    for len in [28, 29, 100, 4096, 5000, 70_000] {
        assert_eq!(
            ask(&v6, SOL_IPV6, ORIGINAL_DST, len).as_deref(),
            Ok(&sockaddr6[..]),
            "length {len}"
        );
    }
    for len in [0, 16, 27] {
        assert_eq!(
            ask(&v6, SOL_IPV6, ORIGINAL_DST, len),
            Err("EINVAL".into()),
            "length {len}"
        );
    }
    // IPv6 has no place in an IPv4 answer; IPv4 has one in an IPv6 answer, as v4-mapped.
    let error = ask(&v6, SOL_IP, ORIGINAL_DST, 16).expect_err("no answer");
    assert!(NO_ANSWER.contains(&error.as_str()), "{error}");
    let mapped = ask(&v4, SOL_IPV6, ORIGINAL_DST, 28).expect("an answer");
    assert_eq!(&mapped[18..24], [0xff, 0xff, 192, 0, 2, 7]);

    // Another option of the same level, an int, and one with a large answer: as the kernel gives them.
    const IP_TTL: i32 = 2;
    const IPPROTO_TCP: i32 = 6;
    const TCP_INFO: i32 = 11;
    const TCP_CONGESTION: i32 = 13;
    assert_eq!(ask(&v4, SOL_IP, 9999, 16), Err("ENOPROTOOPT".into()));
    assert_eq!(ask(&v4, SOL_IP, IP_TTL, 4), Ok(vec![64, 0, 0, 0]));
    assert_eq!(ask(&v4, SOL_IP, IP_TTL, 5000), Ok(vec![64, 0, 0, 0]));
    assert!(
        ask(&v4, IPPROTO_TCP, TCP_INFO, 8192)
            .expect("TCP_INFO")
            .len()
            > 200
    );
    assert_eq!(
        ask(&v4, IPPROTO_TCP, TCP_INFO, 10).expect("TCP_INFO").len(),
        10
    );
    assert_eq!(
        ask(&v4, IPPROTO_TCP, TCP_CONGESTION, 6000)
            .expect("a name")
            .len(),
        16
    );
}

#[test]
fn data_flows_both_ways() {
    let fixture = Fixture::new();
    let app = fixture.start(
        addr("192.0.2.7:80"),
        &[],
        &[
            "recv-line",
            "send:ping\\n",
            "recv-line",
            "shutdown",
            "recv-all",
        ],
    );
    app.event("received");
    assert_eq!(app.event("received").text(), "ping");
    app.event("eof");
}
