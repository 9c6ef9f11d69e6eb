//! `getsockopt(SO_ORIGINAL_DST)` and `getsockopt(IP6T_SO_ORIGINAL_DST)` of the proxy's sockets, so that a proxy which was
//! written for netfilter works behind our capture.
//!
//! Verdict on error: the kernel's own answer stands, which without netfilter is that there is none.

use aya_ebpf::{
    Global, helpers::generated::bpf_set_retval, macros::cgroup_sockopt, programs::SockoptContext,
};
use redirect_common::{Hook, Reason, Verdict};

use crate::{
    account,
    ctx::{AF_INET, AF_INET6, Sockaddr4, Sockaddr6, Sockopt},
    maps::{self, ACCEPTED},
};

/// The only value that lets the answer through.
const PROCEED: i32 = 1;

const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;
/// Both `SO_ORIGINAL_DST` (linux/netfilter_ipv4.h) and `IP6T_SO_ORIGINAL_DST` (linux/netfilter_ipv6/ip6_tables.h).
const ORIGINAL_DST: i32 = 80;
const EINVAL: i32 = 22;

/// Whether the kernel has `bpf_set_retval` (5.18): set by the daemon. The verifier skips what a constant rules out.
#[unsafe(no_mangle)]
static RDR_HAS_SET_RETVAL: Global<u8> = Global::new(0);

#[cgroup_sockopt(getsockopt)]
pub fn rdr_getsockopt(ctx: SockoptContext) -> i32 {
    let ctx = Sockopt::new(&ctx);
    match (ctx.level(), ctx.option()) {
        (SOL_IP, ORIGINAL_DST) => answer4(&ctx),
        (SOL_IPV6, ORIGINAL_DST) => answer6(&ctx),
        _ => ctx.leave(),
    }
    PROCEED
}

#[inline(always)]
fn answer4(ctx: &Sockopt) {
    // An IPv6 destination has no place in the answer.
    let Some(entry) = maps::on_socket(&ACCEPTED, ctx.socket()).filter(|entry| entry.addr.is_v4())
    else {
        return ctx.leave();
    };
    let answer = Sockaddr4 {
        family: AF_INET,
        port: entry.port.to_be(),
        addr: entry.addr.v4_be(),
        zero: [0; 2],
    };
    finish(ctx, ctx.answer(answer));
}

#[inline(always)]
fn answer6(ctx: &Sockopt) {
    let Some(entry) = maps::on_socket(&ACCEPTED, ctx.socket()) else {
        return ctx.leave();
    };
    let answer = Sockaddr6 {
        family: AF_INET6,
        port: entry.port.to_be(),
        flow: 0,
        addr: entry.addr,
        scope: 0,
    };
    finish(ctx, ctx.answer(answer));
}

#[inline(always)]
fn finish(ctx: &Sockopt, answered: bool) {
    if answered {
        account::count(Hook::Getsockopt, Verdict::Redirect, Reason::Answered);
        return;
    }
    account::count(Hook::Getsockopt, Verdict::Refuse, Reason::BadLength);
    if has_set_retval() {
        // SAFETY: a helper that takes a number. It is what netfilter answers (getorigdst in nf_conntrack_proto.c).
        unsafe { bpf_set_retval(-EINVAL) };
    }
    ctx.leave();
}

#[inline(always)]
pub fn has_set_retval() -> bool {
    RDR_HAS_SET_RETVAL.load() != 0
}
