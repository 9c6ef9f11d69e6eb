use proptest::prelude::*;

use super::{super::source::Source, testing::pod, *};
use crate::node::wishes::Wishes;

fn captured(pod: Pod, netns: u64, cgroup: u64, is_whole: bool) -> Actual {
    Actual::Captured {
        pod: Box::new(pod),
        place: Place { netns, cgroup },
        is_whole,
    }
}

#[test]
fn steps() {
    let wanted = |netns, cgroup| {
        Some(Desired {
            pod: pod("a", 1, 1),
            found: Found { netns, cgroup },
        })
    };
    let same = |is_whole| Some(captured(pod("a", 1, 1), 10, 20, is_whole));
    let here = wanted(Some(10), Some(20));
    let uid = || PodUid::new("a");
    let cases = [
        ("new", here.clone(), None, true, Some(Step::Add(uid()))),
        (
            "nothing is there yet",
            wanted(None, None),
            None,
            true,
            Some(Step::Add(uid())),
        ),
        (
            "of an earlier daemon",
            here.clone(),
            Some(Actual::Earlier),
            false,
            Some(Step::Add(uid())),
        ),
        ("as it should be", here.clone(), same(true), true, None),
        (
            "damaged",
            here.clone(),
            same(false),
            true,
            Some(Step::Repair(uid())),
        ),
        (
            "another namespace",
            wanted(Some(11), Some(20)),
            same(true),
            true,
            Some(Step::Replace(uid())),
        ),
        (
            "cgroup made anew",
            wanted(Some(10), Some(21)),
            same(true),
            true,
            Some(Step::Replace(uid())),
        ),
        (
            "namespace made anew while there is no cgroup",
            wanted(Some(11), None),
            same(true),
            true,
            Some(Step::Replace(uid())),
        ),
        (
            "other options",
            here.clone(),
            Some(captured(pod("a", 1, 2), 10, 20, true)),
            true,
            Some(Step::Replace(uid())),
        ),
        (
            "only the name of the namespace is gone",
            wanted(None, Some(20)),
            same(true),
            true,
            None,
        ),
        (
            "only the cgroup is gone",
            wanted(Some(10), None),
            same(true),
            true,
            None,
        ),
        (
            "gone",
            wanted(None, None),
            same(true),
            true,
            Some(Step::Remove(uid())),
        ),
        (
            "unwanted",
            None,
            same(true),
            false,
            Some(Step::Remove(uid())),
        ),
        (
            "unwanted, of an earlier daemon",
            None,
            Some(Actual::Earlier),
            true,
            Some(Step::Remove(uid())),
        ),
        (
            "not wanted yet, of an earlier daemon",
            None,
            Some(Actual::Earlier),
            false,
            None,
        ),
        ("unknown", None, None, true, None),
    ];
    for (case, desired, actual, is_complete, expected) in cases {
        let desired = desired
            .map(|desired| (uid(), desired))
            .into_iter()
            .collect();
        let actual = actual.map(|actual| (uid(), actual)).into_iter().collect();
        let steps = reconcile(&desired, &actual, is_complete);
        assert_eq!(steps, Vec::from_iter(expected), "{case}");
    }
}

#[test]
fn what_goes_is_done_before_what_comes() {
    let found = Found {
        netns: Some(1),
        cgroup: Some(1),
    };
    let wanted = |name: &str| {
        let pod = pod(name, 1, 1);
        (pod.uid.clone(), Desired { pod, found })
    };
    let is = |name: &str, actual| (PodUid::new(name), actual);
    let desired = ["a", "b", "c"].map(wanted).into_iter().collect();
    let actual = [
        is("b", captured(pod("b", 1, 1), 1, 1, false)),
        is("c", captured(pod("c", 1, 2), 1, 1, true)),
        is("d", captured(pod("d", 1, 1), 1, 1, true)),
    ];
    let steps = reconcile(&desired, &actual.into_iter().collect(), true);
    assert_eq!(
        steps,
        [
            Step::Remove(PodUid::new("d")),
            Step::Replace(PodUid::new("c")),
            Step::Repair(PodUid::new("b")),
            Step::Add(PodUid::new("a")),
        ]
    );
}

/// A node of a few pods: what the file system leads to, and what the kernel holds.
#[derive(Debug, Default)]
struct Model {
    wishes: Wishes,
    found: BTreeMap<PodUid, (Option<u64>, Option<u64>)>,
    kernel: BTreeMap<PodUid, Actual>,
}

#[derive(Clone, Debug)]
enum Event {
    Wish(Source, Box<Pod>),
    NoWish(Source, PodUid),
    All(Source, Vec<Pod>),
    Netns(PodUid, Option<u64>),
    Cgroup(PodUid, Option<u64>),
    Damage(PodUid),
    Restart,
}

impl Model {
    fn happens(&mut self, event: Event) {
        match event {
            Event::Wish(source, pod) => _ = self.wishes.add(source, *pod),
            Event::NoWish(source, uid) => _ = self.wishes.remove(source, &uid),
            Event::All(source, pods) => _ = self.wishes.replace(source, pods),
            Event::Netns(uid, netns) => {
                self.found.entry(uid).or_insert((Some(0), Some(0))).0 = netns
            }
            Event::Cgroup(uid, id) => self.found.entry(uid).or_insert((Some(0), Some(0))).1 = id,
            Event::Damage(uid) => {
                if let Some(Actual::Captured { is_whole, .. }) = self.kernel.get_mut(&uid) {
                    *is_whole = false;
                }
            }
            // The pins stay, and with them the wishes that are kept on disk.
            Event::Restart => self
                .kernel
                .values_mut()
                .for_each(|actual| *actual = Actual::Earlier),
        }
    }

    fn desired(&self) -> BTreeMap<PodUid, Desired> {
        let uids = self.wishes.uids().cloned();
        uids.map(|uid| {
            let (netns, cgroup) = self.found.get(&uid).copied().unwrap_or((Some(0), Some(0)));
            let pod = self.wishes.pod(&uid).expect("listed").clone();
            (
                uid,
                Desired {
                    pod,
                    found: Found { netns, cgroup },
                },
            )
        })
        .collect()
    }

    /// As the agent's task does; what cannot be captured is not.
    fn take(&mut self, step: Step) {
        let desired = self.desired();
        match step {
            Step::Remove(uid) => _ = self.kernel.remove(&uid),
            Step::Repair(uid) => match self.kernel.get_mut(&uid) {
                Some(Actual::Captured { is_whole, .. }) => *is_whole = true,
                other => panic!("{uid} is to be repaired, and is {other:?}"),
            },
            Step::Replace(uid) | Step::Add(uid) => {
                let Desired { pod, found } = desired[&uid].clone();
                if let (Some(netns), Some(cgroup)) = (found.netns, found.cgroup) {
                    self.kernel.insert(uid, captured(pod, netns, cgroup, true));
                }
            }
        }
    }

    fn settle(&mut self, is_complete: bool) {
        for step in reconcile(&self.desired(), &self.kernel, is_complete) {
            self.take(step);
        }
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let uid = prop::sample::select(vec!["a", "b", "c"]).prop_map(PodUid::new);
    let a_pod = (uid.clone(), 0..2_u64, 1..3_u16)
        .prop_map(|(uid, netns, port)| pod(uid.as_str(), netns, port));
    let source = prop::sample::select(vec![Source::Command, Source::Kubernetes]);
    let id = prop::option::weighted(0.8, 0..3_u64);
    let event = prop_oneof![
        4 => (source.clone(), a_pod.clone()).prop_map(|(source, pod)| Event::Wish(source, Box::new(pod))),
        2 => (source.clone(), uid.clone()).prop_map(|(source, uid)| Event::NoWish(source, uid)),
        1 => (source, prop::collection::vec(a_pod, 0..3))
            .prop_map(|(source, pods)| Event::All(source, pods)),
        2 => (uid.clone(), id.clone()).prop_map(|(uid, id)| Event::Netns(uid, id)),
        2 => (uid.clone(), id).prop_map(|(uid, id)| Event::Cgroup(uid, id)),
        2 => uid.prop_map(Event::Damage),
        1 => Just(Event::Restart),
    ];
    prop::collection::vec(event, 0..40)
}

proptest! {
    #[test]
    fn whatever_happens_what_is_wanted_and_possible_is_what_is_captured(
        events in events(),
        is_complete in any::<bool>(),
    ) {
        let mut model = Model::default();
        for event in events {
            model.happens(event);
            model.settle(is_complete);
        }
        // Everybody has spoken, and everything is there.
        for uid in ["a", "b", "c"].map(PodUid::new) {
            model.found.insert(uid, (Some(7), Some(7)));
        }
        model.settle(true);
        let desired = model.desired();
        let expected: BTreeMap<_, _> = desired
            .iter()
            .map(|(uid, wanted)| (uid.clone(), captured(wanted.pod.clone(), 7, 7, true)))
            .collect();
        prop_assert_eq!(&model.kernel, &expected);
        prop_assert_eq!(reconcile(&desired, &model.kernel, true), Vec::new());
    }

    #[test]
    fn nobody_who_is_wanted_and_alive_is_ever_let_go(events in events()) {
        let mut model = Model::default();
        for event in events {
            model.happens(event);
            for step in reconcile(&model.desired(), &model.kernel, false) {
                if let Step::Remove(uid) = &step {
                    let is_gone = model.desired().get(uid).is_none_or(|wanted| {
                        wanted.found.netns.is_none() && wanted.found.cgroup.is_none()
                    });
                    prop_assert!(is_gone, "{step:?}");
                    prop_assert!(model.kernel[uid] != Actual::Earlier, "{step:?}");
                }
                model.take(step);
            }
        }
    }
}
