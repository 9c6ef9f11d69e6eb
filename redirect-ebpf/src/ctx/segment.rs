//! A packet on the node's side of a pod's interface, and the TCP segment in it.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_CURRENT_NETNS, BPF_F_INGRESS, bpf_sock, bpf_sock_tuple},
    helpers::generated::{
        bpf_redirect, bpf_sk_assign, bpf_sk_release, bpf_skb_change_type, bpf_skc_lookup_tcp,
    },
    programs::TcContext,
};
use redirect_common::{Addr, maps::PassKey, node::Segment};

use super::Packet;

const ETHERNET: u32 = 14;
const TCP: u8 = 6;
const TCP_TIME_WAIT: u32 = 6;
const TCP_LISTEN: u32 = 10;
/// For this host (kernel: include/uapi/linux/if_packet.h).
const PACKET_HOST: u32 = 0;

/// A packet with its headers where they usually are.
pub struct NodePacket {
    pub(super) skb: *mut __sk_buff,
    pub packet: Packet,
}

/// What the kernel looks a connection up by: the packet's source is the other end.
#[repr(C)]
struct Tuple4 {
    src: u32,
    dst: u32,
    src_port: u16,
    dst_port: u16,
}

#[repr(C)]
struct Tuple6 {
    src: [u32; 4],
    dst: [u32; 4],
    src_port: u16,
    dst_port: u16,
}

impl NodePacket {
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Self {
        Self {
            skb: ctx.skb.skb,
            packet: Packet::new(ctx.skb.skb),
        }
    }

    /// Of the interface that runs the program.
    #[inline(always)]
    pub fn interface(&self) -> u32 {
        get!(self.skb, ifindex)
    }

    #[inline(always)]
    pub fn mark(&self) -> u32 {
        get!(self.skb, mark)
    }

    /// The TCP segment of an Ethernet frame that is neither a fragment nor has IPv6 extension headers. `None` for all else.
    #[inline(always)]
    pub fn segment(&self) -> Option<Segment> {
        match u16::from_be_bytes(self.packet.bytes(ETHERNET - 2)?) {
            0x0800 => self.segment4(),
            0x86dd => self.segment6(),
            _ => None,
        }
    }

    #[inline(always)]
    fn segment4(&self) -> Option<Segment> {
        /// More fragments, and the offset of this one.
        const FRAGMENT: u16 = 0x3fff;
        let header: [u32; 5] = words(&self.packet.bytes::<20>(ETHERNET)?);
        let first = header[0].to_ne_bytes();
        let length = u32::from(first[0] & 15) * 4;
        let is_fragment = u16::from_be(second(header[1])) & FRAGMENT != 0;
        let protocol = header[2].to_ne_bytes()[1];
        if protocol != TCP || is_fragment || length < 20 {
            return None;
        }
        let (src, dst) = (Addr::from_v4_be(header[3]), Addr::from_v4_be(header[4]));
        self.ports(ETHERNET + length, src, dst)
    }

    #[inline(always)]
    fn segment6(&self) -> Option<Segment> {
        const HEADER: u32 = 40;
        let [.., next, _] = self.packet.bytes::<8>(ETHERNET)?;
        if next != TCP {
            return None;
        }
        let src = Addr(words(&self.packet.bytes::<16>(ETHERNET + 8)?));
        let dst = Addr(words(&self.packet.bytes::<16>(ETHERNET + 24)?));
        self.ports(ETHERNET + HEADER, src, dst)
    }

    #[inline(always)]
    fn ports(&self, at: u32, src: Addr, dst: Addr) -> Option<Segment> {
        let header: [u8; 14] = self.packet.bytes(at)?;
        Some(Segment {
            flow: PassKey {
                src,
                dst,
                src_port: u16::from_be_bytes([header[0], header[1]]),
                dst_port: u16::from_be_bytes([header[2], header[3]]),
            },
            flags: header[13],
        })
    }

    /// Whether a socket in the node's namespace is this segment's connection. Not a listener, which may be anybody's; nor one
    /// in TIME_WAIT, if the segment begins another connection.
    #[inline(always)]
    pub fn has_connection(&self, segment: &Segment) -> bool {
        let socket = self.connection(segment);
        if socket.is_null() {
            return false;
        }
        // SAFETY: the reference that the lookup took.
        unsafe { bpf_sk_release(socket.cast()) };
        true
    }

    /// Gives the packet to the socket that is its connection. False if there is none.
    #[inline(always)]
    pub fn assign_connection(&self, segment: &Segment) -> bool {
        let socket = self.connection(segment);
        if socket.is_null() {
            return false;
        }
        self.assign(socket)
    }

    /// Gives the packet to `socket`, and releases that.
    #[inline(always)]
    pub fn assign(&self, socket: *mut bpf_sock) -> bool {
        // SAFETY: a packet and a socket that the kernel gave; the reference is not used any more.
        unsafe {
            let assigned = bpf_sk_assign(self.skb.cast(), socket.cast(), 0);
            bpf_sk_release(socket.cast());
            assigned == 0
        }
    }

    /// With a reference, or null.
    #[inline(always)]
    fn connection(&self, segment: &Segment) -> *mut bpf_sock {
        let socket = self.look_up(&segment.flow);
        if socket.is_null() {
            return socket;
        }
        let state = get!(socket, state);
        if state == TCP_LISTEN || (state == TCP_TIME_WAIT && segment.is_first()) {
            // SAFETY: the reference that the lookup took.
            unsafe { bpf_sk_release(socket.cast()) };
            return core::ptr::null_mut();
        }
        socket
    }

    #[inline(always)]
    fn look_up(&self, flow: &PassKey) -> *mut bpf_sock {
        let (src_port, dst_port) = (flow.src_port.to_be(), flow.dst_port.to_be());
        if flow.dst.is_v4() {
            let tuple = Tuple4 {
                src: flow.src.v4_be(),
                dst: flow.dst.v4_be(),
                src_port,
                dst_port,
            };
            return self.look_up_tuple(&tuple);
        }
        let tuple = Tuple6 {
            src: flow.src.0,
            dst: flow.dst.0,
            src_port,
            dst_port,
        };
        self.look_up_tuple(&tuple)
    }

    #[inline(always)]
    fn look_up_tuple<T>(&self, tuple: &T) -> *mut bpf_sock {
        let tuple_at = core::ptr::from_ref(tuple)
            .cast_mut()
            .cast::<bpf_sock_tuple>();
        let netns = i64::from(BPF_F_CURRENT_NETNS) as u64;
        // SAFETY: the packet as the kernel gave it, and a tuple of the size that it says.
        unsafe { bpf_skc_lookup_tcp(self.skb.cast(), tuple_at, size_of::<T>() as u32, netns, 0) }
    }

    /// Marks the packet, and lets it arrive once more, at `interface`. Gives the verdict for that.
    #[inline(always)]
    pub fn deliver(&self, mark: u32, interface: u32) -> i32 {
        self.set_mark(mark);
        // SAFETY: a helper that takes numbers.
        unsafe { bpf_redirect(interface, u64::from(BPF_F_INGRESS)) as i32 }
    }

    #[inline(always)]
    pub fn set_mark(&self, mark: u32) {
        set!(self.skb, mark)(mark);
    }

    /// Takes the frame for one that is for this host, whatever its Ethernet address.
    #[inline(always)]
    pub fn accept(&self) {
        // SAFETY: the packet as the kernel gave it.
        unsafe { bpf_skb_change_type(self.skb, PACKET_HOST) };
    }
}

/// The second half of a word, as it lies in memory.
#[inline(always)]
fn second(word: u32) -> u16 {
    let [_, _, a, b] = word.to_ne_bytes();
    u16::from_ne_bytes([a, b])
}

#[inline(always)]
fn words<const BYTES: usize, const WORDS: usize>(bytes: &[u8; BYTES]) -> [u32; WORDS] {
    core::array::from_fn(|i| {
        u32::from_ne_bytes([
            bytes[4 * i],
            bytes[4 * i + 1],
            bytes[4 * i + 2],
            bytes[4 * i + 3],
        ])
    })
}
