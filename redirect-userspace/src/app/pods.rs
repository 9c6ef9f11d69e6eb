//! The pods of this daemon: adding one is all or nothing, and one pod's failure is its own.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

mod elsewhere;
mod error;
mod inherited;
mod joined;
mod let_go;
mod reassert;
mod recorded;
mod verify;

pub use self::{
    elsewhere::{have_carried, is_carried},
    error::PodError,
    recorded::clean_recorded,
    verify::find,
};
use super::{handover::Estate, record};
use crate::{
    capture::{Applied, Capture, Delivery, Sockets},
    config::{CaptureConfig, Mode, Part},
    dns,
    node::zds::server::Server,
    pod::{Pod, PodUid},
    proxy::{
        Accept, Listeners, PodContext, Shared, Workers, client_ip,
        site::{SiteId, Tenancy},
        standpoint::Standpoint,
    },
    sys::netns::Netns,
};

pub struct Pods {
    shared: Arc<Shared>,
    capture: Box<dyn Capture>,
    mode: Mode,
    part: Part,
    /// With [`Part::Capture`]: drives the proxy.
    server: Option<Server>,
    records: PathBuf,
    captured: HashMap<PodUid, Captured>,
    /// Whose turn it is to be [looked after](Self::reassert).
    turn: Option<PodUid>,
    sites: HashMap<SiteId, Listeners>,
    /// Pods that were let go, and have connections.
    leaving: HashMap<PodUid, Leaving>,
    /// Of the daemon from which this one takes over, until they are needed.
    inherited: Estate,
    is_beside_another: bool,
    /// Pods whose DNS sockets another daemon reads too: this one does not before all pods are captured.
    dns_later: Vec<(Arc<PodContext>, dns::Sockets)>,
}

struct Leaving {
    captured: Captured,
    until: Instant,
}

struct Captured {
    context: Arc<PodContext>,
    site: SiteId,
    /// The pod's own, wherever the listeners are.
    netns: Netns,
    /// The cgroup's inode number when it was captured.
    cgroup: u64,
    /// Where its DNS queries are answered, if they are.
    dns: Option<dns::Sockets>,
}

impl Captured {
    /// Whether DNS queries of `pod` would be answered as this one's are.
    fn asks_as(&self, pod: &Pod) -> bool {
        let own = &self.context.pod;
        own.namespace == pod.namespace && own.ips == pod.ips
    }
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
    /// `server` is that of another's proxy that carries the pods in place of ours.
    pub fn new(
        shared: Arc<Shared>,
        capture: Box<dyn Capture>,
        config: &CaptureConfig,
        server: Option<Server>,
        state_dir: &Path,
    ) -> Self {
        Self {
            shared,
            capture,
            mode: config.mode,
            part: config.part,
            server,
            records: record::folder(state_dir),
            captured: HashMap::new(),
            turn: None,
            sites: HashMap::new(),
            inherited: Estate::default(),
            is_beside_another: false,
            dns_later: Vec::new(),
            leaving: HashMap::new(),
        }
    }

    /// How many pods are captured.
    pub fn count(&self) -> usize {
        self.captured.len()
    }

    /// Whether something may be left of its capture.
    pub fn is_recorded(&self, uid: &PodUid) -> bool {
        record::path(&self.records, uid).exists()
    }

    pub fn backend(&self) -> &'static str {
        self.capture.name()
    }

    /// The pods that earlier daemons captured, as far as the kernel and the records tell.
    pub fn earlier(&self) -> BTreeSet<PodUid> {
        let mut found = BTreeSet::new();
        match self.capture.inspect() {
            Ok(captured) => found.extend(captured),
            Err(error) => tracing::warn!(%error, "cannot see what an earlier daemon captured"),
        }
        match record::uids(&self.records) {
            Ok(recorded) => found.extend(recorded),
            Err(error) => tracing::warn!(%error, "cannot see what an earlier daemon recorded"),
        }
        found
    }

    /// Captures one more pod, also while others are carried; or one that is captured as it is wanted now. Its certificate has to
    /// be there.
    ///
    /// Listeners first, programs last: a connection is never steered to a port where nobody listens. On an error, what an earlier
    /// daemon captured stays captured: connections are refused, not let through.
    pub async fn add(&mut self, pod: Pod, workers: &Workers) -> Result<Applied, PodError> {
        let uid = pod.uid.clone();
        let is_recorded = record::path(&self.records, &uid).exists();
        let added = match self.server {
            Some(_) => self.capture_alone(pod),
            None => self.add_or_replace(pod, workers).await,
        };
        if added.is_err() && !is_recorded {
            self.undo(&uid);
        }
        added
    }

    async fn add_or_replace(&mut self, pod: Pod, workers: &Workers) -> Result<Applied, PodError> {
        let netns = Netns::open(&pod.netns).map_err(|source| PodError::Netns {
            path: pod.netns.clone(),
            source,
        })?;
        let place = self.place(&pod, &netns)?;
        self.shared.identities.get(&pod.identity)?;
        self.open(&place, workers).await?;
        let before = self.captured.remove(&pod.uid);
        // What its former connections need is needed again, or goes with the record of where it was.
        self.leaving.remove(&pod.uid);
        let former_site = before.as_ref().map(|before| before.site);
        let added = self.add_at(pod, &netns, &place, before, workers).await;
        for site in former_site.into_iter().chain([place.site]) {
            self.close_unused(site, workers).await;
        }
        added
    }

    async fn add_at(
        &mut self,
        pod: Pod,
        netns: &Netns,
        place: &Place,
        before: Option<Captured>,
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
        // Where pods share a namespace, a query does not tell whose it is.
        let dns = pod.options.capture_dns && place.tenancy == Tenancy::OnePod;
        let dns = self
            .join(&context, place.site, dns, before, workers)
            .await?;
        let applied = match self.sites.get(&place.site) {
            Some(listeners) => {
                let sockets = sockets(listeners, dns.as_ref());
                self.capture.apply(pod, netns, &sockets)
            }
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
        let captured = Captured {
            site: place.site,
            netns: netns.clone(),
            cgroup: inode(&pod.cgroup).unwrap_or_default(),
            dns,
            context: context.clone(),
        };
        self.captured.insert(pod.uid.clone(), captured);
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
                _ if self.part == Part::Proxy => Standpoint::InsideMarked,
                _ => Standpoint::Inside,
            },
        };
        let mut others = self.captured.values();
        let taken = others.any(|other| {
            let is_other = other.context.pod.uid != pod.uid;
            let alone = self.mode != Mode::Node && other.context.pod.cgroup_only.is_none();
            is_other && other.site == place.site && (alone || tenancy == Tenancy::OnePod)
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
        let steered = self.capture.steers();
        let inherited = self.inherited.sites.remove(&place.site.0);
        let (listeners, accept) = match inherited.filter(|_| !steered) {
            Some(inherited) => (Ok(inherited), Accept::Later),
            None => {
                let opened = Listeners::open(&place.netns, place.standpoint, steered);
                (opened, Accept::Now)
            }
        };
        let listeners = listeners.map_err(|(port, source)| PodError::Listen {
            port,
            netns: place.netns.path(),
            source,
        })?;
        workers
            .open(place.site, place.tenancy, &listeners, accept)
            .await?;
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
}

fn sockets<'a>(listeners: &'a Listeners, dns: Option<&'a dns::Sockets>) -> Sockets<'a> {
    Sockets {
        outbound: listeners.outbound.as_fd(),
        inbound_plaintext: listeners.inbound_plaintext.as_fd(),
        hbone: listeners.hbone.as_fd(),
        dns: dns.map(|sockets| sockets.tcp.as_fd()),
    }
}

/// Of a file or directory, if there is one.
fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.ino())
}
