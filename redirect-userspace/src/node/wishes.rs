//! What is wanted, and by whom. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::source::Source;
use crate::pod::{Pod, PodUid};

/// The wishes of all sources.
#[derive(Debug, Default)]
pub struct Wishes {
    by_uid: BTreeMap<PodUid, BTreeMap<Source, Pod>>,
    heard: BTreeSet<Source>,
}

impl Wishes {
    /// Whether that changes what the source wants.
    pub fn add(&mut self, source: Source, pod: Pod) -> bool {
        let wishes = self.by_uid.entry(pod.uid.clone()).or_default();
        let is_new = wishes.get(&source) != Some(&pod);
        wishes.insert(source, pod);
        is_new
    }

    /// Whether the source wanted it.
    pub fn remove(&mut self, source: Source, uid: &PodUid) -> bool {
        let Some(wishes) = self.by_uid.get_mut(uid) else {
            return false;
        };
        let was_there = wishes.remove(&source).is_some();
        if wishes.is_empty() {
            self.by_uid.remove(uid);
        }
        was_there
    }

    /// Makes `pods` all that the source wants; tells of which pods it wants something else now, and what they were.
    pub fn replace(&mut self, source: Source, pods: Vec<Pod>) -> Vec<(PodUid, Option<Pod>)> {
        self.heard.insert(source);
        let mut changed = Vec::new();
        let kept: BTreeSet<PodUid> = pods.iter().map(|pod| pod.uid.clone()).collect();
        let before = self.by_uid.iter();
        let gone =
            before.filter(|(uid, wishes)| wishes.contains_key(&source) && !kept.contains(uid));
        let gone: Vec<PodUid> = gone.map(|(uid, _)| uid.clone()).collect();
        for uid in gone {
            self.remove(source, &uid);
            changed.push((uid, None));
        }
        for pod in pods {
            if self.add(source, pod.clone()) {
                changed.push((pod.uid.clone(), Some(pod)));
            }
        }
        changed
    }

    /// Whether each of these has said all that it wants.
    pub fn has_heard(&self, sources: &[Source]) -> bool {
        sources.iter().all(|source| self.heard.contains(source))
    }

    /// What the pod is to be captured as: as the first of its sources says.
    pub fn pod(&self, uid: &PodUid) -> Option<&Pod> {
        self.by_uid.get(uid)?.values().next()
    }

    /// Who wants it, in their order.
    pub fn sources(&self, uid: &PodUid) -> Vec<Source> {
        let wishes = self.by_uid.get(uid);
        wishes
            .map(|wishes| wishes.keys().copied().collect())
            .unwrap_or_default()
    }

    pub fn uids(&self) -> impl Iterator<Item = &PodUid> {
        self.by_uid.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::reconcile::testing::pod;

    fn uid(name: &str) -> PodUid {
        PodUid::new(name)
    }

    #[test]
    fn a_pod_is_wanted_as_long_as_anybody_wants_it_and_as_the_first_says() {
        let mut wishes = Wishes::default();
        let (by_cni, by_command) = (pod("a", 1, 1), pod("a", 2, 2));
        assert!(wishes.add(Source::Cni, by_cni.clone()));
        assert!(!wishes.add(Source::Cni, by_cni.clone()));
        assert!(wishes.add(Source::Command, by_command.clone()));
        assert_eq!(wishes.pod(&uid("a")), Some(&by_command));
        assert_eq!(wishes.sources(&uid("a")), [Source::Command, Source::Cni]);
        assert!(!wishes.remove(Source::Zds, &uid("a")));
        assert!(wishes.remove(Source::Command, &uid("a")));
        assert_eq!(wishes.pod(&uid("a")), Some(&by_cni));
        assert!(wishes.remove(Source::Cni, &uid("a")));
        assert_eq!(wishes.pod(&uid("a")), None);
        assert_eq!(wishes.uids().count(), 0);
        assert!(!wishes.remove(Source::Cni, &uid("a")));
    }

    #[test]
    fn a_source_that_says_all_takes_back_what_it_does_not_name() {
        let mut wishes = Wishes::default();
        for name in ["a", "b", "c"] {
            wishes.add(Source::Kubernetes, pod(name, 1, 1));
        }
        wishes.add(Source::Command, pod("b", 1, 1));
        assert!(!wishes.has_heard(&[Source::Kubernetes]));
        let changed = wishes.replace(
            Source::Kubernetes,
            vec![pod("c", 1, 1), pod("d", 1, 1), pod("a", 7, 1)],
        );
        let changed: Vec<_> = changed
            .iter()
            .map(|(uid, pod)| (uid.as_str(), pod.is_some()))
            .collect();
        assert_eq!(changed, [("b", false), ("d", true), ("a", true)]);
        let left: Vec<_> = wishes.uids().map(PodUid::as_str).collect();
        assert_eq!(left, ["a", "b", "c", "d"]);
        assert!(wishes.has_heard(&[Source::Kubernetes]));
        assert!(!wishes.has_heard(&[Source::Kubernetes, Source::Command]));
    }
}
