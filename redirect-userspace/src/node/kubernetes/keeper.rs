//! Keeps the agent's wishes of this source as the API says: hears changes, plans, and does what the plan says.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{broadcast, mpsc, watch as channel},
    task::spawn_blocking,
    time::{Instant, sleep_until},
};
use tracing::{error, info, warn};

use super::{
    Kubernetes, Ready,
    objects::{Meta, Namespace, Pod},
    plan::{Plan, at, plan},
    report::Report,
    watch::Change,
};
use crate::{
    config::HostPaths,
    node::{
        agent::{Agent, PodEvent},
        location::{LocationError, Wanted, scan},
        source::{Description, Source},
    },
    pod::{self, PodUid},
};

/// What the keeper is told.
#[derive(Debug)]
pub enum Heard {
    Pod(Change<Pod>),
    Namespace(Change<Namespace>),
    /// The pod as it is after it was annotated; `None` if it could not be.
    Annotated(PodUid, Option<Box<Pod>>),
    /// The API does not have it any more.
    IsGone(PodUid),
    NotConfirmed(PodUid),
    /// Look again.
    Again,
}

/// Everything is looked at again after this, whatever was heard.
const LOOK: Duration = Duration::from_secs(30);
/// A report is answered within this.
const REPORT: Duration = Duration::from_secs(300);
/// One that failed is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// Pods that run and are not found are looked for again, less and less often.
const FIND: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

pub struct Keeper {
    kubernetes: Arc<Kubernetes>,
    agent: Agent,
    /// From before the agent does anything.
    events: broadcast::Receiver<PodEvent>,
    host: HostPaths,
    reports: mpsc::Sender<Report>,
    ready: channel::Sender<Ready>,
    /// What the agent last said of pods.
    verified: HashMap<PodUid, bool>,
    told: HashMap<PodUid, pod::Pod>,
    /// Reports that are under way or have failed, and until when nothing more is said of the matter.
    annotating: HashMap<PodUid, Instant>,
    confirming: HashMap<PodUid, Instant>,
    finding: HashMap<PodUid, (Instant, Duration)>,
    /// Warnings that were posted.
    warned: HashSet<(PodUid, String)>,
}

impl Keeper {
    pub fn new(
        kubernetes: Arc<Kubernetes>,
        agent: Agent,
        host: HostPaths,
        reports: mpsc::Sender<Report>,
        ready: channel::Sender<Ready>,
    ) -> Self {
        Self {
            kubernetes,
            events: agent.events(),
            agent,
            host,
            reports,
            ready,
            verified: HashMap::new(),
            told: HashMap::new(),
            annotating: HashMap::new(),
            confirming: HashMap::new(),
            finding: HashMap::new(),
            warned: HashSet::new(),
        }
    }

    /// Until the agent ends.
    pub async fn run(mut self, mut hears: mpsc::Receiver<Heard>) {
        let mut look = Instant::now();
        loop {
            tokio::select! {
                heard = hears.recv() => match heard {
                    Some(heard) => self.hear(heard),
                    None => return,
                },
                event = self.events.recv() => match event {
                    Ok(event) => self.hear_event(event),
                    Err(broadcast::error::RecvError::Lagged(_)) => self.ask_all().await,
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                () = sleep_until(look) => {}
            }
            // What has come meanwhile is one matter.
            while let Ok(heard) = hears.try_recv() {
                self.hear(heard);
            }
            loop {
                match self.events.try_recv() {
                    Ok(event) => self.hear_event(event),
                    Err(broadcast::error::TryRecvError::Lagged(_)) => self.ask_all().await,
                    Err(_) => break,
                }
            }
            if !self.kubernetes.known().is_complete() {
                look = Instant::now() + LOOK;
                continue;
            }
            if self.act().await.is_none() {
                return;
            }
            let next = self.finding.values().map(|(when, _)| *when).min();
            look = next.unwrap_or(Instant::now() + LOOK);
            look = look.min(Instant::now() + LOOK);
        }
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Pod(Change::Down(why)) | Heard::Namespace(Change::Down(why)) => {
                self.ready.send_if_modified(|ready| match ready {
                    Ready::Yes => false,
                    Ready::NotYet(before) => {
                        *before = why;
                        true
                    }
                });
            }
            Heard::Pod(change) => {
                if let Change::Put(pod) = &change {
                    self.confirming
                        .remove(&PodUid::new(pod.metadata.uid.as_str()));
                }
                if let Change::Gone(pod) = &change {
                    let gone = PodUid::new(pod.metadata.uid.as_str());
                    self.forget(&gone);
                }
                self.kubernetes.known().pods.apply(change);
            }
            Heard::Namespace(change) => {
                self.kubernetes.known().namespaces.apply(change);
            }
            Heard::Annotated(uid, pod) => {
                if let Some(pod) = pod {
                    self.annotating.remove(&uid);
                    self.kubernetes.known().pods.apply(Change::Put(*pod));
                } else {
                    self.annotating.insert(uid, Instant::now() + RETRY);
                }
            }
            Heard::IsGone(uid) => self.forget(&uid),
            Heard::NotConfirmed(uid) => {
                self.confirming.insert(uid, Instant::now() + RETRY);
            }
            Heard::Again => {}
        }
    }

    fn hear_event(&mut self, event: PodEvent) {
        match event {
            PodEvent::Captured(uid) => {
                self.verified.insert(uid, true);
            }
            PodEvent::Released(uid) => {
                self.verified.insert(uid, false);
            }
            PodEvent::Failed(uid, reason) => {
                let meta = self.meta(&uid);
                self.verified.insert(uid, false);
                if let Some(meta) = meta {
                    self.warn(meta, "CaptureFailed", reason);
                }
            }
        }
    }

    /// Events were missed.
    async fn ask_all(&mut self) {
        let Ok(listed) = self.agent.list().await else {
            return;
        };
        self.verified.clear();
        for status in listed {
            let uid = status.pod.uid;
            let is_captured = self.agent.verify(&uid).await.is_ok();
            self.verified.insert(uid, is_captured);
        }
    }

    /// `None` if the agent has ended.
    async fn act(&mut self) -> Option<()> {
        let listed = self.agent.list().await.ok()?;
        self.prune(listed.iter().map(|status| status.pod.uid.clone()).collect());
        let plan = plan(
            &self.kubernetes.known(),
            &self.kubernetes.node,
            &self.kubernetes.common,
            &listed,
            &self.verified,
            &self.told,
        );
        let is_first = *self.ready.borrow() != Ready::Yes;
        let Plan {
            mut want,
            find,
            drop,
            confirm,
            annotate,
            complaints,
        } = plan;
        want.extend(self.find(find).await);
        for pod in &want {
            self.told.insert(pod.uid.clone(), pod.clone());
        }
        if is_first {
            // The wishes of an earlier daemon that are none any more end here.
            info!(target: "redirect::kubernetes", pods = want.len(), "all enrolled pods of this node are known");
            self.agent.replace(Source::Kubernetes, want).await.ok()?;
            self.ready.send_replace(Ready::Yes);
        } else {
            want.into_iter().for_each(|pod| self.add(pod));
            drop.into_iter().for_each(|uid| self.remove(uid));
            for (uid, namespace, name) in confirm {
                let report = Report::Confirm {
                    uid: uid.clone(),
                    namespace,
                    name,
                };
                send(&self.reports, report, &mut self.confirming, uid);
            }
        }
        for (meta, value) in annotate {
            let uid = PodUid::new(meta.uid.as_str());
            let report = Report::Annotate(meta, value);
            send(&self.reports, report, &mut self.annotating, uid);
        }
        for (meta, complaint) in complaints {
            self.warn(meta, "InvalidAnnotation", complaint);
        }
        Some(())
    }

    /// Where these pods are, as far as it is time to look.
    async fn find(&mut self, pods: Vec<(Description, Vec<IpAddr>)>) -> Vec<pod::Pod> {
        let now = Instant::now();
        let wanted: HashSet<&PodUid> = pods.iter().map(|(pod, _)| &pod.uid).collect();
        self.finding.retain(|uid, _| wanted.contains(uid));
        let due = pods.into_iter().filter(|(pod, _)| {
            let next = self.finding.get(&pod.uid);
            next.is_none_or(|(when, _)| *when <= now)
        });
        let due: Vec<_> = due.collect();
        if due.is_empty() {
            return Vec::new();
        }
        let wanted = due.iter().map(|(pod, ips)| Wanted {
            uid: pod.uid.as_str().to_owned(),
            config_hash: pod.config_hash.clone(),
            ips: ips.clone(),
        });
        let (wanted, host): (Vec<_>, _) = (wanted.collect(), self.host.clone());
        let scanned = spawn_blocking(move || scan(&host, &wanted)).await;
        let mut scanned = match scanned {
            Ok(Ok(scanned)) => scanned,
            Ok(Err(error)) => {
                error!(target: "redirect::kubernetes", "cannot look for pods: {error}");
                BTreeMap::new()
            }
            // The runtime is ending.
            Err(_) => return Vec::new(),
        };
        let mut found = Vec::new();
        for (description, _) in due {
            match scanned.remove(description.uid.as_str()) {
                Some(Ok(location)) => {
                    self.finding.remove(&description.uid);
                    let place = (location.netns, location.cgroup);
                    found.push(at(description, place, location.ips));
                }
                Some(Err(error)) => self.not_found(&description, &error),
                None => self.again(&description.uid),
            }
        }
        found
    }

    fn not_found(&mut self, pod: &Description, error: &LocationError) {
        let is_between = matches!(
            error,
            LocationError::NoProcess(_) | LocationError::NoAddress(_)
        );
        // What is on its way is told of by CNI, or found at the next look.
        if !is_between && let Some(meta) = self.meta(&pod.uid) {
            self.warn(meta, "CaptureFailed", error.to_string());
        }
        self.again(&pod.uid);
    }

    fn again(&mut self, uid: &PodUid) {
        let pause = self.finding.get(uid);
        let pause = pause.map_or(FIND[0], |(_, pause)| (*pause * 2).min(FIND[1]));
        self.finding
            .insert(uid.clone(), (Instant::now() + pause, pause));
    }

    /// Apart: the pod's certificate may take its time.
    fn add(&self, pod: pod::Pod) {
        let (agent, heard) = (self.agent.clone(), self.kubernetes.heard.clone());
        tokio::spawn(async move {
            let uid = pod.uid.clone();
            if let Err(error) = agent.add(Source::Kubernetes, pod).await {
                warn!(target: "redirect::kubernetes", pod = %uid, "enrolled, but not captured: {error}");
            }
            let _ = heard.send(Heard::Again).await;
        });
    }

    /// Apart: its connections drain.
    fn remove(&self, uid: PodUid) {
        let agent = self.agent.clone();
        tokio::spawn(async move {
            if let Err(error) = agent.remove(Source::Kubernetes, &uid).await {
                warn!(target: "redirect::kubernetes", pod = %uid, "not enrolled any more, but not let go: {error}");
            }
        });
    }

    /// The pod is no more.
    fn forget(&mut self, uid: &PodUid) {
        self.confirming.remove(uid);
        self.told.remove(uid);
        self.finding.remove(uid);
        let agent = self.agent.clone();
        let uid = uid.clone();
        tokio::spawn(async move {
            // Mostly CNI's DEL was first.
            let _ = agent.remove(Source::Kubernetes, &uid).await;
        });
    }

    /// Forgets what was remembered of pods that are neither known nor listed.
    fn prune(&mut self, listed: HashSet<PodUid>) {
        let known = self.kubernetes.known();
        let mut uids = listed;
        uids.extend(
            known
                .pods
                .iter()
                .map(|pod| PodUid::new(pod.metadata.uid.as_str())),
        );
        drop(known);
        self.verified.retain(|uid, _| uids.contains(uid));
        self.annotating.retain(|uid, _| uids.contains(uid));
        self.confirming.retain(|uid, _| uids.contains(uid));
        self.told.retain(|uid, _| uids.contains(uid));
        self.warned.retain(|(uid, _)| uids.contains(uid));
    }

    fn meta(&self, uid: &PodUid) -> Option<Meta> {
        let known = self.kubernetes.known();
        known.by_uid(uid).map(|pod| pod.metadata.clone())
    }

    /// Once per pod and message.
    fn warn(&mut self, meta: Meta, reason: &'static str, message: String) {
        let key = (PodUid::new(meta.uid.as_str()), message.clone());
        if !self.warned.insert(key) {
            return;
        }
        warn!(target: "redirect::kubernetes", pod = meta.uid, namespace = meta.namespace, name = meta.name, "{reason}: {message}");
        let _ = self.reports.try_send(Report::Warn(meta, reason, message));
    }
}

/// Unless it is under way; at the next look, if too many wait already.
fn send(
    reports: &mpsc::Sender<Report>,
    report: Report,
    under_way: &mut HashMap<PodUid, Instant>,
    uid: PodUid,
) {
    let now = Instant::now();
    let waits = under_way.get(&uid).is_some_and(|until| *until > now);
    if !waits && reports.try_send(report).is_ok() {
        under_way.insert(uid, now + REPORT);
    }
}
