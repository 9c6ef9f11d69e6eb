//! Events of the proxy's sockets: moves what was published for a connection to the socket that the proxy accepts, and lets
//! the proxy's own connections to apps pass inbound capture.
//!
//! Runs on the cgroup of the process that made the listener.
//!
//! Verdict on error: nothing is put on the socket, so the proxy refuses the connection. See `passing` for the others.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB,
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use redirect_common::{
    Hook, Reason, Verdict,
    maps::{Caller, FlowKey},
};

use crate::{
    account,
    ctx::SockOps,
    maps::{self, ACCEPTED, PODS},
    passing,
};

/// "No opinion": the kernel's own parameters hold.
const PROCEED: u32 = 1;

#[sock_ops]
pub fn rdr_proxy_ops(ctx: SockOpsContext) -> u32 {
    let ctx = SockOps::new(&ctx);
    match ctx.op() {
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepting(&ctx),
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&ctx),
        BPF_SOCK_OPS_STATE_CB => passing::changed(&ctx, Caller::Proxy),
        _ => {}
    }
    PROCEED
}

/// Lets a connection to an app pass: one that comes from inside the pod's own namespace. From the namespace of another pod it is
/// that pod's traffic, which is captured here as any.
#[inline(always)]
fn connecting(ctx: &SockOps) {
    let flow = passing::flow(ctx);
    if let Some(pod) = passing::pod_at(&flow)
        && pod.netns_cookie == ctx.netns_cookie()
    {
        passing::register(ctx, Hook::ProxySocket, &flow, pod, Caller::Proxy);
    }
}

#[inline(always)]
fn accepting(ctx: &SockOps) {
    let socket = ctx.socket();
    if socket.is_null() {
        return;
    }
    let ((local, remote), (local_port, remote_port)) = (ctx.addrs(), ctx.ports());
    let netns_cookie = ctx.netns_cookie();
    let key = FlowKey {
        netns_cookie,
        src: remote,
        dst: local,
        src_port: remote_port,
        dst_port: local_port,
        padding: 0,
    };
    let Some(flow) = maps::flow(&key) else {
        // SAFETY: entries are replaced as a whole, and only when a pod changes.
        if unsafe { PODS.get(netns_cookie) }
            .is_some_and(|pod| pod.outbound_port == local_port || pod.dns_port == local_port)
        {
            account::count(Hook::ProxySocket, Verdict::Refuse, Reason::NoFlow);
        }
        return;
    };
    let pod = flow.pod;
    let (verdict, reason) = match maps::put_on_socket(&ACCEPTED, socket, flow) {
        true => (Verdict::Redirect, Reason::Accepted),
        false => (Verdict::Refuse, Reason::NoStorage),
    };
    maps::unpublish(&key, pod);
    account::count(Hook::ProxySocket, verdict, reason);
}
