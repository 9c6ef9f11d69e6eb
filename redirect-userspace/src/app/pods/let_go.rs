//! Letting go of pods.

use std::{
    fs,
    time::{Duration, Instant},
};

use super::{Leaving, Pods, recorded::clean_record};
use crate::{
    app::record,
    config::Mode,
    pod::PodUid,
    proxy::{Workers, site::SiteId},
};

impl Pods {
    /// Lets go of a pod: connections that it makes from now on are as before capture. Those that we carry may go on for as long
    /// as `drain`, and are then reset; [`clean_left`](Self::clean_left) takes away what they needed.
    pub async fn remove(&mut self, uid: &PodUid, drain: Duration, workers: &Workers) {
        self.release_elsewhere(uid);
        let Some(mut captured) = self.captured.remove(uid) else {
            self.clean(uid);
            return;
        };
        let released = self.capture.release(uid).map_err(|error| error.to_string());
        if let Err(error) = workers.leave(captured.site, uid, drain).await {
            tracing::error!(pod = %uid, %error, "cannot end the pod's connections");
        }
        self.close_unused(captured.site, workers).await;
        match released {
            Ok(()) => {
                tracing::info!(pod = %uid, connections = captured.context.connections(), "let go")
            }
            Err(error) => tracing::error!(pod = %uid, error, "not wholly let go"),
        }
        // Its queries are not captured any more.
        captured.dns = None;
        let until = Instant::now() + drain;
        self.leaving
            .insert(uid.clone(), Leaving { captured, until });
        self.clean_left();
    }

    /// Cleans up where pods were that have no connections any more; whether there are pods that have some.
    pub fn clean_left(&mut self) -> bool {
        let now = Instant::now();
        let is_over =
            |leaving: &Leaving| leaving.captured.context.connections() == 0 || leaving.until <= now;
        let over: Vec<_> = self
            .leaving
            .extract_if(|_, leaving| is_over(leaving))
            .collect();
        for (uid, leaving) in over {
            if let Err(error) = self.clean_place(&uid, leaving.captured.site) {
                tracing::error!(pod = %uid, %error, "cannot clean up where the pod was");
            }
        }
        !self.leaving.is_empty()
    }

    /// What is in the namespace may be for others, too.
    fn clean_place(&self, uid: &PodUid, site: SiteId) -> anyhow::Result<()> {
        let record = record::path(&self.records, uid);
        match self.is_shared(site) {
            true => Ok(fs::remove_file(record)?),
            false => clean_record(&record),
        }
    }

    /// The daemon ends: what can only be done while it still runs, see [`stand_down`](crate::capture::Capture::stand_down).
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
        for (uid, leaving) in std::mem::take(&mut self.leaving) {
            if let Err(error) = self.clean_place(&uid, leaving.captured.site) {
                tracing::error!(pod = %uid, %error, "cannot clean up where the pod was");
            }
        }
        for uid in self.captured.keys().cloned().collect::<Vec<_>>() {
            self.clean(&uid);
        }
    }

    pub(super) fn clean(&mut self, uid: &PodUid) {
        let capture = self.capture.clean(uid);
        let removed = self.captured.remove(uid);
        let record = match removed {
            Some(removed) => self.clean_place(uid, removed.site),
            None => clean_record(&record::path(&self.records, uid)),
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
