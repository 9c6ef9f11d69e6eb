//! Counts every decision, and tells of it in the ring buffer if somebody wants to know.

use aya_ebpf::helpers::{bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_log_ebpf::{
    debug,
    macro_support::{Level, level_enabled},
};
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
    let events = settings().is_some_and(|settings| settings.events != 0);
    // A constant when the program is loaded: where it is false, the verifier leaves the logging out.
    let log = level_enabled(Level::Debug);
    if !events && !log {
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
    if events && let Some(mut slot) = EVENTS.reserve_untyped::<Event>(0) {
        slot.write(event);
        slot.submit(0);
    }
    if log {
        log_decision(&event);
    }
}

/// Hook, verdict and reason are numbers here: tables of names would need relocations that BPF does not have.
///
/// A function of its own, since its buffers do not fit on the stack of the program.
#[inline(never)]
fn log_decision(event: &Event) {
    debug!(
        (),
        "hook {} verdict {} reason {}: [{:i}]:{} to [{:i}]:{} pid {} cgroup {}",
        event.hook,
        event.verdict,
        event.reason,
        event.dst.octets(),
        event.dst_port,
        event.target.octets(),
        event.target_port,
        event.pid,
        event.cgroup
    );
}
