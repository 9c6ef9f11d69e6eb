//! HTTP/2 frames by hand (RFC 9113), for clients that do what no library would.

use std::net::SocketAddr;

/// What a client sends first, with empty SETTINGS.
pub fn preface() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(settings());
    bytes
}

pub fn settings() -> Vec<u8> {
    frame(0x4, 0, 0, &[])
}

pub fn ping(number: u64) -> Vec<u8> {
    frame(0x6, 0, 0, &number.to_be_bytes())
}

/// HEADERS; `end` of the header block, never of the stream.
pub fn headers(stream: u32, block: &[u8], end: bool) -> Vec<u8> {
    frame(0x1, if end { 0x4 } else { 0 }, stream, block)
}

pub fn continuation(stream: u32, block: &[u8], end: bool) -> Vec<u8> {
    frame(0x9, if end { 0x4 } else { 0 }, stream, block)
}

/// RST_STREAM with CANCEL.
pub fn reset(stream: u32) -> Vec<u8> {
    frame(0x3, 0, stream, &8u32.to_be_bytes())
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short");
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header block that asks for CONNECT to `authority`.
pub fn connect_block(authority: SocketAddr) -> Vec<u8> {
    let mut block = literal(":method", "CONNECT");
    block.extend(literal(":authority", &authority.to_string()));
    block
}

/// A literal header field without indexing and with a new name (RFC 7541, 6.2.2).
pub fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        length(text.len(), &mut bytes);
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// An integer with a 7-bit prefix (RFC 7541, 5.1).
fn length(mut value: usize, bytes: &mut Vec<u8>) {
    if value < 127 {
        bytes.push(value as u8);
        return;
    }
    bytes.push(127);
    value -= 127;
    while value >= 128 {
        bytes.push((value % 128 + 128) as u8);
        value /= 128;
    }
    bytes.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_as_in_the_rfc() {
        for (value, want) in [
            (10, vec![10]),
            (126, vec![126]),
            (127, vec![127, 0]),
            (1337, vec![127, 186, 9]),
        ] {
            let mut bytes = Vec::new();
            length(value, &mut bytes);
            assert_eq!(bytes, want, "{value}");
        }
    }

    #[test]
    fn frames_have_their_nine_bytes() {
        assert_eq!(reset(3), [0, 0, 4, 3, 0, 0, 0, 0, 3, 0, 0, 0, 8]);
    }
}
