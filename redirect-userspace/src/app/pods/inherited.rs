//! One daemon takes over from another: what it is given of that one's sockets, and what it gives when its own turn comes.

use std::{io, path::Path};

use super::Pods;
use crate::{
    app::handover::Estate,
    capture::CaptureError,
    proxy::{Workers, WorkersError},
};

impl Pods {
    /// Goes on with the sockets of the daemon in this cgroup, which still runs.
    pub fn succeed(
        &mut self,
        predecessor: Option<&Path>,
        sockets: Estate,
    ) -> Result<(), CaptureError> {
        self.inherited = sockets;
        self.is_beside_another = true;
        match predecessor {
            Some(cgroup) => self.capture.succeed(cgroup),
            None => Ok(()),
        }
    }

    /// All pods are captured that can be: accepts on what the other daemon accepts on, too. What was not needed goes: a
    /// listener must not outlive the daemon that accepts on it.
    pub async fn accept_inherited(&mut self, workers: &Workers) -> Result<(), WorkersError> {
        self.inherited = Estate::default();
        workers.accept_all().await?;
        for (context, sockets) in std::mem::take(&mut self.dns_later) {
            workers.serve_dns(&context, sockets).await?;
        }
        Ok(())
    }

    /// Whether another daemon still carries connections of these pods.
    pub fn is_beside_another(&self) -> bool {
        self.is_beside_another
    }

    /// No other daemon runs on this node.
    pub fn settle(&mut self) {
        self.is_beside_another = false;
        if let Err(error) = self.capture.settle() {
            tracing::error!(%error, "not all that was made for another daemon is gone");
        }
    }

    /// The sockets of all pods, for a daemon that takes over.
    pub fn estate(&self) -> io::Result<Estate> {
        let mut estate = Estate::default();
        for (site, listeners) in &self.sites {
            estate.sites.insert(site.0, listeners.try_clone()?);
        }
        for (uid, captured) in &self.captured {
            if let Some(sockets) = &captured.dns {
                estate.dns.insert(uid.clone(), sockets.try_clone()?);
            }
        }
        Ok(estate)
    }

    /// The daemon that wanted to take over has failed: all connections come to this one again.
    pub fn resume(&mut self) {
        for (uid, captured) in &self.captured {
            let pod = &captured.context.pod;
            let Some(listeners) = self.sites.get(&captured.site) else {
                continue;
            };
            let sockets = super::sockets(listeners, captured.dns.as_ref());
            if let Err(error) = self.capture.apply(pod, &captured.netns, &sockets) {
                tracing::error!(pod = %uid, %error, "cannot capture the pod again");
            }
        }
        self.settle();
        // What was done in pods beside that is looked after as ever.
        self.reassert(usize::MAX);
    }
}
