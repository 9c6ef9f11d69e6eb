//! A process of a captured pod sets a socket's packet mark: not to one that is ours. In a pod that was captured by rules before,
//! or is after, such a mark would be the proxy's.
//!
//! Verdict on error: an option that cannot be read is left to the kernel, which then cannot read it either.

use aya_ebpf::{macros::cgroup_sockopt, programs::SockoptContext};
use redirect_common::{Hook, Reason, Verdict, decide};

use crate::{account, ctx::Sockopt, lookups::Maps, maps::PODS};

/// The call goes on.
const PROCEED: i32 = 1;
/// The call fails with EPERM, as without the capability that a mark needs.
const FAIL: i32 = 0;

const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;

#[cgroup_sockopt(setsockopt)]
pub fn rdr_setsockopt(ctx: SockoptContext) -> i32 {
    let ctx = Sockopt::new(&ctx);
    if (ctx.level(), ctx.option()) == (SOL_SOCKET, SO_MARK) && is_refused(&ctx) {
        account::count(Hook::Setsockopt, Verdict::Refuse, Reason::OwnMark);
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
