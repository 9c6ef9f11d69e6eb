//! What is known of captured pods, and what the kernel says to it.

use std::time::Duration;

use super::{PodError, Pods, inode, sockets};
use crate::{
    node::reconcile::{Actual, Found, Place},
    pod::{Pod, PodUid},
    proxy::Workers,
};

impl Pods {
    pub fn uids(&self) -> impl Iterator<Item = &PodUid> {
        self.captured.keys()
    }

    /// The pod as this daemon captured it, if it did. `is_whole`: what is not asked of the kernel here is taken to be as it was
    /// when it was last asked.
    pub fn actual(&self, uid: &PodUid, is_whole: bool) -> Option<Actual> {
        let captured = self.captured.get(uid)?;
        Some(Actual::Captured {
            pod: Box::new(captured.context.pod.clone()),
            place: Place {
                netns: captured.netns.inode(),
                cgroup: captured.cgroup,
            },
            is_whole,
        })
    }

    /// How the pod's capture in the kernel differs from what was applied, in words; nothing if it does not.
    pub fn faults(&self, uid: &PodUid) -> Vec<String> {
        if !self.captured.contains_key(uid) {
            return vec!["it is not captured".to_owned()];
        }
        let mut faults = match self.capture.faults(uid) {
            Ok(faults) => faults,
            Err(error) => vec![error.to_string()],
        };
        if let Some(server) = self.server() {
            let carried = server.carried(uid).map_err(|error| error.to_string());
            faults.extend(carried.err());
        }
        faults
    }

    /// Applies the pod's capture once more, where it is.
    pub async fn repair(&mut self, uid: &PodUid, workers: &Workers) -> Result<(), PodError> {
        let Some(captured) = self.captured.get(uid) else {
            return Ok(());
        };
        if self.server.is_some() {
            let (pod, netns) = (&captured.context.pod, &captured.netns);
            self.capture.apply_for_another(pod, netns)?;
            return Ok(());
        }
        let Some(listeners) = self.sites.get(&captured.site) else {
            return Ok(());
        };
        let sockets = sockets(listeners, captured.dns.as_ref());
        let applied = self
            .capture
            .apply(&captured.context.pod, &captured.netns, &sockets);
        if let Err(error) = applied {
            // What is left in the kernel steers to listeners at which nobody carries its connections.
            let site = captured.site;
            self.captured.remove(uid);
            workers.leave(site, uid, Duration::ZERO).await?;
            self.close_unused(site, workers).await;
            return Err(error.into());
        }
        Ok(())
    }
}

/// Where the pod's paths lead now.
pub fn find(pod: &Pod) -> Found {
    Found {
        netns: inode(&pod.netns),
        cgroup: inode(&pod.cgroup),
    }
}
