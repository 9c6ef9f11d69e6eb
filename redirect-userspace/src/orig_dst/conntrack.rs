//! Which DNS server an app asked, where netfilter redirected the query: there is no `SO_ORIGINAL_DST` for UDP, but the kernel's
//! connection tracking can be asked for the same (nfnetlink_conntrack).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use nix::libc;
use rtnetlink::sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_NETFILTER};

use super::dns::{AskedServer, DnsServers};
use crate::sys::netns::Netns;

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET`.
const GET: u16 = 1 << 8 | 1;
const REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NESTED: u16 = 1 << 15;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4: (u16, u16) = (1, 2);
const CTA_IP_V6: (u16, u16) = (3, 4);
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// Asks the connection tracking of each namespace.
pub struct Conntrack;

struct InNamespace(Socket);

impl DnsServers for Conntrack {
    fn open(&self, netns: &Netns) -> io::Result<Box<dyn AskedServer>> {
        // A netlink socket belongs to the namespace that it was made in.
        netns.enter()?;
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddr::new(0, 0))?;
        // The kernel answers before `send` returns; waiting would be for nothing.
        socket.set_non_blocking(true)?;
        Ok(Box::new(InNamespace(socket)))
    }

    fn name(&self) -> &'static str {
        "conntrack"
    }
}

impl AskedServer for InNamespace {
    fn find(&self, client: SocketAddr, local: SocketAddr) -> io::Result<Option<SocketAddr>> {
        let socket = &self.0;
        // What an earlier call may have left unread.
        while socket.recv_from_full().is_ok() {}
        socket.send(&request(local, client), 0)?;
        let (answer, _) = socket.recv_from_full()?;
        read(&answer)
    }
}

/// Asks for the connection whose replies go from `from` to `to`.
fn request(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let family = if from.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let (source, destination) = if from.is_ipv4() { CTA_IP_V4 } else { CTA_IP_V6 };
    let addresses = [
        attribute(source, &octets(from.ip())),
        attribute(destination, &octets(to.ip())),
    ];
    let protocol = [
        attribute(CTA_PROTO_NUM, &[libc::IPPROTO_UDP as u8]),
        attribute(CTA_PROTO_SRC_PORT, &from.port().to_be_bytes()),
        attribute(CTA_PROTO_DST_PORT, &to.port().to_be_bytes()),
    ];
    let tuple = [
        attribute(CTA_TUPLE_IP | NESTED, &addresses.concat()),
        attribute(CTA_TUPLE_PROTO | NESTED, &protocol.concat()),
    ];
    let tuple = attribute(CTA_TUPLE_REPLY | NESTED, &tuple.concat());
    // struct nlmsghdr, struct nfgenmsg.
    let length = 16 + 4 + tuple.len() as u32;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(GET.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family as u8, 0, 0, 0]);
    message.extend(tuple);
    message
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len() as u16;
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The original destination in the kernel's answer.
fn read(message: &[u8]) -> io::Result<Option<SocketAddr>> {
    let kind = message.get(4..6).map(|b| u16::from_ne_bytes([b[0], b[1]]));
    let body = message.get(16..).unwrap_or_default();
    if kind == Some(NLMSG_ERROR) {
        let code = body
            .get(..4)
            .map_or(0, |b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
        return match -code {
            0 | libc::ENOENT => Ok(None),
            errno => Err(io::Error::from_raw_os_error(errno)),
        };
    }
    let tuple = attributes(body.get(4..).unwrap_or_default())
        .find(|(kind, _)| *kind == CTA_TUPLE_ORIG)
        .map(|(_, tuple)| tuple)
        .unwrap_or_default();
    let part = |wanted| {
        attributes(tuple)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, part)| part)
    };
    let ip = part(CTA_TUPLE_IP).and_then(|part| {
        attributes(part).find_map(|(kind, value)| match kind {
            kind if kind == CTA_IP_V4.1 => {
                Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into())
            }
            kind if kind == CTA_IP_V6.1 => {
                Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into())
            }
            _ => None,
        })
    });
    let port = part(CTA_TUPLE_PROTO).and_then(|part| {
        let (_, value) = attributes(part).find(|(kind, _)| *kind == CTA_PROTO_DST_PORT)?;
        Some(u16::from_be_bytes(value.try_into().ok()?))
    });
    Ok(ip.zip(port).map(|(ip, port)| SocketAddr::new(ip, port)))
}

/// Kind and value of each attribute, as far as they are well-formed.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let word = |at: usize| Some(u16::from_ne_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        let length = usize::from(word(0)?);
        let kind = word(2)? & !NESTED;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_answer_is_read_and_nonsense_is_nothing() {
        let ip = attribute(
            CTA_TUPLE_IP | NESTED,
            &[attribute(1, &[10, 0, 0, 2]), attribute(2, &[10, 9, 0, 10])].concat(),
        );
        let ports = [
            attribute(1, &[17]),
            attribute(2, &[15, 160]),
            attribute(3, &[0, 53]),
        ];
        let ports = attribute(CTA_TUPLE_PROTO | NESTED, &ports.concat());
        let tuple = attribute(CTA_TUPLE_ORIG | NESTED, &[ip, ports].concat());
        let mut message = vec![0; 20];
        message.extend(attribute(9, &[1]));
        message.extend(tuple);
        assert_eq!(
            read(&message).unwrap(),
            Some("10.9.0.10:53".parse().unwrap())
        );
        for cut in 0..message.len() - 1 {
            let _ = read(&message[..cut]);
        }
        let error = |errno: i32| {
            let mut message = vec![0; 16];
            message[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
            message.extend((-errno).to_ne_bytes());
            read(&message)
        };
        assert_eq!(error(libc::ENOENT).unwrap(), None);
        assert!(error(libc::EPERM).is_err());
    }

    #[test]
    fn a_query_that_nobody_redirected_is_not_known() {
        let here = Netns::current().expect("a namespace");
        let opened = Conntrack.open(&here).expect("nfnetlink (needs root)");
        let (client, local) = (
            "127.0.0.1:9".parse().unwrap(),
            "127.0.0.1:15053".parse().unwrap(),
        );
        assert_eq!(opened.find(client, local).unwrap(), None);
    }
}
