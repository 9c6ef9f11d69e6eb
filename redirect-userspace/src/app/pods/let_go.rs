//! Letting go of pods.

use std::{fs, time::Duration};

use super::{Pods, recorded::clean_record};
use crate::{
    app::record,
    config::Mode,
    pod::PodUid,
    proxy::{Workers, site::SiteId},
};

impl Pods {
    /// Lets go of a pod: connections that it makes from now on are as before capture. Those that we carry may go on for as long
    /// as `drain`, and are then reset.
    pub async fn remove(&mut self, uid: &PodUid, drain: Duration, workers: &Workers) {
        let site = self.captured.get(uid).map(|captured| captured.site);
        self.clean(uid);
        self.release_elsewhere(uid);
        let Some(site) = site else { return };
        if let Err(error) = workers.leave(site, uid, drain).await {
            tracing::error!(pod = %uid, %error, "cannot end the pod's connections");
        }
        self.close_unused(site, workers).await;
    }

    /// The daemon ends: what can only be done while it still runs, see [`Capture::stand_down`].
    pub fn stand_down(&mut self) {
        if let Err(error) = self.capture.stand_down() {
            tracing::error!(%error, "cannot let go of pods with onProxyFailure: pass");
        }
    }

    /// Closes the daemon's own handles of all listeners: once the workers stop accepting, connections are refused at once.
    pub fn close_listeners(&mut self) {
        self.sites.clear();
    }

    /// Takes back what was prepared for a pod that could not be captured.
    pub(super) fn undo(&self, uid: &PodUid) {
        if let Err(error) = clean_record(&record::path(&self.records, uid)) {
            tracing::error!(pod = %uid, %error, "cannot take back what was prepared in the pod's namespace");
        }
    }

    /// Lets go of all pods; what fails is reported and the rest goes on.
    pub fn clean_all(&mut self) {
        for uid in self.captured.keys().cloned().collect::<Vec<_>>() {
            self.clean(&uid);
        }
    }

    pub(super) fn clean(&mut self, uid: &PodUid) {
        let capture = self.capture.clean(uid);
        let removed = self.captured.remove(uid);
        let record = record::path(&self.records, uid);
        let record = match removed.is_some_and(|removed| self.is_shared(removed.site)) {
            // What is in the namespace is for the others, too.
            true => fs::remove_file(record).map_err(Into::into),
            false => clean_record(&record),
        };
        match (capture, record) {
            (Ok(()), Ok(())) => tracing::info!(pod = %uid, "let go"),
            (capture, record) => {
                let errors = [
                    capture.err().map(|e| e.to_string()),
                    record.err().map(|e| e.to_string()),
                ];
                tracing::error!(pod = %uid, error = errors.into_iter().flatten().collect::<Vec<_>>().join("; "), "not wholly let go");
            }
        }
    }

    /// Whether another pod has its listeners there, in a namespace that both are in.
    fn is_shared(&self, site: SiteId) -> bool {
        let mut others = self.captured.values().filter(|other| other.site == site);
        others.any(|other| self.mode != Mode::Node || other.context.pod.cgroup_only.is_some())
    }
}
