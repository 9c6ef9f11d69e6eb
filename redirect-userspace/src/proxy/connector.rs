//! Makes the tunnels of a worker: from the source pod's namespace and address, with the source pod's certificate.

use std::{sync::Arc, time::SystemTime};

use tokio::net::{TcpSocket, TcpStream};

use super::{Shared, sites::Pods, standpoint::Standpoint};
use crate::{
    hbone::{
        HboneError,
        client::{Trust, Tunnel, Validity},
        pool::{Connector, PoolKey},
    },
    identity,
    sys::{
        netns::Netns,
        socket::{self, ClientOptions},
    },
    telemetry::Direction,
    tls,
};

pub struct TunnelConnector {
    shared: Arc<Shared>,
    pods: Pods,
}

impl TunnelConnector {
    pub fn new(shared: Arc<Shared>, pods: Pods) -> Self {
        Self { shared, pods }
    }
}

impl Connector for TunnelConnector {
    fn connect(&self, key: &PoolKey) -> impl Future<Output = Result<Tunnel, HboneError>> + 'static {
        let from = self.pods.borrow().get(&key.pod).map(|running| {
            let context = &running.context;
            (context.netns.clone(), context.standpoint)
        });
        let (shared, key) = (self.shared.clone(), key.clone());
        async move {
            // A pod that was removed opens no more tunnels.
            let (netns, standpoint) = from.ok_or(HboneError::Draining)?;
            let limit = shared.hbone.handshake_timeout;
            let made = tokio::time::timeout(limit, open(&shared, &netns, standpoint, &key)).await;
            made.map_err(|_| HboneError::Timeout {
                peer: key.peer,
                limit,
            })?
        }
    }

    fn trust(&self) -> Trust {
        trust(&self.shared)
    }
}

/// What tunnels are measured against now.
pub fn trust(shared: &Shared) -> Trust {
    Trust {
        now: shared.identities.clock().now(),
        roots: shared.identities.roots().fingerprint,
    }
}

async fn open(
    shared: &Shared,
    netns: &Netns,
    standpoint: Standpoint,
    key: &PoolKey,
) -> Result<Tunnel, HboneError> {
    let peer = key.peer;
    let no_certificate = |error: identity::IdentityError| HboneError::Identity {
        identity: key.source.to_string(),
        error: error.to_string(),
    };
    // Read before the handshake: if the roots change meanwhile, the tunnel counts as made under the old ones.
    let roots = shared.identities.roots().fingerprint;
    let own_not_after = shared
        .identities
        .get(&key.source)
        .map_err(no_certificate)?
        .not_after;
    let config = shared
        .tls
        .client(&key.source, &key.accepted)
        .map_err(no_certificate)?;
    let tcp = connect(netns, peer, standpoint.as_pod(Some(key.source_ip)))
        .await
        .map_err(|error| HboneError::Connect {
            peer,
            error: Arc::new(error),
        })?;
    let secured = tls::connect(tcp, config)
        .await
        .map_err(|error| HboneError::Tls {
            peer,
            error: Arc::new(error),
        })?;
    let not_after = peer_not_after(&secured.peer_certificates)
        .map_or(own_not_after, |theirs| theirs.min(own_not_after));
    Tunnel::open(
        secured.stream,
        peer,
        &shared.hbone,
        Validity { not_after, roots },
        shared.metrics.tunnel(Direction::outbound),
    )
    .await
}

/// When the peer's proof expires; `None` only for a chain that the verifier would have refused.
fn peer_not_after(chain: &[rustls::pki_types::CertificateDer<'static>]) -> Option<SystemTime> {
    identity::tls::peer(chain).ok().map(|peer| peer.not_after)
}

/// Connects from inside `netns`.
pub async fn connect(
    netns: &Netns,
    destination: std::net::SocketAddr,
    options: ClientOptions,
) -> std::io::Result<TcpStream> {
    let socket = socket::client(netns, destination, options)?;
    TcpSocket::from_std_stream(socket.into())
        .connect(destination)
        .await
}
