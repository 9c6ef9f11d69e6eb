//! Sockets of whoever probes pods (kubelet): its connections to ports that a captured pod declares for probes pass inbound
//! capture, each by its own flow. Nothing about them can be forged: not an address, but the cgroup of the socket counts.
//!
//! Verdict on error: not registered, so the probe is captured like any connection in plaintext.

use aya_ebpf::{
    bindings::{BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB},
    macros::sock_ops,
    programs::SockOpsContext,
};
use redirect_common::{Hook, Reason, Verdict, inbound, maps::Caller};

use crate::{account, ctx::SockOps, lookups::Maps, passing};

/// "No opinion": the kernel's own parameters hold.
const PROCEED: u32 = 1;

#[sock_ops]
pub fn rdr_prober_ops(ctx: SockOpsContext) -> u32 {
    let ctx = SockOps::new(&ctx);
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&ctx),
        BPF_SOCK_OPS_STATE_CB => passing::changed(&ctx, Caller::Prober),
        _ => {}
    }
    PROCEED
}

#[inline(always)]
fn connecting(ctx: &SockOps) {
    let flow = passing::flow(ctx);
    let Some(pod) = passing::pod_at(&flow) else {
        return;
    };
    if inbound::may_probe(pod, flow.dst_port, &Maps) {
        passing::register(ctx, Hook::Prober, &flow, pod, Caller::Prober);
    } else {
        account::count(Hook::Prober, Verdict::Pass, Reason::NoProbePort);
    }
}
