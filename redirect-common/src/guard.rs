//! What becomes of a packet that leaves a captured pod: pure, so that the kernel and host tests share it.
//!
//! Capture moves connections away from the pod's interface: to the proxy they go over loopback. So the TCP that does meet the
//! interface is the proxy's, or of a connection that capture let pass on purpose, or it went around capture.
//!
//! A socket is judged by what the kernel says of it, since headers can be forged: only the kernel makes TCP sockets, and only
//! our programs mark them. A segment that neither opens a connection nor carries data may leave without such a mark where the
//! kernel answers by itself: to a connection that is not there (reset), not yet (SYN+ACK), or no longer (TIME_WAIT).

use crate::{Reason, Verdict};

/// Bits of the guard's constant `RDR_GUARD_RULES`: the options of the pod and the kind of its interface.
pub mod rules {
    /// What was received on another interface may leave: the pod forwards for nested network namespaces.
    pub const ALLOW_FORWARDING: u32 = 1 << 0;
    pub const REFUSE_UDP: u32 = 1 << 1;
    /// Queries to port 53 may leave where UDP is refused, since they are not captured.
    pub const ALLOW_DNS: u32 = 1 << 2;
    pub const REFUSE_SCTP: u32 = 1 << 3;
    /// Packets of the interface begin with the IP header.
    pub const NO_ETHERNET: u32 = 1 << 4;
}

pub mod tcp_flags {
    pub const FIN: u8 = 1 << 0;
    pub const SYN: u8 = 1 << 1;
    pub const RST: u8 = 1 << 2;
    pub const ACK: u8 = 1 << 4;
}

/// Who sends a packet, other than the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// Nobody here: it was received on another interface.
    Forwarded,
    /// The kernel, for no socket: an answer to a packet that belongs to none, or to a SYN in a flood (SYN cookies).
    Kernel,
    /// The kernel, for a connection that is not whole yet, or no longer (a request, or in TIME_WAIT).
    Half,
    Listener,
    /// A connection that capture let pass.
    Known,
    /// A connection that capture did not see: older than it, or of a process of another cgroup.
    Uncaptured,
    /// A raw socket for TCP: a process's, or the one by which the kernel sends resets and the ACKs of TIME_WAIT (before Linux
    /// 6.13; it is of the same kind, and nothing that a program can see tells them apart).
    RawTcp,
    /// AF_PACKET.
    Packet,
    /// Any other socket.
    Other,
}

/// What the kernel says of a whole socket.
#[derive(Clone, Copy, Debug)]
pub struct Socket {
    pub family: u32,
    pub kind: u32,
    pub protocol: u32,
    pub state: u32,
    /// Our programs have marked it.
    pub is_known: bool,
}

impl Socket {
    #[inline(always)]
    pub const fn sender(&self) -> Sender {
        const AF_PACKET: u32 = 17;
        const SOCK_STREAM: u32 = 1;
        const SOCK_RAW: u32 = 3;
        const IPPROTO_TCP: u32 = 6;
        const TCP_LISTEN: u32 = 10;
        if self.family == AF_PACKET {
            return Sender::Packet;
        }
        if self.protocol != IPPROTO_TCP {
            return Sender::Other;
        }
        match self.kind {
            SOCK_STREAM if self.is_known => Sender::Known,
            SOCK_STREAM if self.state == TCP_LISTEN => Sender::Listener,
            SOCK_STREAM => Sender::Uncaptured,
            SOCK_RAW => Sender::RawTcp,
            _ => Sender::Other,
        }
    }
}

/// What is in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Tcp {
        /// See [`tcp_flags`].
        flags: u8,
        has_data: bool,
    },
    /// A fragment of TCP that is not the first one.
    TcpFragment,
    Udp {
        /// In host byte order; 0 in a fragment that is not the first one.
        dst_port: u16,
    },
    Sctp,
    /// A protocol that carries packets, in which TCP could hide.
    Tunnel,
    /// A frame that is neither IP nor ARP; some carry IP (VLAN tags, MPLS, PPPoE).
    Frame,
    /// Cut off, or not what its header says.
    Malformed,
    /// ARP, ICMP and whatever else carries no connections.
    Other,
}

impl Content {
    /// Of the IP protocols that need no look at the packet. TCP and UDP do, and are not among them.
    #[inline(always)]
    pub const fn of_protocol(protocol: u8) -> Self {
        match protocol {
            132 => Self::Sctp,
            // IP in IP, IPv6, GRE, ESP, AH, Minimal Encapsulation, IPIP, EtherIP, ENCAP, IPComp, L2TP, MPLS in IP, Ethernet.
            4 | 41 | 47 | 50 | 51 | 55 | 94 | 97 | 98 | 108 | 115 | 137 | 143 => Self::Tunnel,
            _ => Self::Other,
        }
    }

    /// Of a frame that is not IP.
    #[inline(always)]
    pub const fn of_frame(ether_type: u16) -> Self {
        const ARP: u16 = 0x0806;
        match ether_type {
            ARP => Self::Other,
            _ => Self::Frame,
        }
    }
}

/// Decides on a packet that is not the proxy's.
#[inline(always)]
pub fn judge(rules: u32, sender: Sender, content: Content) -> (Verdict, Reason) {
    let has = |rule: u32| rules & rule != 0;
    match content {
        Content::Other => pass(Reason::NotTcp),
        Content::Malformed => refuse(Reason::Malformed),
        // The kernel makes none that hide something; bridges forward them.
        Content::Frame if matches!(sender, Sender::Packet) => refuse(Reason::Encapsulated),
        Content::Frame => pass(Reason::NotTcp),
        Content::Sctp if has(rules::REFUSE_SCTP) => refuse(Reason::Sctp),
        Content::Udp { dst_port } if has(rules::REFUSE_UDP) => {
            if has(rules::ALLOW_DNS) && dst_port == 53 {
                pass(Reason::NotTcp)
            } else {
                refuse(Reason::Udp)
            }
        }
        Content::Sctp | Content::Udp { .. } => pass(Reason::NotTcp),
        Content::Tunnel | Content::Tcp { .. } | Content::TcpFragment
            if matches!(sender, Sender::Forwarded) =>
        {
            if has(rules::ALLOW_FORWARDING) {
                pass(Reason::Forwarded)
            } else {
                refuse(Reason::Forwarded)
            }
        }
        Content::Tunnel => refuse(Reason::Encapsulated),
        Content::Tcp { flags, has_data } => tcp(sender, flags, has_data),
        // The kernel fragments for the socket that sends; what it sends by itself is never so long.
        Content::TcpFragment => tcp(sender, 0, true),
    }
}

#[inline(always)]
fn tcp(sender: Sender, flags: u8, has_data: bool) -> (Verdict, Reason) {
    use tcp_flags::{ACK, RST, SYN};
    let is_bare = !has_data;
    let opens = flags & SYN != 0;
    let accepts = is_bare && opens && flags & (ACK | RST) == ACK;
    let is_reset = is_bare && !opens && flags & RST != 0;
    let (may_leave, otherwise) = match sender {
        Sender::Known => return pass(Reason::Known),
        Sender::Packet | Sender::Other => (false, Reason::RawSocket),
        Sender::RawTcp => (is_bare && !opens, Reason::RawSocket),
        Sender::Kernel | Sender::Forwarded => (accepts || (is_bare && !opens), Reason::NoSocket),
        Sender::Half => (accepts || (is_bare && !opens), Reason::Uncaptured),
        // With TCP Fast Open, SYN+ACKs are the listener's.
        Sender::Listener => (accepts || is_reset, Reason::Uncaptured),
        // Not its bare ACKs: they would keep the peer sending.
        Sender::Uncaptured => (is_reset, Reason::Uncaptured),
    };
    if may_leave {
        pass(Reason::Control)
    } else {
        refuse(otherwise)
    }
}

#[inline(always)]
const fn pass(reason: Reason) -> (Verdict, Reason) {
    (Verdict::Pass, reason)
}

#[inline(always)]
const fn refuse(reason: Reason) -> (Verdict, Reason) {
    (Verdict::Refuse, reason)
}

#[cfg(test)]
mod tests;
