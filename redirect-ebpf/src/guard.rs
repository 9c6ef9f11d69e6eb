//! What leaves a captured pod by its interface without being the proxy's: dropped, if it is TCP that capture did not let pass.
//!
//! A classifier at the interface's egress. It does not know the pod (before Linux 6.15 there is no cookie of the network
//! namespace here), so what the pod's options allow is a constant of the program that is loaded for such a pod.
//!
//! Verdict on error: what cannot be read is dropped.

use aya_ebpf::{
    Global,
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use redirect_common::{
    Hook, Reason, Verdict,
    guard::{self, Content},
};

use crate::{account, content::content, ctx::Packet, maps::PROXIES};

/// Set when the program is loaded: see `redirect_common::guard::rules`.
#[unsafe(no_mangle)]
pub static RDR_GUARD_RULES: Global<u32> = Global::new(0);

/// Other classifiers of the interface have their say.
const NEXT: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT as i32;

#[classifier]
pub fn rdr_guard(ctx: TcContext) -> i32 {
    let (verdict, reason) = judge(&Packet::new(ctx.skb.skb));
    account::count(Hook::Guard, verdict, reason);
    match verdict {
        Verdict::Refuse => DROP,
        _ => NEXT,
    }
}

#[inline(always)]
fn judge(packet: &Packet) -> (Verdict, Reason) {
    // First, since most packets are the proxy's. SAFETY: nothing is read through the reference.
    if unsafe { PROXIES.get(packet.cgroup()) }.is_some() {
        return (Verdict::Pass, Reason::Proxy);
    }
    let rules = RDR_GUARD_RULES.load();
    let content = content(packet, rules).unwrap_or(Content::Malformed);
    guard::judge(rules, packet.sender(), content)
}
