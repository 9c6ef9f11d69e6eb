//! Capture by eBPF: programs on the pod's cgroup steer its connects to the proxy's listener in the pod's network namespace.
//!
//! The pins *are* the state (see [`pins`]): what is pinned is captured, also while no daemon runs, and a new daemon goes on
//! with it. The maps hold what the programs need to know of each pod (see [`tables`] and [`inbound`]).

use std::{
    collections::HashMap,
    net::IpAddr,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use redirect_common::maps::{names, pod_flags};

use self::{
    dns::DnsMap,
    guard::{AttachBy, Guard},
    inbound::Inbound,
    links::{PROXY_HOOKS, Targets},
    object::Object,
    pins::{Pins, Place},
    prober::Prober,
    resolver::{AcceptedSockets, PodNumbers},
    subject::Subject,
    succession::{inherit, remove_orphans},
    tables::{Numbers, Tables},
};
use super::{Applied, Capture, CaptureError, Repair, Sockets, VerdictCounters, older};
use crate::{
    config::{CaptureConfig, Mode},
    orig_dst::{OrigDstResolver, dns::DnsServers},
    pod::{Pod, PodUid},
    sys::{bpffs, cgroup::Cgroup, netns::Netns},
};

mod classifier;
mod counters;
mod dns;
mod events;
pub mod guard;
mod inbound;
mod keys;
mod let_go;
mod links;
pub mod needs;
pub(super) mod netlink;
pub mod node;
mod object;
mod pins;
pub(super) mod prober;
mod reassert;
mod reserved;
mod resolver;
mod route;
mod sharers;
mod subject;
mod succession;
mod tables;

/// Names of captured pods by the cookie of their network namespace, for events.
type PodNames = Arc<RwLock<HashMap<u64, PodUid>>>;

pub struct EbpfCapture {
    object: Object,
    /// The daemon's.
    own: Cgroup,
    /// That of the daemon from which this one takes over, while it runs.
    predecessor: Option<Cgroup>,
    pins: Pins,
    tables: Tables,
    inbound: Inbound,
    /// Until it is on its own way.
    prober: Option<Prober>,
    resolver: Arc<AcceptedSockets>,
    dns: Arc<DnsMap>,
    counters: VerdictCounters,
    /// `None` where the configuration wants no guard.
    guard: Option<Guard>,
    events: bool,
    names: PodNames,
    numbers: PodNumbers,
    /// The pods that this daemon applied.
    applied: HashMap<PodUid, Here>,
}

/// A pod as it was captured: to look after it, and to take the routes back.
#[derive(Clone)]
struct Here {
    pod: Pod,
    netns: Netns,
    dns: bool,
}

impl Here {
    fn of(subject: &Subject<'_>, sockets: &Sockets<'_>) -> Self {
        Self {
            pod: subject.pod.clone(),
            netns: subject.netns.clone(),
            dns: sockets.dns.is_some(),
        }
    }
}

impl EbpfCapture {
    /// Loads the programs, with the pinned maps where there are some, and attaches the proxy's to `cgroup`, the daemon's own.
    pub fn load(config: &CaptureConfig, cgroup: &Path) -> Result<Self, CaptureError> {
        let mounted =
            bpffs::ensure_mounted(&config.bpffs, config.mount_bpffs).map_err(|error| {
                CaptureError::kernel("find a BPF file system at", config.bpffs.display(), &error)
            })?;
        if mounted {
            tracing::info!(path = %config.bpffs.display(), "mounted a BPF file system");
        }
        let pins = Pins::create(&config.bpffs, config.abi)?;
        inherit(&pins)?;
        let mut object = Object::load(&pins)?;
        let mut tables = Tables::open(&mut object)?;
        tables.configure(config.events)?;
        let mut inbound = Inbound::open(&mut object)?;
        remove_orphans(&pins, &mut tables, &mut inbound)?;
        let numbers = PodNumbers::default();
        let resolver = Arc::new(AcceptedSockets::new(
            object.map(names::ACCEPTED)?,
            numbers.clone(),
        )?);
        let dns = Arc::new(DnsMap::open(&pins.map(names::DNS))?);
        let counters = counters::reader(object.map(names::COUNTERS)?)?;
        let own = Cgroup::open(cgroup)?;
        tables.add_proxy(own.id)?;
        if config.mode == Mode::Dedicated {
            tables.exempt_dedicated(own.id)?;
        }
        links::attach_proxy(object.programs(), &pins, &own, &PROXY_HOOKS)?;
        let prober = Prober::attach(
            object.programs().clone(),
            pins.clone(),
            config.probers.clone(),
        )?;
        let has_guard = config.leak_guard && config.mode != Mode::Node;
        Ok(Self {
            object,
            own,
            predecessor: None,
            pins,
            prober: Some(prober),
            tables,
            inbound,
            resolver,
            dns,
            counters,
            guard: has_guard.then(|| Guard::new(AttachBy::Link)),
            events: config.events,
            names: PodNames::default(),
            numbers,
            applied: HashMap::new(),
        })
    }

    /// Attaches the guard in another way than by default.
    pub fn guard_by(&mut self, by: AttachBy) {
        self.guard = self.guard.as_ref().map(|_| Guard::new(by));
    }

    /// Puts the guard on the pod's interfaces, or takes it off where it is not wanted any more.
    fn guard(&mut self, subject: &Subject<'_>) -> Result<(), CaptureError> {
        let (pod, netns) = (subject.pod, subject.netns);
        let place = subject.place();
        let directory = self.pins.place(&pod.uid, place)?;
        match &mut self.guard {
            // The interfaces are not its own.
            _ if pod.cgroup_only.is_some() => Ok(()),
            Some(guard) => {
                let is_former = |at: &Place| *at != place && at.netns_cookie == place.netns_cookie;
                for former in self.pins.places(&pod.uid)?.into_iter().filter(is_former) {
                    guard::take_over(&self.pins.place(&pod.uid, former)?, &directory)?;
                }
                guard.apply(&self.pins, &directory, netns, &subject.cgroup, &pod.options)
            }
            None => guard::remove(&directory, netns),
        }
    }

    fn is_guarded(&self, pod: &Pod) -> bool {
        self.guard.is_some() && pod.cgroup_only.is_none()
    }
}

impl EbpfCapture {
    /// Tells the programs what they need to know of the pod, before they run.
    fn prepare(
        &mut self,
        subject: &Subject<'_>,
        sockets: &Sockets<'_>,
    ) -> Result<(), CaptureError> {
        let sources = self.sources(subject.netns, &subject.pod.uid, &subject.pod.ips);
        route::add(subject.netns, &sources)?;
        reserved::add(subject.netns)?;
        let numbers = self.tell(subject, sockets.dns.is_some())?;
        self.numbers.insert(numbers.pod, &subject.pod.uid);
        self.inbound.add(numbers, subject, sockets)
    }

    /// Fills the tables of the programs.
    fn tell(&mut self, subject: &Subject<'_>, dns: bool) -> Result<Numbers, CaptureError> {
        let flags = match self.is_guarded(subject.pod) {
            true => pod_flags::GUARDED,
            false => 0,
        };
        // Of workloads that share a namespace, the programs do not know who asks.
        let dns = dns && subject.pod.cgroup_only.is_none();
        self.tables.add(subject, flags, dns)
    }

    /// Attaches the programs.
    fn attach(&self, subject: &Subject<'_>) -> Result<Applied, CaptureError> {
        links::attach_pod(
            self.object.programs(),
            &self.pins,
            &subject.pod.uid,
            subject.place(),
            Targets::of(subject),
            &links::pod_hooks(subject.pod),
        )
    }

    /// The addresses of all that are captured in a namespace, of which the pod `uid` has `ips` now. They give the same routes
    /// whoever of them asks.
    fn sources(&self, netns: &Netns, uid: &PodUid, ips: &[IpAddr]) -> Vec<IpAddr> {
        let others = self.applied.iter().filter(|(other, _)| *other != uid);
        let mut here: Vec<_> = others
            .filter(|(_, other)| other.netns.inode() == netns.inode())
            .map(|(_, other)| other.pod.ips.as_slice())
            .chain([ips])
            .collect();
        here.sort_unstable();
        here.concat()
    }

    /// Makes the programs forget who is in a place.
    fn forget(&mut self, place: Place) -> Result<(), CaptureError> {
        let free = self.tables.remove(place)?;
        free.into_iter()
            .try_for_each(|number| self.inbound.remove(number))
    }

    /// Whether another pod is captured in the same namespace.
    fn is_shared(&self, netns: &Netns, uid: &PodUid) -> bool {
        let mut others = self.applied.iter().filter(|(other, _)| *other != uid);
        others.any(|(_, other)| other.netns.inode() == netns.inode())
    }

    /// Connections find their pod by its address, so that no two pods may have the same.
    fn check_addresses(&self, subject: &Subject<'_>) -> Result<(), CaptureError> {
        // A pod whose sandbox was made anew keeps its addresses.
        let places = self.pins.places(&subject.pod.uid)?;
        let mut own: Vec<_> = places.iter().map(|place| place.netns_cookie).collect();
        own.push(subject.netns_cookie);
        let Some(conflict) = self.inbound.conflict(&subject.ips, &own) else {
            return Ok(());
        };
        let other = self.pod_in(conflict.netns_cookie)?;
        Err(CaptureError::SharedAddress {
            ip: conflict.ip,
            pod: subject.pod.uid.clone(),
            other: other.map_or_else(
                || format!("network namespace {}", conflict.netns_cookie),
                |other| format!("pod {other}"),
            ),
        })
    }

    /// The pod that is captured in a namespace.
    fn pod_in(&self, netns_cookie: u64) -> Result<Option<PodUid>, CaptureError> {
        for uid in self.pins.pods()? {
            let places = self.pins.places(&uid)?;
            if places
                .iter()
                .any(|place| place.netns_cookie == netns_cookie)
            {
                return Ok(Some(uid));
            }
        }
        Ok(None)
    }
}

impl Capture for EbpfCapture {
    fn apply(
        &mut self,
        pod: &Pod,
        netns: &Netns,
        sockets: &Sockets<'_>,
    ) -> Result<Applied, CaptureError> {
        let subject = Subject::find(pod, netns, &self.own, self.predecessor.as_ref())?;
        let netns_cookie = subject.netns_cookie;
        self.check_addresses(&subject)?;
        let is_new = !self.tables.has(&subject) && !self.pins.has_other_version(&pod.uid)?;
        let prepared = self.prepare(&subject, sockets);
        let applied = prepared.and_then(|()| self.attach(&subject));
        if applied.is_err() && is_new {
            self.numbers.remove(&pod.uid);
            _ = self.forget(subject.place());
            if !self.is_shared(netns, &pod.uid) {
                _ = clean_netns(netns);
            }
        }
        let applied = applied?;
        // Last: what is captured and what is let pass is marked by now.
        if let Err(error) = self.guard(&subject) {
            if is_new {
                self.applied
                    .insert(pod.uid.clone(), Here::of(&subject, sockets));
                _ = self.clean(&pod.uid);
            }
            return Err(error);
        }
        if is_new && pod.options.reset_older_connections {
            // Where that fails, the guard drops them all the same.
            match older::reset(netns) {
                Ok(count) => tracing::info!(pod = %pod.uid, count, "reset older connections"),
                Err(error) => tracing::warn!(pod = %pod.uid, %error, "older connections stay"),
            }
        }
        let left = self.pins.remove_other_places(&pod.uid, subject.place())?;
        // In the same namespace, the entry of a pod that has it to itself is the new one by now.
        let stays = |old: &Place| pod.cgroup_only.is_none() && old.netns_cookie == netns_cookie;
        for old in left.into_iter().filter(|old| !stays(old)) {
            self.forget(old)?;
        }
        if self.predecessor.is_none() {
            self.pins.remove_other_versions()?;
        }
        if pod.cgroup_only.is_none() {
            self.names
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(netns_cookie, pod.uid.clone());
        }
        self.applied
            .insert(pod.uid.clone(), Here::of(&subject, sockets));
        Ok(applied)
    }

    fn clean(&mut self, uid: &PodUid) -> Result<(), CaptureError> {
        let (mut errors, here) = self.let_go(uid);
        if let Some(here) = here
            && !self.is_shared(&here.netns, uid)
        {
            errors.extend(clean_netns(&here.netns).err());
        }
        CaptureError::collect(errors)
    }

    fn release(&mut self, uid: &PodUid) -> Result<(), CaptureError> {
        CaptureError::collect(self.let_go(uid).0)
    }

    fn faults(&self, uid: &PodUid) -> Result<Vec<String>, CaptureError> {
        self.faults_of(uid)
    }

    fn reassert(&mut self, pods: &[PodUid]) -> Vec<Repair> {
        self.look_after(pods)
    }

    fn inspect(&self) -> Result<Vec<PodUid>, CaptureError> {
        self.pins.pods_of_all_versions()
    }

    fn resolver(&self) -> Arc<dyn OrigDstResolver> {
        self.resolver.clone()
    }

    fn dns_servers(&self) -> Arc<dyn DnsServers> {
        self.dns.clone()
    }

    fn name(&self) -> &'static str {
        "ebpf"
    }

    fn counters(&self) -> VerdictCounters {
        self.counters.clone()
    }

    fn steers(&self) -> bool {
        true
    }

    fn succeed(&mut self, predecessor: &Path) -> Result<(), CaptureError> {
        self.stand_beside(predecessor)
    }

    fn settle(&mut self) -> Result<(), CaptureError> {
        self.stand_alone()
    }

    fn start(&mut self) {
        if let Some(prober) = self.prober.take() {
            tokio::spawn(prober.follow());
        }
        self.object.start_log();
        if !self.events {
            return;
        }
        match self.object.map(names::EVENTS) {
            Ok(map) => events::start(map, self.names.clone()),
            Err(error) => tracing::warn!(%error, "events are not logged"),
        }
    }
}

/// The programs that are embedded in this build, if any.
pub fn embedded() -> Option<&'static [u8]> {
    object::embedded()
}

/// Loads the programs as a daemon would, and forgets them.
pub fn try_load() -> Result<(), CaptureError> {
    Object::try_load()
}

/// See [`super::uninstall`].
pub fn uninstall(bpffs: &Path) -> Result<usize, CaptureError> {
    let node = node::leave(bpffs);
    let removed = pins::remove_all(bpffs)?;
    node.map(|()| removed)
}

/// See [`super::clean_netns`].
pub fn clean_netns(netns: &Netns) -> Result<(), CaptureError> {
    let results = [
        guard::remove_filters(netns),
        route::remove(netns),
        reserved::remove(netns),
    ];
    CaptureError::collect(results.into_iter().filter_map(Result::err).collect())
}
