//! The pods of this daemon: adding one is all or nothing, and one pod's failure is its own.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

mod error;
mod reassert;

use redirect_common::ports;

pub use self::error::PodError;
use super::record::{self, Record};
use crate::{
    capture::{self, Applied, Capture, Delivery, Sockets},
    config::Mode,
    dns,
    pod::{Pod, PodUid},
    proxy::{
        Listeners, PodContext, Shared, Workers, client_ip,
        site::{SiteId, Tenancy},
        standpoint::Standpoint,
    },
    sys::netns::Netns,
};

pub struct Pods {
    shared: Arc<Shared>,
    capture: Box<dyn Capture>,
    mode: Mode,
    records: PathBuf,
    captured: HashMap<PodUid, Captured>,
    /// Whose turn it is to be [looked after](Self::reassert).
    turn: Option<PodUid>,
    sites: HashMap<SiteId, Listeners>,
}

struct Captured {
    context: Arc<PodContext>,
    site: SiteId,
}

/// Where a pod's listeners are.
struct Place {
    site: SiteId,
    tenancy: Tenancy,
    /// Of the listeners, and of the proxy's own connections for the pod.
    netns: Netns,
    standpoint: Standpoint,
}

impl Pods {
    pub fn new(
        shared: Arc<Shared>,
        capture: Box<dyn Capture>,
        mode: Mode,
        state_dir: &Path,
    ) -> Self {
        Self {
            shared,
            capture,
            mode,
            records: record::folder(state_dir),
            captured: HashMap::new(),
            turn: None,
            sites: HashMap::new(),
        }
    }

    /// How many pods are captured.
    pub fn count(&self) -> usize {
        self.captured.len()
    }

    pub fn backend(&self) -> &'static str {
        self.capture.name()
    }

    /// Lets go of pods that an earlier daemon captured and that are not wanted any more.
    pub fn remove_stale(&mut self, wanted: &[Pod]) {
        let wanted: HashSet<&PodUid> = wanted.iter().map(|pod| &pod.uid).collect();
        let mut found = HashSet::new();
        match self.capture.inspect() {
            Ok(captured) => found.extend(captured),
            Err(error) => tracing::warn!(%error, "cannot see what an earlier daemon captured"),
        }
        match record::uids(&self.records) {
            Ok(recorded) => found.extend(recorded),
            Err(error) => tracing::warn!(%error, "cannot see what an earlier daemon recorded"),
        }
        for uid in found.iter().filter(|uid| !wanted.contains(uid)) {
            self.clean(uid);
        }
    }

    /// Captures the pods; returns how many could not be.
    pub async fn add_all(&mut self, pods: Vec<Pod>, workers: &Workers) -> usize {
        let mut failed = 0;
        for pod in pods {
            let uid = pod.uid.clone();
            let recorded = record::path(&self.records, &uid).exists();
            match self.add(pod, workers).await {
                Ok(Applied::Attached) => tracing::info!(pod = %uid, "captured"),
                Ok(Applied::Adopted) => {
                    tracing::info!(pod = %uid, "captured: adopted what an earlier daemon left")
                }
                Err(error) => {
                    failed += 1;
                    tracing::error!(pod = %uid, %error, "cannot capture pod");
                    // What an earlier daemon captured stays captured: its connections are refused, not let through.
                    if !recorded {
                        self.undo(&uid);
                    }
                }
            }
        }
        failed
    }

    /// Captures one more pod, also while others are carried.
    ///
    /// Listeners first, programs last: a connection is never steered to a port where nobody listens.
    pub async fn add(&mut self, pod: Pod, workers: &Workers) -> Result<Applied, PodError> {
        let netns = Netns::open(&pod.netns).map_err(|source| PodError::Netns {
            path: pod.netns.clone(),
            source,
        })?;
        let place = self.place(&pod, &netns)?;
        self.shared.identities.prepare(&pod.identity).await?;
        self.open(&place, workers).await?;
        let added = self.add_at(pod, &netns, &place, workers).await;
        if added.is_err() {
            self.close_unused(place.site, workers).await;
        }
        added
    }

    async fn add_at(
        &mut self,
        pod: Pod,
        netns: &Netns,
        place: &Place,
        workers: &Workers,
    ) -> Result<Applied, PodError> {
        let earlier = self.record(&pod)?;
        // On the node only one who is on the path of the app's answers can speak as the client.
        let client_ip = pod.options.preserve_client_ip && place.standpoint != Standpoint::OnNode;
        if client_ip && place.standpoint == Standpoint::Inside {
            client_ip::apply(netns)?;
        }
        let context = Arc::new(PodContext::new(
            pod,
            place.netns.clone(),
            client_ip,
            place.standpoint,
            &self.shared.cluster_id,
        ));
        let pod = &context.pod;
        workers.join(place.site, &context).await?;
        // Where pods share a namespace, a query does not tell whose it is.
        let dns = pod.options.capture_dns && place.tenancy == Tenancy::OnePod;
        if dns && let Err(error) = serve_dns(&context, workers).await {
            workers.leave(place.site, &pod.uid, Duration::ZERO).await?;
            return Err(error);
        }
        let applied = match self.sites.get(&place.site) {
            Some(listeners) => self.capture.apply(pod, netns, &sockets(listeners, dns)),
            None => unreachable!("the site was opened before its pods are added"),
        };
        let applied = match applied {
            Ok(applied) => applied,
            Err(error) => {
                workers.leave(place.site, &pod.uid, Duration::ZERO).await?;
                return Err(error.into());
            }
        };
        self.forget_earlier(pod, netns, earlier)?;
        let site = place.site;
        self.captured
            .insert(pod.uid.clone(), Captured { context, site });
        Ok(applied)
    }

    fn place(&self, pod: &Pod, netns: &Netns) -> Result<Place, PodError> {
        let own = Netns::current().map_err(PodError::FindOwnNetns)?;
        let is_own = own.inode() == netns.inode();
        let (tenancy, netns) = match (self.mode, &pod.cgroup_only) {
            (_, Some(_)) => (Tenancy::ManyPods, netns),
            (Mode::Node, None) => (Tenancy::ManyPods, &own),
            (Mode::Shared, None) if is_own => {
                return Err(PodError::OwnNetns(pod.netns.clone()));
            }
            (Mode::Dedicated, None) if !is_own => {
                return Err(PodError::NotOwnNetns(pod.netns.clone()));
            }
            (_, None) => (Tenancy::OnePod, netns),
        };
        let place = Place {
            site: SiteId(netns.inode()),
            tenancy,
            netns: netns.clone(),
            standpoint: match (self.mode, self.capture.delivery()) {
                (Mode::Node, Delivery::Assigned) => Standpoint::OnPath,
                (Mode::Node, Delivery::Addressed) => Standpoint::OnNode,
                _ => Standpoint::Inside,
            },
        };
        let taken = self.captured.values().any(|other| {
            let alone = self.mode != Mode::Node && other.context.pod.cgroup_only.is_none();
            other.site == place.site && (alone || tenancy == Tenancy::OnePod)
        });
        match taken {
            true => Err(PodError::SharedNetns(pod.netns.clone())),
            false => Ok(place),
        }
    }

    /// Listens in the site, if it is new.
    async fn open(&mut self, place: &Place, workers: &Workers) -> Result<(), PodError> {
        if self.sites.contains_key(&place.site) {
            return Ok(());
        }
        let listeners =
            Listeners::open(&place.netns, place.standpoint).map_err(|(port, source)| {
                PodError::Listen {
                    port,
                    netns: place.netns.path(),
                    source,
                }
            })?;
        workers.open(place.site, place.tenancy, &listeners).await?;
        self.sites.insert(place.site, listeners);
        Ok(())
    }

    async fn close_unused(&mut self, site: SiteId, workers: &Workers) {
        if self.captured.values().any(|captured| captured.site == site) {
            return;
        }
        self.sites.remove(&site);
        if let Err(error) = workers.close(site).await {
            tracing::error!(%error, "cannot close a site's listeners");
        }
    }

    /// Lets go of a pod: connections that it makes from now on are as before capture. Those that we carry may go on for as long
    /// as `drain`, and are then reset.
    pub async fn remove(&mut self, uid: &PodUid, drain: Duration, workers: &Workers) {
        let site = self.captured.get(uid).map(|captured| captured.site);
        self.clean(uid);
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
    fn undo(&self, uid: &PodUid) {
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

    fn clean(&mut self, uid: &PodUid) {
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

    /// Remembers where to clean up. Returns the other backends that captured this pod before.
    fn record(&self, pod: &Pod) -> Result<BTreeSet<String>, PodError> {
        let path = record::path(&self.records, &pod.uid);
        let fail = |source| PodError::Record {
            path: path.clone(),
            source,
        };
        let mut earlier = BTreeSet::new();
        if let Some(before) = Record::read(&path).map_err(fail)? {
            if before.netns == pod.netns {
                earlier = before.backends;
            } else if let Err(error) = clean_record(&path) {
                tracing::error!(pod = %pod.uid, %error, "cannot clean up in the pod's former namespace");
            }
        }
        let mut backends = earlier.clone();
        backends.insert(self.capture.name().to_owned());
        let netns = pod.netns.clone();
        let record = Record { netns, backends };
        record.write(&path).map_err(fail)?;
        earlier.remove(self.capture.name());
        Ok(earlier)
    }

    /// Takes back what other backends made, now that this one's capture is in place.
    fn forget_earlier(
        &self,
        pod: &Pod,
        netns: &Netns,
        earlier: BTreeSet<String>,
    ) -> Result<(), PodError> {
        if earlier.is_empty() {
            return Ok(());
        }
        for backend in &earlier {
            capture::clean_netns_after(netns, backend, self.capture.name())?;
        }
        let path = record::path(&self.records, &pod.uid);
        let record = Record {
            netns: pod.netns.clone(),
            backends: BTreeSet::from([self.capture.name().to_owned()]),
        };
        record
            .write(&path)
            .map_err(|source| PodError::Record { path, source })
    }
}

async fn serve_dns(context: &Arc<PodContext>, workers: &Workers) -> Result<(), PodError> {
    let sockets = dns::Sockets::open(&context.netns).map_err(|source| PodError::Listen {
        port: ports::DNS,
        netns: context.netns.path(),
        source,
    })?;
    Ok(workers.serve_dns(context, sockets).await?)
}

fn sockets(listeners: &Listeners, dns: bool) -> Sockets<'_> {
    Sockets {
        outbound: listeners.outbound.as_fd(),
        inbound_plaintext: listeners.inbound_plaintext.as_fd(),
        hbone: listeners.hbone.as_fd(),
        dns,
    }
}

/// Cleans up after all pods that are on record.
pub fn clean_recorded(state_dir: &Path) -> anyhow::Result<()> {
    let records = record::folder(state_dir);
    let entries = match fs::read_dir(&records) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let (mut errors, mut backends) = (Vec::new(), BTreeSet::new());
    for entry in entries {
        let path = entry?.path();
        if let Ok(Some(record)) = Record::read(&path) {
            backends.extend(record.backends);
        }
        if let Err(error) = clean_record(&path) {
            errors.push(format!("{}: {error}", path.display()));
        }
    }
    let own = backends.iter().map(|backend| capture::clean_own(backend));
    errors.extend(own.filter_map(Result::err).map(|error| error.to_string()));
    if errors.is_empty() {
        fs::remove_dir(&records)?;
        return Ok(());
    }
    anyhow::bail!("{}", errors.join("; "))
}

/// Undoes what was done in the namespace that the record names. A pod that is gone took it along.
fn clean_record(path: &Path) -> anyhow::Result<()> {
    let Some(record) = Record::read(path)? else {
        return Ok(());
    };
    let enters = record
        .backends
        .iter()
        .any(|name| capture::enters_pods(name));
    if let Ok(netns) = Netns::open(&record.netns)
        && enters
    {
        let cleaned = record.backends.iter();
        let cleaned = cleaned.map(|backend| capture::clean_netns(&netns, backend));
        let cleaned: Vec<_> = cleaned.collect();
        client_ip::clean(&netns)?;
        cleaned.into_iter().collect::<Result<(), _>>()?;
    }
    fs::remove_file(path)?;
    Ok(())
}
