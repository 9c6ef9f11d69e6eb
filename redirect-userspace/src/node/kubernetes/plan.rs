//! What is to be done for the pods of this node, from what the API says and what the agent has. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::PathBuf,
};

use super::{
    annotations::{ENABLED, REDIRECTION},
    cache::Cache,
    enrolment::{Common, Judgement, describe, judge},
    objects::{Meta, Namespace, Pod},
};
use crate::{
    node::{
        agent::PodStatus,
        source::{Description, Source},
    },
    pod::{self, PodUid},
};

/// What the API is known to say.
#[derive(Debug, Default)]
pub struct Known {
    pub pods: Cache<Pod>,
    pub namespaces: Cache<Namespace>,
}

impl Known {
    pub fn is_complete(&self) -> bool {
        self.pods.is_complete() && self.namespaces.is_complete()
    }

    pub fn judge(&self, pod: &Pod) -> Option<Judgement> {
        let namespace = self.namespaces.get("", &pod.metadata.namespace);
        judge(pod, namespace.map(|namespace| &namespace.metadata))
    }

    pub fn by_uid(&self, uid: &PodUid) -> Option<&Pod> {
        self.pods
            .iter()
            .find(|pod| pod.metadata.uid == uid.as_str())
    }
}

/// What is to be done. Doing it twice does no harm.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Captured already, or by somebody else: as this, for us too.
    pub want: Vec<pod::Pod>,
    /// Enrolled and running, but nobody told where.
    pub find: Vec<(Description, Vec<IpAddr>)>,
    pub drop: Vec<PodUid>,
    /// Captured for us, and not in the list: gone, or so new that the list is older.
    pub confirm: Vec<(PodUid, String, String)>,
    /// Whether to set or to remove the annotation that says that the pod is captured.
    pub annotate: Vec<(Meta, bool)>,
    /// What is not heeded of the wishes for a pod.
    pub complaints: Vec<(Meta, String)>,
}

/// `listed` is what the agent has; `verified`, what it last said of pods; `told`, what it was last told to capture.
pub fn plan(
    known: &Known,
    node: &str,
    common: &Common,
    listed: &[PodStatus],
    verified: &HashMap<PodUid, bool>,
    told: &HashMap<PodUid, pod::Pod>,
) -> Plan {
    let mut plan = Plan::default();
    let mut listed: BTreeMap<&PodUid, &PodStatus> = listed
        .iter()
        .map(|status| (&status.pod.uid, status))
        .collect();
    let pods = known.pods.iter();
    for pod in pods.filter(|pod| pod.spec.node_name == node) {
        let meta = &pod.metadata;
        let uid = PodUid::new(meta.uid.as_str());
        let status = listed.remove(&uid);
        let is_ours = status.is_some_and(|status| status.sources.contains(&Source::Kubernetes));
        let enrolled = match known.judge(pod) {
            // As before, until its namespace is known.
            None => continue,
            Some(judgement) => judgement == Judgement::Enrolled && !pod.is_over(),
        };
        plan.annotation(meta, enrolled || status.is_some(), verified.get(&uid));
        if !enrolled {
            if is_ours {
                plan.drop.push(uid);
            }
            continue;
        }
        let described = match describe(pod, common) {
            Ok(described) => described,
            Err(error) => {
                plan.complaints.push((meta.clone(), error));
                continue;
            }
        };
        let complaints = described.complaints.into_iter();
        plan.complaints
            .extend(complaints.map(|complaint| (meta.clone(), complaint)));
        let description = described.description;
        match status {
            Some(PodStatus { pod: current, .. }) => {
                let place = (current.netns.clone(), current.cgroup.clone());
                let wanted = at(description, place, current.ips.clone());
                if !is_ours || told.get(&uid) != Some(&wanted) {
                    plan.want.push(wanted);
                }
            }
            None => {
                let ips = pod.ips();
                let is_up = pod.status.phase == "Running" && meta.deletion_timestamp.is_none();
                if is_up && !ips.is_empty() {
                    plan.find.push((description, ips));
                }
            }
        }
    }
    for (uid, status) in listed {
        if status.sources.contains(&Source::Kubernetes) {
            let pod = &status.pod;
            plan.confirm
                .push((uid.clone(), pod.namespace.clone(), pod.name.clone()));
        }
    }
    plan
}

impl Plan {
    /// Where nothing is known of a pod that should be captured, the annotation stays as it is.
    fn annotation(&mut self, meta: &Meta, is_wanted: bool, verified: Option<&bool>) {
        let is_captured = match (verified, is_wanted) {
            (Some(verified), _) => *verified,
            (None, false) => false,
            (None, true) => return,
        };
        let annotation = meta.annotation(REDIRECTION);
        let is_right = match is_captured {
            true => annotation == Some(ENABLED),
            false => annotation.is_none(),
        };
        if !is_right {
            self.annotate.push((meta.clone(), is_captured));
        }
    }
}

/// A pod that is described, at a network namespace and cgroup.
pub fn at(description: Description, place: (PathBuf, PathBuf), ips: Vec<IpAddr>) -> pod::Pod {
    let (netns, cgroup) = place;
    pod::Pod {
        uid: description.uid,
        name: description.name,
        namespace: description.namespace,
        identity: description.identity,
        netns,
        cgroup,
        ips,
        cgroup_only: None,
        options: description.options,
    }
}

#[cfg(test)]
mod tests;
