//! The agent's side: a proxy that is not ours is told which pods to carry, and says of each whether it does.
//!
//! Several proxies may be connected, while one takes over from another: what is new goes to the newest, what ends to all.

mod peer;
mod socket;
mod state;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{oneshot, watch};

use self::state::{Answer, State};
use super::Workload;
use crate::{pod::PodUid, sys::netns::Netns};

/// Tells the connected proxies of pods. Clones speak to the same proxies.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    state: Mutex<State>,
    /// Set once all pods are known that there are: those beside [`State::pods`] that a proxy should keep.
    complete: watch::Sender<Option<Vec<PodUid>>>,
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("{call} {}: {source}", path.display())]
    Socket {
        call: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} is there and is no socket; choose another path for agent.zds.serve, or remove it", .0.display())]
    NoSocket(PathBuf),
    #[error("no proxy is connected to {}; is it running, and does it look there?", .0.display())]
    NoProxy(PathBuf),
    #[error("the proxy left before it answered")]
    Left,
    #[error("the proxy cannot carry it: {0}")]
    Refused(String),
}

impl Server {
    /// Listens at `path`, in place of what listened there before. Needs a runtime.
    pub fn start(path: &Path) -> Result<Self, ServeError> {
        let (listener, place) = socket::listen(path)?;
        let server = Self {
            shared: Arc::new(Shared {
                path: path.to_owned(),
                state: Mutex::default(),
                complete: watch::Sender::new(None),
            }),
        };
        tokio::spawn(peer::accept(server.clone(), listener, place));
        Ok(server)
    }

    /// Has the pod carried; answers when the newest proxy listens in its namespace. On an error the proxy is told of the pod
    /// all the same as soon as it can be.
    pub async fn add(
        &self,
        uid: &PodUid,
        workload: Workload,
        netns: Netns,
    ) -> Result<(), ServeError> {
        let answer = self.state().add(uid, workload, netns);
        match answer {
            Answer::Known => Ok(()),
            Answer::Nobody => Err(ServeError::NoProxy(self.shared.path.clone())),
            Answer::Awaited(answer) => result(answer).await,
        }
    }

    /// Has the pod carried no more, by no proxy. Those that do not answer are cut off, and learn of it when they come again.
    pub async fn remove(&self, uid: &PodUid) {
        let answers = self.state().remove(uid);
        for answer in answers {
            if let Err(error) = result(answer).await {
                tracing::warn!(pod = %uid, %error, "a proxy goes on with a pod that is gone");
            }
        }
    }

    /// Whether the newest proxy carries the pod, or why not.
    pub fn carried(&self, uid: &PodUid) -> Result<(), ServeError> {
        let state = self.state();
        if !state.has_peer() {
            return Err(ServeError::NoProxy(self.shared.path.clone()));
        }
        state.carried(uid).map_err(ServeError::Refused)
    }

    /// All pods that there are have been added, save those in `keep`, which may yet be: proxies let go of all others. Until
    /// this is said they keep what they have.
    pub fn complete(&self, keep: impl FnOnce() -> Vec<PodUid>) {
        self.shared.complete.send_if_modified(|complete| {
            let is_first = complete.is_none();
            complete.get_or_insert_with(keep);
            is_first
        });
    }

    /// Whether the newest proxy carries the pod as this.
    pub fn carries(&self, uid: &PodUid, workload: &Workload, netns: &Netns) -> bool {
        self.state().carries(uid, workload, netns)
    }

    /// Whether proxies are told of the pod.
    pub fn knows(&self, uid: &PodUid) -> bool {
        self.state().has(uid)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole before anything can panic.
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

async fn result(answer: oneshot::Receiver<Result<(), String>>) -> Result<(), ServeError> {
    match answer.await {
        Ok(result) => result.map_err(ServeError::Refused),
        Err(_) => Err(ServeError::Left),
    }
}
