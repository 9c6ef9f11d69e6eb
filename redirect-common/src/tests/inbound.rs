//! Tests of the decision on what arrives.

use std::collections::{HashMap, HashSet};

use super::addr;
use crate::{
    Addr, Reason,
    decide::Lists,
    inbound::{self, Arrival, Decision, Elsewhere, Lookups},
    maps::{Caller, InboundEntry, List, PassEntry, PassKey, SocketKind, inbound_flags::*},
};

const POD: u32 = 7;
/// From this port of the pod a connect was redirected.
const REDIRECTED: u16 = 40_004;

/// A pod at 10.1.0.2, 10.1.0.3 and fd00:1::2, and another one at 10.1.0.9.
struct Node {
    flags: u32,
    ports: HashSet<(List, u16)>,
    nets: HashSet<(List, Addr)>,
    passing: HashMap<(Addr, u16), Caller>,
    barred: HashSet<(Addr, u16)>,
}

impl Node {
    fn new(flags: u32) -> Self {
        Self {
            flags,
            ports: [
                (List::ExcludedInbound, 22),
                (List::IncludedInbound, 80),
                (List::Probed, 8081),
                // Of the other direction: says nothing here.
                (List::ExcludedOutbound, 81),
            ]
            .into(),
            nets: [
                (List::ExcludedInbound, addr("10.9.0.1")),
                (List::IncludedInbound, addr("10.8.0.1")),
                (List::ExcludedOutbound, addr("10.2.0.1")),
            ]
            .into(),
            passing: [
                ((addr("10.2.0.1"), 40_001), Caller::Proxy),
                ((addr("10.2.0.1"), 40_002), Caller::Prober),
            ]
            .into(),
            barred: [(addr("10.2.0.1"), 40_003)].into(),
        }
    }
}

impl Lists for Node {
    fn has_port(&self, list: List, pod: u32, port: u16) -> bool {
        pod == POD && self.ports.contains(&(list, port))
    }

    fn has_net(&self, list: List, pod: u32, addr: &Addr) -> bool {
        pod == POD && self.nets.contains(&(list, *addr))
    }
}

impl Lookups for Node {
    fn pod_at(&self, at: &Addr) -> Option<InboundEntry> {
        let entry = |pod| InboundEntry {
            netns_cookie: u64::from(pod),
            pod,
            flags: self.flags,
        };
        let own = ["10.1.0.2", "10.1.0.3", "fd00:1::2"].map(addr);
        match own.contains(at) {
            true => Some(entry(POD)),
            false => (*at == addr("10.1.0.9")).then(|| entry(8)),
        }
    }

    fn passing(&self, flow: &PassKey) -> Option<PassEntry> {
        let caller = self.passing.get(&(flow.src, flow.src_port))?;
        Some(PassEntry {
            owner: 1,
            pod: POD,
            caller: *caller as u32,
        })
    }

    fn is_served(&self, at: &Addr, port: u16) -> bool {
        *at == addr("10.1.0.2") && port == 80
    }

    fn is_barred(&self, flow: &PassKey) -> bool {
        self.barred.contains(&(flow.src, flow.src_port))
    }

    fn is_redirected(&self, netns_cookie: u64, flow: &PassKey) -> bool {
        netns_cookie == u64::from(POD) && flow.src_port == REDIRECTED
    }
}

fn arrival(src: &str, src_port: u16, dst: &str, dst_port: u16) -> Arrival {
    Arrival {
        is_tcp: true,
        flow: PassKey {
            src: addr(src),
            dst: addr(dst),
            src_port,
            dst_port,
        },
    }
}

const CAPTURE: Decision = Decision::Capture;
const fn pass(reason: Reason) -> Decision {
    Decision::Pass(reason)
}
const fn refuse(reason: Reason) -> Decision {
    Decision::Refuse(reason)
}

#[test]
fn at_addresses_that_workloads_share_only_what_they_serve() {
    let steer = Decision::Steer;
    let outbound = SocketKind::Outbound;
    for (src, src_port, dst, port, expected) in [
        ("10.2.0.1", 40_000, "10.1.0.2", 80, CAPTURE),
        // Also from the same machine: others there are strangers.
        ("10.1.0.2", 40_000, "10.1.0.2", 80, CAPTURE),
        ("10.2.0.1", 40_000, "10.1.0.2", 81, pass(Reason::NotServed)),
        ("10.2.0.1", 40_000, "10.1.0.3", 80, pass(Reason::NotServed)),
        ("10.2.0.1", 40_001, "10.1.0.2", 80, pass(Reason::FromProxy)),
        ("10.2.0.1", 40_002, "10.1.0.2", 80, pass(Reason::Probe)),
        (
            "10.2.0.1",
            40_003,
            "10.1.0.2",
            80,
            refuse(Reason::FlowLimit),
        ),
        // Whoever took our ports while no daemon ran does not get what is ours.
        (
            "10.2.0.1",
            40_000,
            "10.1.0.2",
            15_008,
            steer(SocketKind::Hbone, Reason::Hbone),
        ),
        (
            "10.1.0.2",
            40_000,
            "127.130.1.1",
            15_001,
            steer(outbound, Reason::Loopback),
        ),
        (
            "10.1.0.2",
            40_000,
            "10.1.0.3",
            15_001,
            steer(outbound, Reason::OwnAddress),
        ),
        (
            "10.2.0.1",
            40_000,
            "10.1.0.2",
            15_001,
            refuse(Reason::OwnPort),
        ),
        (
            "10.1.0.2",
            40_000,
            "10.1.0.2",
            15_006,
            refuse(Reason::OwnPort),
        ),
        ("127.0.0.1", 40_000, "127.0.0.1", 80, pass(Reason::Loopback)),
        (
            "10.2.0.1",
            40_000,
            "10.7.7.7",
            80,
            pass(Reason::UnknownAddress),
        ),
    ] {
        let arrival = arrival(src, src_port, dst, port);
        let node = Node::new(SHARED);
        let (decision, _) = inbound::arrival(&arrival, Elsewhere::Passed, &node);
        assert_eq!(decision, expected, "{src}:{src_port} to {dst}:{port}");
    }
}

#[test]
fn by_addresses_and_ports() {
    let strict = Elsewhere::Refused;
    for (src, dst, port, expected) in [
        ("10.2.0.1", "10.1.0.2", 80, CAPTURE),
        ("10.2.0.1", "10.1.0.3", 65_535, CAPTURE),
        ("fd00:2::1", "fd00:1::2", 80, CAPTURE),
        // Another pod of this node is a stranger.
        ("10.1.0.9", "10.1.0.2", 80, CAPTURE),
        ("127.0.0.1", "127.0.0.1", 80, pass(Reason::Loopback)),
        ("::1", "::1", 15_001, pass(Reason::Loopback)),
        ("10.1.0.2", "127.130.1.1", 15_001, pass(Reason::Loopback)),
        (
            "fd00:1::2",
            "fd72:6472:6374::5",
            15_001,
            pass(Reason::Loopback),
        ),
        (
            "10.2.0.1",
            "10.1.0.2",
            15_008,
            Decision::Steer(SocketKind::Hbone, Reason::Hbone),
        ),
        ("10.1.0.2", "10.1.0.2", 80, pass(Reason::OwnAddress)),
        ("10.1.0.3", "10.1.0.2", 80, pass(Reason::OwnAddress)),
        ("10.1.0.2", "10.1.0.2", 15_001, pass(Reason::OwnAddress)),
        ("10.1.0.2", "10.1.0.2", 15_006, pass(Reason::OwnAddress)),
        ("10.2.0.1", "10.1.0.2", 15_001, refuse(Reason::OwnPort)),
        ("10.2.0.1", "10.1.0.2", 15_006, refuse(Reason::OwnPort)),
        ("10.2.0.1", "10.1.0.2", 15_053, refuse(Reason::OwnPort)),
        ("10.1.0.9", "10.1.0.2", 15_006, refuse(Reason::OwnPort)),
        ("fd00:2::1", "fd00:1::2", 15_001, refuse(Reason::OwnPort)),
        // Not ours in this pod: ports like any.
        ("10.2.0.1", "10.1.0.2", 15_000, CAPTURE),
        ("10.2.0.1", "10.1.0.2", 15_020, CAPTURE),
        ("10.2.0.1", "10.1.0.2", 15_021, CAPTURE),
        ("10.2.0.1", "10.7.7.7", 80, refuse(Reason::UnknownAddress)),
        ("fe80::2", "fe80::1", 80, refuse(Reason::UnknownAddress)),
    ] {
        let arrival = arrival(src, 40_000, dst, port);
        let (decision, _) = inbound::arrival(&arrival, strict, &Node::new(0));
        assert_eq!(decision, expected, "{src} to {dst}:{port}");
    }
}

/// Of two daemons' listeners, the one whose turn it is gets what was redirected in this very namespace.
#[test]
fn redirected_connections_are_steered() {
    let steer = Decision::Steer;
    let (outbound, dns) = (SocketKind::Outbound, SocketKind::DnsTcp);
    let by_loopback = Reason::Loopback;
    for (src, src_port, dst, port, expected) in [
        (
            "10.1.0.2",
            REDIRECTED,
            "127.130.1.1",
            15_001,
            steer(outbound, by_loopback),
        ),
        (
            "fd00:1::2",
            REDIRECTED,
            "fd72:6472:6374::5",
            15_001,
            steer(outbound, by_loopback),
        ),
        (
            "10.1.0.2",
            REDIRECTED,
            "127.130.1.1",
            15_053,
            steer(dns, by_loopback),
        ),
        (
            "10.1.0.2",
            REDIRECTED,
            "10.1.0.3",
            15_001,
            steer(outbound, Reason::OwnAddress),
        ),
        // As another pod's, from here: a forged source leads to nobody else's listener.
        (
            "10.1.0.9",
            REDIRECTED,
            "127.130.1.1",
            15_001,
            pass(by_loopback),
        ),
        ("10.1.0.2", 40_000, "127.130.1.1", 15_001, pass(by_loopback)),
        (
            "10.1.0.2",
            REDIRECTED,
            "127.130.1.1",
            15_006,
            pass(by_loopback),
        ),
        (
            "127.0.0.1",
            REDIRECTED,
            "127.0.0.1",
            15_001,
            pass(by_loopback),
        ),
    ] {
        let arrival = arrival(src, src_port, dst, port);
        for elsewhere in [Elsewhere::Refused, Elsewhere::Passed] {
            let (decision, _) = inbound::arrival(&arrival, elsewhere, &Node::new(0));
            assert_eq!(decision, expected, "{src}:{src_port} to {dst}:{port}");
        }
    }
}

/// A pod cannot take the ports of its listeners, so whoever listens there is another daemon; to the port of what it has captured
/// itself nobody listens.
#[test]
fn without_a_socket_the_kernel_finds_another_daemon() {
    let pod = |flags| InboundEntry {
        flags,
        ..InboundEntry::default()
    };
    let unsteered = |flags, socket| inbound::unsteered(&pod(flags), socket, Reason::Hbone);
    for socket in [SocketKind::Outbound, SocketKind::Hbone, SocketKind::DnsTcp] {
        assert_eq!(unsteered(0, socket), pass(Reason::Hbone));
        assert_eq!(unsteered(SHARED, socket), refuse(Reason::NoListener));
    }
    let plaintext = SocketKind::InboundPlaintext;
    assert_eq!(unsteered(0, plaintext), refuse(Reason::NoListener));
    let passed = unsteered(PASS_ON_FAILURE, plaintext);
    assert_eq!(passed, pass(Reason::NoListener));
}

#[test]
fn by_options() {
    for (flags, src, port, expected) in [
        (SERVES_ADMIN, "10.2.0.1", 15_020, pass(Reason::Admin)),
        (SERVES_ADMIN, "10.2.0.1", 15_021, pass(Reason::Admin)),
        (SERVES_ADMIN, "10.2.0.1", 15_022, CAPTURE),
        (BYPASS, "10.2.0.1", 80, pass(Reason::Bypassed)),
        (BYPASS, "10.2.0.1", 15_006, refuse(Reason::OwnPort)),
        (0, "10.2.0.1", 22, CAPTURE),
        (EXCLUDED_PORTS, "10.2.0.1", 22, pass(Reason::ExcludedPort)),
        (EXCLUDED_PORTS, "10.2.0.1", 81, CAPTURE),
        (0, "10.9.0.1", 80, CAPTURE),
        (EXCLUDED_NETS, "10.9.0.1", 80, pass(Reason::ExcludedNet)),
        (EXCLUDED_NETS, "10.2.0.1", 80, CAPTURE),
        (INCLUDED_PORTS, "10.2.0.1", 80, CAPTURE),
        (INCLUDED_PORTS, "10.2.0.1", 443, pass(Reason::NotIncluded)),
        (INCLUDED_NETS, "10.8.0.1", 443, CAPTURE),
        (INCLUDED_NETS, "10.2.0.1", 80, pass(Reason::NotIncluded)),
        (INCLUDED_PORTS | INCLUDED_NETS, "10.8.0.1", 443, CAPTURE),
        (INCLUDED_PORTS | INCLUDED_NETS, "10.2.0.1", 80, CAPTURE),
        (
            INCLUDED_PORTS | INCLUDED_NETS,
            "10.2.0.1",
            443,
            pass(Reason::NotIncluded),
        ),
        (
            INCLUDED_PORTS | EXCLUDED_NETS,
            "10.9.0.1",
            80,
            pass(Reason::ExcludedNet),
        ),
        (
            INCLUDED_PORTS,
            "10.2.0.1",
            15_008,
            Decision::Steer(SocketKind::Hbone, Reason::Hbone),
        ),
    ] {
        let arrival = arrival(src, 40_000, "10.1.0.2", port);
        let (decision, pod) = inbound::arrival(&arrival, Elsewhere::Refused, &Node::new(flags));
        assert_eq!(decision, expected, "{flags:#x}: {src} to port {port}");
        assert_eq!(pod.pod, POD);
    }
}

#[test]
fn registered_connections_pass() {
    for (port, to, expected) in [
        (40_000, 80, CAPTURE),
        (40_001, 80, pass(Reason::FromProxy)),
        (40_002, 80, pass(Reason::Probe)),
        (40_003, 80, refuse(Reason::FlowLimit)),
        // No prober has business there.
        (40_002, 15_006, refuse(Reason::OwnPort)),
    ] {
        let arrival = arrival("10.2.0.1", port, "10.1.0.2", to);
        let (decision, _) = inbound::arrival(&arrival, Elsewhere::Refused, &Node::new(0));
        assert_eq!(decision, expected, "from port {port} to {to}");
    }
}

#[test]
fn datagrams_pass_but_for_our_dns_port() {
    for (src, dst, port, expected) in [
        ("10.2.0.1", "10.1.0.2", 53, pass(Reason::NotTcp)),
        ("10.2.0.1", "10.1.0.2", 15_006, pass(Reason::NotTcp)),
        ("10.2.0.1", "10.7.7.7", 53, pass(Reason::NotTcp)),
        ("10.2.0.1", "10.1.0.2", 15_053, refuse(Reason::OwnPort)),
        ("10.1.0.2", "10.1.0.2", 15_053, pass(Reason::OwnAddress)),
        ("10.1.0.2", "127.130.0.1", 15_053, pass(Reason::Loopback)),
    ] {
        let arrival = Arrival {
            is_tcp: false,
            ..arrival(src, 40_000, dst, port)
        };
        let (decision, _) = inbound::arrival(&arrival, Elsewhere::Refused, &Node::new(0));
        assert_eq!(decision, expected, "{src} to {dst}:{port}");
    }
}

#[test]
fn elsewhere_is_as_the_namespace_is() {
    let arrival = arrival("10.2.0.1", 40_000, "10.7.7.7", 80);
    let decide = |elsewhere| inbound::arrival(&arrival, elsewhere, &Node::new(0)).0;
    assert_eq!(decide(Elsewhere::Refused), refuse(Reason::UnknownAddress));
    assert_eq!(decide(Elsewhere::Passed), pass(Reason::UnknownAddress));
}

#[test]
fn a_listener_that_is_gone() {
    let pod = |flags| InboundEntry {
        flags,
        ..InboundEntry::default()
    };
    let decide = |flags| inbound::without_listener(&pod(flags));
    assert_eq!(decide(0), refuse(Reason::NoListener));
    assert_eq!(decide(PASS_ON_FAILURE), pass(Reason::NoListener));
}

#[test]
fn ports_that_may_be_probed() {
    for (flags, port, expected) in [
        (0, 80, true),
        (PROBED_PORTS, 80, false),
        (PROBED_PORTS, 8081, true),
    ] {
        let pod = InboundEntry {
            pod: POD,
            flags,
            ..InboundEntry::default()
        };
        let may = inbound::may_probe(&pod, port, &Node::new(flags));
        assert_eq!(may, expected, "{flags} {port}");
    }
}
