//! The daemon that runs: waits for one that wants to take over, and hands over to it.

use std::{fs, io, os::fd::AsFd, path::PathBuf};

use tokio::sync::{mpsc, oneshot};
use tokio_seqpacket::{UnixSeqpacket, UnixSeqpacketListener};

use super::{Estate, HandoverError, Message, PROTOCOL, Way, receive, receive_soon, send};
use crate::app::instance::Instance;

/// Of the one who is asked to hand over.
struct Own {
    way: Way,
    cgroup: Option<PathBuf>,
    lock: fs::File,
}

/// Listens for a successor.
pub struct Handover {
    events: mpsc::Receiver<Event>,
}

/// What the daemon has to do.
pub enum Event {
    /// Change nothing about pods until the next event, and give the sockets. Without an answer the successor is refused.
    Asked(oneshot::Sender<Estate>),
    /// The successor has failed: make good what it did, and go on.
    Failed(HandoverError),
    /// The successor accepts connections: end.
    Ready(Successor),
}

/// The daemon that has taken over.
pub struct Successor {
    stream: UnixSeqpacket,
}

impl Handover {
    /// Listens in the state directory, in the place of a predecessor.
    pub fn listen(
        instance: &Instance,
        way: Way,
        cgroup: Option<PathBuf>,
    ) -> Result<Self, HandoverError> {
        let path = super::socket_path(instance.state_dir());
        let lock = instance.share()?;
        let listener = bind(&path).map_err(|source| HandoverError::Socket {
            call: "listen at",
            path,
            source,
        })?;
        let (sender, events) = mpsc::channel(1);
        tokio::spawn(serve(listener, Own { way, cgroup, lock }, sender));
        Ok(Self { events })
    }

    /// Waits for what is to be done.
    pub async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            // The task ends with its successor, which was the last event.
            None => std::future::pending().await,
        }
    }
}

impl Successor {
    /// Tells it that the admin ports are free. It may be gone: then nobody needs to know.
    pub async fn release(&self) {
        if let Err(error) = send(&self.stream, &Message::Released, &[]).await {
            tracing::error!(%error, "the daemon that has taken over does not hear that it may go on");
        }
    }
}

/// Binds beside, and renames: there is always one socket at the path.
fn bind(path: &std::path::Path) -> io::Result<UnixSeqpacketListener> {
    let staged = super::staged_path(path);
    match fs::remove_file(&staged) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixSeqpacketListener::bind(&staged)?;
    fs::rename(&staged, path)?;
    Ok(listener)
}

async fn serve(mut listener: UnixSeqpacketListener, own: Own, events: mpsc::Sender<Event>) {
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::error!(%error, "this daemon cannot be taken over from any more");
                return;
            }
        };
        let estate = match ask(&stream, &events).await {
            Ok(estate) => estate,
            Err(error) => {
                tracing::warn!(%error, "no take-over");
                continue;
            }
        };
        let event = match hand_over(&stream, &own, estate).await {
            Ok(()) => Event::Ready(Successor { stream }),
            Err(error) => Event::Failed(error),
        };
        let is_last = matches!(event, Event::Ready(_));
        if events.send(event).await.is_err() || is_last {
            return;
        }
    }
}

/// Nothing has changed if this fails.
async fn ask(
    stream: &UnixSeqpacket,
    events: &mpsc::Sender<Event>,
) -> Result<Estate, HandoverError> {
    let peer = stream.peer_cred()?;
    if peer.uid() != nix::unistd::geteuid().as_raw() {
        let reason = format!("user {} is not this daemon's", peer.uid());
        return refuse(stream, reason).await;
    }
    match receive_soon(stream).await? {
        (Message::TakeOver { protocol }, _) if protocol == PROTOCOL => {}
        (Message::TakeOver { protocol }, _) => {
            let reason = format!("it speaks version {PROTOCOL} and not {protocol}; stop it first");
            return refuse(stream, reason).await;
        }
        (other, _) => return Err(super::unexpected(&other)),
    }
    let (answer, estate) = oneshot::channel();
    let asked = events.send(Event::Asked(answer)).await;
    match (asked, estate.await) {
        (Ok(()), Ok(estate)) => Ok(estate),
        _ => {
            let reason = "it is still taking over itself, or ending; try again later";
            refuse(stream, reason.to_owned()).await
        }
    }
}

async fn refuse(stream: &UnixSeqpacket, reason: String) -> Result<Estate, HandoverError> {
    let refused = Message::Refused {
        reason: reason.clone(),
    };
    send(stream, &refused, &[]).await?;
    Err(HandoverError::Refused(reason))
}

async fn hand_over(stream: &UnixSeqpacket, own: &Own, estate: Estate) -> Result<(), HandoverError> {
    let state = Message::State {
        way: own.way.clone(),
        cgroup: own.cgroup.clone(),
    };
    send(stream, &state, &[own.lock.as_fd()]).await?;
    estate.send(stream).await?;
    // Our copies of the sockets: the daemon has others.
    drop(estate);
    match receive(stream).await? {
        (Message::Ready, _) => Ok(()),
        (other, _) => Err(super::unexpected(&other)),
    }
}
