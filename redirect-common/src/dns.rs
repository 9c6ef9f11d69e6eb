//! What becomes of a DNS query over UDP, and which local address stands for the server that it was meant for: pure.
//!
//! A datagram carries no original destination, and the source port of a connected socket is not known when it connects. So
//! each server of a pod gets a local address of its own, which the programs keep in `rdr_dns`: a query to the address means
//! the server, for the proxy, and for the app when the answer comes from there.

use crate::{
    Addr, Reason,
    decide::{self, Connect, Lookups, SPREAD_V4, SPREAD_V6},
    maps::{DnsEntry, PodEntry, SocketKind, pod_flags},
    ports,
};

/// Local addresses per pod and family that may stand for servers. A power of two.
pub const SLOTS: u32 = 1024;
/// Among how many addresses a server has its place, so that servers of one hash do not meet.
pub const WAYS: u32 = 8;

const SECOND: u64 = 1_000_000_000;
/// How long an address is kept for a server after a query from a socket that is not connected: the answer comes within that.
pub const HOLD: u64 = 30 * SECOND;
/// The same after a connect: what such a socket sends later is not seen.
pub const HOLD_CONNECTED: u64 = 300 * SECOND;

/// What to do with a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Leave it alone.
    Pass(Reason),
    /// Make the call fail.
    Refuse(Reason),
    /// Send it to the proxy.
    Redirect,
}

/// Whether what goes to this port is the DNS server's of the proxy.
#[inline(always)]
pub fn is_captured(pod: &PodEntry, port: u16) -> bool {
    port == ports::DOMAIN && pod.dns_port != 0
}

/// Decides on a datagram, or a connect of a UDP socket, of a known pod, after
/// [`exempt_destination`](decide::exempt_destination) said nothing.
#[inline(always)]
pub fn datagram(pod: &PodEntry, call: &Connect, lookups: &impl Lookups) -> Decision {
    if !is_captured(pod, call.dst_port) {
        return Decision::Pass(Reason::NotTcp);
    }
    if let Some(reason) = decide::exempt_by_pod(pod, call, lookups) {
        return Decision::Pass(reason);
    }
    if !call.src.is_unspecified()
        && !call.src.is_loopback()
        && !decide::is_own(pod, &call.src, lookups)
    {
        return Decision::Refuse(Reason::ForeignSource);
    }
    // All listeners of a daemon live and die together.
    if pod.flags & pod_flags::PASS_ON_FAILURE != 0
        && !lookups.is_listening(SocketKind::Outbound, pod.pod)
    {
        return Decision::Pass(Reason::NoListener);
    }
    if call.device != 0 {
        return Decision::Refuse(Reason::BoundDevice);
    }
    Decision::Redirect
}

/// The address that may stand for a server, the `way`-th of [`WAYS`].
#[inline(always)]
pub fn target(server: &Addr, port: u16, way: u32) -> Addr {
    let slot = (first_slot(server, port) + way) & (SLOTS - 1);
    if server.is_v4() {
        Addr::from_v4_be((SPREAD_V4 | slot).to_be())
    } else {
        // Never ::, which is the prefix's anycast address.
        Addr([SPREAD_V6[0], SPREAD_V6[1], 0, (0x0001_0000 | slot).to_be()])
    }
}

/// Whether `target` may stand for the server.
#[inline(always)]
pub fn is_target_of(addr: &Addr, server: &Addr, port: u16) -> bool {
    let Some(slot) = slot(addr) else { return false };
    addr.is_v4() == server.is_v4()
        && slot.wrapping_sub(first_slot(server, port)) & (SLOTS - 1) < WAYS
}

/// Whether an answer from `addr` is one of ours.
#[inline(always)]
pub fn is_target(addr: &Addr) -> bool {
    slot(addr).is_some()
}

#[inline(always)]
fn slot(addr: &Addr) -> Option<u32> {
    let number = u32::from_be(addr.0[3]);
    let base = if addr.is_v4() {
        SPREAD_V4
    } else if addr.0[0] == SPREAD_V6[0] && addr.0[1] == SPREAD_V6[1] && addr.0[2] == 0 {
        0x0001_0000
    } else {
        return None;
    };
    (number & !(SLOTS - 1) == base).then_some(number & (SLOTS - 1))
}

#[inline(always)]
fn first_slot(server: &Addr, port: u16) -> u32 {
    (decide::hash(server, port) >> 54) as u32
}

/// What an address can be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// It stands for the server already.
    Ours,
    /// It stood for another server, which is not asked any more.
    Stale,
    /// It stands for another server.
    Taken,
}

/// What the address of `entry` can be used for, for a server that is asked at the time `now`.
#[inline(always)]
pub fn judge(entry: &DnsEntry, server: &Addr, port: u16, now: u64) -> Slot {
    if entry.addr == *server && entry.port == port {
        Slot::Ours
    } else if entry.held_until < now {
        Slot::Stale
    } else {
        Slot::Taken
    }
}

const _: () = assert!(SLOTS == 1 << (64 - 54) && WAYS < SLOTS);

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, net::IpAddr};

    use super::*;
    use crate::{
        decide::{Lists, Redirect},
        maps::{List, OrigDstEntry},
    };

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().expect("an address").into()
    }

    /// A pod that excludes this port and this network's address.
    struct Excludes(u16, &'static str);

    impl Lists for Excludes {
        fn has_port(&self, list: List, _: u32, port: u16) -> bool {
            list == List::ExcludedOutbound && port == self.0
        }

        fn has_net(&self, list: List, _: u32, dst: &Addr) -> bool {
            list == List::ExcludedOutbound && *dst == addr(self.1)
        }
    }

    impl Lookups for Excludes {
        fn is_own(&self, _: u32, _: &Addr) -> bool {
            false
        }

        fn is_listening(&self, _: SocketKind, _: u32) -> bool {
            false
        }

        fn is_exempt_caller(&self, _: u32) -> bool {
            false
        }
    }

    fn pod(dns_port: u16) -> PodEntry {
        PodEntry {
            v4: addr("10.1.0.2"),
            v6: addr("fd00:1::2"),
            flags: pod_flags::EXCLUDED_PORTS | pod_flags::EXCLUDED_NETS,
            outbound_port: 15001,
            dns_port,
            ..PodEntry::default()
        }
    }

    fn call(dst: &str, dst_port: u16, src: &str, device: u32) -> Connect {
        Connect {
            dst: addr(dst),
            dst_port,
            src: addr(src),
            device,
        }
    }

    #[test]
    fn datagrams() {
        let captured = pod(15053);
        for (pod, call, expected) in [
            (
                &captured,
                call("10.9.0.10", 53, "0.0.0.0", 0),
                Decision::Redirect,
            ),
            (
                &captured,
                call("fd00:9::a", 53, "fd00:1::2", 0),
                Decision::Redirect,
            ),
            (
                &captured,
                call("10.9.0.10", 53, "127.0.0.1", 0),
                Decision::Redirect,
            ),
            (
                &captured,
                call("10.9.0.10", 123, "0.0.0.0", 0),
                Decision::Pass(Reason::NotTcp),
            ),
            (
                &pod(0),
                call("10.9.0.10", 53, "0.0.0.0", 0),
                Decision::Pass(Reason::NotTcp),
            ),
            (
                &captured,
                call("10.1.0.2", 53, "0.0.0.0", 0),
                Decision::Pass(Reason::OwnAddress),
            ),
            (
                &captured,
                call("10.8.0.1", 53, "0.0.0.0", 0),
                Decision::Pass(Reason::ExcludedNet),
            ),
            (
                &captured,
                call("169.254.20.10", 53, "0.0.0.0", 0),
                Decision::Redirect,
            ),
            (
                &captured,
                call("10.9.0.10", 53, "10.7.0.1", 0),
                Decision::Refuse(Reason::ForeignSource),
            ),
            (
                &captured,
                call("10.9.0.10", 53, "0.0.0.0", 2),
                Decision::Refuse(Reason::BoundDevice),
            ),
        ] {
            let decision = datagram(pod, &call, &Excludes(1, "10.8.0.1"));
            assert_eq!(decision, expected, "{call:?}");
        }
        let excluded = datagram(
            &captured,
            &call("10.9.0.10", 53, "0.0.0.0", 0),
            &Excludes(53, "::"),
        );
        assert_eq!(excluded, Decision::Pass(Reason::ExcludedPort));
    }

    #[test]
    fn what_is_included_does_not_matter_and_a_pod_may_go_on_without_the_proxy() {
        let ask = |flags| {
            let mut pod = pod(15053);
            pod.flags |= flags;
            let call = call("10.9.0.10", 53, "0.0.0.0", 0);
            datagram(&pod, &call, &Excludes(1, "::"))
        };
        assert_eq!(ask(pod_flags::INCLUDED_PORTS), Decision::Redirect);
        assert_eq!(ask(pod_flags::INCLUDED_NETS), Decision::Redirect);
        let no_proxy = Decision::Pass(Reason::NoListener);
        assert_eq!(ask(pod_flags::PASS_ON_FAILURE), no_proxy);
    }

    #[test]
    fn connections_to_dns_servers_have_a_port_of_their_own() {
        for (dns_port, port, expected) in [(15053, 53, 15053), (15053, 80, 15001), (0, 53, 15001)] {
            let call = call("10.9.0.10", port, "0.0.0.0", 0);
            let decision = decide::connect(&pod(dns_port), &call, &Excludes(1, "::"));
            let target = decide::spread(&call.dst, port);
            let redirect = Redirect {
                target,
                port: expected,
            };
            assert_eq!(
                decision,
                decide::Decision::Redirect(redirect),
                "{dns_port} {port}"
            );
        }
    }

    #[test]
    fn targets_are_local_and_few() {
        let mut seen = HashSet::new();
        for number in 0..200_u32 {
            for server in [
                addr(&format!("10.9.{}.{}", number / 250, number % 250)),
                addr(&format!("fd00:9::{number:x}")),
            ] {
                let ways: HashSet<_> = (0..WAYS).map(|way| target(&server, 53, way)).collect();
                assert_eq!(ways.len(), WAYS as usize, "each way is another address");
                for target in &ways {
                    assert_eq!(target.is_v4(), server.is_v4());
                    assert!(is_target(target) && is_target_of(target, &server, 53));
                    assert!(
                        decide::exempt_destination(target).is_some(),
                        "never captured again"
                    );
                }
                assert!(!is_target_of(&target(&server, 53, WAYS), &server, 53));
                seen.extend(ways);
            }
        }
        assert!(
            seen.len() > 1000 && seen.len() <= 2 * SLOTS as usize,
            "{}",
            seen.len()
        );
        for other in [
            "127.0.0.1",
            "127.128.4.0",
            "127.129.0.1",
            "::1",
            "fd72:6472:6374::1:400",
            "fd72:6472:6374::2",
            "10.9.0.10",
        ] {
            assert!(!is_target(&addr(other)), "{other}");
        }
    }

    #[test]
    fn what_another_program_has_steered_is_known() {
        let server = addr("10.9.0.10");
        let entry = OrigDstEntry {
            addr: server,
            port: 53,
            target_port: 15053,
            ..OrigDstEntry::default()
        };
        let target = target(&server, 53, 3);
        let known =
            |dst: &Addr, port| decide::is_already_steered(&entry, dst, port, Reason::Loopback);
        assert!(known(&target, 15053));
        assert!(!known(&target, 15001) && !known(&addr("127.0.0.1"), 15053));
    }

    #[test]
    fn an_address_changes_its_server_when_that_is_not_asked_any_more() {
        let (server, other) = (addr("10.9.0.10"), addr("10.9.0.11"));
        let entry = DnsEntry {
            addr: server,
            held_until: 100,
            port: 53,
            padding: [0; 3],
        };
        for (asked, port, now, expected) in [
            (&server, 53, 5, Slot::Ours),
            (&server, 53, 500, Slot::Ours),
            (&other, 53, 100, Slot::Taken),
            (&other, 53, 101, Slot::Stale),
            (&server, 5353, 50, Slot::Taken),
        ] {
            assert_eq!(
                judge(&entry, asked, port, now),
                expected,
                "{asked:?}:{port} at {now}"
            );
        }
    }
}
