//! The node agent's task: it owns the pods, is told what sources want, and makes it true.
//!
//! What is to be done is decided by [`reconcile`](crate::node::reconcile); here it is done, one pod at a time. Nothing slow
//! happens in between: certificates are fetched by tasks of their own, and come back as a message.

mod failing;
mod paused;
mod steps;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior},
};

use self::{failing::Failing, paused::Other};
use super::pods::{PodError, Pods};
use crate::{
    capture::Applied,
    identity::{Identity, IdentityStore},
    node::{
        agent::{Agent, AgentError, Order, PodStatus},
        remembered::Remembered,
        source::Source,
        wishes::Wishes,
    },
    pod::{Pod, PodUid},
    proxy::Workers,
    telemetry::Metrics,
};

/// Pods whose capture is looked after in one turn: each costs some milliseconds where rules have to be listed.
const VERIFIED_AT_ONCE: usize = 8;

/// How often it is looked whether the connections of pods that were let go have ended.
const LEAVING: Duration = Duration::from_millis(200);

/// What the task is made of.
pub struct Parts {
    pub agent: Agent,
    pub orders: mpsc::Receiver<Order>,
    pub pods: Pods,
    pub workers: Workers,
    pub identities: Arc<IdentityStore>,
    pub metrics: Arc<Metrics>,
    /// Wishes on disk.
    pub remembered: Remembered,
    /// Those that will say all that they want: until they have, nothing of earlier daemons is let go.
    pub sources: Vec<Source>,
    /// For connections of pods that are let go.
    pub drain: Duration,
    pub verify_interval: Duration,
}

/// The running task.
pub struct Running {
    task: JoinHandle<(Pods, Workers)>,
    stop: oneshot::Sender<()>,
    look: Arc<Notify>,
    others: mpsc::UnboundedSender<Other>,
}

/// How the first round went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstRound {
    pub captured: usize,
    pub failed: usize,
}

impl Running {
    /// Has all pods looked after now, rather than in their turn.
    pub fn look_after_all(&self) {
        self.look.notify_one();
    }

    /// Ends the task, and gives back what it worked with. All stays captured.
    pub async fn end(self) -> anyhow::Result<(Pods, Workers)> {
        // Nobody to tell if it has ended by itself.
        _ = self.stop.send(());
        Ok(self.task.await?)
    }
}

/// Starts the task with these wishes of the configuration. The receiver is told when each pod that is known by now was tried.
pub fn start(parts: Parts, configured: Vec<Pod>) -> (Running, oneshot::Receiver<FirstRound>) {
    let (stop, stopped) = oneshot::channel();
    let (ready, first_round) = oneshot::channel();
    let look = Arc::new(Notify::new());
    let (others, told) = mpsc::unbounded_channel();
    let task = Task::new(parts, look.clone(), ready);
    let task = tokio::spawn(task.run(configured, stopped, told));
    let running = Running {
        task,
        stop,
        look,
        others,
    };
    (running, first_round)
}

type Waiting = oneshot::Sender<Result<Applied, AgentError>>;

struct Task {
    parts: Parts,
    look: Arc<Notify>,
    /// Until the first round is over.
    ready: Option<oneshot::Sender<FirstRound>>,
    wishes: Wishes,
    /// What earlier daemons captured, or this one in part.
    earlier: BTreeSet<PodUid>,
    /// Wishes of these could not be read: they stay as they are.
    held: BTreeSet<PodUid>,
    failing: Failing,
    /// Who waits for a pod's capture.
    waiting: HashMap<PodUid, Vec<Waiting>>,
    /// Pods whose certificate is on its way, or which another's proxy has been told of.
    preparing: BTreeSet<PodUid>,
    prepared: (
        mpsc::UnboundedSender<Prepared>,
        mpsc::UnboundedReceiver<Prepared>,
    ),
    /// What the kernel was found to lack, when it was last asked.
    damaged: BTreeSet<PodUid>,
    /// While another daemon takes over.
    is_paused: bool,
}

/// A certificate has come, or another's proxy has answered; or not.
struct Prepared {
    uid: PodUid,
    result: Result<(), PodError>,
}

impl Task {
    fn new(parts: Parts, look: Arc<Notify>, ready: oneshot::Sender<FirstRound>) -> Self {
        Self {
            earlier: parts.pods.earlier(),
            parts,
            look,
            ready: Some(ready),
            wishes: Wishes::default(),
            held: BTreeSet::new(),
            failing: Failing::default(),
            waiting: HashMap::new(),
            preparing: BTreeSet::new(),
            prepared: mpsc::unbounded_channel(),
            damaged: BTreeSet::new(),
            is_paused: false,
        }
    }

    async fn run(
        mut self,
        configured: Vec<Pod>,
        mut stopped: oneshot::Receiver<()>,
        mut others: mpsc::UnboundedReceiver<Other>,
    ) -> (Pods, Workers) {
        self.begin(configured).await;
        let look = self.look.clone();
        let interval = self.parts.verify_interval;
        let mut verify = tokio::time::interval_at(Instant::now() + interval, interval);
        verify.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.tell_when_ready().await;
            let retry = self.failing.next();
            let is_at_work = !self.is_paused;
            let are_leaving = self.parts.pods.clean_left();
            tokio::select! {
                // A closed channel ends the task, too.
                _ = &mut stopped => break,
                Some(other) = others.recv() => self.other(other).await,
                Some(order) = self.parts.orders.recv(), if is_at_work => self.obey(order).await,
                Some(prepared) = self.prepared.1.recv(), if is_at_work => self.prepared(prepared).await,
                () = until(retry), if is_at_work => {
                    let due = self.failing.due(Instant::now());
                    self.settle(due).await;
                }
                () = tokio::time::sleep(LEAVING), if are_leaving => {}
                _ = verify.tick(), if is_at_work => self.look_after(VERIFIED_AT_ONCE).await,
                () = look.notified(), if is_at_work => self.look_after(usize::MAX).await,
            }
        }
        (self.parts.pods, self.parts.workers)
    }

    /// The wishes that are known before anybody has spoken.
    async fn begin(&mut self, configured: Vec<Pod>) {
        for source in Remembered::SOURCES {
            let (pods, unreadable) = self.parts.remembered.load(source);
            self.held.extend(unreadable);
            match source {
                // What was said to us is all that was said.
                Source::Command | Source::Cni => _ = self.wishes.replace(source, pods),
                _ => {
                    for pod in pods {
                        self.wishes.add(source, pod);
                    }
                }
            }
        }
        self.wishes.replace(Source::Config, configured);
        self.settle_all().await;
    }

    async fn tell_when_ready(&mut self) {
        if !self.preparing.is_empty() {
            return;
        }
        if let Some(ready) = self.ready.take() {
            let accepting = self.parts.pods.accept_inherited(&self.parts.workers);
            if let Err(error) = accepting.await {
                tracing::error!(%error, "cannot accept where another daemon does");
            }
            // Who does not wait any more is ending.
            _ = ready.send(FirstRound {
                captured: self.parts.pods.count(),
                failed: self.failing.count(),
            });
        }
    }

    async fn obey(&mut self, order: Order) {
        let before = self.identities();
        self.do_order(order).await;
        // Certificates that nobody needs are not renewed any longer.
        for gone in before.difference(&self.identities()) {
            self.parts.identities.forget(gone);
        }
    }

    fn identities(&self) -> BTreeSet<Identity> {
        let pods = self.wishes.uids().filter_map(|uid| self.wishes.pod(uid));
        pods.map(|pod| pod.identity.clone()).collect()
    }

    async fn do_order(&mut self, order: Order) {
        match order {
            Order::Add(source, pod, answer) => {
                let uid = pod.uid.clone();
                if self.wishes.add(source, (*pod).clone()) {
                    self.parts.remembered.keep(source, &pod);
                }
                self.waiting.entry(uid.clone()).or_default().push(answer);
                self.failing.try_now(&uid);
                self.settle(vec![uid.clone()]).await;
            }
            Order::Remove(source, uid, answer) => {
                if self.wishes.remove(source, &uid) {
                    self.parts.remembered.forget(source, &uid);
                }
                self.held.remove(&uid);
                self.failing.try_now(&uid);
                self.settle(vec![uid]).await;
                _ = answer.send(Ok(()));
            }
            Order::Replace(source, pods, answer) => {
                let changed = self.wishes.replace(source, pods);
                for (uid, pod) in &changed {
                    match pod {
                        Some(pod) => self.parts.remembered.keep(source, pod),
                        None => self.parts.remembered.forget(source, uid),
                    }
                    self.failing.try_now(uid);
                }
                // All: with what was said now, more may be known to be unwanted.
                self.settle_all().await;
                _ = answer.send(());
            }
            Order::Verify(uid, answer) => _ = answer.send(self.verify(&uid)),
            Order::List(answer) => _ = answer.send(self.list()),
        }
    }

    fn verify(&self, uid: &PodUid) -> Result<(), AgentError> {
        if self.wishes.pod(uid).is_none() {
            return Err(AgentError::NotWanted(uid.clone()));
        }
        match self.fault(uid) {
            None => Ok(()),
            Some(reason) => Err(steps::about(uid, &reason)),
        }
    }

    /// Why the pod is not captured as it should be.
    fn fault(&self, uid: &PodUid) -> Option<String> {
        if let Some(reason) = self.failing.reason(uid) {
            return Some(reason.to_owned());
        }
        let faults = self.parts.pods.faults(uid);
        (!faults.is_empty()).then(|| faults.join("; "))
    }

    fn list(&self) -> Vec<PodStatus> {
        let uids = self.wishes.uids();
        uids.filter_map(|uid| {
            Some(PodStatus {
                pod: self.wishes.pod(uid)?.clone(),
                sources: self.wishes.sources(uid),
                state: self.state(uid),
            })
        })
        .collect()
    }

    fn state(&self, uid: &PodUid) -> Result<(), String> {
        if let Some(reason) = self.failing.reason(uid) {
            return Err(reason.to_owned());
        }
        match self.parts.pods.actual(uid, true) {
            Some(_) => Ok(()),
            None => Err("waits for its certificate".to_owned()),
        }
    }
}

/// For ever, if there is no such time.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// By uid.
type ByUid<T> = BTreeMap<PodUid, T>;
