//! Looking after what was done for captured pods: something else on the node may have flushed it.

use super::Pods;
use crate::{
    pod::PodUid,
    proxy::{client_ip, standpoint::Standpoint},
};

impl Pods {
    /// Makes good what something else has changed, for at most `most` pods, and tells which; the others' turn comes with
    /// the next calls.
    pub fn reassert(&mut self, most: usize) -> Vec<PodUid> {
        let (uids, next) = turn(self.captured.keys(), self.turn.take(), most);
        self.turn = next;
        for repair in self.capture.reassert(&uids) {
            self.tell(
                &repair.place,
                repair.result.map_err(|error| error.to_string()),
            );
        }
        for uid in &uids {
            let context = &self.captured[uid].context;
            if !context.client_ip || context.standpoint != Standpoint::Inside {
                continue;
            }
            let repaired = client_ip::apply(&context.netns).map_err(|error| error.to_string());
            if repaired != Ok(false) {
                let what = "what lets the app see its clients' addresses was missing";
                self.tell(uid.as_str(), repaired.map(|_| vec![what.to_owned()]));
            }
        }
        uids
    }

    fn tell(&self, place: &str, repaired: Result<Vec<String>, String>) {
        match repaired {
            Ok(differences) => {
                self.shared.metrics.repairs.inc();
                let differences = differences.join("; ");
                tracing::warn!(
                    place,
                    differences,
                    "something else changed capture; it is again as it was applied"
                );
            }
            Err(error) => {
                self.shared.metrics.repairs_failed.inc();
                tracing::error!(
                    place,
                    error,
                    "something else changed capture, and it cannot be repaired"
                );
            }
        }
    }
}

/// At most `most` of `all`, from `first` on, and which is the next after them; `None` if they were all.
fn turn<'a>(
    all: impl Iterator<Item = &'a PodUid>,
    first: Option<PodUid>,
    most: usize,
) -> (Vec<PodUid>, Option<PodUid>) {
    let mut uids: Vec<PodUid> = all.cloned().collect();
    uids.sort();
    let at = first.map_or(0, |first| uids.partition_point(|uid| *uid < first));
    uids.rotate_left(at);
    let next = uids.get(most).cloned();
    uids.truncate(most);
    (uids, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_have_their_turn() {
        let pods = ["d", "a", "c", "b"].map(PodUid::new);
        let (mut next, mut seen) = (None, Vec::new());
        for _ in 0..4 {
            let (uids, then) = turn(pods.iter(), next, 3);
            seen.extend(uids.iter().map(|uid| uid.as_str().to_owned()));
            next = then;
        }
        assert_eq!(seen.concat(), "abcdabcdabcd");
        let (uids, next) = turn(pods.iter(), Some(PodUid::new("z")), usize::MAX);
        assert_eq!((uids.len(), next), (4, None));
        assert_eq!(
            turn([].iter(), Some(PodUid::new("a")), 3),
            (Vec::new(), None)
        );
    }
}
