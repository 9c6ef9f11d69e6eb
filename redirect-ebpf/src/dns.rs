//! DNS over UDP in a captured pod: queries go to the proxy, and answers come from the server that was asked.
//!
//! `connect` sends UDP sockets here; what follows is for sockets that name the server with each query. Where a server's local
//! address comes from is told in `redirect_common::dns`.
//!
//! Verdict on error: a query whose server cannot be kept is refused, never let through.

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::cgroup_sock_addr, programs::SockAddrContext};
use redirect_common::{
    Addr, Hook, Reason, Verdict,
    decide::{self, Connect},
    dns::{self, Decision, Slot},
    maps::{DnsEntry, DnsKey, OrigDstEntry, PodEntry},
};

use crate::{
    account::{self, Decided},
    ctx::SockAddr,
    lookups::Maps,
    maps::{self, CLIENT, PODS},
};

/// The call goes on, with the address as it is now.
const PROCEED: i32 = 1;
/// The call fails with EPERM.
const FAIL: i32 = 0;

#[cgroup_sock_addr(sendmsg4)]
pub fn rdr_sendmsg4(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    send(&ctx, Hook::Sendmsg4, ctx.addr4())
}

#[cgroup_sock_addr(sendmsg6)]
pub fn rdr_sendmsg6(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    send(&ctx, Hook::Sendmsg6, ctx.addr6())
}

#[cgroup_sock_addr(recvmsg4)]
pub fn rdr_recvmsg4(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    if let Some(server) = asked(&ctx, ctx.addr4()) {
        ctx.set_addr4(&server.0);
        ctx.set_port(server.1);
        account::count(Hook::Recvmsg4, Verdict::Redirect, Reason::Answered);
    }
    PROCEED
}

#[cgroup_sock_addr(recvmsg6)]
pub fn rdr_recvmsg6(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    if let Some(server) = asked(&ctx, ctx.addr6()) {
        ctx.set_addr6(&server.0);
        ctx.set_port(server.1);
        account::count(Hook::Recvmsg6, Verdict::Redirect, Reason::Answered);
    }
    PROCEED
}

/// The kernel asks here for datagrams that name their destination, also on a connected socket.
#[inline(always)]
fn send(ctx: &SockAddr, hook: Hook, dst: Addr) -> i32 {
    if !ctx.is_udp() {
        account::count(hook, Verdict::Pass, Reason::NotTcp);
        return PROCEED;
    }
    match steer(ctx, hook, dst, dns::HOLD) {
        Decision::Refuse(_) => FAIL,
        _ => PROCEED,
    }
}

/// A connect of a UDP socket: steered for good, so that nothing of it needs to be seen later.
#[inline(always)]
pub fn connect(ctx: &SockAddr, hook: Hook, dst: Addr) -> i32 {
    let dst_port = ctx.port();
    match steer(ctx, hook, dst, dns::HOLD_CONNECTED) {
        Decision::Redirect => PROCEED,
        Decision::Refuse(_) => FAIL,
        Decision::Pass(reason) => {
            if let Some(entry) = maps::on_socket(&CLIENT, ctx.socket())
                && !decide::is_already_steered(entry, &dst, dst_port, reason)
            {
                maps::remove_from_socket(&CLIENT, ctx.socket());
            }
            PROCEED
        }
    }
}

/// Decides, does it and accounts for it.
#[inline(always)]
fn steer(ctx: &SockAddr, hook: Hook, dst: Addr, hold: u64) -> Decision {
    let dst_port = ctx.port();
    let (decision, netns_cookie, target, target_port) = match decide::exempt_destination(&dst) {
        Some(reason) => (Decision::Pass(reason), 0, Addr::UNSPECIFIED, 0),
        None => decide(ctx, hook, dst, dst_port, hold),
    };
    let (verdict, reason) = match decision {
        Decision::Redirect => (Verdict::Redirect, Reason::Captured),
        Decision::Pass(reason) => (Verdict::Pass, reason),
        Decision::Refuse(reason) => (Verdict::Refuse, reason),
    };
    // Datagrams that are none of our business are counted, and not told of one by one.
    if matches!(reason, Reason::NotTcp) {
        account::count(hook, verdict, reason);
        return decision;
    }
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
    decision
}

#[inline(always)]
fn decide(
    ctx: &SockAddr,
    hook: Hook,
    dst: Addr,
    dst_port: u16,
    hold: u64,
) -> (Decision, u64, Addr, u16) {
    let nothing = Addr::UNSPECIFIED;
    let netns_cookie = ctx.netns_cookie();
    // SAFETY: entries are replaced as a whole, and only when a pod changes.
    let Some(pod) = (unsafe { PODS.get(netns_cookie) }) else {
        return (
            Decision::Pass(Reason::ForeignNetns),
            netns_cookie,
            nothing,
            0,
        );
    };
    let v4 = matches!(hook, Hook::Connect4 | Hook::Sendmsg4);
    let connected = matches!(hook, Hook::Connect4 | Hook::Connect6);
    let call = Connect {
        dst,
        dst_port,
        src: if v4 {
            ctx.bound_addr4()
        } else {
            ctx.bound_addr6()
        },
        device: ctx.bound_device(),
    };
    let decision = dns::datagram(pod, &call, &Maps);
    if decision != Decision::Redirect {
        return (decision, netns_cookie, nothing, 0);
    }
    let Some(target) = claim(netns_cookie, &call, hold) else {
        let full = Decision::Refuse(Reason::DnsServersFull);
        return (full, netns_cookie, nothing, 0);
    };
    if connected && !keep(ctx, pod, netns_cookie, &call) {
        let no_memory = Decision::Refuse(Reason::NoStorage);
        return (no_memory, netns_cookie, nothing, 0);
    }
    if v4 {
        ctx.set_addr4(&target);
    } else {
        ctx.set_addr6(&target);
    }
    ctx.set_port(pod.dns_port);
    (decision, netns_cookie, target, pod.dns_port)
}

/// Finds the local address that stands for the server, or makes one do so.
#[inline(always)]
fn claim(netns_cookie: u64, call: &Connect, hold: u64) -> Option<Addr> {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let entry = DnsEntry {
        addr: call.dst,
        held_until: now + hold,
        port: call.dst_port,
        padding: [0; 3],
    };
    let mut key = DnsKey {
        netns_cookie,
        target: Addr::UNSPECIFIED,
    };
    for way in 0..dns::WAYS {
        key.target = dns::target(&call.dst, call.dst_port, way);
        let claimed = match maps::dns_server(&key) {
            None => maps::add_dns_server(&key, &entry),
            Some(there) => match dns::judge(there.entry(), &call.dst, call.dst_port, now) {
                Slot::Ours => {
                    there.hold(entry.held_until);
                    true
                }
                Slot::Stale => maps::replace_dns_server(&key, &entry),
                Slot::Taken => false,
            },
        };
        if claimed {
            return Some(key.target);
        }
    }
    None
}

/// Keeps on the socket which server it asks, for `getpeername()` and answers.
#[inline(always)]
fn keep(ctx: &SockAddr, pod: &PodEntry, netns_cookie: u64, call: &Connect) -> bool {
    let entry = OrigDstEntry {
        addr: call.dst,
        cgroup: 0,
        netns_cookie,
        owner: ctx.socket_cookie(),
        pod: pod.pod,
        port: call.dst_port,
        target_port: pod.dns_port,
    };
    maps::put_on_socket(&CLIENT, ctx.socket(), &entry)
}

/// The server that an answer from `from` is to be seen from.
#[inline(always)]
fn asked(ctx: &SockAddr, from: Addr) -> Option<(Addr, u16)> {
    if !dns::is_target(&from) {
        return None;
    }
    if let Some(entry) = maps::on_socket(&CLIENT, ctx.socket())
        && dns::is_target_of(&from, &entry.addr, entry.port)
    {
        return Some((entry.addr, entry.port));
    }
    let key = DnsKey {
        netns_cookie: ctx.netns_cookie(),
        target: from,
    };
    let there = maps::dns_server(&key)?;
    let entry = there.entry();
    Some((entry.addr, entry.port))
}
