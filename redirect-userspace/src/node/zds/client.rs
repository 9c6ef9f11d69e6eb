//! The proxy's side: another node's agent says which pods we carry, and captures them itself.
//!
//! While it cannot be reached, the pods stay as they were. Each time it is, it names all pods anew; those that it does not name
//! have gone in the meantime.

mod pods;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::timeout;

use self::pods::Pods;
use super::{
    ANSWER_LIMIT,
    convert::{self, ConvertError},
    packet::Peer,
};
use crate::{node::agent::Agent, pod::PodOptions};

/// Waits between two attempts to connect: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(15));

/// Less than what the other side waits for.
const WORK_LIMIT: Duration = ANSWER_LIMIT.saturating_sub(Duration::from_secs(1));

/// Whose pods they are, and how they are carried.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Where the agent listens.
    pub socket: PathBuf,
    pub trust_domain: String,
    /// Of all pods.
    pub options: PodOptions,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("connect to {}: {source}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("{call} {}: {source}", path.display())]
    Io {
        call: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} was closed by the agent", .0.display())]
    Closed(PathBuf),
}

/// Follows what the agent says, for as long as the daemon runs.
pub async fn run(agent: Agent, setting: Setting) {
    let mut pods = Pods::new(agent, setting.trust_domain, setting.options);
    let mut backoff = BACKOFF.0;
    // One reason after the other is told, and none twice.
    let mut told = String::new();
    loop {
        let ended = follow(&mut pods, &setting.socket).await;
        if pods.is_named() {
            backoff = BACKOFF.0;
            told.clear();
        }
        let reason = ended.to_string();
        if reason != told {
            tracing::warn!(%reason, pods = pods.count(), "no node agent tells of pods; those that it told of go on");
            told = reason;
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

/// Follows one connection to its end.
async fn follow(pods: &mut Pods, path: &Path) -> Ended {
    pods.begin();
    match Peer::connect(path).await {
        Ok(peer) => match serve(pods, &peer).await {
            Ok(()) => Ended::Closed(path.into()),
            Err((call, source)) => Ended::Io {
                call,
                path: path.into(),
                source,
            },
        },
        Err(source) => Ended::Connect {
            path: path.into(),
            source,
        },
    }
}

/// Answers requests until the agent closes the connection.
async fn serve(pods: &mut Pods, peer: &Peer) -> Result<(), (&'static str, io::Error)> {
    let sending = |source| ("send to", source);
    peer.send(&convert::hello(), None).await.map_err(sending)?;
    loop {
        let received = peer.receive().await;
        let Some(packet) = received.map_err(|source| ("receive from", source))? else {
            return Ok(());
        };
        let result = match convert::read_request(packet) {
            Ok(request) => within(pods.obey(request)).await,
            Err(error) => Err(refused(&error)),
        };
        peer.send(&convert::ack(result), None)
            .await
            .map_err(sending)?;
    }
}

/// What takes longer goes on, without its end being told.
async fn within(work: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    timeout(WORK_LIMIT, work)
        .await
        .unwrap_or_else(|_| Err(format!("not done within {WORK_LIMIT:?}; it goes on")))
}

fn refused(error: &ConvertError) -> String {
    tracing::warn!(%error, "the node agent sent something that cannot be");
    error.to_string()
}
