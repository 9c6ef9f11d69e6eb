//! A process of a captured pod sets a socket's packet mark: not to one that is ours. In a pod that was captured by rules before,
//! or is after, such a mark would be the proxy's.
//!
//! Nor to send past the queue of an interface on which there is a guard: the guard is at that queue.
//!
//! Verdict on error: an option that cannot be read is left to the kernel, which then cannot read it either.

use aya_ebpf::{macros::cgroup_sockopt, programs::SockoptContext};
use redirect_common::{Hook, Reason, Verdict, decide, maps::pod_flags};

use crate::{account, ctx::Sockopt, lookups::Maps, maps::PODS};

/// The call goes on.
const PROCEED: i32 = 1;
/// The call fails with EPERM, as without the capability that a mark needs.
const FAIL: i32 = 0;

const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
const SOL_PACKET: i32 = 263;
const PACKET_QDISC_BYPASS: i32 = 20;
const SOL_XDP: i32 = 283;
const XDP_TX_RING: i32 = 3;

#[cgroup_sockopt(setsockopt)]
pub fn rdr_setsockopt(ctx: SockoptContext) -> i32 {
    let ctx = Sockopt::new(&ctx);
    let refused = match (ctx.level(), ctx.option()) {
        (SOL_SOCKET, SO_MARK) if is_refused(&ctx) => Some(Reason::OwnMark),
        (SOL_PACKET, PACKET_QDISC_BYPASS) | (SOL_XDP, XDP_TX_RING) if is_guarded(&ctx) => {
            Some(Reason::AroundGuard)
        }
        _ => None,
    };
    if let Some(reason) = refused {
        account::count(Hook::Setsockopt, Verdict::Refuse, reason);
        return FAIL;
    }
    ctx.leave();
    PROCEED
}

#[inline(always)]
fn is_refused(ctx: &Sockopt) -> bool {
    if !ctx.value().is_some_and(decide::is_own_mark) {
        return false;
    }
    // SAFETY: entries are replaced as a whole, and only when a pod changes.
    let pod = unsafe { PODS.get(ctx.netns_cookie()) };
    pod.is_some_and(|pod| !decide::is_proxy(pod, &Maps))
}

#[inline(always)]
fn is_guarded(ctx: &Sockopt) -> bool {
    // SAFETY: entries are replaced as a whole, and only when a pod changes.
    let pod = unsafe { PODS.get(ctx.netns_cookie()) };
    pod.is_some_and(|pod| pod.flags & pod_flags::GUARDED != 0)
}
