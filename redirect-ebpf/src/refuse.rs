//! UDP and SCTP of a pod whose options refuse them: the send fails, visibly. The guard at the interface would only drop them,
//! as it does with those of sockets that are not of the pod's cgroup.
//!
//! Verdict on error: what cannot be read passes here, and meets the guard.

use aya_ebpf::{macros::cgroup_skb, programs::SkBuffContext};
use redirect_common::{
    Hook, Reason, Verdict,
    guard::{self, Sender, rules},
};

use crate::{account, content::content, ctx::Packet, guard::RDR_GUARD_RULES, maps::PROXIES};

const PROCEED: i32 = 1;
/// The send fails with EPERM.
const FAIL: i32 = 0;

#[cgroup_skb(egress)]
pub fn rdr_refuse(ctx: SkBuffContext) -> i32 {
    let packet = Packet::new(ctx.skb.skb);
    let Some(reason) = refused(&packet) else {
        return PROCEED;
    };
    account::count(Hook::Guard, Verdict::Refuse, reason);
    FAIL
}

#[inline(always)]
fn refused(packet: &Packet) -> Option<Reason> {
    // A proxy in the pod speaks UDP to DNS servers. SAFETY: nothing is read through the reference.
    if packet.is_on_loopback() || unsafe { PROXIES.get(packet.cgroup()) }.is_some() {
        return None;
    }
    // Packets begin with the IP header here, whatever the interface.
    let rules = RDR_GUARD_RULES.load() | rules::NO_ETHERNET;
    let content = content(packet, rules)?;
    match guard::judge(rules, Sender::Other, content) {
        (Verdict::Refuse, reason @ (Reason::Udp | Reason::Sctp)) => Some(reason),
        _ => None,
    }
}
