//! Keeps one certificate per identity, and renews it before it ends.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{Mutex as AsyncMutex, watch},
    time::Instant,
};
use tracing::{info, warn};

use super::{Certificate, CertificateSource, Clock, Identity, IdentityError, Roots};
use crate::document::Revision;

/// The longest time between two looks at the wall clock and the files: neither tells when it changes.
const LOOK: Duration = Duration::from_secs(1);
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Certificates by identity. Reading takes no lock; [`IdentityStore::run`] renews in the background.
pub struct IdentityStore {
    source: Arc<dyn CertificateSource>,
    clock: Arc<dyn Clock>,
    certificates: ArcSwap<HashMap<Identity, Arc<Certificate>>>,
    roots: ArcSwap<Roots>,
    roots_changed: watch::Sender<[u8; 32]>,
    plans: Mutex<Plans>,
    /// One issue at a time: `prepare` and `round` must not overwrite each other's newer certificate.
    issuing: AsyncMutex<()>,
    renewals: AtomicU64,
    failures: AtomicU64,
}

#[derive(Default)]
struct Plans {
    leaves: HashMap<Identity, Plan>,
    roots: Option<Revision>,
}

/// When to ask for the next certificate.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// By the wall clock; ignored for a source with revisions.
    renew_at: SystemTime,
    revision: Option<Revision>,
    retry: Option<Retry>,
    /// The roots changed since it was issued.
    stale: bool,
}

/// After a failure, by the monotonic clock: the wall clock may jump.
#[derive(Clone, Copy, Debug)]
struct Retry {
    at: Instant,
    delay: Duration,
}

/// Counters for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentityStats {
    pub renewals: u64,
    pub failures: u64,
}

impl IdentityStore {
    /// Reads the roots; an error here is one of configuration.
    pub fn new(
        source: Arc<dyn CertificateSource>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, IdentityError> {
        let revision = source.roots_revision();
        let roots = source.roots()?;
        if source.is_dev_ca() {
            warn!(
                target: "redirect::identity",
                "signing with the development root key in this process: whoever takes over this node can name itself \
                 any workload of the mesh; use it for development only"
            );
        }
        Ok(Arc::new(Self {
            source,
            clock,
            certificates: ArcSwap::default(),
            roots_changed: watch::Sender::new(roots.fingerprint),
            roots: ArcSwap::from_pointee(roots),
            plans: Mutex::new(Plans {
                leaves: HashMap::new(),
                roots: Some(revision),
            }),
            issuing: AsyncMutex::new(()),
            renewals: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }))
    }

    /// Makes sure that there is a certificate for the identity, and that it is renewed from now on.
    ///
    /// On an error the identity is remembered all the same and tried again in the background.
    pub async fn prepare(&self, identity: &Identity) -> Result<Arc<Certificate>, IdentityError> {
        // Who has one does not wait for others'.
        if let Ok(certificate) = self.get(identity) {
            return Ok(certificate);
        }
        let _issuing = self.issuing.lock().await;
        if let Ok(certificate) = self.get(identity) {
            return Ok(certificate);
        }
        let plan = Plan {
            renew_at: self.clock.now(),
            revision: None,
            retry: None,
            stale: false,
        };
        self.plans().leaves.entry(identity.clone()).or_insert(plan);
        self.issue(identity).await
    }

    /// The certificate to use now. Cheap, and without a lock.
    pub fn get(&self, identity: &Identity) -> Result<Arc<Certificate>, IdentityError> {
        let certificates = self.certificates.load();
        let certificate = certificates
            .get(identity)
            .ok_or_else(|| IdentityError::NotPrepared(identity.clone()))?;
        if self.clock.now() >= certificate.not_after {
            return Err(IdentityError::Expired(identity.clone()));
        }
        Ok(certificate.clone())
    }

    /// No longer renews the identity, and drops its certificate.
    pub fn forget(&self, identity: &Identity) {
        let mut plans = self.plans();
        plans.leaves.remove(identity);
        self.certificates.rcu(|old| {
            let mut new = HashMap::clone(old);
            new.remove(identity);
            new
        });
    }

    pub fn roots(&self) -> Arc<Roots> {
        self.roots.load_full()
    }

    /// Wakes when the roots change; the value is their fingerprint.
    pub fn watch_roots(&self) -> watch::Receiver<[u8; 32]> {
        self.roots_changed.subscribe()
    }

    pub fn is_dev_ca(&self) -> bool {
        self.source.is_dev_ca()
    }

    pub fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }

    pub fn stats(&self) -> IdentityStats {
        IdentityStats {
            renewals: self.renewals.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }

    /// Renews for ever. The wall clock may jump either way: it is read again at least each second.
    pub async fn run(self: Arc<Self>) {
        loop {
            let wait = self.round().await;
            tokio::time::sleep(wait).await;
        }
    }

    /// Does all that is due now, and returns how long until the next look.
    pub async fn round(&self) -> Duration {
        let _issuing = self.issuing.lock().await;
        self.reload_roots();
        for identity in self.due() {
            // Errors are logged and counted there, and come back after a delay.
            let _ = self.issue(&identity).await;
        }
        self.next_look()
    }

    fn due(&self) -> Vec<Identity> {
        let (now, instant) = (self.clock.now(), Instant::now());
        let certificates = self.certificates.load();
        let plans = self.plans();
        let due = |(identity, plan): &(&Identity, &Plan)| match plan.retry {
            Some(retry) => instant >= retry.at || self.source.revision(identity) != plan.revision,
            None if plan.stale => true,
            None => match self.source.revision(identity) {
                Some(revision) => plan.revision != Some(revision),
                // Before its start: the clock jumped backwards, and peers' clocks may be where ours is now.
                None => {
                    now >= plan.renew_at
                        || certificates
                            .get(*identity)
                            .is_none_or(|held| now < held.not_before)
                }
            },
        };
        plans
            .leaves
            .iter()
            .filter(due)
            .map(|(identity, _)| identity.clone())
            .collect()
    }

    fn next_look(&self) -> Duration {
        let (now, instant) = (self.clock.now(), Instant::now());
        let plans = self.plans();
        let wait = |plan: &Plan| match plan.retry {
            Some(retry) => retry.at.saturating_duration_since(instant),
            None if plan.revision.is_some() => LOOK,
            None => plan.renew_at.duration_since(now).unwrap_or(Duration::ZERO),
        };
        // A floor, lest a certificate that ends at once makes this a busy loop.
        plans
            .leaves
            .values()
            .map(wait)
            .fold(LOOK, Duration::min)
            .max(Duration::from_millis(10))
    }

    /// Call with `issuing` held, for an identity that has a plan. What was forgotten meanwhile stays forgotten.
    async fn issue(&self, identity: &Identity) -> Result<Arc<Certificate>, IdentityError> {
        // Taken before reading: a change during the read is then seen as a change afterwards.
        let revision = self.source.revision(identity);
        let (now, issued) = (self.clock.now(), self.source.issue(identity).await);
        let certificate = match issued {
            Ok(certificate) => Arc::new(certificate),
            Err(error) => {
                self.failed(identity, revision, &error);
                return Err(error);
            }
        };
        let life = certificate
            .not_after
            .duration_since(now)
            .unwrap_or(Duration::ZERO);
        let plan = Plan {
            renew_at: now + life / 2,
            revision,
            retry: None,
            stale: false,
        };
        let renewed = self.certificates.load().contains_key(identity);
        {
            let mut plans = self.plans();
            if let Some(old) = plans.leaves.get_mut(identity) {
                *old = plan;
                self.certificates.rcu(|old| {
                    let mut new = HashMap::clone(old);
                    new.insert(identity.clone(), certificate.clone());
                    new
                });
            }
        }
        if renewed {
            self.renewals.fetch_add(1, Ordering::Relaxed);
        }
        info!(
            target: "redirect::identity",
            %identity, serial = &*certificate.serial, valid_seconds = life.as_secs(), source = self.source.name(),
            "certificate {}", if renewed { "renewed" } else { "issued" }
        );
        Ok(certificate)
    }

    fn failed(&self, identity: &Identity, revision: Option<Revision>, error: &IdentityError) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut plans = self.plans();
        let Some(plan) = plans.leaves.get_mut(identity) else {
            return;
        };
        let delay = plan
            .retry
            .map_or(FIRST_RETRY, |retry| (retry.delay * 2).min(LAST_RETRY));
        let held = self.certificates.load().contains_key(identity);
        warn!(
            target: "redirect::identity",
            %identity, retry_seconds = delay.as_secs_f32(), held, "no new certificate: {error}"
        );
        plan.revision = revision;
        plan.retry = Some(Retry {
            at: Instant::now() + delay,
            delay,
        });
    }

    /// A bad file leaves the old roots in place, and is reported once.
    fn reload_roots(&self) {
        let revision = self.source.roots_revision();
        if self.plans().roots == Some(revision) {
            return;
        }
        self.plans().roots = Some(revision);
        let roots = match self.source.roots() {
            Ok(roots) => roots,
            Err(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                warn!(target: "redirect::identity", "the old roots stay: {error}");
                return;
            }
        };
        if roots.fingerprint == self.roots.load().fingerprint {
            return;
        }
        info!(target: "redirect::identity", roots = roots.certs.len(), "roots changed");
        let fingerprint = roots.fingerprint;
        self.roots.store(Arc::new(roots));
        self.roots_changed.send_replace(fingerprint);
        for plan in self.plans().leaves.values_mut() {
            plan.stale = true;
        }
    }

    fn plans(&self) -> MutexGuard<'_, Plans> {
        // Nothing panics while it is held; were it so, the plans would still be whole.
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
