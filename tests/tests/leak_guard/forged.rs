//! Packets that a process makes by itself, on raw and packet sockets.

use redirect_tests::{
    Mesh,
    exchange::{greeted, greeter},
};
use serde_json::json;

use crate::{
    frames::{self, ACK, IPV4_IN_IP, RST, SCTP, SYN, TCP, UDP},
    stage::{Counter, PORT, Stage, hex},
};

fn to_port(port: u16) -> String {
    format!("tcp dport {port}")
}

#[test]
fn segments_of_raw_sockets() {
    let stage = Stage::set();
    let seen = Counter::of(stage.outsider(), &to_port(PORT));
    for (src, dst) in stage.ends() {
        for (flags, payload) in [(SYN, ""), (ACK, "secret"), (RST, "secret")] {
            let segment = frames::tcp(src, dst, flags, payload.as_bytes());
            stage.attack_raw(TCP, dst.ip(), &segment);
        }
    }
    stage.wait_dropped("raw_socket", 6);
    assert_eq!(seen.packets(), 0);
    // A reset without data may leave: the kernel's own come from such a socket.
    for (src, dst) in stage.ends() {
        stage.attack_raw(TCP, dst.ip(), &frames::tcp(src, dst, RST, b""));
    }
    seen.wait(2);
    assert!(stage.guarded("pass", "control") >= 2);
}

#[test]
fn frames_of_packet_sockets() {
    let stage = Stage::set();
    let (src_mac, dst_mac) = stage.macs();
    let seen = Counter::of(stage.outsider(), &to_port(PORT));
    for (src, dst) in stage.ends() {
        for flags in [SYN, ACK, RST] {
            let segment = frames::tcp(src, dst, flags, b"");
            let packet = frames::ip(src.ip(), dst.ip(), TCP, &segment);
            stage.attack_frame(&frames::ip_frame(src_mac, dst_mac, &packet));
        }
    }
    stage.wait_dropped("raw_socket", 6);
    assert_eq!(seen.packets(), 0);
}

/// The header before TCP, a fragment that holds less than the ports, and one that begins behind them.
#[test]
fn tcp_in_disguise() {
    let stage = Stage::set();
    let (src_mac, dst_mac) = stage.macs();
    let seen = Counter::of(stage.outsider(), "meta protocol { ip, ip6, vlan }");
    let [(src4, dst4), (src6, dst6)] = stage.ends();
    let send = |packet: &[u8]| stage.attack_frame(&frames::ip_frame(src_mac, dst_mac, packet));
    let before = seen.packets();

    let segment = frames::tcp(src6, dst6, SYN, b"");
    let (protocol, payload) = frames::behind_options(TCP, &segment);
    send(&frames::ip(src6.ip(), dst6.ip(), protocol, &payload));
    stage.wait_dropped("raw_socket", 1);

    let segment = frames::tcp(src4, dst4, SYN, b"");
    let mut first = frames::ip(src4.ip(), dst4.ip(), TCP, &segment[..8]);
    first[6] = 0x20;
    send(&first);
    stage.wait_dropped("malformed", 1);
    let mut later = frames::ip(src4.ip(), dst4.ip(), TCP, &segment[8..]);
    later[7] = 1;
    later[6] = 0;
    send(&later);
    stage.wait_dropped("raw_socket", 2);

    // What wraps it: a tag, and another packet.
    let whole = frames::ip(src4.ip(), dst4.ip(), TCP, &segment);
    let tagged = [&[0, 7, 8, 0][..], &whole].concat();
    stage.attack_frame(&frames::frame(src_mac, dst_mac, 0x8100, &tagged));
    send(&frames::ip(src4.ip(), dst4.ip(), IPV4_IN_IP, &whole));
    stage.attack_raw(IPV4_IN_IP, dst4.ip(), &whole);
    stage.attack_raw(47, dst4.ip(), &[&[0, 0, 8, 0][..], &whole].concat());
    stage.wait_dropped("encapsulated", 4);
    let arrived = seen.packets() - before;
    let udp_and_icmp = stage.guarded("pass", "not_tcp");
    assert!(
        arrived <= udp_and_icmp,
        "{arrived} arrived, {udp_and_icmp} were let pass"
    );
}

/// What sends past the interface's queue also goes past the guard: the pod does not get that far.
#[test]
fn ways_past_the_queue() {
    for guard in [false, true] {
        let config = json!({ "capture": { "leakGuard": guard } });
        let stage = Stage::on(Mesh::builder().config(config));
        let seen = Counter::of(stage.outsider(), &to_port(PORT));
        let (src_mac, dst_mac) = stage.macs();
        let [(src, dst), _] = stage.ends();
        let segment = frames::tcp(src, dst, SYN, b"");
        let packet = frames::ip(src.ip(), dst.ip(), TCP, &segment);
        let frame = hex(&frames::ip_frame(src_mac, dst_mac, &packet));
        let queue = stage.attack_event(&["attack", "packet", "--bypass", "eth0", &frame]);
        let ring = stage.attack_event(&["attack", "xdp"]);
        if guard {
            for (event, call) in [(queue, "PACKET_QDISC_BYPASS"), (ring, "XDP_TX_RING")] {
                assert_eq!((event.str("call"), event.str("name")), (call, "EPERM"));
            }
            assert_eq!(seen.packets(), 0);
            assert_eq!(stage.verdicts("setsockopt", "refuse", "around_guard"), 2);
        } else {
            assert_eq!((queue.name(), ring.name()), ("sent", "sent"));
            seen.wait(1);
        }
    }
}

/// Sockets of the pod fail visibly; what the sockets of others send is dropped.
#[test]
fn refused_udp_says_so() {
    for (capture_dns, dns_may) in [(true, false), (false, true)] {
        let options = json!({ "refuseUdp": true, "captureDns": capture_dns });
        let stage = Stage::on(Mesh::builder().client(options));
        let seen = Counter::of(stage.outsider(), "udp dport { 53, 4789 }");
        let outsider = stage.outsider();
        for dst in [outsider.at(4789), outsider.at6(4789)] {
            let event = stage.attack_event(&["attack", "udp", &dst.to_string()]);
            assert_eq!(event.str("name"), "EPERM");
            let dst = dst.to_string();
            let other = stage.client().app_outside(["attack", "udp", &dst]);
            _ = other.next_event();
        }
        stage.wait_dropped("udp", 4);
        assert_eq!(seen.packets(), 0);
        // To itself the pod may speak as it likes.
        let own = stage.client().at(4789).to_string();
        assert_eq!(stage.attack_event(&["attack", "udp", &own]).name(), "sent");
        if dns_may {
            let dns = outsider.at(53).to_string();
            assert_eq!(stage.attack_event(&["attack", "udp", &dns]).name(), "sent");
            seen.wait(1);
        }
    }
}

#[test]
fn what_is_no_tcp_may_leave_unless_an_option_refuses_it() {
    for (options, may) in [
        (json!({}), true),
        (json!({ "refuseUdp": true, "refuseSctp": true }), false),
    ] {
        let stage = Stage::on(Mesh::builder().client(options));
        let seen = Counter::of(stage.outsider(), "meta l4proto { udp, sctp }");
        let dst = stage.outsider().ipv4();
        stage.attack_raw(UDP, dst, &frames::udp(4000, 4789, b"x"));
        stage.attack_raw(SCTP, dst, &[0; 16]);
        if may {
            seen.wait(2);
        } else {
            stage.wait_dropped("udp", 1);
            stage.wait_dropped("sctp", 1);
            assert_eq!(seen.packets(), 0);
        }
    }
}

#[test]
fn the_mesh_works_under_the_guard() {
    let stage = Stage::set();
    let _server = greeter(&stage.mesh.server, 8080);
    for dst in [stage.mesh.server.at(8080), stage.mesh.server.at6(8080)] {
        greeted(stage.client(), dst, &[]);
    }
    let metrics = stage.mesh.daemon_a.metrics();
    assert!(stage.guarded("pass", "proxy") > 0, "{}", metrics.text());
    assert_eq!(stage.guarded("refuse", "uncaptured"), 0);
    assert_eq!(stage.guarded("refuse", "no_socket"), 0);
}
