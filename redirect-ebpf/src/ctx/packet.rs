//! A packet on its way out of an interface.

use core::mem::MaybeUninit;
use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_sk_fullsock, bpf_skb_cgroup_id, bpf_skb_load_bytes},
};
use redirect_common::guard::{Sender, Socket};

use crate::known;

/// States of what stands for a connection before it is whole, and after (kernel: include/net/tcp_states.h).
const TCP_TIME_WAIT: u32 = 6;
const TCP_NEW_SYN_RECV: u32 = 12;

pub struct Packet(*mut __sk_buff);

impl Packet {
    #[inline(always)]
    pub fn new(skb: *mut __sk_buff) -> Self {
        Self(skb)
    }

    /// Whether it leaves by `lo`, which has the index 1 in every network namespace (kernel: LOOPBACK_IFINDEX).
    #[inline(always)]
    pub fn is_on_loopback(&self) -> bool {
        get!(self.0, ifindex) == 1
    }

    /// The cgroup of the socket that sends it; of a listener, for what answers a request. 0 if there is no socket.
    #[inline(always)]
    pub fn cgroup(&self) -> u64 {
        // SAFETY: the context as the kernel gave it.
        unsafe { bpf_skb_cgroup_id(self.0) }
    }

    /// In bytes, with all headers.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        get!(self.0, len)
    }

    /// So many bytes from an offset on; `None` if the packet ends before.
    #[inline(always)]
    pub fn bytes<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper fills the buffer, whose length it is told, or fails.
        unsafe {
            match bpf_skb_load_bytes(self.0.cast(), offset, bytes.as_mut_ptr().cast(), N as u32) {
                0 => Some(bytes.assume_init()),
                _ => None,
            }
        }
    }

    #[inline(always)]
    pub fn sender(&self) -> Sender {
        let half: *mut bpf_sock = get!(self.0, __bindgen_anon_2.sk);
        if half.is_null() {
            return match get!(self.0, ingress_ifindex) {
                0 => Sender::Kernel,
                _ => Sender::Forwarded,
            };
        }
        if matches!(get!(half, state), TCP_TIME_WAIT | TCP_NEW_SYN_RECV) {
            return Sender::Half;
        }
        // SAFETY: a socket that the kernel gave and that is not null.
        let socket = unsafe { bpf_sk_fullsock(half) };
        if socket.is_null() {
            return Sender::Half;
        }
        let socket = Socket {
            family: get!(socket, family),
            kind: get!(socket, type_),
            protocol: get!(socket, protocol),
            state: get!(socket, state),
            is_known: known::is_marked(socket),
        };
        socket.sender()
    }
}
