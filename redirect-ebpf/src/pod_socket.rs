//! Events of a captured pod's sockets: publishes where a connect was meant to go just before its SYN is sent, when the
//! source port is known, and withdraws that when the socket closes before the proxy took it.
//!
//! Not at ACTIVE_ESTABLISHED: with TCP Fast Open the proxy's side is established first.
//!
//! What the pod's apps accept from the network was let pass by capture, which the guard is told.
//!
//! Verdict on error: not published, so the proxy refuses the connection; not marked, so the guard drops what it sends.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB,
        BPF_TCP_CLOSE,
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use redirect_common::{
    Hook, Reason, Verdict,
    maps::{FlowKey, OrigDstEntry},
    mark,
};

use crate::{
    account,
    ctx::{self, SockOps},
    known,
    maps::{self, CLIENT, NotPublished, PODS},
};

/// "No opinion": the kernel's own parameters hold.
const PROCEED: u32 = 1;

#[sock_ops]
pub fn rdr_pod_ops(ctx: SockOpsContext) -> u32 {
    let ctx = SockOps::new(&ctx);
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.new_state() == BPF_TCP_CLOSE => closed(&ctx),
        _ => {}
    }
    PROCEED
}

#[inline(always)]
fn connecting(ctx: &SockOps) {
    let Some(entry) = captured(ctx) else { return };
    let (verdict, reason) = match maps::publish(&key(ctx, entry), entry) {
        Ok(()) => {
            ctx.watch_state();
            (Verdict::Redirect, Reason::Published)
        }
        Err(NotPublished::Limit) => (Verdict::Refuse, Reason::FlowLimit),
        Err(NotPublished::Full) => (Verdict::Refuse, Reason::FlowsFull),
    };
    account::count(Hook::PodSocket, verdict, reason);
}

#[inline(always)]
fn closed(ctx: &SockOps) {
    let Some(entry) = captured(ctx) else { return };
    let key = key(ctx, entry);
    // The tuple is still this socket's: it leaves the kernel's table after this event.
    if maps::flow(&key).is_some_and(|flow| flow.owner == entry.owner)
        && maps::unpublish(&key, entry.pod)
    {
        account::count(Hook::PodSocket, Verdict::Refuse, Reason::Abandoned);
    }
}

/// Marks for the guard what an app accepts from the network. Not what the proxy brings (it has the proxy's mark): an app that
/// may change the mark could send its side of that connection out of the pod.
#[inline(always)]
fn accepted(ctx: &SockOps) {
    let socket = ctx.socket();
    if socket.is_null() || ctx::mark_of(socket) & mark::MASK == mark::TO_APP {
        return;
    }
    // SAFETY: entries are replaced as a whole, and only when a pod changes.
    let Some(pod) = (unsafe { PODS.get(ctx.netns_cookie()) }) else {
        return;
    };
    if !known::mark(pod, socket) {
        account::count(Hook::PodSocket, Verdict::Refuse, Reason::NoStorage);
    }
}

/// What `connect` left on the socket, if it was captured.
#[inline(always)]
fn captured(ctx: &SockOps) -> Option<&'static OrigDstEntry> {
    let socket = ctx.socket();
    if socket.is_null() {
        return None;
    }
    maps::on_socket(&CLIENT, socket)
}

#[inline(always)]
fn key(ctx: &SockOps, entry: &OrigDstEntry) -> FlowKey {
    let ((local, remote), (local_port, remote_port)) = (ctx.addrs(), ctx.ports());
    FlowKey {
        netns_cookie: entry.netns_cookie,
        src: local,
        dst: remote,
        src_port: local_port,
        dst_port: remote_port,
        padding: 0,
    }
}
