//! Looking after captured pods: what something else on the node has taken away is put back.
//!
//! Links can be detached and unpinned, a pod can be given another interface, routes and sysctls are changed by whoever sets the
//! network up anew, and the cgroup of a systemd unit is another one each time the unit is started.

use super::{
    super::{CaptureError, Repair},
    EbpfCapture, Here,
    links::{self, PROXY_HOOKS, Targets},
    reserved, route,
    subject::Subject,
};
use crate::pod::PodUid;

/// What [`Repair`] calls things that are nobody's in particular.
const NODE: &str = "node";

impl EbpfCapture {
    pub(super) fn look_after(&mut self, pods: &[PodUid]) -> Vec<Repair> {
        let of_proxy = Repair::of(NODE, self.look_after_proxy());
        let of_pods = pods.iter().filter_map(|uid| {
            let here = self.applied.get(uid)?.clone();
            Repair::of(uid.as_str(), self.look_after_pod(&here))
        });
        of_proxy.into_iter().chain(of_pods).collect()
    }

    /// See [`Capture::faults`](super::super::Capture::faults).
    pub(super) fn faults_of(&self, uid: &PodUid) -> Result<Vec<String>, CaptureError> {
        let Some(here) = self.applied.get(uid) else {
            return Ok(vec!["its capture was not applied".to_owned()]);
        };
        let subject =
            match Subject::find(&here.pod, &here.netns, &self.own, self.predecessor.as_ref()) {
                // Nobody is in a cgroup that is gone.
                Err(_) if !here.pod.cgroup.exists() => return Ok(Vec::new()),
                subject => subject?,
            };
        let mut wrong = self.links_missing(&subject)?;
        if !self.tables.has(&subject) {
            wrong.push("the programs do not know it".to_owned());
        }
        Ok(wrong)
    }

    /// The programs on the daemon's own cgroup, without which no original destination is known.
    fn look_after_proxy(&self) -> Result<Vec<String>, CaptureError> {
        let (directory, targets) = (self.pins.proxy(self.own.id), Targets::cgroup(&self.own));
        let missing = links::missing(&directory, targets, &PROXY_HOOKS);
        if !missing.is_empty() {
            links::attach_proxy(self.object.programs(), &self.pins, &self.own, &PROXY_HOOKS)?;
        }
        Ok(missing.iter().map(|pin| detached(pin)).collect())
    }

    fn look_after_pod(&mut self, here: &Here) -> Result<Vec<String>, CaptureError> {
        let (pod, netns) = (&here.pod, &here.netns);
        let subject = match Subject::find(pod, netns, &self.own, self.predecessor.as_ref()) {
            // Nobody is in a cgroup that is gone. One that is made anew is found the next time.
            Err(_) if !pod.cgroup.exists() => return Ok(Vec::new()),
            subject => subject?,
        };
        let mut wrong = self.links_missing(&subject)?;
        if !wrong.is_empty() {
            self.restore(&subject, here.dns)?;
        }
        let sources = self.sources(netns, &pod.uid, &pod.ips);
        wrong.extend(route::reassert(netns, &sources)?);
        if reserved::add(netns)? {
            wrong.push("ports of ours were not reserved".to_owned());
        }
        Ok(wrong)
    }

    /// In words, which of the pod's links are not there.
    fn links_missing(&self, subject: &Subject<'_>) -> Result<Vec<String>, CaptureError> {
        let directory = self.pins.place(&subject.pod.uid, subject.place())?;
        if !directory.exists() {
            return Ok(vec!["its cgroup was made anew".to_owned()]);
        }
        let hooks = links::pod_hooks(subject.pod);
        let missing = links::missing(&directory, Targets::of(subject), &hooks);
        let mut wrong: Vec<_> = missing.iter().map(|pin| detached(pin)).collect();
        if let Some(guard) = self.guard.as_ref().filter(|_| self.is_guarded(subject.pod)) {
            let (netns, cgroup) = (subject.netns, &subject.cgroup);
            wrong.extend(guard.missing(&directory, netns, cgroup, &subject.pod.options)?);
        }
        Ok(wrong)
    }

    /// As [`apply`](super::super::Capture::apply), for the sockets that the programs have.
    fn restore(&mut self, subject: &Subject<'_>, dns: bool) -> Result<(), CaptureError> {
        let (uid, place) = (&subject.pod.uid, subject.place());
        for former in self.pins.places(uid)? {
            self.tables.follow(former, place)?;
        }
        self.tell(subject, dns)?;
        self.attach(subject)?;
        self.guard(subject)?;
        for former in self.pins.remove_other_places(uid, place)? {
            self.tables.leave(former)?;
        }
        Ok(())
    }
}

fn detached(pin: &str) -> String {
    format!("the program at {pin} was not attached")
}
