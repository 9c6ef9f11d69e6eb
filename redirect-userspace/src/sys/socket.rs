//! Sockets with the options that capture and transparent proxying need. No `unsafe`: socket2 has them all.

use std::{
    io::{self, IoSlice},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Deref,
    task::{Context, Poll, ready},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use tokio::{io::Interest, net::TcpStream};

use super::netns::Netns;

/// Longest queue of connections that wait for `accept`; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// How a client socket is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientOptions {
    /// Source address, with any port.
    pub bind: Option<IpAddr>,
    /// Allow a source address that is not local (`IP_TRANSPARENT`).
    pub transparent: bool,
    /// Firewall mark of all packets (`SO_MARK`).
    pub mark: Option<u32>,
}

/// How a listening socket is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListenOptions {
    /// On the loopback address alone, so that it is reached by no address of the machine.
    pub loopback: bool,
    /// Accept connections to addresses that are not local (`IP_TRANSPARENT`).
    pub transparent: bool,
    /// Firewall mark of all packets, also of those of accepted sockets (`SO_MARK`).
    pub mark: Option<u32>,
    /// Another daemon of ours may listen beside this one (`SO_REUSEPORT`), and capture says which of the two gets a connection.
    pub beside_others: bool,
}

/// A listener on all addresses of `netns`: dual stack, or IPv4 alone where IPv6 is switched off.
///
/// Accepted sockets inherit `TCP_NODELAY` and keepalive. One listener serves all workers: an `SO_REUSEPORT` group could be joined
/// by any process of the same uid in the pod, which would then take its share of the connections, unless capture steers them.
pub fn listen(
    netns: &Netns,
    port: u16,
    options: ListenOptions,
) -> io::Result<std::net::TcpListener> {
    let (v6, v4) = match options.loopback {
        true => (Ipv6Addr::LOCALHOST, Ipv4Addr::LOCALHOST),
        false => (Ipv6Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED),
    };
    netns.run(
        || match listener(Domain::IPV6, (v6, port).into(), options) {
            Err(error) if no_ipv6(&error) => listener(Domain::IPV4, (v4, port).into(), options),
            other => other,
        },
    )?
}

/// Whether a bind failed because IPv6 is switched off.
pub fn no_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(nix::libc::EAFNOSUPPORT | nix::libc::EADDRNOTAVAIL)
    )
}

fn listener(
    domain: Domain,
    address: SocketAddr,
    options: ListenOptions,
) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        domain,
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(false)?;
    }
    // Lets a restarted daemon listen while connections of the last one are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(options.beside_others)?;
    socket.set_tcp_nodelay(true)?;
    keepalive(&SockRef::from(&socket))?;
    if options.transparent {
        // Serves IPv6 too, see `client`.
        socket.set_ip_transparent_v4(true)?;
    }
    if let Some(mark) = options.mark {
        socket.set_mark(mark)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A connection that vanished without a word (pod killed, node lost) is noticed within minutes.
fn keepalive(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(Duration::from_secs(180))
            .with_interval(Duration::from_secs(30)),
    )
}

/// A nonblocking client socket in `netns`, not connected yet. Leaves the calling thread inside `netns`.
pub fn client(
    netns: &Netns,
    destination: SocketAddr,
    options: ClientOptions,
) -> io::Result<Socket> {
    netns.enter()?;
    let socket = Socket::new(
        Domain::for_address(destination),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    socket.set_tcp_nodelay(true)?;
    keepalive(&SockRef::from(&socket))?;
    if let Some(mark) = options.mark {
        socket.set_mark(mark)?;
    }
    if options.transparent {
        // The level SOL_IP serves IPv6 sockets too: both families share the flag (`inet_sock.transparent`).
        socket.set_ip_transparent_v4(true)?;
    }
    if let Some(ip) = options.bind {
        // The port is chosen at connect, so that it only has to be unique for the destination.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true).map_err(io::Error::from)?;
        socket.bind(&SocketAddr::new(ip, 0).into())?;
    }
    Ok(socket)
}

/// A connection whose end is a reset unless it was said to be finished: whatever cuts it off (an error, the drain limit, a
/// panic), its peer must not take the truncated data for all of it.
pub struct ResetOnDrop {
    stream: TcpStream,
    finished: bool,
}

impl ResetOnDrop {
    pub fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            finished: false,
        }
    }

    /// Closes in the ordinary way: both directions have ended.
    pub fn finish(mut self) {
        self.finished = true;
    }
}

impl Deref for ResetOnDrop {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.stream
    }
}

impl Drop for ResetOnDrop {
    fn drop(&mut self) {
        if !self.finished {
            // Fails only for a descriptor that is no TCP socket.
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// Reads what is there. Like tokio's own `poll_read`, but through a shared reference, so that both directions of a
/// connection can be polled beside a wait for its errors.
pub fn poll_read(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_read_ready(cx))?;
        match stream.try_read(buffer) {
            Ok(n) => {
                if (1..buffer.len()).contains(&n) {
                    forget_readiness(stream, Interest::READABLE);
                }
                return Poll::Ready(Ok(n));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

/// Writes what the socket takes.
pub fn poll_write(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    slices: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_write_ready(cx))?;
        match stream.try_write_vectored(slices) {
            Ok(n) => {
                if n < slices.iter().map(|slice| slice.len()).sum() {
                    forget_readiness(stream, Interest::WRITABLE);
                }
                return Poll::Ready(Ok(n));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

/// A short read or write has emptied or filled the socket: the next one would only be told to wait (epoll(7), edge-triggered).
fn forget_readiness(stream: &TcpStream, interest: Interest) {
    let _ = stream.try_io(interest, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
}

/// Ends the data in our direction; a connection that the peer has reset already needs no end.
pub fn shutdown(stream: &TcpStream) -> io::Result<()> {
    match SockRef::from(stream).shutdown(std::net::Shutdown::Write) {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result,
    }
}

/// A v4-mapped IPv6 address as the IPv4 address that it stands for.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
