//! `getpeername()` of a captured socket: the destination that the app asked for.
//!
//! Verdict on error: none; a socket that was not captured keeps the kernel's answer.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use redirect_common::{Hook, Reason, Verdict};

use crate::{
    account,
    ctx::SockAddr,
    maps::{self, CLIENT},
};

/// The only value that the kernel allows here.
const PROCEED: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub fn rdr_peername4(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    if let Some(entry) = maps::on_socket(&CLIENT, ctx.socket()) {
        ctx.set_addr4(&entry.addr);
        ctx.set_port(entry.port);
        account::count(Hook::Getpeername4, Verdict::Redirect, Reason::Answered);
    }
    PROCEED
}

#[cgroup_sock_addr(getpeername6)]
pub fn rdr_peername6(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    if let Some(entry) = maps::on_socket(&CLIENT, ctx.socket()) {
        ctx.set_addr6(&entry.addr);
        ctx.set_port(entry.port);
        account::count(Hook::Getpeername6, Verdict::Redirect, Reason::Answered);
    }
    PROCEED
}
