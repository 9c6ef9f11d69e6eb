//! Mode `node`: TCP between a captured pod and the world, on the node's side of the pod's interface.
//!
//! `rdr_node_out` (ingress: from the pod) and `rdr_node_in` (egress: to the pod) decide, and send what is the proxy's to an
//! interface of ours. There `rdr_node_reset` answers what is refused, and `rdr_node_local` gives it to the proxy's socket, which the kernel allows at an ingress only; a
//! routing rule for the packet's mark takes its destination for a local one.
//!
//! Verdict on error: dropped.

use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use redirect_common::{
    Addr, Hook, Reason, Verdict,
    decide::{self, Lists},
    guard::{self, Content, Sender},
    inbound,
    maps::{InboundEntry, List, PassEntry, PassKey, PodEntry, SocketKind},
    node::{self, Decision, Lookups, RULES_SHIFT, Segment, mark},
};

use crate::{
    account::{self, Arrived},
    content::content,
    ctx::NodePacket,
    lookups::Maps,
    maps::{self, NODE, NODE_PODS, PODS, PROXIES},
};

/// Other classifiers of the interface have their say.
const NEXT: i32 = TC_ACT_UNSPEC;
/// They do not.
const PASS: i32 = TC_ACT_OK as i32;
const DROP: i32 = TC_ACT_SHOT as i32;

#[classifier]
pub fn rdr_node_out(ctx: TcContext) -> i32 {
    let packet = NodePacket::new(&ctx);
    match pod_of(&packet) {
        Some(known) => from_pod(&packet, known),
        // Not told of a pod yet.
        None => NEXT,
    }
}

#[classifier]
pub fn rdr_node_in(ctx: TcContext) -> i32 {
    let packet = NodePacket::new(&ctx);
    match pod_of(&packet) {
        Some(known) => to_pod(&packet, known),
        None => NEXT,
    }
}

#[classifier]
pub fn rdr_node_local(ctx: TcContext) -> i32 {
    let packet = NodePacket::new(&ctx);
    if packet.mark() == mark::REFUSED {
        return NEXT;
    }
    packet.accept();
    let Some(segment) = packet.segment() else {
        return DROP;
    };
    match packet.assign_connection(&segment) || assign_listener(&packet, &segment) {
        true => NEXT,
        false => DROP,
    }
}

/// Turns a refused segment into the reset that answers it, which then goes the way of every packet.
#[classifier]
pub fn rdr_node_reset(ctx: TcContext) -> i32 {
    let packet = NodePacket::new(&ctx);
    if packet.mark() != mark::REFUSED {
        return NEXT;
    }
    packet.accept();
    packet.set_mark(0);
    match packet.segment().and_then(|segment| packet.reset(&segment)) {
        // `rdr_node_local` may come after: this is no packet of the proxy's any more.
        Some(()) => PASS,
        None => DROP,
    }
}

#[inline(always)]
fn pod_of(packet: &NodePacket) -> Option<(u64, &'static PodEntry)> {
    // SAFETY: entries are replaced as a whole, and only when a pod changes.
    unsafe {
        let key = *NODE_PODS.get(packet.interface())?;
        Some((key, PODS.get(key)?))
    }
}

#[inline(always)]
fn from_pod(packet: &NodePacket, (key, pod): (u64, &PodEntry)) -> i32 {
    let Some(segment) = packet.segment() else {
        return without_segment(packet, pod);
    };
    let known = Known {
        packet,
        segment: &segment,
    };
    let decision = node::from_pod(pod, &segment, &known);
    act(packet, &segment, key, decision, mark::FROM_APP)
}

/// Whatever is not plainly TCP: judged as the guard judges it inside of pods, where it can see the sender. Here it may be anybody.
#[inline(always)]
fn without_segment(packet: &NodePacket, pod: &PodEntry) -> i32 {
    let rules = pod.flags >> RULES_SHIFT;
    let content = content(&packet.packet, rules).unwrap_or(Content::Malformed);
    let sender = match content {
        Content::Tunnel => Sender::Forwarded,
        _ => Sender::Packet,
    };
    let (verdict, reason) = guard::judge(rules, sender, content);
    account::count(Hook::NodeSide, verdict, reason);
    match verdict {
        Verdict::Refuse => DROP,
        _ => NEXT,
    }
}

#[inline(always)]
fn to_pod(packet: &NodePacket, (key, pod): (u64, &PodEntry)) -> i32 {
    let Some(segment) = packet.segment() else {
        let rules = pod.flags >> RULES_SHIFT;
        // A connection in pieces would come to the app without having been seen here.
        return match content(&packet.packet, rules) {
            Some(Content::Tcp { .. } | Content::TcpFragment) => {
                account::count(Hook::NodeSide, Verdict::Refuse, Reason::Malformed);
                DROP
            }
            _ => NEXT,
        };
    };
    let known = Known {
        packet,
        segment: &segment,
    };
    let decision = node::to_pod(pod.pod, &segment, is_the_proxys(packet, &segment), &known);
    act(packet, &segment, key, decision, mark::TO_APP)
}

/// Whether the proxy sends this to the pod. Only it may open connections so: the mark alone is any privileged process's.
#[inline(always)]
fn is_the_proxys(packet: &NodePacket, segment: &Segment) -> bool {
    packet.mark() & mark::MASK == mark::TO_POD
        && (!segment.is_first()
            // SAFETY: nothing is read through the reference.
            || unsafe { PROXIES.get(packet.packet.cgroup()) }.is_some())
}

#[inline(always)]
fn act(packet: &NodePacket, segment: &Segment, key: u64, decision: Decision, mark: u32) -> i32 {
    let (verdict, reason) = match decision {
        Decision::Pass(reason) => (Verdict::Pass, reason),
        Decision::Deliver(reason) => (Verdict::Redirect, reason),
        Decision::Reset(reason) | Decision::Drop(reason) => (Verdict::Refuse, reason),
    };
    // What follows the first segment is counted only if it is refused.
    if segment.is_first() {
        account::arrived(&Arrived {
            hook: Hook::NodeSide,
            verdict,
            reason,
            netns_cookie: key,
            flow: &segment.flow,
        });
    } else if matches!(verdict, Verdict::Refuse) {
        account::count(Hook::NodeSide, verdict, reason);
    }
    match decision {
        Decision::Pass(_) => NEXT,
        Decision::Deliver(_) => deliver(packet, mark),
        Decision::Reset(_) => deliver(packet, mark::REFUSED),
        Decision::Drop(_) => DROP,
    }
}

#[inline(always)]
fn deliver(packet: &NodePacket, mark: u32) -> i32 {
    match NODE.get(0) {
        Some(node) if node.device != 0 => packet.deliver(mark, node.device),
        _ => DROP,
    }
}

/// Gives a first packet (or what SYN cookies take for its sequel) to the listener that it is for.
#[inline(always)]
fn assign_listener(packet: &NodePacket, segment: &Segment) -> bool {
    let (at, kind) = match packet.mark() {
        mark::FROM_APP => (&segment.flow.src, SocketKind::Outbound),
        mark::TO_APP => (&segment.flow.dst, node::kind_to_app(segment.flow.dst_port)),
        _ => return false,
    };
    let Some(pod) = inbound::Lookups::pod_at(&Maps, at) else {
        return false;
    };
    let socket = maps::listener(kind, pod.pod);
    !socket.is_null() && packet.assign(socket)
}

/// What the decisions ask, about one packet.
struct Known<'a> {
    packet: &'a NodePacket,
    segment: &'a Segment,
}

impl Lookups for Known<'_> {
    #[inline(always)]
    fn has_connection(&self) -> bool {
        self.packet.has_connection(self.segment)
    }
}

impl Lists for Known<'_> {
    #[inline(always)]
    fn has_port(&self, list: List, pod: u32, port: u16) -> bool {
        Maps.has_port(list, pod, port)
    }

    #[inline(always)]
    fn has_net(&self, list: List, pod: u32, addr: &Addr) -> bool {
        Maps.has_net(list, pod, addr)
    }
}

impl inbound::Lookups for Known<'_> {
    #[inline(always)]
    fn pod_at(&self, addr: &Addr) -> Option<InboundEntry> {
        Maps.pod_at(addr)
    }

    #[inline(always)]
    fn passing(&self, flow: &PassKey) -> Option<PassEntry> {
        Maps.passing(flow)
    }

    /// Workloads that share a namespace are not captured in this mode.
    #[inline(always)]
    fn is_served(&self, _: &Addr, _: u16) -> bool {
        false
    }

    #[inline(always)]
    fn is_barred(&self, flow: &PassKey) -> bool {
        Maps.is_barred(flow)
    }

    /// Nothing is rewritten in this mode.
    #[inline(always)]
    fn is_redirected(&self, _: u64, _: &PassKey) -> bool {
        false
    }
}

impl decide::Lookups for Known<'_> {
    #[inline(always)]
    fn is_own(&self, pod: u32, addr: &Addr) -> bool {
        decide::Lookups::is_own(&Maps, pod, addr)
    }

    #[inline(always)]
    fn is_listening(&self, kind: SocketKind, pod: u32) -> bool {
        maps::is_listening(kind, pod)
    }

    /// The sender's cgroup is not known on this side of its interface.
    #[inline(always)]
    fn is_exempt_caller(&self, _: u32) -> bool {
        false
    }
}
