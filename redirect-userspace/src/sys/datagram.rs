//! UDP sockets: one that knows to which address each datagram was sent, and ones that ask one server.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd, BorrowedFd},
};

use nix::{
    libc,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage,
        recvmsg, sendmsg, setsockopt, sockopt,
    },
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    netns::Netns,
    socket::{canonical, no_ipv6},
};

/// A datagram that came to a socket of [`listen`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    pub bytes: usize,
    pub client: SocketAddr,
    /// The address that it was sent to.
    pub local: IpAddr,
    /// Whether it came in by the loopback device, as far as the kernel says: for what a host sends to its own addresses on other
    /// devices, it names those.
    pub by_loopback: bool,
}

/// Of `lo`, in every network namespace (kernel: LOOPBACK_IFINDEX).
const LOOPBACK: u32 = 1;

/// A nonblocking socket on all addresses of `netns`: dual stack, or IPv4 alone where IPv6 is switched off.
///
/// Not bound to the loopback device, though only what stays inside is wanted: answers to the pod's IPv6 addresses would have no
/// route, for these are on other devices.
pub fn listen(netns: &Netns, port: u16) -> io::Result<UdpSocket> {
    netns.run(
        || match bind(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into()) {
            Err(error) if no_ipv6(&error) => {
                bind(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into())
            }
            other => other,
        },
    )?
}

fn bind(domain: Domain, address: SocketAddr) -> io::Result<UdpSocket> {
    let kind = Type::DGRAM.nonblocking().cloexec();
    let socket = Socket::new(domain, kind, Some(Protocol::UDP))?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(false)?;
        // Answers come from addresses that are only routed to this host, and on no interface.
        socket.set_freebind_v6(true)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Receives one datagram, cut to the length of `buffer`.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space = nix::cmsg_space!(libc::in6_pktinfo);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let local = message.cmsgs()?.find_map(|control| match control {
        // An IPv4 datagram to a dual-stack socket has a v4-mapped address here.
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            let local = IpAddr::from(info.ipi6_addr.s6_addr).to_canonical();
            Some((local, info.ipi6_ifindex == LOOPBACK))
        }
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            let local = Ipv4Addr::from_bits(u32::from_be(info.ipi_addr.s_addr));
            Some((local.into(), info.ipi_ifindex == LOOPBACK as i32))
        }
        _ => None,
    });
    let client = message.address.as_ref().and_then(socket_addr);
    match (client, local) {
        (Some(client), Some((local, by_loopback))) => Ok(Received {
            bytes: message.bytes,
            client: canonical(client),
            local,
            by_loopback,
        }),
        _ => Err(io::Error::other("a datagram without addresses")),
    }
}

fn socket_addr(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in();
    let v4 = v4.map(|v4| SocketAddr::new(v4.ip().into(), v4.port()));
    v4.or_else(|| {
        let v6 = address.as_sockaddr_in6()?;
        Some(SocketAddr::new(v6.ip().into(), v6.port()))
    })
}

/// Sends a datagram from the local address `from` to `to`, without waiting.
pub fn send_from(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    from: IpAddr,
    to: SocketAddr,
) -> io::Result<()> {
    let parts = [IoSlice::new(bytes)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let fd = socket.as_raw_fd();
    let dual = nix::sys::socket::getsockname::<SockaddrStorage>(fd)?
        .as_sockaddr_in6()
        .is_some();
    if dual {
        let mapped = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let info = libc::in6_pktinfo {
            ipi6_addr: libc::in6_addr {
                s6_addr: mapped(from).octets(),
            },
            ipi6_ifindex: 0,
        };
        let to = SockaddrIn6::from(std::net::SocketAddrV6::new(
            mapped(to.ip()),
            to.port(),
            0,
            0,
        ));
        sendmsg(
            fd,
            &parts,
            &[ControlMessage::Ipv6PacketInfo(&info)],
            flags,
            Some(&to),
        )?;
        return Ok(());
    }
    let (IpAddr::V4(from), SocketAddr::V4(to)) = (from, to) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let info = libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: libc::in_addr {
            s_addr: from.to_bits().to_be(),
        },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let to = SockaddrIn::from(to);
    sendmsg(
        fd,
        &parts,
        &[ControlMessage::Ipv4PacketInfo(&info)],
        flags,
        Some(&to),
    )?;
    Ok(())
}

/// A nonblocking socket in `netns` that exchanges datagrams with `server` alone, from a port that the kernel chooses at random,
/// and from the address `source` if it is of the server's family. Leaves the calling thread inside `netns`.
pub fn client(
    netns: &Netns,
    server: SocketAddr,
    source: Option<IpAddr>,
    mark: Option<u32>,
) -> io::Result<UdpSocket> {
    netns.enter()?;
    let kind = Type::DGRAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(server), kind, Some(Protocol::UDP))?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    if let Some(ip) = source.filter(|ip| ip.is_ipv4() == server.is_ipv4()) {
        socket.bind(&SocketAddr::new(ip, 0).into())?;
    }
    socket.connect(&server.into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::{os::fd::AsFd, thread, time::Duration};

    use super::*;
    use crate::sys::netns;

    fn exchange(to: &'static str) {
        let result = netns::in_new(move || {
            let up = std::process::Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status();
            assert!(up.expect("run ip").success());
            let here = Netns::current().expect("a namespace");
            let server = listen(&here, 5353).expect("listen");
            let to: SocketAddr = to.parse().expect("an address");
            let client =
                UdpSocket::bind((if to.is_ipv4() { "127.0.0.1" } else { "::1" }, 0)).expect("bind");
            client
                .set_read_timeout(Some(Duration::from_secs(5)))
                .expect("set");
            client.send_to(b"ask", to).expect("send");
            let mut buffer = [0; 64];
            let received = loop {
                match receive(server.as_fd(), &mut buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::yield_now(),
                    received => break received.expect("receive"),
                }
            };
            assert_eq!(
                (&buffer[..received.bytes], received.local),
                (&b"ask"[..], to.ip())
            );
            assert_eq!(received.client, client.local_addr().expect("bound"));
            send_from(server.as_fd(), b"answer", received.local, received.client).expect("send");
            let (bytes, from) = client.recv_from(&mut buffer).expect("receive");
            assert_eq!((&buffer[..bytes], from), (&b"answer"[..], to));
        });
        result.expect("a namespace (needs root)");
    }

    #[test]
    fn answers_come_from_the_address_that_was_asked() {
        for to in ["127.0.0.1:5353", "127.128.3.4:5353", "[::1]:5353"] {
            exchange(to);
        }
    }
}
