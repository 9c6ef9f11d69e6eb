//! Counts every decision, and tells of it in the ring buffer if somebody wants to know.

use aya_ebpf::helpers::{bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use redirect_common::{Addr, Hook, Reason, Verdict, counter, event::Event};

use crate::maps::{COUNTERS, EVENTS, settings};

#[inline(always)]
pub fn count(hook: Hook, verdict: Verdict, reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(counter::index(hook, verdict, reason)) {
        // SAFETY: this CPU's own value; programs do not migrate while they run.
        unsafe { *counter += 1 };
    }
}

/// Counts a decision on a connect, and tells of it. `target` is `::` and port 0 where nothing was rewritten.
#[inline(always)]
pub fn decided(
    hook: Hook,
    verdict: Verdict,
    reason: Reason,
    netns_cookie: u64,
    dst: (&Addr, u16),
    target: (&Addr, u16),
) {
    count(hook, verdict, reason);
    if settings().is_none_or(|settings| settings.events == 0) {
        return;
    }
    let event = Event {
        // SAFETY: a helper without arguments.
        time: unsafe { bpf_ktime_get_ns() },
        netns_cookie,
        // SAFETY: a helper without arguments.
        cgroup: unsafe { bpf_get_current_cgroup_id() },
        dst: *dst.0,
        target: *target.0,
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        dst_port: dst.1,
        target_port: target.1,
        hook: hook as u8,
        verdict: verdict as u8,
        reason: reason as u8,
        padding: [0; 5],
    };
    if let Some(mut slot) = EVENTS.reserve_untyped::<Event>(0) {
        slot.write(event);
        slot.submit(0);
    }
}
