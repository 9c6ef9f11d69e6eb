//! No capture: the proxy listens, and what reaches it was sent there by somebody else (netfilter rules of another agent).

use std::{collections::BTreeSet, io, os::fd::BorrowedFd, sync::Arc};

use super::{Applied, Capture, CaptureError, Sockets};
use crate::{
    orig_dst::{OrigDst, OrigDstResolver},
    pod::{Pod, PodUid},
    sys::netns::Netns,
};

/// Remembers its pods and does nothing to them.
#[derive(Default)]
pub struct NoCapture {
    pods: BTreeSet<PodUid>,
}

impl Capture for NoCapture {
    fn apply(&mut self, pod: &Pod, _: &Netns, _: &Sockets<'_>) -> Result<Applied, CaptureError> {
        self.pods.insert(pod.uid.clone());
        Ok(Applied::Attached)
    }

    fn clean(&mut self, uid: &PodUid) -> Result<(), CaptureError> {
        self.pods.remove(uid);
        Ok(())
    }

    fn inspect(&self) -> Result<Vec<PodUid>, CaptureError> {
        Ok(self.pods.iter().cloned().collect())
    }

    fn resolver(&self) -> Arc<dyn OrigDstResolver> {
        Arc::new(NoResolver)
    }

    fn name(&self) -> &'static str {
        "none"
    }
}

/// Knows nothing: the next resolver of the chain is asked.
pub(super) struct NoResolver;

impl OrigDstResolver for NoResolver {
    fn resolve(&self, _: BorrowedFd<'_>) -> io::Result<Option<OrigDst>> {
        Ok(None)
    }

    fn name(&self) -> &'static str {
        "none"
    }
}
