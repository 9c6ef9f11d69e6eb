//! Routes in a pod's network namespace for redirected connects:
//!
//! ```text
//! local 127.128.0.0/10 dev lo table local proto 114 scope host src POD_IPV4
//! local fd72:6472:6374::/64 dev lo table local proto 114 src POD_IPV6
//! ```
//!
//! They make the targets local, and the pod's address the source. Without the first, 127.0.0.0/8 is local all the same, and
//! apps see 127.0.0.1 as their own address.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nix::libc;
use redirect_common::{Addr, decide};
use rtnetlink::{
    RouteMessageBuilder,
    packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        route::{RouteMessage, RouteProtocol, RouteScope, RouteType},
    },
};

use super::{
    super::CaptureError,
    netlink::{is, request},
};
use crate::sys::netns::Netns;

/// Of `lo`, in every network namespace (kernel: LOOPBACK_IFINDEX).
const LOOPBACK: u32 = 1;
const TABLE_LOCAL: u32 = 255;
/// Who made a route (`proto` of ip-route(8)): no one else uses this number, so what bears it is ours to remove.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(114);

/// Adds the routes; those that are there already are changed. `ips` are the pod's addresses.
pub fn add(netns: &Netns, ips: &[IpAddr]) -> Result<(), CaptureError> {
    let ips = || ips.iter().map(IpAddr::to_canonical);
    let ipv4 = ips().find_map(|ip| {
        if let IpAddr::V4(ip) = ip {
            Some(ip)
        } else {
            None
        }
    });
    let ipv6 = ips().find_map(|ip| {
        if let IpAddr::V6(ip) = ip {
            Some(ip)
        } else {
            None
        }
    });
    in_netns(netns, "add a local route in", || {
        match ipv4 {
            Some(ip) => replace(targets4(ipv4))
                .or_else(|error| without_source(netns, ip.into(), error, targets4(None)))?,
            None => delete(targets4(None))?,
        }
        let result = match ipv6 {
            Some(ip) => replace(targets6(ipv6))
                .or_else(|error| without_source(netns, ip.into(), error, targets6(None))),
            None => replace(targets6(None)),
        };
        // A namespace without IPv6 has nothing to be captured.
        if has_ipv6() { result } else { Ok(()) }
    })
}

/// Adds the routes that something else has removed, and tells which these were.
pub fn reassert(netns: &Netns, ips: &[IpAddr]) -> Result<Vec<String>, CaptureError> {
    let mut missing = Vec::new();
    in_netns(netns, "look for the local routes in", || {
        let has_ipv4 = ips.iter().any(|ip| ip.to_canonical().is_ipv4());
        if has_ipv4 && ours(AddressFamily::Inet)?.is_empty() {
            missing.push("the local route to IPv4 targets was missing".to_owned());
        }
        if has_ipv6() && ours(AddressFamily::Inet6)?.is_empty() {
            missing.push("the local route to IPv6 targets was missing".to_owned());
        }
        Ok(())
    })?;
    if !missing.is_empty() {
        add(netns, ips)?;
    }
    Ok(missing)
}

/// Removes all routes that are marked as ours.
pub fn remove(netns: &Netns) -> Result<(), CaptureError> {
    in_netns(netns, "remove the local routes in", || {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for route in ours(family)? {
                delete(route)?;
            }
        }
        Ok(())
    })
}

/// Adds `plain` if the kernel does not have the address of the route that failed with `error`: it is not there yet (duplicate
/// address detection), or not at all.
fn without_source(
    netns: &Netns,
    address: IpAddr,
    error: io::Error,
    plain: RouteMessage,
) -> io::Result<()> {
    if !is(&error, &[libc::EINVAL]) {
        return Err(error);
    }
    tracing::warn!(
        %address,
        netns = %netns.path().display(),
        "the pod's address is not on an interface there: its apps will see another as their own"
    );
    replace(plain)
}

fn targets4(source: Option<Ipv4Addr>) -> RouteMessage {
    let prefix = Ipv4Addr::from_bits(decide::SPREAD_V4);
    let prefix_len = 32 - decide::SPREAD_V4_BITS as u8;
    let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(prefix, prefix_len);
    let route = match source {
        Some(source) => route.pref_source(source),
        None => route,
    };
    local(route).scope(RouteScope::Host).build()
}

fn targets6(source: Option<Ipv6Addr>) -> RouteMessage {
    let prefix = Addr([decide::SPREAD_V6[0], decide::SPREAD_V6[1], 0, 0]);
    let prefix = Ipv6Addr::from_octets(prefix.octets());
    let route = RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(prefix, decide::SPREAD_V6_PREFIX_LEN);
    let route = match source {
        Some(source) => route.pref_source(source),
        None => route,
    };
    local(route).build()
}

fn local<T>(route: RouteMessageBuilder<T>) -> RouteMessageBuilder<T> {
    route
        .output_interface(LOOPBACK)
        .table_id(TABLE_LOCAL)
        .kind(RouteType::Local)
        .protocol(PROTOCOL)
}

fn replace(route: RouteMessage) -> io::Result<()> {
    request(
        RouteNetlinkMessage::NewRoute(route),
        NLM_F_CREATE | NLM_F_REPLACE | NLM_F_ACK,
    )
    .map(drop)
}

fn delete(route: RouteMessage) -> io::Result<()> {
    match request(RouteNetlinkMessage::DelRoute(route), NLM_F_ACK) {
        Err(error) if is(&error, &[libc::ESRCH]) => Ok(()),
        result => result.map(drop),
    }
}

/// The routes of a family that are marked as ours.
fn ours(family: AddressFamily) -> io::Result<Vec<RouteMessage>> {
    let mut all = RouteMessage::default();
    all.header.address_family = family;
    let answers = match request(RouteNetlinkMessage::GetRoute(all), NLM_F_DUMP) {
        // Without IPv6 in the kernel.
        Err(error) if is(&error, &[libc::EOPNOTSUPP, libc::EAFNOSUPPORT]) => Vec::new(),
        answers => answers?,
    };
    let routes = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route) if route.header.protocol == PROTOCOL => Some(route),
        _ => None,
    });
    Ok(routes.collect())
}

/// Runs `f` inside the namespace: a netlink socket belongs to the one that it was made in.
fn in_netns(
    netns: &Netns,
    call: &'static str,
    f: impl FnOnce() -> io::Result<()> + Send,
) -> Result<(), CaptureError> {
    let result = netns.run(f).and_then(|result| result);
    result.map_err(|error| CaptureError::kernel(call, netns.path().display(), &error))
}

fn has_ipv6() -> bool {
    std::net::TcpListener::bind("[::1]:0").is_ok()
}
