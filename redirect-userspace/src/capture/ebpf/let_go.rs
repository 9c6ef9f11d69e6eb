//! Letting go of a pod.

use std::sync::PoisonError;

use super::{super::CaptureError, EbpfCapture, Here};
use crate::pod::PodUid;

impl EbpfCapture {
    /// Takes the programs from the pod, and makes them forget it. What is in its network namespace beside them stays. Goes on
    /// after a failure; gives where the pod was, if this daemon captured it.
    pub(super) fn let_go(&mut self, uid: &PodUid) -> (Vec<CaptureError>, Option<Here>) {
        let mut errors = Vec::new();
        let places = match self.pins.places(uid) {
            Ok(places) => places,
            Err(error) => return (vec![error], None),
        };
        errors.extend(self.pins.remove_pod(uid).err());
        for place in places {
            errors.extend(self.forget(place).err());
            self.names
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&place.netns_cookie);
        }
        self.numbers.remove(uid);
        (errors, self.applied.remove(uid))
    }
}
