//! What is to be done so that what is captured is what is wanted. Pure.

use std::collections::BTreeMap;

use crate::pod::{Pod, PodUid};

/// A network namespace and a cgroup by their inode numbers: what the paths of a pod lead to, or where it was captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub netns: u64,
    pub cgroup: u64,
}

/// What is wanted of one pod, and where its paths lead now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    pub pod: Pod,
    pub found: Found,
}

/// `None`: nothing is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub netns: Option<u64>,
    pub cgroup: Option<u64>,
}

/// What is known of a captured pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actual {
    /// An earlier daemon captured it, and this one has not taken it over.
    Earlier,
    Captured {
        pod: Box<Pod>,
        place: Place,
        /// Whether the kernel holds all that it should.
        is_whole: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Let go of it; its connections drain.
    Remove(PodUid),
    /// Capture it anew, without ever letting go: it has moved, or is wanted as something else.
    Replace(PodUid),
    /// Make good what is missing in the kernel.
    Repair(PodUid),
    Add(PodUid),
}

/// The steps from `actual` to `desired`, in their order: what goes first may have what comes needs, such as an address.
///
/// What earlier daemons captured goes only if the list of what is wanted `is_complete`: a source that has not spoken yet might
/// want it. A wanted pod whose namespace and cgroup are both gone is let go, since nobody is in it; one that lost only one of
/// them stays as it is, so that no process in it speaks uncaptured.
pub fn reconcile(
    desired: &BTreeMap<PodUid, Desired>,
    actual: &BTreeMap<PodUid, Actual>,
    is_complete: bool,
) -> Vec<Step> {
    let unwanted = actual.iter().filter(|(uid, actual)| {
        !desired.contains_key(uid) && (is_complete || **actual != Actual::Earlier)
    });
    let mut removals: Vec<_> = unwanted.map(|(uid, _)| Step::Remove(uid.clone())).collect();
    let (mut replacements, mut repairs, mut additions) = (Vec::new(), Vec::new(), Vec::new());
    for (uid, wanted) in desired {
        match step(wanted, actual.get(uid)) {
            Some(Kind::Remove) => removals.push(Step::Remove(uid.clone())),
            Some(Kind::Replace) => replacements.push(Step::Replace(uid.clone())),
            Some(Kind::Repair) => repairs.push(Step::Repair(uid.clone())),
            Some(Kind::Add) => additions.push(Step::Add(uid.clone())),
            None => {}
        }
    }
    [removals, replacements, repairs, additions].concat()
}

enum Kind {
    Remove,
    Replace,
    Repair,
    Add,
}

fn step(wanted: &Desired, actual: Option<&Actual>) -> Option<Kind> {
    let Some(Actual::Captured {
        pod,
        place,
        is_whole,
    }) = actual
    else {
        return Some(Kind::Add);
    };
    let Found { netns, cgroup } = wanted.found;
    if netns.is_none() && cgroup.is_none() {
        return Some(Kind::Remove);
    }
    let has_moved = netns.is_some_and(|netns| netns != place.netns)
        || cgroup.is_some_and(|cgroup| cgroup != place.cgroup);
    if has_moved || **pod != wanted.pod {
        return Some(Kind::Replace);
    }
    (!is_whole).then_some(Kind::Repair)
}

#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
