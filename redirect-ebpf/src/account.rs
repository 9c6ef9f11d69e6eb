//! Counts every decision, and tells of it in the ring buffer if somebody wants to know.

use aya_ebpf::helpers::{bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_log_ebpf::{
    debug,
    macro_support::{Level, level_enabled},
};
use redirect_common::{Addr, Hook, Reason, Verdict, counter, event::Event, maps::PassKey};

use crate::maps::{COUNTERS, EVENTS, settings};

#[inline(always)]
pub fn count(hook: Hook, verdict: Verdict, reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(counter::index(hook, verdict, reason)) {
        // SAFETY: this CPU's own value; programs do not migrate while they run.
        unsafe { *counter += 1 };
    }
}

/// A decision on a connect.
pub struct Decided<'a> {
    pub hook: Hook,
    pub verdict: Verdict,
    pub reason: Reason,
    pub netns_cookie: u64,
    pub dst: &'a Addr,
    pub dst_port: u16,
    /// `::` and port 0 where nothing was rewritten.
    pub target: Addr,
    pub target_port: u16,
}

/// Counts a decision, and tells of it.
#[inline(always)]
pub fn decided(decided: &Decided<'_>) {
    count(decided.hook, decided.verdict, decided.reason);
    if settings().is_some_and(|settings| settings.events != 0) {
        tell(decided);
    }
    // A constant when the program is loaded: where it is false, the verifier leaves the logging out.
    if level_enabled(Level::Debug) {
        log(decided);
    }
}

/// A function of its own, since most of the time nobody wants to know.
#[inline(never)]
fn tell(decided: &Decided<'_>) {
    let event = Event {
        // SAFETY: a helper without arguments.
        time: unsafe { bpf_ktime_get_ns() },
        netns_cookie: decided.netns_cookie,
        // SAFETY: a helper without arguments.
        cgroup: unsafe { bpf_get_current_cgroup_id() },
        dst: *decided.dst,
        target: decided.target,
        src: Addr::UNSPECIFIED,
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        dst_port: decided.dst_port,
        target_port: decided.target_port,
        src_port: 0,
        hook: decided.hook as u8,
        verdict: decided.verdict as u8,
        reason: decided.reason as u8,
        padding: [0; 3],
    };
    send(event);
}

/// A decision on a connection that arrives. Nobody has called: what runs at this moment is anybody.
pub struct Arrived<'a> {
    pub hook: Hook,
    pub verdict: Verdict,
    pub reason: Reason,
    pub netns_cookie: u64,
    pub flow: &'a PassKey,
}

/// Counts a decision on an arriving connection, and tells of it.
#[inline(always)]
pub fn arrived(arrived: &Arrived<'_>) {
    count(arrived.hook, arrived.verdict, arrived.reason);
    if settings().is_some_and(|settings| settings.events != 0) {
        tell_arrived(arrived);
    }
}

#[inline(never)]
fn tell_arrived(arrived: &Arrived<'_>) {
    send(Event {
        // SAFETY: a helper without arguments.
        time: unsafe { bpf_ktime_get_ns() },
        netns_cookie: arrived.netns_cookie,
        dst: arrived.flow.dst,
        dst_port: arrived.flow.dst_port,
        src: arrived.flow.src,
        src_port: arrived.flow.src_port,
        hook: arrived.hook as u8,
        verdict: arrived.verdict as u8,
        reason: arrived.reason as u8,
        ..Event::default()
    });
}

#[inline(always)]
fn send(event: Event) {
    if let Some(mut slot) = EVENTS.reserve_untyped::<Event>(0) {
        slot.write(event);
        slot.submit(0);
    }
}

/// Hook, verdict and reason are numbers here: tables of names would need relocations that BPF does not have.
#[inline(never)]
fn log(decided: &Decided<'_>) {
    debug!(
        (),
        "hook {} verdict {} reason {}: [{:i}]:{} to [{:i}]:{} pid {}",
        decided.hook as u8,
        decided.verdict as u8,
        decided.reason as u8,
        decided.dst.octets(),
        decided.dst_port,
        decided.target.octets(),
        decided.target_port,
        (bpf_get_current_pid_tgid() >> 32) as u32
    );
}
