//! Turns a TCP segment into the reset that answers it.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    bindings::BPF_F_RECOMPUTE_CSUM,
    helpers::generated::{bpf_skb_change_tail, bpf_skb_store_bytes},
};
use redirect_common::node::{Answer, Segment};

use super::NodePacket;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP: usize = 20;

impl NodePacket {
    /// Makes the reset that answers the segment out of it. The Ethernet header stays. `None` if that cannot be done.
    #[inline(always)]
    pub fn reset(&self, segment: &Segment) -> Option<()> {
        match segment.flow.dst.is_v4() {
            true => self.reset4(segment),
            false => self.reset6(segment),
        }
    }

    #[inline(always)]
    fn reset4(&self, segment: &Segment) -> Option<()> {
        const LEN: usize = IPV4 + TCP;
        let ip: [u8; IPV4] = self.packet.bytes(ETHERNET as u32)?;
        let header = u32::from(ip[0] & 15) * 4;
        let length = u32::from(u16::from_be_bytes([ip[2], ip[3]]));
        let answer = self.answer(
            segment,
            ETHERNET as u32 + header,
            length.checked_sub(header)?,
        )?;
        let mut reset = [0; LEN];
        let at = 0;
        reset[at] = 0x45;
        reset[at + 3] = (IPV4 + TCP) as u8;
        // Do not fragment; 64 hops.
        reset[at + 6] = 0x40;
        reset[at + 8] = 64;
        reset[at + 9] = 6;
        copy::<4>(&mut reset, at + 12, &ip, 16);
        copy::<4>(&mut reset, at + 16, &ip, 12);
        let check = fold(sum::<IPV4>(&reset, at));
        reset[at + 10] = (check >> 8) as u8;
        reset[at + 11] = check as u8;
        // Of the pseudo header (RFC 9293 section 3.1): both addresses, protocol, length.
        let pseudo = sum::<8>(&reset, at + 12) + 6 + TCP as u32;
        tcp(&mut reset, at + IPV4, segment, &answer, pseudo);
        self.replace(&reset)
    }

    #[inline(always)]
    fn reset6(&self, segment: &Segment) -> Option<()> {
        const LEN: usize = IPV6 + TCP;
        let ip: [u8; IPV6] = self.packet.bytes(ETHERNET as u32)?;
        let length = u32::from(u16::from_be_bytes([ip[4], ip[5]]));
        let answer = self.answer(segment, (ETHERNET + IPV6) as u32, length)?;
        let mut reset = [0; LEN];
        let at = 0;
        reset[at] = 0x60;
        reset[at + 5] = TCP as u8;
        reset[at + 6] = 6;
        reset[at + 7] = 64;
        copy::<16>(&mut reset, at + 8, &ip, 24);
        copy::<16>(&mut reset, at + 24, &ip, 8);
        let pseudo = sum::<32>(&reset, at + 8) + 6 + TCP as u32;
        tcp(&mut reset, at + IPV6, segment, &answer, pseudo);
        self.replace(&reset)
    }

    /// What to answer to the segment, whose header is at `at`, and which has `length` bytes with it.
    #[inline(always)]
    fn answer(&self, segment: &Segment, at: u32, length: u32) -> Option<Answer> {
        let header: [u8; 13] = self.packet.bytes(at)?;
        let word = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let offset = u32::from(header[12] >> 4) * 4;
        Some(segment.answer(word(4), word(8), length.checked_sub(offset)?))
    }

    /// Makes `bytes` all that follows the Ethernet header.
    #[inline(always)]
    fn replace<const N: usize>(&self, bytes: &[u8; N]) -> Option<()> {
        // SAFETY: the packet as the kernel gave it, and a buffer of the length that it is told.
        let failed = unsafe {
            bpf_skb_change_tail(self.skb, (ETHERNET + N) as u32, 0) != 0
                || bpf_skb_store_bytes(
                    self.skb.cast(),
                    ETHERNET as u32,
                    bytes.as_ptr().cast(),
                    N as u32,
                    u64::from(BPF_F_RECOMPUTE_CSUM),
                ) != 0
        };
        (!failed).then_some(())
    }
}

/// The TCP header of a reset, at `at`.
#[inline(always)]
fn tcp<const N: usize>(
    reset: &mut [u8; N],
    at: usize,
    segment: &Segment,
    answer: &Answer,
    pseudo: u32,
) {
    copy::<2>(reset, at, &segment.flow.dst_port.to_be_bytes(), 0);
    copy::<2>(reset, at + 2, &segment.flow.src_port.to_be_bytes(), 0);
    copy::<4>(reset, at + 4, &answer.sequence.to_be_bytes(), 0);
    copy::<4>(reset, at + 8, &answer.acknowledged.to_be_bytes(), 0);
    reset[at + 12] = (TCP as u8 / 4) << 4;
    reset[at + 13] = answer.flags;
    let check = fold(pseudo + sum::<TCP>(reset, at));
    reset[at + 16] = (check >> 8) as u8;
    reset[at + 17] = check as u8;
}

/// Byte by byte and volatile: the compiler otherwise makes a call of it.
#[inline(always)]
fn copy<const N: usize>(to: &mut [u8], at: usize, from: &[u8], from_at: usize) {
    for i in 0..N {
        // SAFETY: a reference.
        to[at + i] = unsafe { read_volatile(addr_of!(from[from_at + i])) };
    }
}

/// The sum of big-endian words.
#[inline(always)]
fn sum<const N: usize>(bytes: &[u8], at: usize) -> u32 {
    let mut sum = 0;
    for i in 0..N / 2 {
        sum += u32::from(bytes[at + 2 * i]) << 8 | u32::from(bytes[at + 2 * i + 1]);
    }
    sum
}

/// The checksum for a sum (RFC 1071).
#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}
