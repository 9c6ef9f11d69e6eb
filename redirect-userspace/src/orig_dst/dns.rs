//! Which DNS server an app asked, of a query that came to the proxy as a datagram: it has no socket of its own to say so.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::sys::{netns::Netns, socket::canonical};

/// One way to learn it.
pub trait DnsServers: Send + Sync {
    /// What of this way belongs to one network namespace. May leave the calling thread inside it.
    fn open(&self, netns: &Netns) -> io::Result<Box<dyn AskedServer>>;

    /// A short name for logs: `map`, `conntrack`.
    fn name(&self) -> &'static str;
}

/// One way in one network namespace.
pub trait AskedServer {
    /// The server that `client` meant with what arrived at `local`.
    ///
    /// `Ok(None)` means that this way knows nothing of it; an error means that it could not be asked.
    fn find(&self, client: SocketAddr, local: SocketAddr) -> io::Result<Option<SocketAddr>>;
}

/// Asks the ways in turn and believes the first answer that can be true.
pub struct ServerChain {
    ways: Vec<(&'static str, Box<dyn AskedServer>)>,
    fallback: Option<SocketAddr>,
    own_ports: Vec<u16>,
}

impl ServerChain {
    /// A way that cannot be opened is left out, and that is logged. `fallback` is asked where no way knows a server.
    pub fn open(
        ways: &[Arc<dyn DnsServers>],
        netns: &Netns,
        fallback: Option<SocketAddr>,
        own_ports: &[u16],
    ) -> Self {
        let ways = ways.iter().filter_map(|way| match way.open(netns) {
            Ok(opened) => Some((way.name(), opened)),
            Err(error) => {
                tracing::warn!(way = way.name(), netns = %netns.path().display(), %error, "cannot learn which DNS servers apps ask in this way");
                None
            }
        });
        Self {
            ways: ways.collect(),
            fallback,
            own_ports: own_ports.to_vec(),
        }
    }

    pub fn find(
        &self,
        client: SocketAddr,
        local: SocketAddr,
        pod_ips: &[IpAddr],
    ) -> Option<SocketAddr> {
        let found = self.ways.iter().find_map(|(name, way)| match way.find(client, local) {
            Ok(server) => {
                let server = server.map(canonical)?;
                super::credible(server, Some(local), pod_ips, &self.own_ports).then_some(server)
            }
            Err(error) => {
                tracing::debug!(way = name, %error, "the asked DNS server could not be learned");
                None
            }
        });
        found.or(self.fallback)
    }
}

/// Knows no server.
pub struct NoDnsServers;

impl DnsServers for NoDnsServers {
    fn open(&self, _: &Netns) -> io::Result<Box<dyn AskedServer>> {
        Ok(Box::new(Self))
    }

    fn name(&self) -> &'static str {
        "none"
    }
}

impl AskedServer for NoDnsServers {
    fn find(&self, _: SocketAddr, _: SocketAddr) -> io::Result<Option<SocketAddr>> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(io::Result<Option<&'static str>>);

    impl DnsServers for Fixed {
        fn open(&self, _: &Netns) -> io::Result<Box<dyn AskedServer>> {
            match &self.0 {
                Ok(server) => Ok(Box::new(Self(Ok(*server)))),
                Err(error) => Err(error.kind().into()),
            }
        }

        fn name(&self) -> &'static str {
            "fixed"
        }
    }

    impl AskedServer for Fixed {
        fn find(&self, _: SocketAddr, _: SocketAddr) -> io::Result<Option<SocketAddr>> {
            let server = self.0.as_ref().expect("opened");
            Ok(server.map(|server| server.parse().expect("an address")))
        }
    }

    #[test]
    fn the_first_credible_server_counts_and_then_the_fallback() {
        let here = Netns::current().expect("a namespace");
        let fixed = |server| -> Arc<dyn DnsServers> { Arc::new(Fixed(Ok(server))) };
        let broken: Arc<dyn DnsServers> =
            Arc::new(Fixed(Err(io::ErrorKind::PermissionDenied.into())));
        let client = "10.0.0.2:4000".parse().expect("an address");
        let local = "127.0.0.1:15053".parse().expect("an address");
        let pod = ["10.0.0.2".parse().expect("an address")];
        for (ways, fallback, expected) in [
            (
                vec![broken, fixed(None), fixed(Some("10.9.0.10:53"))],
                None,
                Some("10.9.0.10:53"),
            ),
            // Asked directly: that is the socket itself, or the proxy's.
            (vec![fixed(Some("127.0.0.1:15053"))], None, None),
            (vec![fixed(Some("10.0.0.2:15053"))], None, None),
            (
                vec![fixed(Some("[::ffff:10.9.0.10]:53"))],
                None,
                Some("10.9.0.10:53"),
            ),
            (vec![fixed(None)], Some("9.9.9.9:53"), Some("9.9.9.9:53")),
        ] {
            let fallback = fallback.map(|server: &str| server.parse().expect("an address"));
            let chain = ServerChain::open(&ways, &here, fallback, &[15053]);
            let expected = expected.map(|server| server.parse().expect("an address"));
            assert_eq!(chain.find(client, local, &pod), expected);
        }
    }
}
