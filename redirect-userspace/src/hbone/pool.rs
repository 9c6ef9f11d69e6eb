//! The tunnels of one worker, by who speaks to whom.

#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    collections::HashMap,
    future::Future,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;

use super::{
    HboneError, Stream,
    client::{ConnectHeaders, Slot, Trust, Tunnel, is_unprocessed},
};
use crate::{identity::Identity, pod::PodUid};

/// Streams share a tunnel only if all of this is the same: otherwise one pod's traffic could pass as another's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    pub pod: PodUid,
    pub source_ip: IpAddr,
    pub source: Identity,
    /// SPIFFE ids of which the peer must prove one.
    pub accepted: Arc<[Arc<str>]>,
    pub peer: SocketAddr,
}

/// Makes the tunnels; a seam, so that the pool's decisions can be tested without a network.
pub trait Connector {
    fn connect(&self, key: &PoolKey) -> impl Future<Output = Result<Tunnel, HboneError>> + 'static;

    fn trust(&self) -> Trust;
}

/// Clones share the tunnels.
pub struct Pool<C> {
    shared: Rc<Shared<C>>,
}

struct Shared<C> {
    connector: C,
    max_tunnels: usize,
    peers: RefCell<HashMap<PoolKey, Peer>>,
}

#[derive(Default)]
struct Peer {
    tunnels: Vec<Rc<Tunnel>>,
    /// A tunnel on its way; those who wait for it share its outcome.
    connecting: Option<watch::Receiver<Option<Result<(), HboneError>>>>,
}

/// What a caller has to do to get a place.
enum Place {
    Here(Rc<Tunnel>, Slot),
    Wait(watch::Receiver<Option<Result<(), HboneError>>>),
}

impl<C> Clone for Pool<C> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl<C: Connector + 'static> Pool<C> {
    pub fn new(connector: C, max_tunnels: usize) -> Self {
        Self {
            shared: Rc::new(Shared {
                connector,
                max_tunnels,
                peers: RefCell::default(),
            }),
        }
    }

    /// Opens a stream to `authority` through a tunnel for `key`. `headers` is asked once for each attempt.
    pub async fn open(
        &self,
        key: &PoolKey,
        authority: SocketAddr,
        headers: impl Fn() -> ConnectHeaders,
    ) -> Result<(Stream, Slot), HboneError> {
        let mut retried = false;
        loop {
            let (tunnel, slot) = self.place(key).await?;
            match tunnel.connect(authority, headers()).await {
                Ok(stream) => return Ok((stream, slot)),
                // Nothing was sent and the peer has not acted: a fresh tunnel is safe, once.
                Err(error) if !retried && is_unprocessed(&error) => {
                    retried = true;
                    self.shared.forget(key, &tunnel);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Closes tunnels that nobody has used for `limit`, and those that may not be used again.
    pub fn sweep(&self, limit: Duration) {
        let trust = self.shared.connector.trust();
        self.shared.peers.borrow_mut().retain(|_, peer| {
            peer.tunnels
                .retain(|tunnel| tunnel.usable(&trust) && !tunnel.idle_for(limit));
            !peer.tunnels.is_empty() || peer.connecting.is_some()
        });
    }

    /// Forgets the tunnels of a pod; the streams in them go on.
    pub fn remove(&self, pod: &PodUid) {
        self.shared
            .peers
            .borrow_mut()
            .retain(|key, _| key.pod != *pod);
    }

    /// Tunnels that may still take streams.
    pub fn len(&self) -> usize {
        self.shared
            .peers
            .borrow()
            .values()
            .map(|peer| peer.tunnels.len())
            .sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    async fn place(&self, key: &PoolKey) -> Result<(Rc<Tunnel>, Slot), HboneError> {
        loop {
            match self.find(key)? {
                Place::Here(tunnel, slot) => return Ok((tunnel, slot)),
                Place::Wait(mut outcome) => {
                    // A closed channel means that the task was dropped with the worker.
                    let outcome = outcome
                        .wait_for(Option::is_some)
                        .await
                        .map_err(|_| HboneError::Draining)?;
                    outcome.clone().expect("waited for")?;
                }
            }
        }
    }

    fn find(&self, key: &PoolKey) -> Result<Place, HboneError> {
        let trust = self.shared.connector.trust();
        let mut peers = self.shared.peers.borrow_mut();
        let peer = match peers.get_mut(key) {
            Some(peer) => peer,
            None => peers.entry(key.clone()).or_default(),
        };
        peer.tunnels.retain(|tunnel| tunnel.usable(&trust));
        // The newest first: the others run empty and are closed as idle.
        if let Some(tunnel) = peer
            .tunnels
            .iter()
            .rev()
            .find(|tunnel| tunnel.accepts(&trust))
        {
            return Ok(Place::Here(tunnel.clone(), tunnel.slot()));
        }
        if let Some(outcome) = &peer.connecting {
            return Ok(Place::Wait(outcome.clone()));
        }
        if peer.tunnels.len() >= self.shared.max_tunnels {
            return Err(HboneError::TunnelLimit {
                peer: key.peer,
                tunnels: peer.tunnels.len(),
            });
        }
        let (outcome, waiting) = watch::channel(None);
        peer.connecting = Some(waiting.clone());
        drop(peers);
        self.connect(key.clone(), outcome);
        Ok(Place::Wait(waiting))
    }

    /// Makes a tunnel in a task of its own, so that a caller who gives up takes nothing from those who wait.
    fn connect(&self, key: PoolKey, outcome: watch::Sender<Option<Result<(), HboneError>>>) {
        let shared = self.shared.clone();
        let tunnel = shared.connector.connect(&key);
        tokio::task::spawn_local(async move {
            let result = tunnel.await.and_then(|tunnel| {
                // Those who wait would ask for the next one at once, and for ever.
                match tunnel.usable(&shared.connector.trust()) {
                    true => Ok(tunnel),
                    false => Err(HboneError::Distrusted { peer: key.peer }),
                }
            });
            if let Some(peer) = shared.peers.borrow_mut().get_mut(&key) {
                peer.connecting = None;
            }
            let result = result.map(|tunnel| {
                shared
                    .peers
                    .borrow_mut()
                    .entry(key)
                    .or_default()
                    .tunnels
                    .push(Rc::new(tunnel));
            });
            outcome.send_replace(Some(result));
        });
    }
}

impl<C> Shared<C> {
    fn forget(&self, key: &PoolKey, tunnel: &Rc<Tunnel>) {
        if let Some(peer) = self.peers.borrow_mut().get_mut(key) {
            peer.tunnels.retain(|kept| !Rc::ptr_eq(kept, tunnel));
        }
    }
}
