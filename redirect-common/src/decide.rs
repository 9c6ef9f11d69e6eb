//! What becomes of a `connect()`: pure, so that the kernel, host tests and explanations of a decision share it.
//!
//! The order is that of cost: what the destination alone decides comes before the lookup of the pod, and what needs another
//! lookup only happens for pods that use it.

use crate::{
    Addr, Reason,
    maps::{List, OrigDstEntry, PodEntry, SocketKind, pod_flags},
    mark, ports,
};

/// Redirected IPv4 connects go to 127.128.0.0/10: 22 bits tell destinations apart, so that each has the whole range of
/// source ports, and neither Docker's nor systemd's resolver (127.0.0.x) nor the broadcast address is in it.
///
/// A local route for the prefix, in each captured pod, has the pod's address as its preferred source: the app's
/// `getsockname` shows that one, with no need to bind the socket.
pub const SPREAD_V4: u32 = 0x7f80_0000;
pub const SPREAD_V4_BITS: u32 = 22;

/// Redirected IPv6 connects go to fd72:6472:6374::/64, which a route in each captured pod makes local. A prefix of our own
/// (RFC 4193), since IPv6 has one loopback address only.
pub const SPREAD_V6: [u32; 2] = [0xfd72_6472_u32.to_be(), 0x6374_0000_u32.to_be()];
pub const SPREAD_V6_PREFIX_LEN: u8 = 64;

/// 169.254.169.254, where clouds serve metadata and credentials.
const METADATA: u32 = 0xa9fe_a9fe;

/// One call of `connect()` on a TCP socket.
#[derive(Clone, Copy, Debug)]
pub struct Connect {
    pub dst: Addr,
    /// In host byte order.
    pub dst_port: u16,
    /// What the socket is bound to; unspecified if to no address.
    pub src: Addr,
    /// SO_BINDTODEVICE: an interface index, or 0.
    pub device: u32,
}

/// What to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Leave it alone.
    Pass(Reason),
    /// Make it fail.
    Refuse(Reason),
    /// Send it to the proxy.
    Redirect(Redirect),
}

/// Where a captured connect goes instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redirect {
    pub target: Addr,
    /// In host byte order.
    pub port: u16,
}

/// The ports and networks of a pod's options, asked only if the pod's flags say that there is something to ask.
pub trait Lists {
    fn has_port(&self, list: List, pod: u32, port: u16) -> bool;
    /// Whether one of the networks contains `addr`.
    fn has_net(&self, list: List, pod: u32, addr: &Addr) -> bool;
}

/// What else is known beyond the [`PodEntry`], asked likewise.
pub trait Lookups: Lists {
    fn is_own(&self, pod: u32, addr: &Addr) -> bool;
    /// Whether the proxy listens for this pod.
    fn is_listening(&self, kind: SocketKind, pod: u32) -> bool;
    /// Whether the caller runs in an exempt cgroup or below one.
    fn is_exempt_caller(&self, pod: u32) -> bool;
}

/// Destinations that are never captured, whatever the pod. Cheap: no lookup.
#[inline(always)]
pub fn exempt_destination(dst: &Addr) -> Option<Reason> {
    if dst.is_v4() {
        let v4 = dst.v4();
        match v4 >> 24 {
            127 => Some(Reason::Loopback),
            0 if v4 == 0 => Some(Reason::Unspecified),
            224..=239 => Some(Reason::Multicast),
            255 if v4 == u32::MAX => Some(Reason::Broadcast),
            _ => None,
        }
    } else {
        let first = u32::from_be(dst.0[0]);
        match first >> 24 {
            0xff => Some(Reason::Multicast),
            0xfe if first >> 22 == 0xfe80 >> 6 => Some(Reason::LinkLocal),
            0 if dst.is_unspecified() => Some(Reason::Unspecified),
            0 if dst.is_loopback() => Some(Reason::Loopback),
            // Local too, and ours: the proxy refuses what has no original destination.
            0xfd if dst.0[0] == SPREAD_V6[0] && dst.0[1] == SPREAD_V6[1] => Some(Reason::Loopback),
            _ => None,
        }
    }
}

/// Decides on a connect of a known pod, after [`exempt_destination`] said nothing.
#[inline(always)]
pub fn connect(pod: &PodEntry, call: &Connect, lookups: &impl Lookups) -> Decision {
    if let Some(reason) = exempt_by_pod(pod, call, lookups) {
        return Decision::Pass(reason);
    }
    if !call.src.is_unspecified() && !call.src.is_loopback() && !is_own(pod, &call.src, lookups) {
        return Decision::Refuse(Reason::ForeignSource);
    }
    if pod.flags & pod_flags::PASS_ON_FAILURE != 0
        && !lookups.is_listening(SocketKind::Outbound, pod.pod)
    {
        return Decision::Pass(Reason::NoListener);
    }
    let port = if crate::dns::is_captured(pod, call.dst_port) {
        pod.dns_port
    } else {
        pod.outbound_port
    };
    if call.device == 0 {
        return Decision::Redirect(Redirect {
            target: spread(&call.dst, call.dst_port),
            port,
        });
    }
    // A bound device hides loopback from the socket, but not the pod's own address.
    let own = if call.dst.is_v4() { pod.v4 } else { pod.v6 };
    if own.is_unspecified() {
        return Decision::Refuse(Reason::NoAddress);
    }
    Decision::Redirect(Redirect { target: own, port })
}

#[inline(always)]
pub(crate) fn exempt_by_pod(
    pod: &PodEntry,
    call: &Connect,
    lookups: &impl Lookups,
) -> Option<Reason> {
    let has = |flag| pod.flags & flag != 0;
    if is_own(pod, &call.dst, lookups) {
        return Some(Reason::OwnAddress);
    }
    if call.dst.is_v4() && call.dst.v4() == METADATA && !has(pod_flags::CAPTURE_METADATA) {
        return Some(Reason::Metadata);
    }
    let listed_port = |list| lookups.has_port(list, pod.pod, call.dst_port);
    let listed_net = |list| lookups.has_net(list, pod.pod, &call.dst);
    if has(pod_flags::EXCLUDED_PORTS) && listed_port(List::ExcludedOutbound) {
        return Some(Reason::ExcludedPort);
    }
    if has(pod_flags::EXCLUDED_NETS) && listed_net(List::ExcludedOutbound) {
        return Some(Reason::ExcludedNet);
    }
    let included = || {
        (has(pod_flags::INCLUDED_PORTS) && listed_port(List::IncludedOutbound))
            || (has(pod_flags::INCLUDED_NETS) && listed_net(List::IncludedOutbound))
    };
    // Whether DNS is captured has an option of its own.
    if has(pod_flags::INCLUDED_PORTS | pod_flags::INCLUDED_NETS)
        && !crate::dns::is_captured(pod, call.dst_port)
        && !included()
    {
        return Some(Reason::NotIncluded);
    }
    if has(pod_flags::EXEMPT_CGROUPS) && lookups.is_exempt_caller(pod.pod) {
        return Some(Reason::ExemptCgroup);
    }
    None
}

#[inline(always)]
pub(crate) fn is_own(pod: &PodEntry, addr: &Addr, lookups: &impl Lookups) -> bool {
    *addr == pod.v4
        || *addr == pod.v6
        || (pod.flags & pod_flags::MORE_ADDRESSES != 0 && lookups.is_own(pod.pod, addr))
}

/// Whether a port is one that the proxy takes in each captured pod.
#[inline(always)]
pub fn is_own_port(is_tcp: bool, port: u16) -> bool {
    match port {
        ports::DNS => true,
        ports::OUTBOUND | ports::INBOUND_PLAINTEXT | ports::INBOUND_HBONE => is_tcp,
        _ => false,
    }
}

/// Whether a packet mark is one by which netfilter's rules know the proxy, or the connections that it makes.
#[inline(always)]
pub fn is_own_mark(value: u32) -> bool {
    matches!(value & mark::MASK, mark::PROXY | mark::TO_APP)
}

/// Whether the caller, a process of the pod, is the proxy.
#[inline(always)]
pub fn is_proxy(pod: &PodEntry, lookups: &impl Lookups) -> bool {
    pod.flags & pod_flags::DEDICATED != 0 && lookups.is_exempt_caller(pod.pod)
}

/// Whether a connect to `dst` is what became of the connect that left `entry` on the socket.
///
/// Two of our programs may see one connect, when one is on a cgroup above the other's or a link is being replaced: the second
/// meets the address that the first has written.
#[inline(always)]
pub fn is_already_steered(entry: &OrigDstEntry, dst: &Addr, port: u16, reason: Reason) -> bool {
    port == entry.target_port
        && (matches!(reason, Reason::OwnAddress)
            || *dst == spread(&entry.addr, entry.port)
            || crate::dns::is_target_of(dst, &entry.addr, entry.port))
}

/// The local address that stands for a destination: the same one for the same destination and port.
#[inline(always)]
pub fn spread(dst: &Addr, port: u16) -> Addr {
    let hash = hash(dst, port);
    if dst.is_v4() {
        Addr::from_v4_be((SPREAD_V4 | (hash >> (64 - SPREAD_V4_BITS)) as u32).to_be())
    } else {
        // Never ::, which is the prefix's anycast address.
        Addr([
            SPREAD_V6[0],
            SPREAD_V6[1],
            (hash >> 32) as u32,
            (hash as u32) | 1_u32.to_be(),
        ])
    }
}

/// Spreads destinations; the upper bits are the better ones.
#[inline(always)]
pub(crate) fn hash(dst: &Addr, port: u16) -> u64 {
    // Multiplying by an odd number near 2^64 / golden ratio moves entropy into the upper bits, which are used (Knuth, TAOCP
    // 6.4). Hashed by words as they lie in memory: no one compares results of machines of different byte order.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let pair = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
    let hash = pair(dst.0[0], dst.0[1]).wrapping_mul(FACTOR) ^ pair(dst.0[2], dst.0[3]);
    (hash ^ hash >> 32 ^ u64::from(port) << 40).wrapping_mul(FACTOR)
}
