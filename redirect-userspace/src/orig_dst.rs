//! The original destination of a captured connection, and the chain of ways to learn it.

use std::{io, net::SocketAddr, os::fd::BorrowedFd};

/// Where the app wanted to connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrigDst {
    /// Canonical: a v4-mapped address is given as IPv4.
    pub addr: SocketAddr,
    /// The cgroup v2 id of the connecting task, where the backend knows it.
    pub cgroup_id: Option<u64>,
}

/// One way to learn the original destination of an accepted socket.
///
/// `Ok(None)` means that this way knows nothing of the socket; an error means that it could not be asked.
pub trait OrigDstResolver: Send + Sync {
    fn resolve(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<OrigDst>>;

    /// A short name for logs: `sk_storage`, `so_original_dst`.
    fn name(&self) -> &'static str;
}

/// Which address families of original destination are believed, see [`believe`].
pub fn believe(candidate: OrigDst, local: SocketAddr, pod_ips: &[std::net::IpAddr]) -> Option<OrigDst> {
    let _ = (local, pod_ips);
    Some(candidate)
}
