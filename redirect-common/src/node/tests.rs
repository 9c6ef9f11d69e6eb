//! Tables of what becomes of segments on the node's side of a pod's interface.

use core::net::IpAddr;

use super::*;
use crate::maps::{Caller, List, PassEntry, inbound_flags, pod_flags};

const POD: u32 = 7;

/// What there is beside the pod 10.0.0.2, fd00::2.
#[derive(Default)]
struct Node {
    connection: bool,
    no_listener: bool,
    inbound_flags: u32,
    probed: Option<PassKey>,
}

impl decide::Lists for Node {
    fn has_port(&self, list: List, pod: u32, port: u16) -> bool {
        assert_eq!(pod, POD);
        match list {
            List::ExcludedOutbound => port == 2222,
            List::ExcludedInbound => port == 3333,
            _ => false,
        }
    }

    fn has_net(&self, _: List, _: u32, _: &Addr) -> bool {
        false
    }
}

impl decide::Lookups for Node {
    fn is_own(&self, _: u32, _: &Addr) -> bool {
        false
    }

    fn is_listening(&self, _: SocketKind, pod: u32) -> bool {
        assert_eq!(pod, POD);
        !self.no_listener
    }

    fn is_exempt_caller(&self, _: u32) -> bool {
        false
    }
}

impl inbound::Lookups for Node {
    fn pod_at(&self, addr: &Addr) -> Option<InboundEntry> {
        let pod = match addr.to_ip().to_string().as_str() {
            "10.0.0.2" | "fd00::2" => POD,
            "10.0.0.3" => 8,
            _ => return None,
        };
        Some(InboundEntry {
            netns_cookie: ON_NODE,
            pod,
            flags: self.inbound_flags,
        })
    }

    fn passing(&self, flow: &PassKey) -> Option<PassEntry> {
        (self.probed == Some(*flow)).then_some(PassEntry {
            owner: 1,
            pod: POD,
            caller: Caller::Prober as u32,
        })
    }

    fn is_served(&self, _: &Addr, _: u16) -> bool {
        false
    }

    fn is_barred(&self, _: &PassKey) -> bool {
        false
    }

    fn is_redirected(&self, _: u64, _: &PassKey) -> bool {
        false
    }
}

impl Lookups for Node {
    fn has_connection(&self) -> bool {
        self.connection
    }
}

fn segment(src: &str, dst: &str, flags: u8) -> Segment {
    let end = |text: &str| {
        let end: core::net::SocketAddr = text.parse().unwrap();
        (Addr::from(end.ip()), end.port())
    };
    let ((src, src_port), (dst, dst_port)) = (end(src), end(dst));
    Segment {
        flow: PassKey {
            src,
            dst,
            src_port,
            dst_port,
        },
        flags,
    }
}

fn pod(flags: u32) -> PodEntry {
    let ip = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
    PodEntry {
        v4: ip("10.0.0.2"),
        v6: ip("fd00::2"),
        pod: POD,
        flags,
        ..PodEntry::default()
    }
}

const SYN: u8 = tcp_flags::SYN;
const ACK: u8 = tcp_flags::ACK;
const RST: u8 = tcp_flags::RST;

#[test]
fn from_the_pod() {
    let plain = || Node::default();
    let held = || Node {
        connection: true,
        ..plain()
    };
    let dead = || Node {
        no_listener: true,
        ..plain()
    };
    let excluded_in = || Node {
        inbound_flags: inbound_flags::EXCLUDED_PORTS,
        ..plain()
    };
    let open = || Node {
        inbound_flags: inbound_flags::PASS_ON_FAILURE,
        ..dead()
    };
    let excluded_out = pod_flags::EXCLUDED_PORTS;
    let pass_on_failure = pod_flags::PASS_ON_FAILURE;
    use Decision::*;
    for (src, dst, tcp, flags, node, expected) in [
        (
            "10.0.0.2:4000",
            "10.0.9.9:80",
            SYN,
            0,
            plain(),
            Deliver(Reason::Captured),
        ),
        (
            "[fd00::2]:4000",
            "[fd00::9]:80",
            SYN,
            0,
            plain(),
            Deliver(Reason::Captured),
        ),
        (
            "10.0.0.2:4000",
            "10.0.9.9:80",
            ACK,
            0,
            held(),
            Deliver(Reason::Accepted),
        ),
        (
            "10.0.0.2:4000",
            "10.0.9.9:80",
            RST | ACK,
            0,
            held(),
            Deliver(Reason::Accepted),
        ),
        // A source of somebody else's, whatever it is.
        (
            "10.0.0.3:4000",
            "10.0.9.9:80",
            SYN,
            0,
            plain(),
            Drop(Reason::ForeignSource),
        ),
        (
            "10.0.0.3:4000",
            "10.0.9.9:80",
            ACK,
            0,
            held(),
            Drop(Reason::ForeignSource),
        ),
        (
            "10.0.0.3:4000",
            "10.0.9.9:2222",
            SYN,
            excluded_out,
            plain(),
            Drop(Reason::ForeignSource),
        ),
        // The node's own loopback.
        (
            "10.0.0.2:4000",
            "127.0.0.1:15001",
            SYN,
            0,
            plain(),
            Drop(Reason::Loopback),
        ),
        (
            "[fe80::2]:4000",
            "[fe80::1]:80",
            SYN,
            0,
            plain(),
            Pass(Reason::LinkLocal),
        ),
        (
            "10.0.0.2:4000",
            "169.254.169.254:80",
            SYN,
            0,
            plain(),
            Pass(Reason::Metadata),
        ),
        (
            "10.0.0.2:4000",
            "10.0.9.9:2222",
            SYN,
            excluded_out,
            plain(),
            Pass(Reason::ExcludedPort),
        ),
        (
            "10.0.0.2:4000",
            "10.0.9.9:2222",
            ACK,
            excluded_out,
            plain(),
            Pass(Reason::ExcludedPort),
        ),
        // The daemon is dead, and what it held with it.
        (
            "10.0.0.2:4000",
            "10.0.9.9:80",
            SYN,
            0,
            dead(),
            Reset(Reason::NoListener),
        ),
        (
            "10.0.0.2:4000",
            "10.0.9.9:80",
            ACK,
            0,
            dead(),
            Reset(Reason::NoSocket),
        ),
        (
            "10.0.0.2:4000",
            "10.0.9.9:80",
            SYN,
            pass_on_failure,
            dead(),
            Pass(Reason::NoListener),
        ),
        // Answers.
        (
            "10.0.0.2:3333",
            "10.0.9.9:80",
            SYN | ACK,
            0,
            excluded_in(),
            Pass(Reason::ExcludedPort),
        ),
        (
            "10.0.0.2:3334",
            "10.0.9.9:80",
            SYN | ACK,
            0,
            excluded_in(),
            Reset(Reason::NoSocket),
        ),
        (
            "10.0.0.2:3334",
            "10.0.9.9:80",
            SYN | ACK,
            0,
            open(),
            Pass(Reason::NoListener),
        ),
        (
            "10.0.0.2:3334",
            "10.0.9.9:80",
            RST,
            0,
            plain(),
            Pass(Reason::Control),
        ),
        // An excluded port of the pod's is no source port to connect from.
        (
            "10.0.0.2:3333",
            "10.0.9.9:80",
            SYN,
            0,
            excluded_in(),
            Deliver(Reason::Captured),
        ),
    ] {
        let segment = segment(src, dst, tcp);
        let decision = from_pod(&pod(flags), &segment, &node);
        assert_eq!(decision, expected, "{src} to {dst}, flags {tcp:#x}");
    }
}

#[test]
fn to_the_pod() {
    let plain = || Node::default();
    let held = || Node {
        connection: true,
        ..plain()
    };
    let dead = || Node {
        no_listener: true,
        ..plain()
    };
    let excluded = || Node {
        inbound_flags: inbound_flags::EXCLUDED_PORTS,
        ..plain()
    };
    let probe = segment("10.0.9.9:4000", "10.0.0.2:80", SYN);
    let probed = || Node {
        probed: Some(probe.flow),
        ..plain()
    };
    let open = || Node {
        inbound_flags: inbound_flags::PASS_ON_FAILURE,
        ..dead()
    };
    use Decision::*;
    for (src, dst, tcp, proxys, node, expected) in [
        (
            "10.0.9.9:4000",
            "10.0.0.2:80",
            SYN,
            false,
            plain(),
            Deliver(Reason::Captured),
        ),
        (
            "[fd00::9]:4000",
            "[fd00::2]:80",
            SYN,
            false,
            plain(),
            Deliver(Reason::Captured),
        ),
        (
            "10.0.9.9:4000",
            "10.0.0.2:15008",
            SYN,
            false,
            plain(),
            Deliver(Reason::Captured),
        ),
        (
            "10.0.9.9:4000",
            "10.0.0.2:80",
            ACK,
            false,
            held(),
            Deliver(Reason::Accepted),
        ),
        (
            "10.0.9.9:4000",
            "10.0.0.2:80",
            SYN,
            true,
            plain(),
            Pass(Reason::Proxy),
        ),
        (
            "10.0.9.9:4000",
            "10.0.0.2:80",
            ACK,
            true,
            held(),
            Pass(Reason::Proxy),
        ),
        (
            "10.0.9.9:4000",
            "10.0.0.2:80",
            ACK,
            false,
            plain(),
            Pass(Reason::NoSocket),
        ),
        (
            "10.0.9.9:4000",
            "10.0.0.2:15001",
            SYN,
            false,
            plain(),
            Reset(Reason::OwnPort),
        ),
        (
            "10.0.9.9:4000",
            "10.0.0.2:15006",
            SYN,
            false,
            plain(),
            Reset(Reason::OwnPort),
        ),
        (
            "10.0.9.9:4000",
            "10.0.0.2:3333",
            SYN,
            false,
            excluded(),
            Pass(Reason::ExcludedPort),
        ),
        (
            "10.0.9.9:4000",
            "10.0.0.2:80",
            SYN,
            false,
            probed(),
            Pass(Reason::Probe),
        ),
        (
            "10.0.9.9:4001",
            "10.0.0.2:80",
            SYN,
            false,
            probed(),
            Deliver(Reason::Captured),
        ),
        // From itself, by way of the proxy: the pod would take it for a martian.
        (
            "10.0.0.2:4000",
            "10.0.0.2:80",
            SYN,
            false,
            plain(),
            Deliver(Reason::Captured),
        ),
        (
            "10.0.9.9:4000",
            "10.0.0.2:80",
            SYN,
            false,
            dead(),
            Reset(Reason::NoListener),
        ),
        (
            "10.0.9.9:4000",
            "10.0.0.2:15008",
            SYN,
            false,
            open(),
            Reset(Reason::NoListener),
        ),
        (
            "10.0.9.9:4000",
            "10.0.0.2:80",
            SYN,
            false,
            open(),
            Pass(Reason::NoListener),
        ),
        // Another pod's frame, which a bridge sends to all ports.
        (
            "10.0.9.9:4000",
            "10.0.0.3:80",
            SYN,
            false,
            plain(),
            Drop(Reason::UnknownAddress),
        ),
        (
            "10.0.9.9:4000",
            "10.0.0.3:80",
            ACK,
            false,
            held(),
            Pass(Reason::UnknownAddress),
        ),
    ] {
        let segment = segment(src, dst, tcp);
        let decision = to_pod(POD, &segment, proxys, &node);
        assert_eq!(decision, expected, "{src} to {dst}, flags {tcp:#x}");
    }
}

#[test]
fn answers_of_a_connection_that_does_not_exist() {
    let with = |flags| segment("10.0.0.2:1", "10.0.0.3:2", flags);
    let reset = |sequence, acknowledged, flags| Answer {
        sequence,
        acknowledged,
        flags,
    };
    assert_eq!(with(SYN).answer(100, 0, 0), reset(0, 101, RST | ACK));
    assert_eq!(with(SYN).answer(u32::MAX, 0, 0), reset(0, 0, RST | ACK));
    assert_eq!(with(ACK).answer(100, 500, 20), reset(500, 0, RST));
    assert_eq!(
        with(tcp_flags::FIN).answer(100, 0, 20),
        reset(0, 121, RST | ACK)
    );
}
