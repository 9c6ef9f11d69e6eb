//! What becomes of a connection that arrives in a captured pod's network namespace: pure, like [`decide`].

use crate::{
    Addr, Reason,
    decide::{self, Lists},
    maps::{Caller, InboundEntry, List, PassEntry, PassKey, SocketKind, inbound_flags},
    ports,
};

/// A packet for which the kernel looks for a listening socket: the first of a TCP connection, or of UDP.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub is_tcp: bool,
    pub flow: PassKey,
}

/// What to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The socket that it is for gets it.
    Pass(Reason),
    /// It is answered with a reset.
    Refuse(Reason),
    /// The proxy's listener for plaintext gets it.
    Capture,
    /// This listener of the proxy gets it, whoever else may have taken the port.
    Steer(SocketKind, Reason),
}

/// What there is at addresses that nobody said are a pod's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// Nothing that could pass: the namespace is one pod's, all of it captured.
    Refused,
    /// Others' business, or a pod without inbound capture.
    Passed,
}

/// What is known of pods and connections.
pub trait Lookups: Lists {
    /// The pod that is reached at `addr`.
    fn pod_at(&self, addr: &Addr) -> Option<InboundEntry>;
    /// A connection that is registered to pass.
    fn passing(&self, flow: &PassKey) -> Option<PassEntry>;
    /// Whether a workload that shares the address serves there.
    fn is_served(&self, addr: &Addr, port: u16) -> bool;
    /// Whether the proxy made this connection but found no place to register it.
    fn is_barred(&self, flow: &PassKey) -> bool;
    /// Whether a connect in this namespace was redirected, and this is its connection.
    fn is_redirected(&self, netns_cookie: u64, flow: &PassKey) -> bool;
}

/// Decides, and says for which pod.
#[inline(always)]
pub fn arrival(
    arrival: &Arrival,
    elsewhere: Elsewhere,
    lookups: &impl Lookups,
) -> (Decision, InboundEntry) {
    let flow = &arrival.flow;
    let of_nobody = |decision| (decision, InboundEntry::default());
    // DNS is all that we do with UDP.
    if !arrival.is_tcp && flow.dst_port != ports::DNS {
        return of_nobody(Decision::Pass(Reason::NotTcp));
    }
    // Also the addresses that stand for captured destinations: the way of a redirected connect to the proxy.
    if is_loopback(&flow.dst) {
        return to_loopback(arrival, elsewhere, lookups);
    }
    let Some(pod) = lookups.pod_at(&flow.dst) else {
        return of_nobody(match elsewhere {
            Elsewhere::Refused => Decision::Refuse(Reason::UnknownAddress),
            Elsewhere::Passed => Decision::Pass(Reason::UnknownAddress),
        });
    };
    match pod.flags & inbound_flags::SHARED != 0 {
        true => (to_shared(&pod, arrival, lookups), pod),
        false => match to_proxy(&pod, arrival, lookups) {
            Some(steered) => (steered, pod),
            None => (to_pod(&pod, arrival, lookups), pod),
        },
    }
}

/// What was captured, on its way to an address that stands for its destination. Its source is an address of the pod.
///
/// In a namespace that workloads share, somebody else may have taken our port while no daemon ran: it does not go there.
/// Elsewhere two daemons may listen, of which one takes over from the other: whose turn it is, the proxy's sockets say. Only for
/// what was redirected in the pod's own namespace, since a source can be forged.
#[inline(always)]
fn to_loopback(
    arrival: &Arrival,
    elsewhere: Elsewhere,
    lookups: &impl Lookups,
) -> (Decision, InboundEntry) {
    let flow = &arrival.flow;
    if let Some(socket) = redirected_to(arrival)
        && let Some(pod) = lookups.pod_at(&flow.src)
    {
        let is_ours = match pod.flags & inbound_flags::SHARED != 0 {
            true => matches!(elsewhere, Elsewhere::Passed) && flow.dst_port == ports::OUTBOUND,
            false => lookups.is_redirected(pod.netns_cookie, flow),
        };
        if is_ours {
            return (Decision::Steer(socket, Reason::Loopback), pod);
        }
    }
    let pass = Decision::Pass(Reason::Loopback);
    (pass, InboundEntry::default())
}

/// To the address of a pod that has it to itself, and to a listener of the proxy there: of two daemons' that one whose turn it is.
#[inline(always)]
fn to_proxy(pod: &InboundEntry, arrival: &Arrival, lookups: &impl Lookups) -> Option<Decision> {
    let flow = &arrival.flow;
    if flow.dst_port == ports::INBOUND_HBONE && arrival.is_tcp {
        return Some(Decision::Steer(SocketKind::Hbone, Reason::Hbone));
    }
    // A redirected connect of a socket that is bound to a device.
    let socket = redirected_to(arrival)?;
    lookups
        .is_redirected(pod.netns_cookie, flow)
        .then_some(Decision::Steer(socket, Reason::OwnAddress))
}

/// The proxy's socket that listens where redirected connects are sent.
#[inline(always)]
fn redirected_to(arrival: &Arrival) -> Option<SocketKind> {
    match arrival.flow.dst_port {
        ports::OUTBOUND if arrival.is_tcp => Some(SocketKind::Outbound),
        ports::DNS if arrival.is_tcp => Some(SocketKind::DnsTcp),
        _ => None,
    }
}

/// To an address that workloads share with each other, and perhaps with processes that are none of ours.
#[inline(always)]
fn to_shared(pod: &InboundEntry, arrival: &Arrival, lookups: &impl Lookups) -> Decision {
    let flow = &arrival.flow;
    let is_own = || {
        lookups
            .pod_at(&flow.src)
            .is_some_and(|source| source.pod == pod.pod)
    };
    match flow.dst_port {
        ports::INBOUND_HBONE if arrival.is_tcp => {
            return Decision::Steer(SocketKind::Hbone, Reason::Hbone);
        }
        // A redirected connect of a socket that is bound to a device.
        ports::OUTBOUND if is_own() => {
            return Decision::Steer(SocketKind::Outbound, Reason::OwnAddress);
        }
        ports::OUTBOUND | ports::INBOUND_PLAINTEXT | ports::DNS => {
            return Decision::Refuse(Reason::OwnPort);
        }
        _ => {}
    }
    if let Some(passing) = lookups.passing(flow) {
        return Decision::Pass(passing_reason(&passing));
    }
    if lookups.is_barred(flow) {
        return Decision::Refuse(Reason::FlowLimit);
    }
    match lookups.is_served(&flow.dst, flow.dst_port) {
        true => Decision::Capture,
        false => Decision::Pass(Reason::NotServed),
    }
}

#[inline(always)]
fn passing_reason(passing: &PassEntry) -> Reason {
    match passing.caller == Caller::Proxy as u32 {
        true => Reason::FromProxy,
        false => Reason::Probe,
    }
}

#[inline(always)]
pub fn to_pod(pod: &InboundEntry, arrival: &Arrival, lookups: &impl Lookups) -> Decision {
    let flow = &arrival.flow;
    if flow.dst_port == ports::INBOUND_HBONE && arrival.is_tcp {
        return Decision::Pass(Reason::Hbone);
    }
    // The pod itself, by its own address. Redirected connects of sockets that are bound to a device are among these.
    if lookups
        .pod_at(&flow.src)
        .is_some_and(|source| source.pod == pod.pod)
    {
        return Decision::Pass(Reason::OwnAddress);
    }
    if matches!(
        flow.dst_port,
        ports::OUTBOUND | ports::INBOUND_PLAINTEXT | ports::DNS
    ) {
        return Decision::Refuse(Reason::OwnPort);
    }
    if let Some(passing) = lookups.passing(flow) {
        return Decision::Pass(passing_reason(&passing));
    }
    // Captured, the proxy's own connection would go round and round.
    if lookups.is_barred(flow) {
        return Decision::Refuse(Reason::FlowLimit);
    }
    match left_alone(pod, flow, lookups) {
        Some(reason) => Decision::Pass(reason),
        None => Decision::Capture,
    }
}

/// Why the pod's options let a connection pass.
#[inline(always)]
pub fn left_alone(pod: &InboundEntry, flow: &PassKey, lists: &impl Lists) -> Option<Reason> {
    let has = |flag| pod.flags & flag != 0;
    let listed_port = |list| lists.has_port(list, pod.pod, flow.dst_port);
    let listed_net = |list| lists.has_net(list, pod.pod, &flow.src);
    if matches!(flow.dst_port, ports::METRICS | ports::READINESS)
        && has(inbound_flags::SERVES_ADMIN)
    {
        return Some(Reason::Admin);
    }
    if has(inbound_flags::BYPASS) {
        return Some(Reason::Bypassed);
    }
    if has(inbound_flags::EXCLUDED_PORTS) && listed_port(List::ExcludedInbound) {
        return Some(Reason::ExcludedPort);
    }
    if has(inbound_flags::EXCLUDED_NETS) && listed_net(List::ExcludedInbound) {
        return Some(Reason::ExcludedNet);
    }
    if has(inbound_flags::INCLUDED_PORTS | inbound_flags::INCLUDED_NETS)
        && !(has(inbound_flags::INCLUDED_PORTS) && listed_port(List::IncludedInbound))
        && !(has(inbound_flags::INCLUDED_NETS) && listed_net(List::IncludedInbound))
    {
        return Some(Reason::NotIncluded);
    }
    None
}

/// What becomes of a captured connection when the proxy does not listen.
#[inline(always)]
pub fn without_listener(pod: &InboundEntry) -> Decision {
    match pod.flags & inbound_flags::PASS_ON_FAILURE != 0 {
        true => Decision::Pass(Reason::NoListener),
        false => Decision::Refuse(Reason::NoListener),
    }
}

/// What becomes of what this socket of the proxy was to get, when the daemon whose turn it is has none. In a namespace of its own
/// a pod cannot have taken the port of a listener: who listens there is another daemon of ours.
#[inline(always)]
pub fn unsteered(pod: &InboundEntry, socket: SocketKind, reason: Reason) -> Decision {
    let is_shared = pod.flags & inbound_flags::SHARED != 0;
    match socket {
        SocketKind::Outbound | SocketKind::Hbone | SocketKind::DnsTcp if !is_shared => {
            Decision::Pass(reason)
        }
        _ => without_listener(pod),
    }
}

/// Whether the prober may pass to this port of the pod.
#[inline(always)]
pub fn may_probe(pod: &InboundEntry, port: u16, lists: &impl Lists) -> bool {
    pod.flags & inbound_flags::PROBED_PORTS == 0 || lists.has_port(List::Probed, pod.pod, port)
}

#[inline(always)]
fn is_loopback(addr: &Addr) -> bool {
    matches!(decide::exempt_destination(addr), Some(Reason::Loopback))
}
