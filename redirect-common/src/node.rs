//! Mode `node`: what becomes of a packet on the node's side of a captured pod's interface. Pure, like [`decide`] and
//! [`inbound`].
//!
//! All TCP between the pod and the world passes here, whoever sends it and by whatever socket. What belongs to a connection
//! that the proxy holds is delivered to the proxy, under the addresses that it bears; a first packet is judged by the pod's
//! options; and what is left is a connection that capture let pass, or nothing that should be here.

use crate::{
    Addr, Reason,
    decide::{self, Connect},
    guard::tcp_flags,
    inbound::{self, Arrival},
    maps::{InboundEntry, PassKey, PodEntry, SocketKind},
    ports,
};

/// Marks (fwmark) of packets on the node. Within [`MASK`](mark::MASK), since others use the bits above.
pub mod mark {
    pub const MASK: u32 = 0xfff;
    /// Of what the proxy sends to a pod: to its app, or as the destination that the pod asked for. Not captured.
    pub const TO_POD: u32 = 0x111;
    /// Of what the proxy sends to the clients of a pod. It only keeps a node that copies marks from packets to sockets
    /// (`net.ipv4.tcp_fwmark_accept`) from giving them one of the marks below.
    pub const AS_POD: u32 = 0x112;
    /// Of packets that are delivered to the proxy: from a pod, and to a pod. A routing rule takes every address for local.
    pub const FROM_APP: u32 = 0x6a1;
    pub const TO_APP: u32 = 0x6a2;
    pub const DELIVERED: u32 = 0x6a0;
    pub const DELIVERED_MASK: u32 = 0xff0;
    /// Of packets that are answered with a reset.
    pub const REFUSED: u32 = 0x6b1;
}

/// Set in keys of `rdr_pods` for pods that are captured on the node: the rest is the inode of the pod's namespace. (No
/// namespace's cookie is that large.)
pub const ON_NODE: u64 = 1 << 63;

/// Where the rules of [`guard`](crate::guard::rules) begin in the flags of a pod that is captured on the node.
pub const RULES_SHIFT: u32 = 24;

/// A TCP segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub flow: PassKey,
    /// See [`tcp_flags`].
    pub flags: u8,
}

impl Segment {
    /// Whether it asks for a connection.
    #[inline(always)]
    pub const fn is_first(&self) -> bool {
        use tcp_flags::{ACK, RST, SYN};
        self.flags & (SYN | ACK | RST) == SYN
    }

    #[inline(always)]
    pub const fn is_reset(&self) -> bool {
        self.flags & tcp_flags::RST != 0
    }
}

/// The reset that answers a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub sequence: u32,
    pub acknowledged: u32,
    pub flags: u8,
}

impl Segment {
    /// As RFC 9293 section 3.10.7.1 has it for a connection that does not exist. `data` is the segment's length without headers.
    #[inline(always)]
    pub const fn answer(&self, sequence: u32, acknowledged: u32, data: u32) -> Answer {
        use tcp_flags::{ACK, FIN, RST, SYN};
        if self.flags & ACK != 0 {
            return Answer {
                sequence: acknowledged,
                acknowledged: 0,
                flags: RST,
            };
        }
        let counted = (self.flags & SYN != 0) as u32 + (self.flags & FIN != 0) as u32;
        Answer {
            sequence: 0,
            acknowledged: sequence.wrapping_add(data).wrapping_add(counted),
            flags: RST | ACK,
        }
    }
}

/// What to do with a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It goes on its way.
    Pass(Reason),
    /// The proxy's socket gets it.
    Deliver(Reason),
    /// Dropped, and answered with a reset.
    Reset(Reason),
    /// Dropped without a word.
    Drop(Reason),
}

/// What is known of pods, options, sockets and connections.
pub trait Lookups: decide::Lookups + inbound::Lookups {
    /// Whether a socket of the node is the other end of the segment's connection: the proxy's, or a prober's.
    fn has_connection(&self) -> bool;
}

/// Decides on a segment that comes from the pod.
#[inline(always)]
pub fn from_pod(pod: &PodEntry, segment: &Segment, lookups: &impl Lookups) -> Decision {
    let flow = &segment.flow;
    match decide::exempt_destination(&flow.dst) {
        // Martians, which reach the node's own loopback where routing is told to allow that (`route_localnet`).
        Some(reason @ (Reason::Loopback | Reason::Unspecified)) => return Decision::Drop(reason),
        Some(reason) => return Decision::Pass(reason),
        None => {}
    }
    if !decide::is_own(pod, &flow.src, lookups) {
        return Decision::Drop(Reason::ForeignSource);
    }
    let call = Connect {
        dst: flow.dst,
        dst_port: flow.dst_port,
        src: Addr::UNSPECIFIED,
        device: 0,
    };
    match decide::connect(pod, &call, lookups) {
        decide::Decision::Redirect(_) => {}
        decide::Decision::Pass(reason) => return Decision::Pass(reason),
        decide::Decision::Refuse(reason) => return Decision::Drop(reason),
    }
    if lookups.has_connection() {
        return Decision::Deliver(Reason::Accepted);
    }
    if segment.is_first() {
        return match lookups.is_listening(SocketKind::Outbound, pod.pod) {
            true => Decision::Deliver(Reason::Captured),
            false => Decision::Reset(Reason::NoListener),
        };
    }
    if segment.is_reset() {
        return Decision::Pass(Reason::Control);
    }
    match answers(flow, lookups) {
        Some(reason) => Decision::Pass(reason),
        // Of a connection that is older than capture, or than the daemon; of a socket that speaks TCP by itself.
        None => Decision::Reset(Reason::NoSocket),
    }
}

/// Why the segment can be an answer to a connection that inbound capture let pass.
#[inline(always)]
fn answers(flow: &PassKey, lookups: &impl Lookups) -> Option<Reason> {
    let pod = inbound::Lookups::pod_at(lookups, &flow.src)?;
    let asked = PassKey {
        src: flow.dst,
        dst: flow.src,
        src_port: flow.dst_port,
        dst_port: flow.src_port,
    };
    if let Some(reason) = inbound::left_alone(&pod, &asked, lookups) {
        return Some(reason);
    }
    match without_listener(&pod) {
        Decision::Pass(reason) if !lookups.is_listening(SocketKind::InboundPlaintext, pod.pod) => {
            Some(reason)
        }
        _ => None,
    }
}

/// Decides on a segment that goes to the pod with the number `pod`. `is_the_proxys` is whether the proxy sent it to the pod,
/// and not to the pod's listener.
#[inline(always)]
pub fn to_pod(
    pod: u32,
    segment: &Segment,
    is_the_proxys: bool,
    lookups: &impl Lookups,
) -> Decision {
    let flow = &segment.flow;
    if is_the_proxys {
        return Decision::Pass(Reason::Proxy);
    }
    let entry = inbound::Lookups::pod_at(lookups, &flow.dst).filter(|entry| entry.pod == pod);
    let Some(entry) = entry else {
        // A bridge sends frames to all its ports while it does not know the right one; or the address is not declared.
        return match segment.is_first() {
            true => Decision::Drop(Reason::UnknownAddress),
            false => Decision::Pass(Reason::UnknownAddress),
        };
    };
    if lookups.has_connection() {
        return Decision::Deliver(Reason::Accepted);
    }
    if !segment.is_first() {
        return Decision::Pass(Reason::NoSocket);
    }
    let arrival = Arrival {
        is_tcp: true,
        flow: *flow,
    };
    let kind = kind_to_app(flow.dst_port);
    let otherwise = match inbound::to_pod(&entry, &arrival, lookups) {
        // Here not yet where it belongs.
        inbound::Decision::Pass(Reason::Hbone) => Decision::Reset(Reason::NoListener),
        inbound::Decision::Capture | inbound::Decision::Pass(Reason::OwnAddress) => {
            without_listener(&entry)
        }
        inbound::Decision::Steer(_, reason) => Decision::Reset(reason),
        inbound::Decision::Pass(reason) => return Decision::Pass(reason),
        inbound::Decision::Refuse(reason) => return Decision::Reset(reason),
    };
    match lookups.is_listening(kind, pod) {
        true => Decision::Deliver(Reason::Captured),
        false => otherwise,
    }
}

/// Which listener takes a connection to this port of a pod.
#[inline(always)]
pub const fn kind_to_app(port: u16) -> SocketKind {
    match port {
        ports::INBOUND_HBONE => SocketKind::Hbone,
        _ => SocketKind::InboundPlaintext,
    }
}

#[inline(always)]
fn without_listener(pod: &InboundEntry) -> Decision {
    match inbound::without_listener(pod) {
        inbound::Decision::Pass(reason) => Decision::Pass(reason),
        _ => Decision::Reset(Reason::NoListener),
    }
}

#[cfg(test)]
mod tests;
