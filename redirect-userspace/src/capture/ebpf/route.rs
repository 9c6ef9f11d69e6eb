//! Routes in a pod's network namespace that make the targets of redirected connects local, with the pod's address as their
//! preferred source:
//!
//! ```text
//! local 127.128.0.0/10 dev lo table local src POD_IPV4
//! local fd72:6472:6374::/64 dev lo table local src POD_IPV6
//! ```
//!
//! Without the first, 127.0.0.0/8 is local all the same, and apps see 127.0.0.1 as their own address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::libc;
use redirect_common::{Addr, decide};
use rtnetlink::{
    Error, Handle, RouteMessageBuilder, new_connection,
    packet_route::route::{RouteMessage, RouteProtocol, RouteScope, RouteType},
};

use super::super::CaptureError;
use crate::sys::netns::Netns;

/// Of `lo`, in every network namespace (kernel: LOOPBACK_IFINDEX).
const LOOPBACK: u32 = 1;
const TABLE_LOCAL: u32 = 255;

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
    match ipv4 {
        Some(_) => replace(netns, route4(ipv4), route4(None))?,
        None => delete(netns, route4(None))?,
    }
    match replace(netns, route6(ipv6), route6(None)) {
        Err(error) if has_ipv6(netns) => Err(error),
        // A namespace without IPv6 has nothing to be captured.
        _ => Ok(()),
    }
}

/// Removes the routes; no error if they are not there.
pub fn remove(netns: &Netns) -> Result<(), CaptureError> {
    let routes = [route4(None), route6(None)].into_iter();
    CaptureError::collect(
        routes
            .filter_map(|route| delete(netns, route).err())
            .collect(),
    )
}

fn delete(netns: &Netns, route: RouteMessage) -> Result<(), CaptureError> {
    let result = run(netns, |handle| async move {
        handle.route().del(route).execute().await
    })?;
    match errno(&result) {
        Some(libc::ESRCH | libc::ENOENT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT) => Ok(()),
        _ => result.map_err(|error| fail("remove", netns, &error)),
    }
}

/// Adds `route`, or `plain` if the kernel does not have the address of the first.
fn replace(netns: &Netns, route: RouteMessage, plain: RouteMessage) -> Result<(), CaptureError> {
    let add = |route| {
        run(netns, |handle: Handle| async move {
            handle.route().add(route).replace().execute().await
        })
    };
    let mut result = add(route)?;
    if errno(&result) == Some(libc::EINVAL) {
        tracing::warn!(
            netns = %netns.path().display(),
            "the pod's address is not on an interface there: its apps will see another address as their own"
        );
        result = add(plain)?;
    }
    result.map_err(|error| fail("add", netns, &error))
}

fn route4(source: Option<Ipv4Addr>) -> RouteMessage {
    let prefix = Ipv4Addr::from_bits(decide::SPREAD_V4);
    let prefix_len = 32 - decide::SPREAD_V4_BITS as u8;
    let mut route = local(RouteMessageBuilder::<Ipv4Addr>::new())
        .scope(RouteScope::Host)
        .destination_prefix(prefix, prefix_len);
    if let Some(source) = source {
        route = route.pref_source(source);
    }
    route.build()
}

fn route6(source: Option<Ipv6Addr>) -> RouteMessage {
    let prefix = Addr([decide::SPREAD_V6[0], decide::SPREAD_V6[1], 0, 0]);
    let prefix = Ipv6Addr::from_octets(prefix.octets());
    let mut route = local(RouteMessageBuilder::<Ipv6Addr>::new())
        .destination_prefix(prefix, decide::SPREAD_V6_PREFIX_LEN);
    if let Some(source) = source {
        route = route.pref_source(source);
    }
    route.build()
}

fn local<T>(route: RouteMessageBuilder<T>) -> RouteMessageBuilder<T> {
    route
        .output_interface(LOOPBACK)
        .table_id(TABLE_LOCAL)
        .kind(RouteType::Local)
        .protocol(RouteProtocol::Static)
}

/// Talks to the kernel on a thread inside the namespace: a netlink socket belongs to the one that it was made in.
fn run<F>(
    netns: &Netns,
    request: impl FnOnce(Handle) -> F + Send,
) -> Result<Result<(), Error>, CaptureError>
where
    F: Future<Output = Result<(), Error>>,
{
    let talk = || -> std::io::Result<_> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        runtime.block_on(async {
            let (connection, handle, _) = new_connection()?;
            tokio::spawn(connection);
            Ok(request(handle).await)
        })
    };
    netns.run(talk).and_then(|result| result).map_err(|error| {
        CaptureError::kernel(
            "talk netlink in network namespace",
            netns.path().display(),
            &error,
        )
    })
}

fn has_ipv6(netns: &Netns) -> bool {
    netns
        .run(|| std::net::TcpListener::bind("[::1]:0").is_ok())
        .unwrap_or(false)
}

fn errno(result: &Result<(), Error>) -> Option<i32> {
    match result {
        Err(Error::NetlinkError(message)) => Some(message.raw_code().abs()),
        _ => None,
    }
}

fn fail(call: &'static str, netns: &Netns, error: &Error) -> CaptureError {
    let cause = match error {
        Error::NetlinkError(message) => message.to_io(),
        other => std::io::Error::other(other.to_string()),
    };
    CaptureError::kernel(
        call,
        format!("a local route in {}", netns.path().display()),
        &cause,
    )
}
