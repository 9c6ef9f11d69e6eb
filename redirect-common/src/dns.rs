//! What becomes of a DNS query over UDP, and which local address stands for the server that it was meant for: pure.
//!
//! A datagram carries no original destination, and the source port of a connected socket is not known when it connects. So
//! each server of a pod gets a local address of its own, which the programs keep in `rdr_dns`: a query to the address means
//! the server, for the proxy, and for the app when the answer comes from there.

use crate::{
    Addr, Reason,
    decide::{self, Connect, Lookups, SPREAD_V4, SPREAD_V6},
    maps::{DnsEntry, PodEntry},
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
