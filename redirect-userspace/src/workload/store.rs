//! The current workloads, and the task that keeps them current.

#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::{Defaults, WorkloadFileError, Workloads};
use crate::document::{Revision, revision_of};

/// How often the file is looked at: a `stat`.
const LOOK: Duration = Duration::from_millis(500);

/// Holds the current [`Workloads`]; nothing until the first complete data.
pub struct WorkloadStore {
    current: ArcSwapOption<Workloads>,
    /// Counts the replacements.
    generation: watch::Sender<u64>,
    failures: AtomicU64,
}

/// For metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreStats {
    pub loads: u64,
    pub failures: u64,
}

impl Default for WorkloadStore {
    fn default() -> Self {
        Self {
            current: ArcSwapOption::empty(),
            generation: watch::Sender::new(0),
            failures: AtomicU64::new(0),
        }
    }
}

impl WorkloadStore {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Cheap; for each connection.
    pub fn snapshot(&self) -> Option<Arc<Workloads>> {
        self.current.load_full()
    }

    pub fn replace(&self, workloads: Workloads) {
        self.current.store(Some(Arc::new(workloads)));
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// Waits for the first complete data, at most this long.
    pub async fn wait_ready(&self, timeout: Duration) -> Option<Arc<Workloads>> {
        if let Some(workloads) = self.snapshot() {
            return Some(workloads);
        }
        let mut generation = self.generation.subscribe();
        // The error of a closed channel cannot be: `self` holds the sender.
        let _ =
            tokio::time::timeout(timeout, generation.wait_for(|generation| *generation > 0)).await;
        self.snapshot()
    }

    /// Wakes at each replacement.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    pub fn stats(&self) -> StoreStats {
        StoreStats {
            loads: *self.generation.borrow(),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }

    /// Loads the file now and whenever it changes, for ever. A bad new file is reported, and the old data stays.
    pub async fn watch(self: Arc<Self>, path: PathBuf, defaults: Defaults) {
        let mut file = WatchedFile::new(path, defaults);
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let this = self.clone();
            // A big file takes a while to parse; this runtime may have more to do.
            let looked = tokio::task::spawn_blocking(move || {
                file.look(&this);
                file
            });
            file = match looked.await {
                Ok(file) => file,
                Err(panic) if panic.is_panic() => std::panic::resume_unwind(panic.into_panic()),
                // The runtime is shutting down.
                Err(_) => return,
            };
        }
    }
}

/// A file and the state in which it was last read.
struct WatchedFile {
    path: PathBuf,
    defaults: Defaults,
    read_at: Option<Revision>,
}

impl WatchedFile {
    fn new(path: PathBuf, defaults: Defaults) -> Self {
        Self {
            path,
            defaults,
            read_at: None,
        }
    }

    fn look(&mut self, store: &WorkloadStore) {
        // Taken before reading: a change during the read is seen at the next look.
        let revision = revision_of(&[&self.path]);
        if self.read_at == Some(revision) {
            return;
        }
        self.read_at = Some(revision);
        match Workloads::load(&self.path, &self.defaults) {
            Ok(workloads) => {
                report(&self.path, &workloads);
                store.replace(workloads);
            }
            Err(error) => store.failed(&error),
        }
    }
}

impl WorkloadStore {
    fn failed(&self, error: &WorkloadFileError) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let now = if self.snapshot().is_some() {
            "the old data stays"
        } else {
            "outbound connections are refused"
        };
        error!(target: "redirect::workload", "{now}: {error}");
    }
}

fn report(path: &Path, workloads: &Workloads) {
    info!(
        target: "redirect::workload",
        path = %path.display(), workloads = workloads.workloads().len(), services = workloads.services().len(),
        policies = workloads.policies().len(), "workload file loaded"
    );
    for warning in workloads.warnings() {
        warn!(target: "redirect::workload", path = %path.display(), "{warning}");
    }
}
