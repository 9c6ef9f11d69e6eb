//! Connections that are older than capture: reset, so that apps make them anew, through the proxy.
//!
//! By sock_diag(7): a list of the TCP sockets of a network namespace, and a request to end one (INET_DIAG_DESTROY).

use std::io;

use nix::libc;
use redirect_common::{Addr, decide, ports};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

use super::CaptureError;
use crate::sys::netns::Netns;

/// Message types (kernel: include/uapi/linux/sock_diag.h).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// States of connections (kernel: include/net/tcp_states.h): all but TIME_WAIT, CLOSE, LISTEN.
const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// Sizes of `struct nlmsghdr`, `struct inet_diag_req_v2` and the `struct inet_diag_sockid` in it.
const HEADER: usize = 16;
const REQUEST: usize = 56;
const ID: usize = 48;
/// Where the id begins in a request, and in `struct inet_diag_msg`, of which all else is left alone.
const ID_IN_REQUEST: usize = 8;
const ID_IN_ANSWER: usize = 4;

/// A TCP connection of the namespace, as the kernel calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Connection {
    family: u8,
    id: [u8; ID],
}

impl Connection {
    /// From what follows the header of an answer.
    fn parse(answer: &[u8]) -> Option<Self> {
        let id = answer.get(ID_IN_ANSWER..ID_IN_ANSWER + ID)?;
        Some(Self {
            family: *answer.first()?,
            id: id.try_into().ok()?,
        })
    }

    fn local_port(&self) -> u16 {
        u16::from_be_bytes([self.id[0], self.id[1]])
    }

    fn local(&self) -> Addr {
        self.addr(4)
    }

    fn remote(&self) -> Addr {
        self.addr(20)
    }

    fn addr(&self, at: usize) -> Addr {
        let mut octets = [0; 16];
        octets.copy_from_slice(&self.id[at..at + 16]);
        if i32::from(self.family) == libc::AF_INET {
            let [a, b, c, d, ..] = octets;
            return std::net::Ipv4Addr::new(a, b, c, d).into();
        }
        Addr::from_octets(octets)
    }

    /// Whether it leaves the namespace, and not by the proxy: to loopback and to itself a pod speaks without it.
    fn is_to_be_reset(&self) -> bool {
        !ports::IN_POD.contains(&self.local_port())
            && decide::exempt_destination(&self.remote()).is_none()
            && self.local() != self.remote()
    }
}

/// Resets the connections of the namespace that left it before capture began; returns how many.
pub fn reset(netns: &Netns) -> Result<usize, CaptureError> {
    let reset = || -> io::Result<usize> {
        let mut count = 0;
        for family in [libc::AF_INET, libc::AF_INET6] {
            for connection in list(family as u8)? {
                count += usize::from(connection.is_to_be_reset() && destroy(&connection)?);
            }
        }
        Ok(count)
    };
    let result = netns.run(reset).and_then(|result| result);
    result.map_err(|error| {
        let object = format!("the older connections of {}", netns.path().display());
        CaptureError::kernel("reset", object, &error)
    })
}

fn list(family: u8) -> io::Result<Vec<Connection>> {
    let any = Connection {
        family,
        id: [0; ID],
    };
    let dump = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let answers = exchange(&message(SOCK_DIAG_BY_FAMILY, dump, &any))?;
    Ok(answers
        .iter()
        .filter_map(|answer| Connection::parse(answer))
        .collect())
}

/// False if it has ended by itself meanwhile.
fn destroy(connection: &Connection) -> io::Result<bool> {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    match exchange(&message(SOCK_DESTROY, flags, connection)) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        result => result.map(|_| true),
    }
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn message(kind: u16, flags: u16, connection: &Connection) -> Vec<u8> {
    let length = HEADER + REQUEST;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([connection.family, libc::IPPROTO_TCP as u8, 0, 0]);
    bytes.extend(CONNECTED.to_ne_bytes());
    debug_assert_eq!(bytes.len(), HEADER + ID_IN_REQUEST);
    bytes.extend(connection.id);
    bytes
}

/// Sends one message and reads until it has been answered for good: what follows the header of each answer.
fn exchange(message: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(message, 0)?;
    let mut answers = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = &bytes[..];
        while let Some((kind, body, after)) = split(rest) {
            rest = after;
            match i32::from(kind) {
                libc::NLMSG_ERROR => {
                    return match errno(body) {
                        0 => Ok(answers),
                        errno => Err(io::Error::from_raw_os_error(errno)),
                    };
                }
                libc::NLMSG_DONE => return Ok(answers),
                _ => answers.push(body.to_vec()),
            }
        }
    }
}

/// Type and body of the first message, and what follows it.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(HEADER..length)?;
    // Messages lie at multiples of four bytes (NLMSG_ALIGN).
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body, after))
}

/// Of `struct nlmsgerr`, which has it negative.
fn errno(body: &[u8]) -> i32 {
    let negative = body
        .get(..4)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes);
    negative.map_or(libc::EBADMSG, |negative| -negative)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use super::*;

    fn connection(local: &str, remote: &str) -> Connection {
        let (local, remote): (SocketAddr, SocketAddr) =
            (local.parse().unwrap(), remote.parse().unwrap());
        let octets = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => {
                let [a, b, c, d] = ip.octets();
                [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
            }
            IpAddr::V6(ip) => ip.octets(),
        };
        let mut id = [0; ID];
        id[..2].copy_from_slice(&local.port().to_be_bytes());
        id[2..4].copy_from_slice(&remote.port().to_be_bytes());
        id[4..20].copy_from_slice(&octets(local.ip()));
        id[20..36].copy_from_slice(&octets(remote.ip()));
        let family = if local.is_ipv4() { 2 } else { 10 };
        Connection { family, id }
    }

    #[test]
    fn which_connections_are_reset() {
        for (name, local, remote, expected) in [
            ("to another pod", "10.0.0.1:40000", "10.0.0.2:80", true),
            ("from another pod", "10.0.0.1:80", "10.0.0.2:40000", true),
            ("IPv6", "[fd00::1]:40000", "[fd00::2]:80", true),
            (
                "v4-mapped",
                "[::ffff:10.0.0.1]:80",
                "[::ffff:10.0.0.2]:40000",
                true,
            ),
            ("loopback", "127.0.0.1:40000", "127.0.0.1:80", false),
            (
                "mapped loopback",
                "[::ffff:127.0.0.1]:1",
                "[::ffff:127.0.0.1]:2",
                false,
            ),
            ("to itself", "10.0.0.1:40000", "10.0.0.1:80", false),
            ("captured", "10.0.0.1:40000", "127.128.0.9:15001", false),
            (
                "captured IPv6",
                "[fd00::1]:40000",
                "[fd72:6472:6374::9]:15001",
                false,
            ),
            ("HBONE", "10.0.0.1:15008", "10.0.0.2:40000", false),
        ] {
            assert_eq!(
                connection(local, remote).is_to_be_reset(),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn messages_are_split_at_their_lengths() {
        let one = connection("10.0.0.1:1", "10.0.0.2:2");
        let mut bytes = message(SOCK_DESTROY, 5, &one);
        assert_eq!(bytes.len(), 72);
        bytes.extend(message(SOCK_DIAG_BY_FAMILY, 5, &one));
        let (kind, body, rest) = split(&bytes).unwrap();
        assert_eq!((kind, body.len(), rest.len()), (SOCK_DESTROY, 56, 72));
        assert_eq!(body[ID_IN_REQUEST..], one.id);
        assert!(split(&bytes[..71]).is_none() && split(&[]).is_none());
        assert_eq!(errno(&(-2_i32).to_ne_bytes()), 2);
    }
}
