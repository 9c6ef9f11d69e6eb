//! The daemon that takes over.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio_seqpacket::UnixSeqpacket;

use super::{
    Estate, HandoverError, Message, PROTOCOL, Way, all, receive, receive_soon, send, unexpected,
};
use crate::app::instance::{Instance, InstanceError};

/// How often, and after which time, a daemon that cannot be reached is asked again.
const TRIES: u32 = 30;
const PAUSE: Duration = Duration::from_millis(100);

/// The daemon that still runs.
pub struct Predecessor {
    /// Its cgroup, if it captures.
    pub cgroup: Option<PathBuf>,
    way: Way,
    sockets: Estate,
    stream: UnixSeqpacket,
}

/// The predecessor, which finishes its connections.
pub struct Draining {
    stream: UnixSeqpacket,
}

/// Takes the state directory; with `take_over`, from the daemon that has it, if there is one.
pub async fn claim(
    state_dir: &Path,
    take_over: bool,
) -> Result<(Instance, Option<Predecessor>), HandoverError> {
    let mut tries = 0..TRIES;
    loop {
        match Instance::claim(state_dir) {
            Ok(instance) => return Ok((instance, None)),
            Err(InstanceError::Taken { .. }) if take_over => {}
            Err(error) => return Err(error.into()),
        }
        match Predecessor::meet(state_dir).await {
            Ok((lock, predecessor)) => {
                let instance = Instance::inherit(state_dir, lock);
                return Ok((instance, Some(predecessor)));
            }
            // It is starting, or it ended just now.
            Err(HandoverError::Socket { .. } | HandoverError::Ended) if tries.next().is_some() => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

impl Predecessor {
    async fn meet(state_dir: &Path) -> Result<(OwnedFd, Self), HandoverError> {
        let path = super::socket_path(state_dir);
        let stream = UnixSeqpacket::connect(&path).await;
        let stream = stream.map_err(|source| HandoverError::Socket {
            call: "reach the running daemon at",
            path,
            source,
        })?;
        let take_over = Message::TakeOver { protocol: PROTOCOL };
        send(&stream, &take_over, &[]).await?;
        let (way, cgroup, descriptors) = match receive_soon(&stream).await? {
            (Message::State { way, cgroup }, descriptors) => (way, cgroup, descriptors),
            (Message::Refused { reason }, _) => return Err(HandoverError::Refused(reason)),
            (other, _) => return Err(unexpected(&other)),
        };
        let [lock] = all(descriptors)?;
        let sockets = Estate::receive(&stream).await?;
        let predecessor = Self {
            cgroup,
            way,
            sockets,
            stream,
        };
        Ok((lock, predecessor))
    }

    /// Whether this daemon can go on with what that one does.
    pub fn check(&self, way: &Way) -> Result<(), HandoverError> {
        match self.way == *way {
            true => Ok(()),
            false => Err(HandoverError::AnotherWay {
                theirs: self.way.text(),
                ours: way.text(),
            }),
        }
    }

    /// Its sockets, once.
    pub fn sockets(&mut self) -> Estate {
        std::mem::take(&mut self.sockets)
    }

    /// All connections come to this daemon now. Waits until that one has left its admin ports, or has ended.
    pub async fn dismiss(self) -> Result<Draining, HandoverError> {
        let released = async {
            send(&self.stream, &Message::Ready, &[]).await?;
            match receive_soon(&self.stream).await? {
                (Message::Released, _) => Ok(()),
                (other, _) => Err(unexpected(&other)),
            }
        };
        match released.await {
            // It was killed: nobody drains, and nobody has the ports.
            Ok(()) | Err(HandoverError::Ended) => Ok(Draining {
                stream: self.stream,
            }),
            Err(error) => Err(error),
        }
    }
}

impl Draining {
    /// Waits until it has ended, however it does.
    pub async fn ended(&self) {
        while !matches!(
            receive(&self.stream).await,
            Err(HandoverError::Ended | HandoverError::Io(_))
        ) {}
    }
}
