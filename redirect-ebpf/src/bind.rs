//! A process of a captured pod binds a socket: the proxy's ports are not free to take there, also while no daemon runs. A
//! listener of somebody else on one of them would be given the pod's connections.
//!
//! Ports that the kernel chooses do not come here: see `capture/ebpf/reserved.rs`.
//!
//! Verdict on error: there is none; sockets in namespaces that nobody captures are left alone.

use aya_ebpf::{
    helpers::generated::bpf_set_retval, macros::cgroup_sock_addr, programs::SockAddrContext,
};
use redirect_common::{Hook, Reason, Verdict, decide};

use crate::{account, ctx::SockAddr, getsockopt::has_set_retval, lookups::Maps, maps::PODS};

/// `bind()` goes on.
const PROCEED: i32 = 1;
/// `bind()` fails, with EPERM if nothing else is said.
const FAIL: i32 = 0;
const EADDRINUSE: i32 = 98;

#[cgroup_sock_addr(bind4)]
pub fn rdr_bind4(ctx: SockAddrContext) -> i32 {
    run(&SockAddr::new(&ctx), Hook::Bind4)
}

#[cgroup_sock_addr(bind6)]
pub fn rdr_bind6(ctx: SockAddrContext) -> i32 {
    run(&SockAddr::new(&ctx), Hook::Bind6)
}

#[inline(always)]
fn run(ctx: &SockAddr, hook: Hook) -> i32 {
    if !decide::is_own_port(ctx.is_tcp(), ctx.port()) {
        return PROCEED;
    }
    // SAFETY: entries are replaced as a whole, and only when a pod changes.
    let pod = unsafe { PODS.get(ctx.netns_cookie()) };
    if pod.is_none_or(|pod| decide::is_proxy(pod, &Maps)) {
        return PROCEED;
    }
    account::count(hook, Verdict::Refuse, Reason::OwnPort);
    if has_set_retval() {
        // SAFETY: a helper that takes a number. It is what an app hears while the proxy listens.
        unsafe { bpf_set_retval(-EADDRINUSE) };
    }
    FAIL
}
