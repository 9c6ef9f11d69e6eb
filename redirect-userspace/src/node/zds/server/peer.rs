//! One connected proxy: its hello, what it is told and answers, its end.

use std::{io, os::fd::BorrowedFd, sync::Arc, time::Duration};

use nix::libc;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::timeout,
};
use tokio_seqpacket::UnixSeqpacketListener;

use super::{
    super::{
        ANSWER_LIMIT,
        convert::{self, ConvertError},
        packet::{Packet, Peer},
    },
    Server,
    socket::Place,
    state::{Order, PeerId, Wish},
};
use crate::pod::PodUid;

/// Two are connected while one takes over from the other; more than these come from something that goes wrong.
const MOST: usize = 16;

/// After an error that will come again at once (no descriptors, no memory), accepting pauses for this long.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{call}: {source}")]
    Io {
        call: &'static str,
        source: io::Error,
    },
    #[error("it runs as user {0}, and only root may carry pods")]
    NotRoot(u32),
    #[error("it did not {what} within {ANSWER_LIMIT:?}")]
    Slow { what: &'static str },
    #[error("what it sent cannot be: {0}")]
    Convert(#[from] ConvertError),
    #[error("it answered without being asked")]
    Unasked,
    #[error("it has closed the connection")]
    Closed,
}

/// Accepts proxies for as long as the runtime lives.
pub async fn accept(server: Server, mut listener: UnixSeqpacketListener, _place: Place) {
    let places = Arc::new(Semaphore::new(MOST));
    loop {
        let peer = match listener.accept().await {
            Ok(peer) => Peer::from(peer),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a proxy; is `nofile` too low?");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(most = MOST, "one proxy too many: its connection is closed");
            continue;
        };
        let server = server.clone();
        tokio::spawn(async move {
            let _place = place;
            match attend(&server, &peer).await {
                Err(Ended::Closed) => tracing::info!("a proxy has left"),
                Err(reason) => tracing::warn!(%reason, "a proxy was cut off"),
                Ok(()) => {}
            }
        });
    }
}

async fn attend(server: &Server, peer: &Peer) -> Result<(), Ended> {
    let uid = peer.uid().map_err(|source| Ended::Io {
        call: "ask who it is",
        source,
    })?;
    if uid != 0 {
        return Err(Ended::NotRoot(uid));
    }
    convert::read_hello(&answer(peer, "say hello").await?)?;
    let (id, orders) = server.state().connect();
    let _connected = Connected { server, id };
    tracing::info!(proxy = id, "a proxy has connected");
    obey(server, peer, id, orders).await
}

/// Counts as connected until this is dropped.
struct Connected<'a> {
    server: &'a Server,
    id: PeerId,
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.server.state().disconnect(self.id);
    }
}

async fn obey(
    server: &Server,
    peer: &Peer,
    id: PeerId,
    mut orders: mpsc::UnboundedReceiver<Order>,
) -> Result<(), Ended> {
    let mut complete = server.shared.complete.subscribe();
    let mut is_snapshot_sent = false;
    loop {
        tokio::select! {
            biased;
            order = orders.recv() => match order {
                Some(Order { wish, reply }) => {
                    let result = tell(peer, &wish).await?;
                    if let (Wish::Add(uid, ..), Err(reason)) = (&wish, &result) {
                        tracing::warn!(pod = %uid, proxy = id, reason, "the proxy cannot carry the pod");
                    }
                    server.state().answered(id, &wish, &result);
                    // Nobody waits: nobody needs it.
                    _ = reply.send(result);
                }
                None => return Ok(()),
            },
            keep = all_known(&mut complete), if !is_snapshot_sent => {
                end_snapshot(server, peer, &keep).await?;
                is_snapshot_sent = true;
            },
            received = peer.receive() => match received {
                Ok(None) => return Err(Ended::Closed),
                Ok(Some(_)) => return Err(Ended::Unasked),
                Err(source) if is_gone(&source) => return Err(Ended::Closed),
                Err(source) => return Err(Ended::Io { call: "receive", source }),
            },
        }
    }
}

/// Waits until all pods are known that there are; gives those to keep.
async fn all_known(complete: &mut watch::Receiver<Option<Vec<PodUid>>>) -> Vec<PodUid> {
    let known = complete.wait_for(Option::is_some).await;
    // It cannot be closed: whoever asks has the server.
    known.ok().and_then(|keep| keep.clone()).unwrap_or_default()
}

async fn tell(peer: &Peer, wish: &Wish) -> Result<Result<(), String>, Ended> {
    match wish {
        Wish::Add(uid, workload, netns) => match convert::add(uid, workload) {
            Ok(bytes) => ask(peer, &bytes, Some(netns.as_fd())).await,
            Err(error) => Ok(Err(error.to_string())),
        },
        Wish::Del(uid) => match convert::del(uid) {
            Ok(bytes) => ask(peer, &bytes, None).await,
            // Nor could it be added.
            Err(_) => Ok(Ok(())),
        },
    }
}

async fn end_snapshot(server: &Server, peer: &Peer, keep: &[PodUid]) -> Result<(), Ended> {
    let unknown = |uid: &&PodUid| !server.state().has(uid);
    for uid in keep.iter().filter(unknown) {
        if let Ok(bytes) = convert::keep(uid) {
            tell_or_warn(peer, &bytes).await?;
        }
    }
    tell_or_warn(peer, &convert::snapshot_sent()?).await
}

async fn tell_or_warn(peer: &Peer, bytes: &[u8]) -> Result<(), Ended> {
    if let Err(reason) = ask(peer, bytes, None).await? {
        tracing::warn!(reason, "a proxy objects to its snapshot");
    }
    Ok(())
}

/// One request and its answer: nothing else is under way meanwhile.
async fn ask(
    peer: &Peer,
    bytes: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> Result<Result<(), String>, Ended> {
    match timeout(ANSWER_LIMIT, peer.send(bytes, fd)).await {
        Ok(Ok(())) => {}
        Ok(Err(source)) if is_gone(&source) => return Err(Ended::Closed),
        Ok(Err(source)) => {
            return Err(Ended::Io {
                call: "send",
                source,
            });
        }
        Err(_) => return Err(Ended::Slow { what: "read" }),
    }
    Ok(convert::read_ack(&answer(peer, "answer").await?)?)
}

async fn answer(peer: &Peer, what: &'static str) -> Result<Packet, Ended> {
    match timeout(ANSWER_LIMIT, peer.receive()).await {
        Ok(Ok(Some(packet))) => Ok(packet),
        Ok(Ok(None)) => Err(Ended::Closed),
        Ok(Err(source)) if is_gone(&source) => Err(Ended::Closed),
        Ok(Err(source)) => Err(Ended::Io {
            call: "receive",
            source,
        }),
        Err(_) => Err(Ended::Slow { what }),
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN)
    )
}
