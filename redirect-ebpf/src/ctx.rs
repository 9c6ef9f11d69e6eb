//! The only place that touches raw contexts.
//!
//! Each word is read and written by itself and volatile: when the compiler merges neighbouring accesses, or computes one
//! address for two branches, the verifier refuses the program ("dereference of modified ctx ptr").

use core::{
    arch::asm,
    ptr::{addr_of, addr_of_mut, read_volatile, write_volatile},
};

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sk_lookup, bpf_sock, bpf_sock_addr, bpf_sock_ops,
        bpf_sockopt,
    },
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_sock_ops_cb_flags_set},
    programs::{SkLookupContext, SockAddrContext, SockOpsContext, SockoptContext},
};
use redirect_common::Addr;

pub use packet::Packet;
pub use segment::NodePacket;

pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;

/// Reads a field of a context.
macro_rules! get {
    // SAFETY: the kernel gave the pointer, and allows this field to be read in this kind of program.
    ($ptr:expr, $($field:tt)+) => { unsafe { read_volatile(addr_of!((*$ptr).$($field)+)) } };
}

/// Writes a field of a context.
macro_rules! set {
    // SAFETY: the kernel gave the pointer, and allows this field to be written in this kind of program.
    ($ptr:expr, $($field:tt)+) => { unsafe { |value| write_volatile(addr_of_mut!((*$ptr).$($field)+), value) } };
}

// After the macros, which it uses.
mod packet;
mod reset;
mod segment;

/// Keeps the compiler from moving the last reads of two branches behind where they meet, as one read.
#[inline(always)]
fn end_of_branch() {
    // SAFETY: no instruction at all.
    unsafe { asm!("") };
}

/// A socket call with an address: connect and getpeername.
pub struct SockAddr(*mut bpf_sock_addr);

impl SockAddr {
    #[inline(always)]
    pub fn new(ctx: &SockAddrContext) -> Self {
        Self(ctx.sock_addr)
    }

    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        get!(self.0, protocol) == IPPROTO_TCP
    }

    #[inline(always)]
    pub fn is_udp(&self) -> bool {
        get!(self.0, protocol) == IPPROTO_UDP
    }

    /// The address that the call is about, of an IPv4 socket.
    #[inline(always)]
    pub fn addr4(&self) -> Addr {
        Addr::from_v4_be(get!(self.0, user_ip4))
    }

    /// The address that the call is about, of an IPv6 socket.
    #[inline(always)]
    pub fn addr6(&self) -> Addr {
        Addr([
            get!(self.0, user_ip6[0]),
            get!(self.0, user_ip6[1]),
            get!(self.0, user_ip6[2]),
            get!(self.0, user_ip6[3]),
        ])
    }

    /// In host byte order.
    #[inline(always)]
    pub fn port(&self) -> u16 {
        u16::from_be(get!(self.0, user_port) as u16)
    }

    #[inline(always)]
    pub fn set_addr4(&self, addr: &Addr) {
        set!(self.0, user_ip4)(addr.v4_be());
    }

    #[inline(always)]
    pub fn set_addr6(&self, addr: &Addr) {
        set!(self.0, user_ip6[0])(addr.0[0]);
        set!(self.0, user_ip6[1])(addr.0[1]);
        set!(self.0, user_ip6[2])(addr.0[2]);
        set!(self.0, user_ip6[3])(addr.0[3]);
    }

    /// Of a port in host byte order.
    #[inline(always)]
    pub fn set_port(&self, port: u16) {
        set!(self.0, user_port)(u32::from(port.to_be()));
    }

    #[inline(always)]
    pub fn socket(&self) -> *mut bpf_sock {
        get!(self.0, __bindgen_anon_1.sk)
    }

    /// What an IPv4 socket is bound to.
    #[inline(always)]
    pub fn bound_addr4(&self) -> Addr {
        Addr::from_v4_be(get!(self.socket(), src_ip4))
    }

    /// What an IPv6 socket is bound to.
    #[inline(always)]
    pub fn bound_addr6(&self) -> Addr {
        let socket = self.socket();
        Addr([
            get!(socket, src_ip6[0]),
            get!(socket, src_ip6[1]),
            get!(socket, src_ip6[2]),
            get!(socket, src_ip6[3]),
        ])
    }

    /// SO_BINDTODEVICE: an interface index, or 0.
    #[inline(always)]
    pub fn bound_device(&self) -> u32 {
        get!(self.socket(), bound_dev_if)
    }

    #[inline(always)]
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: the context as the kernel gave it.
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }

    #[inline(always)]
    pub fn socket_cookie(&self) -> u64 {
        // SAFETY: the context as the kernel gave it.
        unsafe { bpf_get_socket_cookie(self.0.cast()) }
    }
}

/// `struct sockaddr_in`.
#[repr(C)]
pub struct Sockaddr4 {
    pub family: u16,
    /// In network byte order.
    pub port: u16,
    /// In network byte order.
    pub addr: u32,
    pub zero: [u32; 2],
}

/// `struct sockaddr_in6`.
#[repr(C)]
pub struct Sockaddr6 {
    pub family: u16,
    /// In network byte order.
    pub port: u16,
    pub flow: u32,
    pub addr: Addr,
    pub scope: u32,
}

/// An event in a TCP socket's life.
pub struct SockOps(*mut bpf_sock_ops);

impl SockOps {
    #[inline(always)]
    pub fn new(ctx: &SockOpsContext) -> Self {
        Self(ctx.ops)
    }

    #[inline(always)]
    pub fn op(&self) -> u32 {
        get!(self.0, op)
    }

    /// The state that a state event tells of.
    #[inline(always)]
    pub fn new_state(&self) -> u32 {
        get!(self.0, __bindgen_anon_1.args[1])
    }

    /// Null for an event of a connection request, which has no socket yet.
    #[inline(always)]
    pub fn socket(&self) -> *mut bpf_sock {
        get!(self.0, __bindgen_anon_2.sk)
    }

    /// Local and remote address. An IPv6 socket with an IPv4 peer gives IPv4: its IPv6 fields are not all set at connect.
    #[inline(always)]
    pub fn addrs(&self) -> (Addr, Addr) {
        if get!(self.0, family) == u32::from(AF_INET6) {
            let remote = Addr([
                get!(self.0, remote_ip6[0]),
                get!(self.0, remote_ip6[1]),
                get!(self.0, remote_ip6[2]),
                get!(self.0, remote_ip6[3]),
            ]);
            if !remote.is_v4() {
                let local = Addr([
                    get!(self.0, local_ip6[0]),
                    get!(self.0, local_ip6[1]),
                    get!(self.0, local_ip6[2]),
                    get!(self.0, local_ip6[3]),
                ]);
                return (local, remote);
            }
        }
        (
            Addr::from_v4_be(get!(self.0, local_ip4)),
            Addr::from_v4_be(get!(self.0, remote_ip4)),
        )
    }

    /// Local and remote port in host byte order.
    #[inline(always)]
    pub fn ports(&self) -> (u16, u16) {
        // The kernel gives the local one in host order, the remote one in the upper half of a word in network order.
        (
            get!(self.0, local_port) as u16,
            u32::from_be(get!(self.0, remote_port)) as u16,
        )
    }

    #[inline(always)]
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: the context as the kernel gave it.
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }

    #[inline(always)]
    pub fn socket_cookie(&self) -> u64 {
        // SAFETY: the context as the kernel gave it.
        unsafe { bpf_get_socket_cookie(self.0.cast()) }
    }

    /// Asks for an event at each change of state from now on.
    #[inline(always)]
    pub fn watch_state(&self) {
        let flags = get!(self.0, bpf_sock_ops_cb_flags) | BPF_SOCK_OPS_STATE_CB_FLAG;
        // SAFETY: the context as the kernel gave it.
        unsafe { bpf_sock_ops_cb_flags_set(self.0, flags as i32) };
    }

    /// Has seen enough of them.
    #[inline(always)]
    pub fn ignore_state(&self) {
        let flags = get!(self.0, bpf_sock_ops_cb_flags) & !BPF_SOCK_OPS_STATE_CB_FLAG;
        // SAFETY: the context as the kernel gave it.
        unsafe { bpf_sock_ops_cb_flags_set(self.0, flags as i32) };
    }
}

/// The mark of a connection, which is that of its SYN where the namespace says so (`tcp_fwmark_accept`). Not for null.
#[inline(always)]
pub fn mark_of(socket: *mut bpf_sock) -> u32 {
    get!(socket, mark)
}

/// A call of getsockopt, after the kernel has answered it.
pub struct Sockopt(*mut bpf_sockopt);

impl Sockopt {
    #[inline(always)]
    pub fn new(ctx: &SockoptContext) -> Self {
        Self(ctx.sockopt)
    }

    #[inline(always)]
    pub fn level(&self) -> i32 {
        get!(self.0, level)
    }

    #[inline(always)]
    pub fn option(&self) -> i32 {
        get!(self.0, optname)
    }

    #[inline(always)]
    pub fn socket(&self) -> *mut bpf_sock {
        get!(self.0, __bindgen_anon_1.sk)
    }

    /// The caller's buffer, in bytes.
    #[inline(always)]
    pub fn len(&self) -> i32 {
        get!(self.0, optlen)
    }

    /// Answers with `value`; false if the buffer is too small.
    #[inline(always)]
    pub fn answer<T>(&self, value: T) -> bool {
        let start = get!(self.0, __bindgen_anon_2.optval) as *mut u8;
        let end = get!(self.0, __bindgen_anon_3.optval_end) as *mut u8;
        // SAFETY: the comparison bounds the write, which is what the verifier wants to see.
        unsafe {
            if start.add(size_of::<T>()) > end {
                return false;
            }
            start.cast::<T>().write_unaligned(value);
        }
        set!(self.0, optlen)(size_of::<T>() as i32);
        set!(self.0, retval)(0);
        true
    }

    /// The number that the caller gives, if it is one.
    #[inline(always)]
    pub fn value(&self) -> Option<u32> {
        let start = get!(self.0, __bindgen_anon_2.optval) as *const u8;
        let end = get!(self.0, __bindgen_anon_3.optval_end) as *const u8;
        // SAFETY: the comparison bounds the read, which is what the verifier wants to see.
        unsafe {
            if start.add(size_of::<u32>()) > end {
                return None;
            }
            Some(start.cast::<u32>().read_unaligned())
        }
    }

    #[inline(always)]
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: the context as the kernel gave it.
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }

    /// Leaves the answer as the kernel gave it, or the value as the caller did. For a buffer of over a page, older kernels want to be told that.
    #[inline(always)]
    pub fn leave(&self) {
        const PAGE: i32 = 4096;
        if self.len() > PAGE {
            set!(self.0, optlen)(0);
        }
    }
}

/// A packet for which the kernel looks for a socket.
pub struct SkLookup(*mut bpf_sk_lookup);

impl SkLookup {
    #[inline(always)]
    pub fn new(ctx: &SkLookupContext) -> Self {
        Self(ctx.lookup)
    }

    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        get!(self.0, protocol) == IPPROTO_TCP
    }

    /// Local and remote address.
    #[inline(always)]
    pub fn addrs(&self) -> (Addr, Addr) {
        if get!(self.0, family) == u32::from(AF_INET) {
            let (local, remote) = (get!(self.0, local_ip4), get!(self.0, remote_ip4));
            end_of_branch();
            return (Addr::from_v4_be(local), Addr::from_v4_be(remote));
        }
        let local = Addr([
            get!(self.0, local_ip6[0]),
            get!(self.0, local_ip6[1]),
            get!(self.0, local_ip6[2]),
            get!(self.0, local_ip6[3]),
        ]);
        let remote = Addr([
            get!(self.0, remote_ip6[0]),
            get!(self.0, remote_ip6[1]),
            get!(self.0, remote_ip6[2]),
            get!(self.0, remote_ip6[3]),
        ]);
        (local, remote)
    }

    /// Local and remote port in host byte order.
    #[inline(always)]
    pub fn ports(&self) -> (u16, u16) {
        // The kernel gives the local one in host order.
        (
            get!(self.0, local_port) as u16,
            u16::from_be(get!(self.0, remote_port)),
        )
    }
}
