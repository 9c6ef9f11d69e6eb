//! `attack`: sends bytes by other ways than a TCP socket: what a process with CAP_NET_RAW can do.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    num::ParseIntError,
    os::fd::AsRawFd,
    str::FromStr,
};

use anyhow::Context;
use nix::{
    ifaddrs::getifaddrs,
    libc,
    sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket},
};
use redirect_tests::sys;
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{emit, failure};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    way: Way,
}

#[derive(clap::Subcommand)]
enum Way {
    /// A raw IP socket of a protocol: the kernel writes the IP header.
    Raw {
        protocol: i32,
        dst: IpAddr,
        bytes: Hex,
    },
    /// A packet socket: a whole frame.
    Packet {
        device: String,
        bytes: Hex,
        /// Go around the queueing discipline (PACKET_QDISC_BYPASS).
        #[arg(long)]
        bypass: bool,
    },
    /// AF_XDP: only as far as its ring for sending.
    Xdp,
    /// A UDP socket.
    Udp { dst: SocketAddr },
}

/// Bytes as pairs of hexadecimal digits.
#[derive(Clone)]
struct Hex(Vec<u8>);

impl FromStr for Hex {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let pairs = (0..text.len()).step_by(2);
        let bytes = pairs.map(|at| u8::from_str_radix(text.get(at..at + 2).unwrap_or("?"), 16));
        bytes.collect::<Result<_, _>>().map(Self)
    }
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let result = match args.way {
        Way::Raw {
            protocol,
            dst,
            bytes,
        } => raw(protocol, dst, &bytes.0),
        Way::Packet {
            device,
            bytes,
            bypass,
        } => {
            let address = address_of(&device)?;
            packet(&address, &bytes.0, bypass)
        }
        Way::Xdp => xdp(),
        Way::Udp { dst } => udp(dst),
    };
    match result {
        Ok(()) => emit("sent", json!({})),
        Err((call, error)) => emit("error", failure(call, &error)),
    }
    Ok(())
}

type Failed = (&'static str, io::Error);

fn raw(protocol: i32, dst: IpAddr, bytes: &[u8]) -> Result<(), Failed> {
    let dst = SocketAddr::new(dst, 0);
    let domain = Domain::for_address(dst);
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(protocol)))
        .map_err(|error| ("socket", error))?;
    let sent = socket.send_to(bytes, &dst.into());
    sent.map(drop).map_err(|error| ("sendto", error))
}

fn packet(address: &LinkAddr, frame: &[u8], bypass: bool) -> Result<(), Failed> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)
        .map_err(|error| ("socket", error.into()))?;
    if bypass {
        const PACKET_QDISC_BYPASS: i32 = 20;
        sys::set_option(&socket, libc::SOL_PACKET, PACKET_QDISC_BYPASS, 1)
            .map_err(|error| ("PACKET_QDISC_BYPASS", error))?;
    }
    let sent = sendto(socket.as_raw_fd(), frame, address, MsgFlags::empty());
    sent.map(drop).map_err(|error| ("sendto", error.into()))
}

fn xdp() -> Result<(), Failed> {
    const XDP_TX_RING: i32 = 3;
    let socket = Socket::new(Domain::from(libc::AF_XDP), Type::RAW, None)
        .map_err(|error| ("socket", error))?;
    sys::set_option(&socket, libc::SOL_XDP, XDP_TX_RING, 64).map_err(|error| ("XDP_TX_RING", error))
}

fn udp(dst: SocketAddr) -> Result<(), Failed> {
    let any: SocketAddr = match dst.is_ipv4() {
        true => (Ipv4Addr::UNSPECIFIED, 0).into(),
        false => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).map_err(|error| ("bind", error))?;
    let sent = socket.send_to(b"x", dst);
    sent.map(drop).map_err(|error| ("sendto", error))
}

/// The link-layer address of an interface, which has its index.
fn address_of(device: &str) -> anyhow::Result<LinkAddr> {
    let found = getifaddrs()?
        .filter(|interface| interface.interface_name == device)
        .find_map(|interface| interface.address?.as_link_addr().copied());
    found.with_context(|| format!("no interface {device}"))
}
