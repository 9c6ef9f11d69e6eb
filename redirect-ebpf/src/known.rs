//! The mark on sockets whose connections capture let pass, without which the guard drops what they send.

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::bpf_sk_storage_get,
};
use redirect_common::{Reason, maps::PodEntry, maps::pod_flags};

use crate::maps::KNOWN;

/// Whether a connect that is let pass for this reason leaves the pod by its interface, where the guard meets it.
#[inline(always)]
pub fn leaves_the_pod(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::Loopback | Reason::Unspecified | Reason::OwnAddress | Reason::ForeignNetns
    )
}

/// Marks `socket` if `pod` has a guard. False if there is no memory for it: what the socket sends would be dropped.
#[inline(always)]
pub fn mark(pod: &PodEntry, socket: *mut bpf_sock) -> bool {
    if pod.flags & pod_flags::GUARDED == 0 {
        return true;
    }
    let map = core::ptr::from_ref(&KNOWN).cast_mut().cast();
    // SAFETY: map and socket are what the kernel gave; without a value the new storage is zero.
    let stored = unsafe {
        bpf_sk_storage_get(
            map,
            socket.cast(),
            core::ptr::null_mut(),
            BPF_SK_STORAGE_GET_F_CREATE.into(),
        )
    };
    !stored.is_null()
}

/// Whether `socket`, which is a whole one, is marked.
#[inline(always)]
pub fn is_marked(socket: *mut bpf_sock) -> bool {
    let map = core::ptr::from_ref(&KNOWN).cast_mut().cast();
    // SAFETY: map and socket are what the kernel gave.
    !unsafe { bpf_sk_storage_get(map, socket.cast(), core::ptr::null_mut(), 0) }.is_null()
}
