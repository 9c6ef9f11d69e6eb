//! Pods that are wanted and cannot be captured: why, and when each is tried again. Pure but for the instants that it is given.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::pod::PodUid;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub struct Failing(BTreeMap<PodUid, Failure>);

#[derive(Debug)]
struct Failure {
    reason: String,
    again: Instant,
    delay: Duration,
}

impl Failing {
    /// Whether the reason is another than last time.
    pub fn failed(&mut self, uid: &PodUid, reason: String, now: Instant) -> bool {
        let before = self.0.get(uid);
        let delay = before.map_or(FIRST, |before| (before.delay * 2).min(LONGEST));
        let is_new = before.is_none_or(|before| before.reason != reason);
        let failure = Failure {
            reason,
            again: now + delay,
            delay,
        };
        self.0.insert(uid.clone(), failure);
        is_new
    }

    /// Whether it did fail before.
    pub fn succeeded(&mut self, uid: &PodUid) -> bool {
        self.0.remove(uid).is_some()
    }

    /// Somebody has said something of the pod: it need not wait for its next time.
    pub fn try_now(&mut self, uid: &PodUid) {
        if let Some(failure) = self.0.get_mut(uid) {
            failure.delay = FIRST / 2;
        }
    }

    pub fn reason(&self, uid: &PodUid) -> Option<&str> {
        self.0.get(uid).map(|failure| failure.reason.as_str())
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// When the next is to be tried.
    pub fn next(&self) -> Option<Instant> {
        self.0.values().map(|failure| failure.again).min()
    }

    pub fn due(&self, now: Instant) -> Vec<PodUid> {
        let due = self.0.iter().filter(|(_, failure)| failure.again <= now);
        due.map(|(uid, _)| uid.clone()).collect()
    }

    /// Whether it is to be left alone for now.
    pub fn rests(&self, uid: &PodUid, now: Instant) -> bool {
        self.0.get(uid).is_some_and(|failure| failure.again > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_waits_longer_until_there_is_news() {
        let (mut failing, uid, start) = (Failing::default(), PodUid::new("a"), Instant::now());
        assert_eq!(failing.next(), None);
        assert!(failing.failed(&uid, "port taken".into(), start));
        assert_eq!(failing.next(), Some(start + FIRST));
        assert!(failing.rests(&uid, start));
        assert_eq!(failing.due(start), []);
        assert_eq!(failing.due(start + FIRST), std::slice::from_ref(&uid));
        assert!(!failing.failed(&uid, "port taken".into(), start));
        assert_eq!(failing.next(), Some(start + FIRST * 2));
        for _ in 0..20 {
            failing.failed(&uid, "port taken".into(), start);
        }
        assert_eq!(failing.next(), Some(start + LONGEST));
        failing.try_now(&uid);
        assert!(failing.failed(&uid, "no such namespace".into(), start));
        assert_eq!(failing.next(), Some(start + FIRST));
        assert_eq!(failing.reason(&uid), Some("no such namespace"));
        assert!(failing.succeeded(&uid) && !failing.succeeded(&uid));
        assert_eq!((failing.next(), failing.count()), (None, 0));
    }
}
