//! One daemon takes over from another that still runs (`redirect run --take-over`), without a moment in which nobody listens.
//!
//! They speak over a socket in the state directory, a JSON object in each packet, some with descriptors:
//!
//! ```text
//! successor                                          predecessor
//!  takeOver ────────────────────────────────────────▶ changes nothing about its pods from here on
//!           ◀──────────────────────────────── state   with the lock: both hold it
//!           ◀─────────────────── site, dns, … , all   with the sockets
//!  captures all pods: from then on it accepts
//!  ready    ────────────────────────────────────────▶ leaves the admin ports
//!           ◀───────────────────────────── released   finishes its connections, until the drain limit
//!           ◀────────────────────────── (it has ended)
//! ```
//!
//! A connection that ends before `ready` is a successor that failed: its predecessor goes on as if nothing had been.

mod give;
mod take;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio_seqpacket::{
    UnixSeqpacket,
    ancillary::{AncillaryMessageWriter, OwnedAncillaryMessage},
};

pub use self::{
    give::{Event, Handover, Successor},
    take::{Draining, Predecessor, claim},
};
use crate::{config::CaptureConfig, dns, pod::PodUid, proxy::Listeners};

/// In the state directory.
const SOCKET: &str = "handover.sock";
/// Of what is said here. Daemons of different versions do not take over from each other.
const PROTOCOL: u32 = 1;
/// Longest packet: paths and names are short.
const MAX_PACKET: usize = 16 * 1024;
/// Most descriptors in a packet.
const MAX_DESCRIPTORS: usize = 4;
/// For an answer that needs no work.
const PATIENCE: Duration = Duration::from_secs(10);

/// The sockets of a daemon, by whom they serve.
#[derive(Default)]
pub struct Estate {
    /// By the inode of the network namespace in which they listen.
    pub sites: HashMap<u64, Listeners>,
    pub dns: HashMap<PodUid, dns::Sockets>,
}

/// How a daemon captures: two that differ in this do not take over from each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Way {
    pub backend: String,
    pub mode: String,
    pub bpffs: PathBuf,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "camelCase")]
enum Message {
    TakeOver {
        protocol: u32,
    },
    Refused {
        reason: String,
    },
    /// With the lock of the state directory.
    State {
        way: Way,
        cgroup: Option<PathBuf>,
    },
    /// With the listeners for outbound connections, for plaintext and for tunnels.
    Site {
        netns: u64,
    },
    /// With the sockets for UDP and TCP.
    Dns {
        pod: String,
    },
    /// That was all.
    All,
    Ready,
    Released,
}

#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    #[error("{call} {}: {source}", path.display())]
    Socket {
        call: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("speak with the other daemon: {0}")]
    Io(#[from] io::Error),
    #[error("the other daemon has ended")]
    Ended,
    #[error("the other daemon does not answer")]
    Silent,
    #[error("the other daemon said what was not to be expected: {0}")]
    Unexpected(String),
    #[error("the running daemon does not hand over: {0}")]
    Refused(String),
    #[error(
        "the running daemon captures by {theirs}, this one by {ours}: to change that, stop the running one first"
    )]
    AnotherWay { theirs: String, ours: String },
    #[error(transparent)]
    Instance(#[from] super::instance::InstanceError),
}

impl Way {
    /// Of a daemon whose backend is chosen.
    pub fn of(config: &CaptureConfig) -> Self {
        Self {
            backend: config.backend.name().to_owned(),
            mode: format!("{:?}", config.mode).to_lowercase(),
            bpffs: config.bpffs.clone(),
        }
    }

    fn text(&self) -> String {
        let bpffs = self.bpffs.display();
        format!("{} in mode {} with {bpffs}", self.backend, self.mode)
    }
}

fn socket_path(state_dir: &Path) -> PathBuf {
    state_dir.join(SOCKET)
}

/// Removes what is left of the socket.
pub fn remove(state_dir: &Path) -> io::Result<()> {
    let path = socket_path(state_dir);
    for path in [staged_path(&path), path] {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Where it is made.
fn staged_path(path: &Path) -> PathBuf {
    path.with_extension("new")
}

async fn send(
    stream: &UnixSeqpacket,
    message: &Message,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), HandoverError> {
    let packet = serde_json::to_vec(message).map_err(io::Error::from)?;
    let mut space = [0; 64];
    let mut ancillary = AncillaryMessageWriter::new(&mut space);
    if !descriptors.is_empty() {
        ancillary
            .add_fds(descriptors)
            .map_err(|_| io::Error::other("too many descriptors in a packet"))?;
    }
    match stream.send_with_ancillary(&packet, &mut ancillary).await {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(HandoverError::Ended),
        result => Ok(result.map(drop)?),
    }
}

async fn receive(stream: &UnixSeqpacket) -> Result<(Message, Vec<OwnedFd>), HandoverError> {
    let mut packet = vec![0; MAX_PACKET];
    let mut space = [0; 64];
    let received = stream.recv_with_ancillary(&mut packet, &mut space).await;
    let (info, ancillary) = match received {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
            return Err(HandoverError::Ended);
        }
        received => received?,
    };
    let mut descriptors = Vec::new();
    for message in ancillary.into_messages() {
        if let OwnedAncillaryMessage::FileDescriptors(given) = message {
            descriptors.extend(given);
        }
    }
    let packet = &packet[..info.bytes_read()];
    if packet.is_empty() {
        return Err(HandoverError::Ended);
    }
    let unexpected = |what: String| HandoverError::Unexpected(what);
    if info.truncated() || info.ancillary_truncated() || descriptors.len() > MAX_DESCRIPTORS {
        return Err(unexpected("a packet that is too long".to_owned()));
    }
    let message = serde_json::from_slice(packet).map_err(|error| unexpected(error.to_string()))?;
    Ok((message, descriptors))
}

/// The same, for an answer that is due at once.
async fn receive_soon(stream: &UnixSeqpacket) -> Result<(Message, Vec<OwnedFd>), HandoverError> {
    tokio::time::timeout(PATIENCE, receive(stream))
        .await
        .map_err(|_| HandoverError::Silent)?
}

fn unexpected(message: &Message) -> HandoverError {
    HandoverError::Unexpected(format!("{message:?}"))
}

/// The descriptors of a packet, as many as belong to it.
fn all<const N: usize>(descriptors: Vec<OwnedFd>) -> Result<[OwnedFd; N], HandoverError> {
    let count = descriptors.len();
    descriptors
        .try_into()
        .map_err(|_| HandoverError::Unexpected(format!("{count} descriptors instead of {N}")))
}

impl Estate {
    async fn send(&self, stream: &UnixSeqpacket) -> Result<(), HandoverError> {
        for (netns, listeners) in &self.sites {
            let sockets = [
                listeners.outbound.as_fd(),
                listeners.inbound_plaintext.as_fd(),
                listeners.hbone.as_fd(),
            ];
            send(stream, &Message::Site { netns: *netns }, &sockets).await?;
        }
        for (pod, sockets) in &self.dns {
            let pod = pod.as_str().to_owned();
            let sockets = [sockets.udp.as_fd(), sockets.tcp.as_fd()];
            send(stream, &Message::Dns { pod }, &sockets).await?;
        }
        send(stream, &Message::All, &[]).await
    }

    async fn receive(stream: &UnixSeqpacket) -> Result<Self, HandoverError> {
        let mut estate = Self::default();
        loop {
            match receive_soon(stream).await? {
                (Message::Site { netns }, descriptors) => {
                    let [outbound, inbound_plaintext, hbone] = all(descriptors)?;
                    let listeners = Listeners {
                        outbound: outbound.into(),
                        inbound_plaintext: inbound_plaintext.into(),
                        hbone: hbone.into(),
                    };
                    estate.sites.insert(netns, listeners);
                }
                (Message::Dns { pod }, descriptors) => {
                    let [udp, tcp] = all(descriptors)?;
                    let sockets = dns::Sockets {
                        udp: udp.into(),
                        tcp: tcp.into(),
                    };
                    estate.dns.insert(PodUid::new(pod), sockets);
                }
                (Message::All, _) => return Ok(estate),
                (other, _) => return Err(unexpected(&other)),
            }
        }
    }
}
