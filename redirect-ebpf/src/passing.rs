//! Connections to captured pods that inbound capture shall let pass: registered just before their SYN is sent, when the source
//! port is known, and forgotten when the handshake is over or the socket closes.
//!
//! Verdict on error: not registered. A probe is then captured like any connection; the proxy's own connection must not be,
//! which would come back to the proxy, and is barred: refused.

use aya_ebpf::bindings::{BPF_ANY, BPF_TCP_CLOSE, BPF_TCP_ESTABLISHED};
use redirect_common::{
    Hook, Reason, Verdict,
    maps::{Caller, InboundEntry, PassEntry, PassKey},
};

use crate::{
    account,
    ctx::SockOps,
    maps::{self, BARRED, INBOUND, NotPublished},
};

/// The connection of a socket that is about to send its SYN, seen from the other end.
#[inline(always)]
pub fn flow(ctx: &SockOps) -> PassKey {
    let ((src, dst), (src_port, dst_port)) = (ctx.addrs(), ctx.ports());
    PassKey {
        src,
        dst,
        src_port,
        dst_port,
    }
}

/// The captured pod that a connection goes to.
#[inline(always)]
pub fn pod_at(flow: &PassKey) -> Option<&'static InboundEntry> {
    // SAFETY: entries are replaced as a whole, and only when a pod changes.
    unsafe { INBOUND.get(flow.dst) }
}

/// Lets the connection pass.
#[inline(always)]
pub fn register(ctx: &SockOps, hook: Hook, flow: &PassKey, pod: &InboundEntry, caller: Caller) {
    let entry = PassEntry {
        owner: ctx.socket_cookie(),
        pod: pod.pod,
        caller: caller as u32,
    };
    let (verdict, reason) = match maps::let_pass(flow, &entry) {
        Ok(()) => (Verdict::Pass, Reason::Registered),
        Err(NotPublished::Limit) => (Verdict::Refuse, Reason::FlowLimit),
        Err(NotPublished::Full) => (Verdict::Refuse, Reason::FlowsFull),
    };
    if matches!(verdict, Verdict::Refuse) && matches!(caller, Caller::Proxy) {
        _ = BARRED.insert(flow, &1, BPF_ANY.into());
    }
    ctx.watch_state();
    account::count(hook, verdict, reason);
}

/// Forgets it once it needs to pass no more.
#[inline(always)]
pub fn changed(ctx: &SockOps, caller: Caller) {
    if !matches!(ctx.new_state(), BPF_TCP_ESTABLISHED | BPF_TCP_CLOSE) {
        return;
    }
    let flow = flow(ctx);
    maps::stop_passing(&flow, ctx.socket_cookie());
    if matches!(caller, Caller::Proxy) {
        _ = BARRED.remove(&flow);
    }
    ctx.ignore_state();
}
