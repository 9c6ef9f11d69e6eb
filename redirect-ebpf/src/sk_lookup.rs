//! Connections that arrive in a captured pod's network namespace: left to whom they are for, reset, or given to the proxy's
//! listener for plaintext. The accepted socket's local address is the original destination; nothing is rewritten.
//!
//! Verdict on error: reset, unless the pod is to go on without the proxy.

use aya_ebpf::{
    bindings::BPF_SK_LOOKUP_F_NO_REUSEPORT, macros::sk_lookup, programs::SkLookupContext,
};
use redirect_common::{
    Hook, Reason, Verdict,
    inbound::{self, Arrival, Decision, Elsewhere},
    maps::{InboundEntry, PassKey, SocketKind},
};

use crate::{
    account::{self, Arrived},
    ctx::SkLookup,
    lookups::Maps,
    maps::SOCKETS,
};

/// With no socket assigned: the kernel looks as ever.
const PROCEED: u32 = 1;
/// No socket: a TCP connection is reset, a datagram answered with an ICMP error.
const DROP: u32 = 0;

/// For the namespace of a pod.
#[sk_lookup]
pub fn rdr_lookup(ctx: SkLookupContext) -> u32 {
    run(&ctx, Elsewhere::Refused)
}

/// For a pod that wants no inbound capture: it is only kept from our own ports.
#[sk_lookup]
pub fn rdr_lookup_any(ctx: SkLookupContext) -> u32 {
    run(&ctx, Elsewhere::Passed)
}

#[inline(always)]
fn run(ctx: &SkLookupContext, elsewhere: Elsewhere) -> u32 {
    let arrival = arrival(&SkLookup::new(ctx));
    let (decision, pod) = inbound::arrival(&arrival, elsewhere, &Maps);
    let (verdict, reason) = match decision {
        Decision::Capture => steer(ctx, &pod, SocketKind::InboundPlaintext, Reason::Captured),
        Decision::Steer(socket, reason) => steer(ctx, &pod, socket, reason),
        Decision::Pass(reason) => (Verdict::Pass, reason),
        Decision::Refuse(reason) => (Verdict::Refuse, reason),
    };
    let hook = Hook::SkLookup;
    if matches!(reason, Reason::NotTcp | Reason::Loopback) {
        account::count(hook, verdict, reason);
    } else {
        account::arrived(&Arrived {
            hook,
            verdict,
            reason,
            netns_cookie: pod.netns_cookie,
            flow: &arrival.flow,
        });
    }
    match verdict {
        Verdict::Refuse => DROP,
        _ => PROCEED,
    }
}

/// Gives the connection to the proxy.
#[inline(always)]
fn steer(
    ctx: &SkLookupContext,
    pod: &InboundEntry,
    socket: SocketKind,
    reason: Reason,
) -> (Verdict, Reason) {
    // Not another socket of its SO_REUSEPORT group: that one is of the daemon whose turn it is not, or somebody's who joined.
    let flags = BPF_SK_LOOKUP_F_NO_REUSEPORT.into();
    if SOCKETS
        .redirect_sk_lookup(ctx, socket.place(pod.pod), flags)
        .is_ok()
    {
        return (Verdict::Redirect, reason);
    }
    match inbound::unsteered(pod, socket, reason) {
        Decision::Pass(reason) => (Verdict::Pass, reason),
        _ => (Verdict::Refuse, Reason::NoListener),
    }
}

#[inline(always)]
fn arrival(ctx: &SkLookup) -> Arrival {
    let ((dst, src), (dst_port, src_port)) = (ctx.addrs(), ctx.ports());
    Arrival {
        is_tcp: ctx.is_tcp(),
        flow: PassKey {
            src,
            dst,
            src_port,
            dst_port,
        },
    }
}
