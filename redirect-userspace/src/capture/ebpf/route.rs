//! The route that makes the targets of redirected IPv6 connects local in a pod's network namespace, as 127.0.0.0/8 is for IPv4:
//! `local fd72:6472:6374::/64 dev lo`.

use std::net::Ipv6Addr;

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

/// Adds the route; one that is there already stays. A namespace without IPv6 has nothing to be captured.
pub fn add(netns: &Netns) -> Result<(), CaptureError> {
    let result = run(netns, |handle| async move {
        handle.route().add(message()).replace().execute().await
    })?;
    match errno(&result) {
        Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EACCES | libc::EPERM)
            if !has_ipv6(netns) =>
        {
            Ok(())
        }
        _ => result.map_err(|error| fail("add", netns, &error)),
    }
}

/// Removes the route; no error if it is not there.
pub fn remove(netns: &Netns) -> Result<(), CaptureError> {
    let result = run(netns, |handle| async move {
        handle.route().del(message()).execute().await
    })?;
    match errno(&result) {
        Some(libc::ESRCH | libc::ENOENT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT) => Ok(()),
        _ => result.map_err(|error| fail("remove", netns, &error)),
    }
}

fn message() -> RouteMessage {
    let prefix = Addr([decide::SPREAD_V6[0], decide::SPREAD_V6[1], 0, 0]);
    RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(
            Ipv6Addr::from_octets(prefix.octets()),
            decide::SPREAD_V6_PREFIX_LEN,
        )
        .output_interface(LOOPBACK)
        .table_id(TABLE_LOCAL)
        .kind(RouteType::Local)
        .scope(RouteScope::Universe)
        .protocol(RouteProtocol::Static)
        .build()
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
        format!("the local IPv6 route in {}", netns.path().display()),
        &cause,
    )
}
