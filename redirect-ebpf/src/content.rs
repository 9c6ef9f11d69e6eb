//! Reads what is in a packet: from the frame itself, since a packet socket may say anything else of what it sends.

use redirect_common::guard::{Content, rules};

use crate::ctx::Packet;

/// What is in the packet; `None` if it ends too early.
#[inline(always)]
pub fn content(packet: &Packet, rules: u32) -> Option<Content> {
    const ETHERNET: u32 = 14;
    if rules & rules::NO_ETHERNET != 0 {
        return match packet.bytes::<1>(0)?[0] >> 4 {
            4 => ipv4(packet, 0),
            6 => ipv6(packet, 0),
            _ => None,
        };
    }
    match u16::from_be_bytes(packet.bytes(ETHERNET - 2)?) {
        0x0800 => ipv4(packet, ETHERNET),
        0x86dd => ipv6(packet, ETHERNET),
        other => Some(Content::of_frame(other)),
    }
}

#[inline(always)]
fn ipv4(packet: &Packet, at: u32) -> Option<Content> {
    let header: [u8; 20] = packet.bytes(at)?;
    let length = u32::from(header[0] & 15) * 4;
    if header[0] >> 4 != 4 || length < 20 {
        return None;
    }
    let is_later = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
    transport(packet, header[9], at + length, is_later)
}

#[inline(always)]
fn ipv6(packet: &Packet, at: u32) -> Option<Content> {
    /// More than anybody uses (RFC 8504 section 5.3 lets hosts drop what has more than 8).
    const MOST_HEADERS: u32 = 8;
    let header: [u8; 40] = packet.bytes(at)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let (mut protocol, mut at, mut is_later) = (header[6], at + 40, false);
    for _ in 0..MOST_HEADERS {
        match protocol {
            // Hop-by-hop and destination options, routing, mobility, HIP, Shim6.
            0 | 43 | 60 | 135 | 139 | 140 => {
                let [next, length] = packet.bytes(at)?;
                protocol = next;
                at += (u32::from(length) + 1) * 8;
            }
            // Fragment. What follows in a later one is not a header.
            44 if !is_later => {
                let [next, _, high, low] = packet.bytes(at)?;
                is_later = u16::from_be_bytes([high, low]) & !7 != 0;
                protocol = next;
                at += 8;
                if is_later {
                    break;
                }
            }
            _ => return transport(packet, protocol, at, is_later),
        }
    }
    if is_later {
        return transport(packet, protocol, at, is_later);
    }
    None
}

#[inline(always)]
fn transport(packet: &Packet, protocol: u8, at: u32, is_later: bool) -> Option<Content> {
    match protocol {
        6 if is_later => Some(Content::TcpFragment),
        6 => tcp(packet, at),
        // UDP and UDP-Lite.
        17 | 136 if is_later => Some(Content::Udp { dst_port: 0 }),
        17 | 136 => {
            let [_, _, high, low] = packet.bytes(at)?;
            Some(Content::Udp {
                dst_port: u16::from_be_bytes([high, low]),
            })
        }
        other => Some(Content::of_protocol(other)),
    }
}

#[inline(always)]
fn tcp(packet: &Packet, at: u32) -> Option<Content> {
    let header: [u8; 20] = packet.bytes(at)?;
    let length = u32::from(header[12] >> 4) * 4;
    if length < 20 || at + length > packet.len() {
        return None;
    }
    Some(Content::Tcp {
        flags: header[13],
        has_data: packet.len() > at + length,
    })
}
