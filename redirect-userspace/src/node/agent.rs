//! The handle on the agent's task: sources tell it what they want, others ask it what is.

use tokio::sync::{broadcast, mpsc, oneshot};

use super::source::Source;
use crate::{
    capture::Applied,
    pod::{Pod, PodUid},
};

/// Speaks to the task that owns the pods. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Agent {
    orders: mpsc::Sender<Order>,
    events: broadcast::Sender<PodEvent>,
}

/// What the task is told.
#[derive(Debug)]
pub enum Order {
    Add(
        Source,
        Box<Pod>,
        oneshot::Sender<Result<Applied, AgentError>>,
    ),
    Remove(Source, PodUid, oneshot::Sender<Result<(), AgentError>>),
    Replace(Source, Vec<Pod>, oneshot::Sender<()>),
    Verify(PodUid, oneshot::Sender<Result<(), AgentError>>),
    List(oneshot::Sender<Vec<PodStatus>>),
}

/// How it stands with one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodStatus {
    pub pod: Pod,
    /// Who wants it, in their order.
    pub sources: Vec<Source>,
    /// `Err`: why it is not captured now; it is tried again.
    pub state: Result<(), String>,
}

/// What happened to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodEvent {
    /// Its capture was verified in the kernel.
    Captured(PodUid),
    /// It is as before capture.
    Released(PodUid),
    /// It is wanted and cannot be captured; said once per reason.
    Failed(PodUid, String),
}

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("pod {uid}: {reason}")]
    Pod { uid: PodUid, reason: String },
    #[error("pod {0} is not one of those to be captured")]
    NotWanted(PodUid),
    #[error("the agent is ending; ask again in a moment")]
    Ended,
}

impl Agent {
    /// The handle, and what the task reads.
    pub fn new() -> (Self, mpsc::Receiver<Order>) {
        let (orders, receiver) = mpsc::channel(64);
        let (events, _) = broadcast::channel(1024);
        (Self { orders, events }, receiver)
    }

    /// Captures the pod for `source`, and answers when its capture is verified in the kernel. The same pod again changes nothing;
    /// another namespace, cgroup or other options under the same uid replace what was.
    ///
    /// On an error the wish stays, and capture is tried again; who does not want that removes it.
    pub async fn add(&self, source: Source, pod: Pod) -> Result<Applied, AgentError> {
        self.ask(|reply| Order::Add(source, Box::new(pod), reply))
            .await?
    }

    /// `source` does not want the pod any more. Nobody else does: its connections drain, and it is let go.
    pub async fn remove(&self, source: Source, uid: &PodUid) -> Result<(), AgentError> {
        self.ask(|reply| Order::Remove(source, uid.clone(), reply))
            .await?
    }

    /// All that `source` wants: what it wanted before and does not name now goes. What an earlier daemon captured goes only
    /// once each source that is configured has said this.
    pub async fn replace(&self, source: Source, pods: Vec<Pod>) -> Result<(), AgentError> {
        self.ask(|reply| Order::Replace(source, pods, reply)).await
    }

    /// Looks into the kernel whether the pod is captured.
    pub async fn verify(&self, uid: &PodUid) -> Result<(), AgentError> {
        self.ask(|reply| Order::Verify(uid.clone(), reply)).await?
    }

    /// All pods that somebody wants, by uid.
    pub async fn list(&self) -> Result<Vec<PodStatus>, AgentError> {
        self.ask(Order::List).await
    }

    /// What happens from now on. Who reads too slowly misses some, and is told so: then [`list`](Self::list).
    pub fn events(&self) -> broadcast::Receiver<PodEvent> {
        self.events.subscribe()
    }

    /// For the task.
    pub fn tell(&self, event: PodEvent) {
        // Nobody listens: nobody needs it.
        let _ = self.events.send(event);
    }

    async fn ask<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<T>) -> Order,
    ) -> Result<T, AgentError> {
        let (reply, answer) = oneshot::channel();
        self.orders
            .send(order(reply))
            .await
            .map_err(|_| AgentError::Ended)?;
        answer.await.map_err(|_| AgentError::Ended)
    }
}
