//! One event per decision, as it comes out of the ring buffer.

use core::mem::offset_of;

use crate::{Addr, Hook, Reason, Verdict};

/// A decision on one connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Event {
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
    pub netns_cookie: u64,
    pub cgroup: u64,
    /// Where the app wanted to go.
    pub dst: Addr,
    /// Where it was sent instead, or `::`.
    pub target: Addr,
    /// Where it comes from, or `::` if that is not known yet.
    pub src: Addr,
    /// The process that called; 0 for what arrives from elsewhere.
    pub pid: u32,
    /// In host byte order.
    pub dst_port: u16,
    /// In host byte order, or 0.
    pub target_port: u16,
    /// In host byte order, or 0.
    pub src_port: u16,
    /// A [`Hook`].
    pub hook: u8,
    /// A [`Verdict`].
    pub verdict: u8,
    /// A [`Reason`].
    pub reason: u8,
    pub padding: [u8; 3],
}

const _: () = assert!(
    size_of::<Event>() == 88 && offset_of!(Event, dst) == 24 && offset_of!(Event, hook) == 82
);

impl Event {
    /// The names of hook, verdict and reason; `None` if the kernel's programs are of another version.
    pub fn names(&self) -> Option<(Hook, Verdict, Reason)> {
        Some((
            Hook::from_number(self.hook)?,
            Verdict::from_number(self.verdict)?,
            Reason::from_number(self.reason)?,
        ))
    }
}
