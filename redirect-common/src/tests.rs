//! Tests of the codecs, layouts and the decision.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use proptest::prelude::*;

use crate::{
    Addr, Hook, Reason, Verdict, counter,
    decide::{self, Connect, Decision, Lists, Lookups, Redirect},
    event::Event,
    maps::{List, OrigDstEntry, PodEntry, SocketKind, pod_flags},
};

mod inbound;

fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().expect("an address").into()
}

/// What a pod has in its maps.
#[derive(Default)]
struct Tables {
    own: HashSet<IpAddr>,
    ports: HashSet<(List, u16)>,
    nets: HashSet<(List, IpAddr)>,
    exempt: bool,
    listening: bool,
}

impl Lists for Tables {
    fn has_port(&self, list: List, _pod: u32, port: u16) -> bool {
        self.ports.contains(&(list, port))
    }

    fn has_net(&self, list: List, _pod: u32, addr: &Addr) -> bool {
        self.nets.contains(&(list, addr.to_ip()))
    }
}

impl Lookups for Tables {
    fn is_own(&self, _pod: u32, addr: &Addr) -> bool {
        self.own.contains(&addr.to_ip())
    }

    fn is_listening(&self, kind: SocketKind, _pod: u32) -> bool {
        self.listening && kind == SocketKind::Outbound
    }

    fn is_exempt_caller(&self, _pod: u32) -> bool {
        self.exempt
    }
}

fn pod(flags: u32) -> PodEntry {
    PodEntry {
        v4: addr("10.1.0.2"),
        v6: addr("fd00:1::2"),
        flags,
        outbound_port: 15001,
        ..PodEntry::default()
    }
}

fn call(dst: &str, port: u16) -> Connect {
    Connect {
        dst: addr(dst),
        dst_port: port,
        src: Addr::UNSPECIFIED,
        device: 0,
    }
}

#[test]
fn destinations_that_are_never_captured() {
    for (dst, reason) in [
        ("127.0.0.1", Some(Reason::Loopback)),
        ("127.255.255.254", Some(Reason::Loopback)),
        ("::ffff:127.0.0.53", Some(Reason::Loopback)),
        ("::1", Some(Reason::Loopback)),
        ("fd72:6472:6374::5", Some(Reason::Loopback)),
        ("fd72:6472:6374:1::5", None),
        ("0.0.0.0", Some(Reason::Unspecified)),
        ("::ffff:0.0.0.0", Some(Reason::Unspecified)),
        ("::", Some(Reason::Unspecified)),
        ("0.0.0.1", None),
        ("::2", None),
        ("224.0.0.1", Some(Reason::Multicast)),
        ("239.255.255.255", Some(Reason::Multicast)),
        ("::ffff:224.0.0.1", Some(Reason::Multicast)),
        ("ff02::1", Some(Reason::Multicast)),
        ("240.0.0.1", None),
        ("255.255.255.255", Some(Reason::Broadcast)),
        ("255.255.255.254", None),
        ("fe80::1", Some(Reason::LinkLocal)),
        ("febf::1", Some(Reason::LinkLocal)),
        ("fec0::1", None),
        ("169.254.1.1", None),
        ("126.255.255.255", None),
        ("128.0.0.1", None),
        ("10.0.0.1", None),
        ("2001:db8::1", None),
    ] {
        assert_eq!(decide::exempt_destination(&addr(dst)), reason, "{dst}");
    }
}

#[test]
fn exemptions_of_a_pod() {
    let tables = Tables {
        own: ["10.1.0.3".parse().unwrap()].into(),
        ports: [(List::ExcludedOutbound, 22), (List::IncludedOutbound, 80)].into(),
        nets: [
            (List::ExcludedOutbound, "10.9.0.1".parse().unwrap()),
            (List::IncludedOutbound, "10.8.0.1".parse().unwrap()),
        ]
        .into(),
        ..Tables::default()
    };
    use pod_flags::*;
    for (dst, port, flags, reason) in [
        ("10.1.0.2", 80, 0, Some(Reason::OwnAddress)),
        ("::ffff:10.1.0.2", 80, 0, Some(Reason::OwnAddress)),
        ("fd00:1::2", 80, 0, Some(Reason::OwnAddress)),
        ("10.1.0.3", 80, 0, None),
        ("10.1.0.3", 80, MORE_ADDRESSES, Some(Reason::OwnAddress)),
        ("169.254.169.254", 80, 0, Some(Reason::Metadata)),
        ("169.254.169.254", 80, CAPTURE_METADATA, None),
        ("169.254.169.253", 80, 0, None),
        ("10.2.0.1", 22, 0, None),
        ("10.2.0.1", 22, EXCLUDED_PORTS, Some(Reason::ExcludedPort)),
        ("10.2.0.1", 23, EXCLUDED_PORTS, None),
        ("10.9.0.1", 80, 0, None),
        ("10.9.0.1", 80, EXCLUDED_NETS, Some(Reason::ExcludedNet)),
        (
            "::ffff:10.9.0.1",
            80,
            EXCLUDED_NETS,
            Some(Reason::ExcludedNet),
        ),
        ("10.2.0.1", 80, INCLUDED_PORTS, None),
        ("10.2.0.1", 81, INCLUDED_PORTS, Some(Reason::NotIncluded)),
        ("10.8.0.1", 81, INCLUDED_NETS, None),
        ("10.2.0.1", 80, INCLUDED_NETS, Some(Reason::NotIncluded)),
        ("10.8.0.1", 81, INCLUDED_PORTS | INCLUDED_NETS, None),
        ("10.2.0.1", 80, INCLUDED_PORTS | INCLUDED_NETS, None),
        (
            "10.2.0.1",
            81,
            INCLUDED_PORTS | INCLUDED_NETS,
            Some(Reason::NotIncluded),
        ),
        (
            "10.9.0.1",
            80,
            INCLUDED_PORTS | EXCLUDED_NETS,
            Some(Reason::ExcludedNet),
        ),
    ] {
        let decision = decide::connect(&pod(flags), &call(dst, port), &tables);
        match reason {
            Some(reason) => assert_eq!(decision, Decision::Pass(reason), "{dst}:{port}"),
            None => assert!(
                matches!(decision, Decision::Redirect(_)),
                "{dst}:{port}: {decision:?}"
            ),
        }
    }
    let exempt = Tables {
        exempt: true,
        ..Tables::default()
    };
    let decide = |flags| decide::connect(&pod(flags), &call("10.2.0.1", 80), &exempt);
    assert_eq!(decide(EXEMPT_CGROUPS), Decision::Pass(Reason::ExemptCgroup));
    assert!(matches!(decide(0), Decision::Redirect(_)));
}

#[test]
fn targets_by_what_the_socket_is_bound_to() {
    let spread4 = decide::spread(&addr("10.2.0.1"), 80);
    let spread6 = decide::spread(&addr("fd00:2::1"), 80);
    let (own4, own6) = (addr("10.1.0.2"), addr("fd00:1::2"));
    // destination, bound address, bound device → target
    for (dst, src, device, expected) in [
        ("10.2.0.1", "0.0.0.0", 0, Ok(spread4)),
        ("10.2.0.1", "::", 0, Ok(spread4)),
        ("fd00:2::1", "::", 0, Ok(spread6)),
        ("10.2.0.1", "10.1.0.2", 0, Ok(spread4)),
        ("10.2.0.1", "127.0.0.1", 0, Ok(spread4)),
        ("fd00:2::1", "fd00:1::2", 0, Ok(spread6)),
        ("10.2.0.1", "0.0.0.0", 2, Ok(own4)),
        ("fd00:2::1", "::", 2, Ok(own6)),
        ("10.2.0.1", "10.7.7.7", 0, Err(Reason::ForeignSource)),
        ("fd00:2::1", "fd00:7::7", 0, Err(Reason::ForeignSource)),
        ("10.2.0.1", "10.7.7.7", 2, Err(Reason::ForeignSource)),
    ] {
        let call = Connect {
            src: addr(src),
            device,
            ..call(dst, 80)
        };
        let expected = match expected {
            Ok(target) => Decision::Redirect(Redirect {
                target,
                port: 15001,
            }),
            Err(reason) => Decision::Refuse(reason),
        };
        let decision = decide::connect(&pod(0), &call, &Tables::default());
        assert_eq!(decision, expected, "{dst} from {src}%{device}");
    }
}

#[test]
fn ports_and_marks_that_are_ours() {
    for (is_tcp, port, expected) in [
        (true, 15_001, true),
        (true, 15_006, true),
        (true, 15_008, true),
        (true, 15_053, true),
        (false, 15_053, true),
        (false, 15_008, false),
        (true, 15_000, false),
        (true, 15_021, false),
        (true, 0, false),
    ] {
        assert_eq!(decide::is_own_port(is_tcp, port), expected, "{port}");
    }
    for (mark, expected) in [
        (0x539, true),
        (0x111, true),
        (0xffff_f539, true),
        (0x1111, true),
        (0x538, false),
        (0, false),
    ] {
        assert_eq!(decide::is_own_mark(mark), expected, "{mark:#x}");
    }
}

#[test]
fn the_proxy_of_a_dedicated_pod() {
    for (flags, exempt, expected) in [
        (0, true, false),
        (pod_flags::DEDICATED, true, true),
        (pod_flags::DEDICATED, false, false),
    ] {
        let tables = Tables {
            exempt,
            ..Tables::default()
        };
        assert_eq!(decide::is_proxy(&pod(flags), &tables), expected, "{flags}");
    }
}

#[test]
fn without_a_proxy() {
    for (flags, listening, passes) in [
        (0, false, false),
        (0, true, false),
        (pod_flags::PASS_ON_FAILURE, false, true),
        (pod_flags::PASS_ON_FAILURE, true, false),
    ] {
        let tables = Tables {
            listening,
            ..Tables::default()
        };
        let decision = decide::connect(&pod(flags), &call("10.2.0.1", 80), &tables);
        let pass = Decision::Pass(Reason::NoListener);
        assert_eq!(decision == pass, passes, "{flags} {listening}");
    }
}

#[test]
fn a_pod_without_an_address_of_the_family() {
    let pod = PodEntry {
        v6: Addr::UNSPECIFIED,
        ..pod(0)
    };
    let plain = call("fd00:2::1", 80);
    let target = decide::spread(&plain.dst, 80);
    let redirect = Decision::Redirect(Redirect {
        target,
        port: 15001,
    });
    assert_eq!(decide::connect(&pod, &plain, &Tables::default()), redirect);
    let with_device = Connect { device: 2, ..plain };
    let refuse = Decision::Refuse(Reason::NoAddress);
    assert_eq!(
        decide::connect(&pod, &with_device, &Tables::default()),
        refuse
    );
}

#[test]
fn what_another_program_has_steered_is_known() {
    let entry = OrigDstEntry {
        addr: addr("10.2.0.1"),
        port: 80,
        target_port: 15001,
        ..OrigDstEntry::default()
    };
    let target = decide::spread(&entry.addr, 80);
    for (dst, port, reason, expected) in [
        (target, 15001, Reason::Loopback, true),
        (target, 80, Reason::Loopback, false),
        (addr("127.0.0.1"), 15001, Reason::Loopback, false),
        (addr("10.1.0.2"), 15001, Reason::OwnAddress, true),
        (addr("10.1.0.2"), 80, Reason::OwnAddress, false),
        (addr("10.2.0.1"), 15001, Reason::ExcludedNet, false),
    ] {
        let known = decide::is_already_steered(&entry, &dst, port, reason);
        assert_eq!(known, expected, "{:?}:{port} {reason:?}", dst.to_ip());
    }
}

#[test]
fn spread_keeps_neighbours_apart() {
    let mut seen = HashMap::new();
    for host in 0..=255_u8 {
        for port in [80, 443, 8080, 5432] {
            let target = decide::spread(&Ipv4Addr::new(10, 0, 0, host).into(), port);
            *seen.entry(target.to_ip()).or_insert(0) += 1;
        }
    }
    // 1,024 into 4 million places: a chance of 12 % for one pair, and none for many.
    assert!(seen.len() >= 1020, "{} places", seen.len());
}

#[test]
fn counters_have_one_place_each() {
    let mut places = HashSet::new();
    for &hook in Hook::ALL {
        for &verdict in Verdict::ALL {
            for &reason in Reason::ALL {
                let index = counter::index(hook, verdict, reason);
                assert!(index < counter::COUNTERS && places.insert(index));
                assert_eq!(counter::at(index), Some((hook, verdict, reason)));
            }
        }
    }
    assert_eq!(counter::at(counter::COUNTERS), None);
}

#[test]
fn events_of_another_version_have_no_names() {
    assert!(
        Event {
            reason: Reason::COUNT as u8,
            ..Event::default()
        }
        .names()
        .is_none()
    );
    assert_eq!(
        Event::default().names(),
        Some((Hook::Connect4, Verdict::Pass, Reason::Captured))
    );
}

fn any_pod() -> impl Strategy<Value = PodEntry> {
    (any::<u32>(), any::<u32>(), any::<u128>(), any::<u16>()).prop_map(
        |(v4, flags, v6, outbound_port)| PodEntry {
            v4: Ipv4Addr::from_bits(v4).into(),
            v6: Ipv6Addr::from_bits(v6).into(),
            flags,
            outbound_port,
            ..PodEntry::default()
        },
    )
}

proptest! {
    #[test]
    fn v4_and_v4_mapped_are_one_address(bits: u32) {
        let v4 = Ipv4Addr::from_bits(bits);
        let canonical = Addr::from(v4);
        prop_assert_eq!(canonical, Addr::from(v4.to_ipv6_mapped()));
        prop_assert_eq!(canonical.to_ip(), IpAddr::V4(v4));
        prop_assert_eq!(canonical.v4(), bits);
        prop_assert_eq!(Addr::from_v4_be(bits.to_be()), canonical);
        prop_assert_eq!(canonical.is_loopback(), v4.is_loopback());
        prop_assert_eq!(canonical.is_unspecified(), v4.is_unspecified());
    }

    #[test]
    fn v6_survives_the_round_trip(bits: u128) {
        let v6 = Ipv6Addr::from_bits(bits);
        let encoded = Addr::from(v6);
        prop_assert_eq!(encoded.octets(), v6.octets());
        prop_assert_eq!(encoded.to_ip(), IpAddr::V6(v6).to_canonical());
        prop_assert_eq!(bytemuck::bytes_of(&encoded), &v6.octets()[..]);
        prop_assert_eq!(encoded.is_loopback(), v6.is_loopback());
    }

    #[test]
    fn spread_stays_in_its_family_and_prefix(v4: u32, v6: u128, port: u16) {
        match decide::spread(&Ipv4Addr::from_bits(v4).into(), port).to_ip() {
            IpAddr::V4(ip) => prop_assert_eq!((ip.octets()[0], ip.octets()[1] & 0xc0), (127, 128)),
            IpAddr::V6(ip) => prop_assert!(false, "{}", ip),
        }
        let v6 = Ipv6Addr::from_bits(v6);
        prop_assume!(v6.to_ipv4_mapped().is_none());
        let target = decide::spread(&v6.into(), port);
        prop_assert_eq!(&target.octets()[..8], &[0xfd, 0x72, 0x64, 0x72, 0x63, 0x74, 0, 0]);
        prop_assert_eq!(decide::exempt_destination(&target), Some(Reason::Loopback));
    }

    /// Whatever the socket and the pod, a captured connect goes to a local address of the destination's family.
    #[test]
    fn a_redirect_never_leaves_the_pod(pod in any_pod(), v4: u32, v6: u128, use_v4: bool, device in 0..3_u32) {
        let dst = if use_v4 { Ipv4Addr::from_bits(v4).into() } else { Addr::from(Ipv6Addr::from_bits(v6)) };
        prop_assume!(decide::exempt_destination(&dst).is_none());
        let call = Connect { dst, dst_port: 80, src: Addr::UNSPECIFIED, device };
        if let Decision::Redirect(redirect) = decide::connect(&pod, &call, &Tables::default()) {
            let own = redirect.target == pod.v4 || redirect.target == pod.v6;
            prop_assert!(own || decide::exempt_destination(&redirect.target) == Some(Reason::Loopback));
            prop_assert_eq!(redirect.target.is_v4(), dst.is_v4());
        }
    }
}
