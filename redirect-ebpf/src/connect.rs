//! `connect()` in a captured pod: left alone, refused, or steered to the proxy.
//!
//! Verdict on error: a captured connect whose original destination cannot be kept is refused, never let through.

use aya_ebpf::{
    helpers::bpf_get_current_cgroup_id, macros::cgroup_sock_addr, programs::SockAddrContext,
};
use redirect_common::{
    Addr, Hook, Reason, Verdict,
    decide::{self, Connect, Decision, Redirect},
    maps::{OrigDstEntry, PodEntry},
};

use crate::{
    account::{self, Decided},
    ctx::SockAddr,
    dns, known,
    lookups::{self, Maps},
    maps::{self, CLIENT, PODS},
};

/// `connect()` goes on, with the address as it is now.
const PROCEED: i32 = 1;
/// `connect()` fails with EPERM, which connect(2) gives for a local firewall rule.
const FAIL: i32 = 0;

#[cgroup_sock_addr(connect4)]
pub fn rdr_connect4(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    let hook = Hook::Connect4;
    run(&ctx, hook, ctx.addr4())
}

#[cgroup_sock_addr(connect6)]
pub fn rdr_connect6(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    let hook = Hook::Connect6;
    run(&ctx, hook, ctx.addr6())
}

#[inline(always)]
fn run(ctx: &SockAddr, hook: Hook, dst: Addr) -> i32 {
    if ctx.is_udp() {
        return dns::connect(ctx, hook, dst);
    }
    if !ctx.is_tcp() {
        account::count(hook, Verdict::Pass, Reason::NotTcp);
        return PROCEED;
    }
    let dst_port = ctx.port();
    let (mut decision, netns_cookie) = match decide::exempt_destination(&dst) {
        Some(reason) => (Decision::Pass(reason), 0),
        None => decide(ctx, hook, dst, dst_port),
    };
    if let Decision::Pass(reason) = decision
        && !let_leave(ctx, reason)
    {
        decision = Decision::Refuse(Reason::NoStorage);
    }
    let (verdict, reason) = match decision {
        Decision::Redirect(_) => (Verdict::Redirect, Reason::Captured),
        Decision::Pass(reason) => {
            forget(ctx, &dst, dst_port, reason);
            (Verdict::Pass, reason)
        }
        Decision::Refuse(reason) => (Verdict::Refuse, reason),
    };
    let (target, target_port) = match decision {
        Decision::Redirect(redirect) => (redirect.target, redirect.port),
        _ => (Addr::UNSPECIFIED, 0),
    };
    account::decided(&Decided {
        hook,
        verdict,
        reason,
        netns_cookie,
        dst: &dst,
        dst_port,
        target,
        target_port,
    });
    match verdict {
        Verdict::Refuse => FAIL,
        _ => PROCEED,
    }
}

/// Removes what an earlier connect left on a socket that now goes elsewhere.
#[inline(always)]
fn forget(ctx: &SockAddr, dst: &Addr, port: u16, reason: Reason) {
    if let Some(entry) = maps::on_socket(&CLIENT, ctx.socket())
        && !decide::is_already_steered(entry, dst, port, reason)
    {
        maps::remove_from_socket(&CLIENT, ctx.socket());
    }
}

/// Tells the guard of a connect that is let pass. False if there is no memory for that: its packets would be dropped.
#[inline(always)]
fn let_leave(ctx: &SockAddr, reason: Reason) -> bool {
    if !known::leaves_the_pod(reason) {
        return true;
    }
    // SAFETY: entries are replaced as a whole, and only when a pod changes.
    match unsafe { PODS.get(ctx.netns_cookie()) } {
        Some(pod) => known::mark(pod, ctx.socket()),
        None => true,
    }
}

/// Decides and, if the decision is to redirect, does it.
#[inline(always)]
fn decide(ctx: &SockAddr, hook: Hook, dst: Addr, dst_port: u16) -> (Decision, u64) {
    let netns_cookie = ctx.netns_cookie();
    let pod = match lookups::calling_pod(netns_cookie) {
        Ok(pod) => pod,
        Err(decision) => return (decision, netns_cookie),
    };
    let src = if matches!(hook, Hook::Connect4) {
        ctx.bound_addr4()
    } else {
        ctx.bound_addr6()
    };
    let call = Connect {
        dst,
        dst_port,
        src,
        device: ctx.bound_device(),
    };
    let mut decision = decide::connect(pod, &call, &Maps);
    if let Decision::Redirect(redirect) = &decision
        && !steer(ctx, hook, pod, netns_cookie, &call, redirect)
    {
        decision = Decision::Refuse(Reason::NoStorage);
    }
    (decision, netns_cookie)
}

/// Keeps where the connect was meant to go, and sends it to the proxy. False if there is no memory.
#[inline(always)]
fn steer(
    ctx: &SockAddr,
    hook: Hook,
    pod: &PodEntry,
    netns_cookie: u64,
    call: &Connect,
    redirect: &Redirect,
) -> bool {
    let entry = OrigDstEntry {
        addr: call.dst,
        // SAFETY: a helper without arguments.
        cgroup: unsafe { bpf_get_current_cgroup_id() },
        netns_cookie,
        owner: ctx.socket_cookie(),
        pod: pod.pod,
        port: call.dst_port,
        target_port: redirect.port,
    };
    if !maps::put_on_socket(&CLIENT, ctx.socket(), &entry) {
        return false;
    }
    if matches!(hook, Hook::Connect4) {
        ctx.set_addr4(&redirect.target);
    } else {
        ctx.set_addr6(&redirect.target);
    }
    ctx.set_port(redirect.port);
    true
}
