//! Doing what is to be done, and telling of it.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{ByUid, Prepared, Task};
use crate::{
    app::pods::{PodError, find, have_carried, is_carried},
    capture::Applied,
    identity::IdentityError,
    node::{
        agent::{AgentError, PodEvent},
        reconcile::{Actual, Desired, Step, reconcile},
        source::Source,
    },
    pod::{Pod, PodUid},
};

/// How long a certificate may take. Afterwards the pod has failed for now; the store goes on asking.
const CERTIFICATE: Duration = Duration::from_secs(10);

impl Task {
    pub(super) async fn settle_all(&mut self) {
        let wanted = self.wishes.uids().chain(self.parts.pods.uids());
        let mut uids: Vec<PodUid> = wanted.chain(&self.earlier).cloned().collect();
        uids.sort();
        uids.dedup();
        let now = Instant::now();
        uids.retain(|uid| !self.failing.rests(uid, now));
        self.settle(uids).await;
    }

    /// Makes true what is wanted of these pods, or begins to.
    pub(super) async fn settle(&mut self, uids: Vec<PodUid>) {
        let (mut desired, mut actual) = (ByUid::new(), ByUid::new());
        for uid in &uids {
            if let Some(pod) = self.wishes.pod(uid) {
                let (pod, found) = (pod.clone(), find(pod));
                desired.insert(uid.clone(), Desired { pod, found });
            }
            let earlier = || self.earlier.contains(uid).then_some(Actual::Earlier);
            let captured = self.parts.pods.actual(uid, !self.damaged.contains(uid));
            if let Some(is) = captured.or_else(earlier) {
                actual.insert(uid.clone(), is);
            }
        }
        let is_complete =
            self.wishes.has_heard(&self.parts.sources) && !self.parts.pods.is_beside_another();
        if is_complete {
            self.tell_completeness();
        }
        for step in reconcile(&desired, &actual, is_complete) {
            self.take(step, &desired).await;
        }
        for uid in &uids {
            if self.wishes.pod(uid).is_none() {
                self.parts.pods.release_elsewhere(uid);
                self.failing.succeeded(uid);
                self.answer(uid, || Err(AgentError::NotWanted(uid.clone())));
            } else if self.waiting.contains_key(uid) && !self.preparing.contains(uid) {
                // Nothing was to be done.
                match self.fault(uid) {
                    None => self.answer(uid, || Ok(Applied::Adopted)),
                    Some(reason) => self.answer(uid, || Err(about(uid, &reason))),
                }
            }
        }
        self.parts.metrics.pods.set(self.parts.pods.count() as i64);
        let failed = self.failing.count() as i64;
        self.parts.metrics.pods_failed.set(failed);
    }

    /// Another's proxy may let go of pods that it has not been told of: nobody wants these.
    fn tell_completeness(&self) {
        if let Some(server) = self.parts.pods.server() {
            server.complete(|| self.wishes.uids().chain(&self.held).cloned().collect());
        }
    }

    async fn take(&mut self, step: Step, desired: &ByUid<Desired>) {
        match step {
            Step::Remove(uid) => self.remove(&uid).await,
            Step::Repair(uid) => match self.parts.pods.repair(&uid, &self.parts.workers).await {
                Ok(()) => self.captured(&uid, Applied::Adopted),
                Err(error) => {
                    self.earlier.insert(uid.clone());
                    self.failed(&uid, error);
                }
            },
            Step::Add(uid) | Step::Replace(uid) => {
                let pod = &desired[&uid].pod;
                match self.is_prepared(pod) {
                    true => self.add(&uid, desired).await,
                    false => self.prepare(pod.clone()),
                }
            }
        }
    }

    async fn add(&mut self, uid: &PodUid, desired: &ByUid<Desired>) {
        let pod = desired[uid].pod.clone();
        let added = self.parts.pods.add(pod, &self.parts.workers).await;
        if self.parts.pods.actual(uid, true).is_some() {
            self.earlier.remove(uid);
        } else if self.parts.pods.is_recorded(uid) {
            // In the kernel it is captured still, as it was.
            self.earlier.insert(uid.clone());
        }
        match added {
            Ok(applied) => self.captured(uid, applied),
            Err(error) => self.failed(uid, error),
        }
    }

    async fn remove(&mut self, uid: &PodUid) {
        if self.held.contains(uid) {
            return;
        }
        let drain = self.parts.drain;
        self.parts
            .pods
            .remove(uid, drain, &self.parts.workers)
            .await;
        self.earlier.remove(uid);
        self.damaged.remove(uid);
        self.parts.agent.tell(PodEvent::Released(uid.clone()));
        // A sandbox that is gone does not come back under the same name; that it went may have been told to nobody.
        if self.wishes.remove(Source::Cni, uid) {
            self.parts.remembered.forget(Source::Cni, uid);
        }
        if self.wishes.pod(uid).is_some() {
            let gone = "its network namespace and its cgroup are gone".to_owned();
            self.failing.failed(uid, gone, Instant::now());
        }
    }

    /// Whether the pod can be captured at once: our proxy has its certificate, or another's listens in it.
    fn is_prepared(&self, pod: &Pod) -> bool {
        match self.parts.pods.server() {
            Some(server) => is_carried(server, pod),
            None => self.parts.identities.get(&pod.identity).is_ok(),
        }
    }

    /// Asks for that without waiting for it.
    fn prepare(&mut self, pod: Pod) {
        let uid = pod.uid.clone();
        if !self.preparing.insert(uid.clone()) {
            return;
        }
        let (identities, sender) = (self.parts.identities.clone(), self.prepared.0.clone());
        let server = self.parts.pods.server().cloned();
        tokio::spawn(async move {
            let result = match server {
                Some(server) => have_carried(&server, &pod).await,
                None => {
                    let identity = pod.identity;
                    match timeout(CERTIFICATE, identities.prepare(&identity)).await {
                        Ok(result) => result.map(drop).map_err(PodError::from),
                        Err(_) => Err(IdentityError::NotPrepared(identity).into()),
                    }
                }
            };
            // The task is gone: nobody needs it.
            _ = sender.send(Prepared { uid, result });
        });
    }

    pub(super) async fn prepared(&mut self, prepared: Prepared) {
        let Prepared { uid, result } = prepared;
        self.preparing.remove(&uid);
        match result {
            // What is wanted may be another thing by now.
            Ok(()) => self.settle(vec![uid]).await,
            Err(error) if self.wishes.pod(&uid).is_some() => {
                self.failed(&uid, error);
                let failed = self.failing.count() as i64;
                self.parts.metrics.pods_failed.set(failed);
            }
            Err(_) => {}
        }
    }

    /// Asks the kernel about some pods, in their turn, and makes good what is not right.
    pub(super) async fn look_after(&mut self, most: usize) {
        let uids = self.parts.pods.reassert(most);
        for uid in &uids {
            let faults = self.parts.pods.faults(uid);
            if faults.is_empty() {
                // What is known to fail is said to be good by its next attempt.
                if self.failing.reason(uid).is_none() {
                    self.damaged.remove(uid);
                }
            } else {
                let differences = faults.join("; ");
                tracing::warn!(pod = %uid, differences, "capture is not as it was applied");
                self.damaged.insert(uid.clone());
            }
        }
        let now = Instant::now();
        let rests = |uid: &PodUid| self.failing.rests(uid, now);
        let uids: Vec<_> = uids.into_iter().filter(|uid| !rests(uid)).collect();
        self.settle(uids).await;
    }

    fn captured(&mut self, uid: &PodUid, applied: Applied) {
        let faults = self.parts.pods.faults(uid);
        if !faults.is_empty() {
            self.damaged.insert(uid.clone());
            self.fail(uid, faults.join("; "));
            return;
        }
        self.failing.succeeded(uid);
        if self.damaged.remove(uid) {
            self.parts.metrics.repairs.inc();
            tracing::warn!(pod = %uid, "capture is again as it was applied");
        } else {
            match applied {
                Applied::Attached => tracing::info!(pod = %uid, "captured"),
                Applied::Adopted => {
                    tracing::info!(pod = %uid, "captured: adopted what was there");
                }
            }
        }
        self.parts.agent.tell(PodEvent::Captured(uid.clone()));
        self.answer(uid, || Ok(applied));
    }

    fn failed(&mut self, uid: &PodUid, error: PodError) {
        self.fail(uid, error.to_string());
    }

    fn fail(&mut self, uid: &PodUid, reason: String) {
        if self.failing.failed(uid, reason.clone(), Instant::now()) {
            tracing::error!(pod = %uid, error = reason, "cannot capture pod; it is tried again");
            let event = PodEvent::Failed(uid.clone(), reason.clone());
            self.parts.agent.tell(event);
        }
        self.answer(uid, || Err(about(uid, &reason)));
    }

    /// Answers all who wait for the pod; those who do not wait any longer do not need it.
    fn answer(&mut self, uid: &PodUid, mut result: impl FnMut() -> Result<Applied, AgentError>) {
        for waiting in self.waiting.remove(uid).unwrap_or_default() {
            _ = waiting.send(result());
        }
    }
}

pub(super) fn about(uid: &PodUid, reason: &str) -> AgentError {
    AgentError::Pod {
        uid: uid.clone(),
        reason: reason.to_owned(),
    }
}
