//! As much of the pcap file format as the demo needs: whose ports, which TLS records, which text.

use std::collections::BTreeMap;

/// What is in a capture of TCP on Ethernet.
#[derive(Debug, Default)]
pub struct Capture {
    pub packets: usize,
    /// Packets by the lower of their two ports.
    pub ports: BTreeMap<u16, usize>,
    /// Packets whose payload begins with a TLS handshake record, and with one of application data.
    pub handshakes: usize,
    pub data: usize,
    bytes: Vec<u8>,
}

/// Reads what tcpdump has written until now; a packet that is not whole yet is left out.
pub fn read(file: &[u8]) -> Capture {
    let mut capture = Capture {
        bytes: file.to_vec(),
        ..Capture::default()
    };
    let mut rest = file.get(24..).unwrap_or_default();
    while let Some((head, after)) = rest.split_at_checked(16) {
        // tcpdump writes in the byte order of this machine.
        let length = u32::from_ne_bytes([head[8], head[9], head[10], head[11]]) as usize;
        let Some((packet, next)) = after.split_at_checked(length) else {
            break;
        };
        rest = next;
        if let Some((ports, payload)) = tcp(packet) {
            capture.packets += 1;
            *capture.ports.entry(ports).or_default() += 1;
            match payload {
                [0x16, 3, ..] => capture.handshakes += 1,
                [0x17, 3, 3, ..] => capture.data += 1,
                _ => {}
            }
        }
    }
    capture
}

impl Capture {
    pub fn of_port(&self, port: u16) -> usize {
        self.ports.get(&port).copied().unwrap_or(0)
    }

    pub fn contains(&self, text: &str) -> bool {
        self.bytes
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    }
}

/// The lower port and the payload of a TCP segment in an Ethernet frame.
fn tcp(frame: &[u8]) -> Option<(u16, &[u8])> {
    let packet = frame.get(14..)?;
    let (segment, protocol) = match frame[12..14] {
        [0x08, 0x00] => {
            let header = usize::from(packet.first()? & 15) * 4;
            let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
            (
                packet.get(header..total.max(header).min(packet.len()))?,
                *packet.get(9)?,
            )
        }
        [0x86, 0xdd] => (packet.get(40..)?, *packet.get(6)?),
        _ => return None,
    };
    if protocol != 6 {
        return None;
    }
    let port = |at: usize| {
        Some(u16::from_be_bytes([
            *segment.get(at)?,
            *segment.get(at + 1)?,
        ]))
    };
    let header = usize::from(segment.get(12)? >> 4) * 4;
    Some((port(0)?.min(port(2)?), segment.get(header..)?))
}
