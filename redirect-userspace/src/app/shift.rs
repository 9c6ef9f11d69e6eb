//! Whose turn it is: from whom this daemon takes over, and who takes over from it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::{
    handover::{Draining, Event, Handover, Predecessor, Successor, Way},
    instance::Instance,
    own_cgroup,
    pods::Pods,
};

pub struct Shift {
    instance: Instance,
    way: Way,
    cgroup: Option<PathBuf>,
    /// Until this daemon is ready.
    predecessor: Option<Predecessor>,
    /// From then on, until it has ended.
    draining: Option<Draining>,
    handover: Option<Handover>,
}

impl Shift {
    /// Of the daemon that has claimed the state directory and captures in this way.
    pub fn new(
        instance: Instance,
        predecessor: Option<Predecessor>,
        way: Way,
        cgroup: Option<&Path>,
    ) -> anyhow::Result<Self> {
        if let Some(predecessor) = &predecessor {
            predecessor.check(&way)?;
        }
        Ok(Self {
            instance,
            way,
            cgroup: cgroup.map(Path::to_owned),
            predecessor,
            draining: None,
            handover: None,
        })
    }

    /// Whether another daemon has the ports and sockets that only one can have.
    pub fn is_taking_over(&self) -> bool {
        self.predecessor.is_some()
    }

    /// Before any pod is captured.
    pub fn prepare(&mut self, pods: &mut Pods) -> anyhow::Result<()> {
        match &mut self.predecessor {
            None => pods.settle(),
            Some(predecessor) => {
                let sockets = predecessor.sockets();
                pods.succeed(predecessor.cgroup.as_deref(), sockets)?;
            }
        }
        Ok(())
    }

    /// All pods that can be captured are: connections come to this daemon now.
    pub async fn begin(&mut self, captured: usize, failed: usize) -> anyhow::Result<()> {
        if let Some(predecessor) = self.predecessor.take() {
            if failed > 0 && captured == 0 {
                anyhow::bail!("no pod could be captured: not taking over");
            }
            self.draining = Some(predecessor.dismiss().await?);
        }
        self.instance.sign()?;
        let handover = Handover::listen(&self.instance, self.way.clone(), self.cgroup.clone());
        self.handover = Some(handover?);
        Ok(())
    }

    /// What other daemons do. Waits for ever before [`begin`](Self::begin).
    pub async fn next(&mut self) -> Turn {
        loop {
            let is_alone = self.draining.is_none();
            tokio::select! {
                () = ended(self.draining.as_ref()) => {
                    self.draining = None;
                    if let Err(error) = self.remove_cgroups() {
                        tracing::error!(%error, "an earlier daemon's cgroup stays");
                    }
                    return Turn::Alone;
                }
                event = asked(self.handover.as_mut()) => match event {
                    // Without an answer it is refused.
                    Event::Asked(_) if !is_alone => {}
                    event => return Turn::Asked(event),
                },
            }
        }
    }

    fn remove_cgroups(&self) -> anyhow::Result<()> {
        let state_dir = self.instance.state_dir();
        match &self.cgroup {
            Some(own) => own_cgroup::remove_others(state_dir, own).context("remove it"),
            None => Ok(()),
        }
    }

    /// Leaves to the successor what it waits for.
    pub async fn end(self, successor: &Successor) {
        // It has the lock, too; if it fails, another daemon may start beside what is left of this one.
        drop(self);
        successor.release().await;
    }
}

/// What another daemon has done.
pub enum Turn {
    /// The predecessor has ended.
    Alone,
    Asked(Event),
}

async fn ended(draining: Option<&Draining>) {
    match draining {
        Some(draining) => draining.ended().await,
        None => std::future::pending().await,
    }
}

async fn asked(handover: Option<&mut Handover>) -> Event {
    match handover {
        Some(handover) => handover.next().await,
        None => std::future::pending().await,
    }
}
