//! The original destination of a captured connection, and the chain of ways to learn it.

mod conntrack;
pub mod dns;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
    sync::Arc,
};

use socket2::SockRef;

pub use conntrack::Conntrack;

use crate::{pod::PodUid, sys::socket::canonical};

/// Where the app wanted to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrigDst {
    /// Canonical: a v4-mapped address is given as IPv4.
    pub addr: SocketAddr,
    /// The cgroup v2 id of the connecting task, where the backend knows it.
    pub cgroup_id: Option<u64>,
    /// The pod that made the connection, where the backend knows it.
    pub pod: Option<PodUid>,
}

/// One way to learn the original destination of an accepted socket.
///
/// `Ok(None)` means that this way knows nothing of the socket; an error means that it could not be asked.
pub trait OrigDstResolver: Send + Sync {
    fn resolve(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<OrigDst>>;

    /// Whether capture gives a connection another destination, so that its own address never is the answer.
    fn rewrites(&self) -> bool {
        true
    }

    /// A short name for logs: `sk_storage`, `so_original_dst`.
    fn name(&self) -> &'static str;
}

/// Asks the resolvers in turn and believes the first answer that can be true.
#[derive(Clone)]
pub struct Chain {
    resolvers: Arc<[Arc<dyn OrigDstResolver>]>,
    own_ports: Arc<[u16]>,
}

impl Chain {
    /// `own_ports` are those that the proxy listens on in each pod.
    pub fn new(resolvers: Vec<Arc<dyn OrigDstResolver>>, own_ports: &[u16]) -> Self {
        Self {
            resolvers: resolvers.into(),
            own_ports: own_ports.into(),
        }
    }

    /// The original destination of `accepted`, whose local address is `local`, in a pod with addresses `pod_ips`.
    pub fn resolve(
        &self,
        accepted: BorrowedFd<'_>,
        local: SocketAddr,
        pod_ips: &[IpAddr],
    ) -> Option<OrigDst> {
        self.resolvers.iter().find_map(|resolver| match resolver.resolve(accepted) {
            Ok(answer) => answer.filter(|answer| {
                let local = resolver.rewrites().then_some(local);
                credible(answer.addr, local, pod_ips, &self.own_ports)
            }),
            Err(error) => {
                tracing::debug!(resolver = resolver.name(), %error, "original destination could not be asked");
                None
            }
        })
    }
}

/// Whether `candidate` can be what an app asked for.
///
/// For a connection that was made to the listener directly, conntrack answers with the socket's own address; to believe that,
/// or any port of the proxy on the pod, would make the proxy connect to itself.
pub fn credible(
    candidate: SocketAddr,
    local: Option<SocketAddr>,
    pod_ips: &[IpAddr],
    own_ports: &[u16],
) -> bool {
    let (candidate, local) = (canonical(candidate), local.map(canonical));
    let ours = own_ports.contains(&candidate.port())
        && (pod_ips.contains(&candidate.ip()) || candidate.ip().is_loopback());
    Some(candidate) != local && candidate.port() != 0 && !candidate.ip().is_unspecified() && !ours
}

/// `SO_ORIGINAL_DST` and `IP6T_SO_ORIGINAL_DST`: what netfilter's REDIRECT leaves in conntrack.
pub struct SoOriginalDst;

impl OrigDstResolver for SoOriginalDst {
    fn resolve(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<OrigDst>> {
        let socket = SockRef::from(&accepted);
        // A dual-stack listener accepts IPv4 as v4-mapped, and conntrack then knows the connection only as IPv4.
        let v4 = socket
            .local_addr()?
            .as_socket()
            .is_some_and(|local| local.ip().to_canonical().is_ipv4());
        let answer = if v4 {
            socket.original_dst_v4()
        } else {
            socket.original_dst_v6()
        };
        match answer {
            Ok(address) => Ok(address.as_socket().map(|addr| OrigDst {
                addr: canonical(addr),
                cgroup_id: None,
                pod: None,
            })),
            // ENOENT: no such conntrack entry; ENOPROTOOPT: no conntrack in this kernel or namespace.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(nix::libc::ENOENT | nix::libc::ENOPROTOOPT)
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn name(&self) -> &'static str {
        "so_original_dst"
    }
}

/// The accepted socket's local address, where capture delivers without rewriting (sk_lookup).
pub struct LocalAddress;

impl OrigDstResolver for LocalAddress {
    fn resolve(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<OrigDst>> {
        let local = SockRef::from(&accepted).local_addr()?;
        Ok(local.as_socket().map(|addr| OrigDst {
            addr: canonical(addr),
            cgroup_id: None,
            pod: None,
        }))
    }

    fn rewrites(&self) -> bool {
        false
    }

    fn name(&self) -> &'static str {
        "local_address"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_no_original_destination() {
        let local = "10.0.0.2:15001".parse().unwrap();
        let pod: [IpAddr; 2] = ["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        for (candidate, expected) in [
            ("10.0.1.5:80", true),
            ("10.0.1.5:15001", true),
            ("10.0.0.2:80", true),
            ("10.0.0.2:15001", false),
            ("[::ffff:10.0.0.2]:15001", false),
            ("10.0.0.2:15008", false),
            ("[fd00::2]:15006", false),
            ("127.0.0.1:15008", false),
            ("10.0.1.5:0", false),
            ("0.0.0.0:80", false),
        ] {
            let credible = credible(
                candidate.parse().unwrap(),
                Some(local),
                &pod,
                &[15001, 15006, 15008],
            );
            assert_eq!(credible, expected, "{candidate}");
        }
    }

    struct Fixed(io::Result<Option<&'static str>>);

    impl OrigDstResolver for Fixed {
        fn resolve(&self, _: BorrowedFd<'_>) -> io::Result<Option<OrigDst>> {
            match &self.0 {
                Ok(answer) => Ok(answer.map(|addr| OrigDst {
                    addr: addr.parse().unwrap(),
                    cgroup_id: None,
                    pod: None,
                })),
                Err(error) => Err(error.kind().into()),
            }
        }

        fn name(&self) -> &'static str {
            "fixed"
        }
    }

    #[test]
    fn the_first_credible_answer_counts() {
        let chain = Chain::new(
            vec![
                Arc::new(Fixed(Err(io::ErrorKind::PermissionDenied.into()))),
                Arc::new(Fixed(Ok(None))),
                Arc::new(Fixed(Ok(Some("10.0.0.2:15001")))),
                Arc::new(Fixed(Ok(Some("10.0.9.9:443")))),
            ],
            &[15001],
        );
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let answer = chain.resolve(
            std::os::fd::AsFd::as_fd(&socket),
            "127.130.1.2:15001".parse().unwrap(),
            &["10.0.0.2".parse().unwrap()],
        );
        assert_eq!(answer.unwrap().addr, "10.0.9.9:443".parse().unwrap());
    }

    #[test]
    fn a_plain_connection_has_no_original_destination_in_conntrack() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let chain = Chain::new(vec![Arc::new(SoOriginalDst)], &[]);
        assert_eq!(
            chain.resolve(
                std::os::fd::AsFd::as_fd(&accepted),
                accepted.local_addr().unwrap(),
                &[]
            ),
            None
        );
        drop(client);
    }

    #[test]
    fn where_capture_does_not_rewrite_the_local_address_is_the_original_destination() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let answer = LocalAddress.resolve(std::os::fd::AsFd::as_fd(&accepted));
        assert_eq!(answer.unwrap().unwrap().addr, client.peer_addr().unwrap());
    }
}
