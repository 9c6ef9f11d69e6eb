//! Ctrl-C and SIGTERM end the demo in order: its processes are killed, so that no step waits, and everything is removed.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use nix::sys::signal::{SigSet, Signal};

use crate::{RunId, cgroup, leftovers};

#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    caught: Arc<AtomicBool>,
    run: Arc<OnceLock<RunId>>,
}

impl Interrupt {
    /// Must be called before other threads exist: they inherit that the signals are blocked.
    pub fn install() -> Self {
        let interrupt = Self::default();
        let mut signals = SigSet::empty();
        [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
            .into_iter()
            .for_each(|s| signals.add(s));
        signals.thread_block().expect("a valid set of signals");
        let other = interrupt.clone();
        std::thread::spawn(move || {
            while signals.wait().is_ok() {
                other.caught.store(true, Ordering::SeqCst);
                if let Some(id) = other.run.get() {
                    let _ = cgroup::kill_all(&leftovers::cgroup_root(id));
                }
            }
        });
        interrupt
    }

    /// Whose processes are killed at a signal.
    pub fn covers(&self, id: &RunId) {
        let _ = self.run.set(id.clone());
    }

    pub fn caught(&self) -> bool {
        self.caught.load(Ordering::SeqCst)
    }
}
