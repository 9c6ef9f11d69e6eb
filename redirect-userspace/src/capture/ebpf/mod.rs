//! Capture by eBPF: programs on the pod's cgroup steer its connects to the proxy's listener in the pod's network namespace.
//!
//! The pins *are* the state (see [`pins`]): what is pinned is captured, also while no daemon runs, and a new daemon goes on
//! with it. The maps hold what the programs need to know of each pod (see [`tables`]).

use std::{
    collections::HashMap,
    os::unix::net::UnixDatagram,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use redirect_common::maps::names;

use self::{
    dns::DnsMap,
    guard::{AttachBy, Guard},
    links::{POD_HOOKS, PROXY_HOOKS},
    object::Object,
    pins::{Pins, Place},
    resolver::{AcceptedSockets, PodNumbers},
    tables::Tables,
};
use super::{Applied, Capture, CaptureError, Sockets, VerdictCounters, older};
use crate::{
    config::{CaptureConfig, Mode},
    orig_dst::{OrigDstResolver, dns::DnsServers},
    pod::{Pod, PodUid},
    sys::{bpf, bpffs, cgroup::Cgroup, netns::Netns},
};

mod classifier;
mod counters;
mod dns;
mod events;
pub mod guard;
mod links;
pub mod needs;
pub(super) mod netlink;
mod object;
mod pins;
mod resolver;
mod route;
mod tables;

/// Names of captured pods by the cookie of their network namespace, for events.
type PodNames = Arc<RwLock<HashMap<u64, PodUid>>>;

pub struct EbpfCapture {
    object: Object,
    /// The daemon's.
    own: Cgroup,
    pins: Pins,
    tables: Tables,
    resolver: Arc<AcceptedSockets>,
    dns: Arc<DnsMap>,
    counters: VerdictCounters,
    /// `None` where the configuration wants no guard.
    guard: Option<Guard>,
    events: bool,
    names: PodNames,
    numbers: PodNumbers,
    /// Namespaces of pods that this daemon applied, to take the routes back from.
    netns: HashMap<PodUid, Netns>,
}

impl EbpfCapture {
    /// Loads the programs, with the pinned maps where there are some, and attaches the proxy's to `cgroup`, the daemon's own.
    pub fn load(config: &CaptureConfig, cgroup: &Path) -> Result<Self, CaptureError> {
        let mounted = bpffs::ensure_mounted(&config.bpffs).map_err(|error| {
            CaptureError::kernel("mount a BPF file system at", config.bpffs.display(), &error)
        })?;
        if mounted {
            tracing::info!(path = %config.bpffs.display(), "mounted a BPF file system");
        }
        let pins = Pins::create(&config.bpffs)?;
        let mut object = Object::load(&pins)?;
        let mut tables = Tables::open(&mut object)?;
        tables.configure(config.events)?;
        remove_orphans(&pins, &mut tables)?;
        let numbers = PodNumbers::default();
        let resolver = Arc::new(AcceptedSockets::new(
            object.map(names::ACCEPTED)?,
            numbers.clone(),
        )?);
        let dns = Arc::new(DnsMap::open(&pins.map(names::DNS))?);
        let counters = counters::reader(object.map(names::COUNTERS)?)?;
        let own = Cgroup::open(cgroup)?;
        tables.set_proxy(own.id)?;
        links::attach_proxy(&object, &pins, &own, &PROXY_HOOKS)?;
        let has_guard = config.leak_guard && config.mode != Mode::Node;
        Ok(Self {
            object,
            own,
            pins,
            tables,
            resolver,
            dns,
            counters,
            guard: has_guard.then(|| Guard::new(AttachBy::Link)),
            events: config.events,
            names: PodNames::default(),
            numbers,
            netns: HashMap::new(),
        })
    }

    /// Attaches the guard in another way than by default.
    pub fn guard_by(&mut self, by: AttachBy) {
        self.guard = self.guard.as_ref().map(|_| Guard::new(by));
    }

    /// Puts the guard on the pod's interfaces, or takes it off where it is not wanted any more.
    fn guard(
        &mut self,
        pod: &Pod,
        place: Place,
        netns: &Netns,
        cgroup: &Cgroup,
    ) -> Result<(), CaptureError> {
        let directory = self.pins.place(&pod.uid, place)?;
        match &mut self.guard {
            // The interfaces are not its own.
            _ if pod.cgroup_only.is_some() => Ok(()),
            Some(guard) => guard.apply(&self.pins, &directory, netns, cgroup, &pod.options),
            None => guard::remove(&directory, netns),
        }
    }

    fn is_guarded(&self, pod: &Pod) -> bool {
        self.guard.is_some() && pod.cgroup_only.is_none()
    }
}

impl EbpfCapture {
    /// The daemon's own cgroup where it is below the pod's, as that of a proxy in the pod: its connections are not captured.
    fn own_in(&self, pod: &Cgroup) -> Result<Option<u64>, CaptureError> {
        if self.own.id == pod.id {
            return Err(CaptureError::CapturesItself(pod.path.clone()));
        }
        Ok(self.own.is_in(pod).then_some(self.own.id))
    }
}

impl Capture for EbpfCapture {
    fn apply(
        &mut self,
        pod: &Pod,
        netns: &Netns,
        sockets: &Sockets<'_>,
    ) -> Result<Applied, CaptureError> {
        let cgroup = Cgroup::open(&pod.cgroup)?;
        let netns_cookie = netns_cookie(netns)?;
        let place = Place {
            netns_cookie,
            cgroup: cgroup.id,
        };
        let exempt = pod
            .options
            .exempt_cgroups
            .iter()
            .map(|path| Cgroup::open(path).map(|cgroup| cgroup.id));
        let mut exempt = exempt.collect::<Result<Vec<_>, _>>()?;
        exempt.extend(self.own_in(&cgroup)?);
        route::add(netns, &pod.ips)?;
        // First what the programs need to know, then the programs.
        let is_new = !self.tables.has(netns_cookie);
        let (guarded, dns) = (self.is_guarded(pod), sockets.dns);
        let number = self.tables.add(netns_cookie, pod, &exempt, guarded, dns)?;
        self.numbers.insert(number, &pod.uid);
        let applied = match links::attach_pod(
            &self.object,
            &self.pins,
            &pod.uid,
            place,
            &cgroup,
            &POD_HOOKS,
        ) {
            Ok(applied) => applied,
            Err(error) => {
                if is_new {
                    self.numbers.remove(&pod.uid);
                    _ = self.tables.remove(netns_cookie);
                    _ = route::remove(netns);
                }
                return Err(error);
            }
        };
        // Last: what is captured and what is let pass is marked by now.
        if let Err(error) = self.guard(pod, place, netns, &cgroup) {
            if is_new {
                self.netns.insert(pod.uid.clone(), netns.clone());
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
        for old in self.pins.remove_other_places(&pod.uid, place)? {
            self.tables.remove(old)?;
        }
        self.names
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(netns_cookie, pod.uid.clone());
        self.netns.insert(pod.uid.clone(), netns.clone());
        Ok(applied)
    }

    fn clean(&mut self, uid: &PodUid) -> Result<(), CaptureError> {
        let mut errors = Vec::new();
        let mut cookies: Vec<u64> = self
            .pins
            .places(uid)?
            .iter()
            .map(|place| place.netns_cookie)
            .collect();
        cookies.dedup();
        if let Err(error) = self.pins.remove_pod(uid) {
            errors.push(error);
        }
        for cookie in cookies {
            errors.extend(self.tables.remove(cookie).err());
            self.names
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&cookie);
        }
        self.numbers.remove(uid);
        if let Some(netns) = self.netns.remove(uid) {
            errors.extend(clean_netns(&netns).err());
        }
        CaptureError::collect(errors)
    }

    fn inspect(&self) -> Result<Vec<PodUid>, CaptureError> {
        self.pins.pods()
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

    fn start_events(&mut self) {
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
    pins::remove_all(bpffs)
}

/// See [`super::clean_netns`].
pub fn clean_netns(netns: &Netns) -> Result<(), CaptureError> {
    guard::remove_filters(netns).and(route::remove(netns))
}

/// Removes map entries of pods without pins: a daemon was killed between one step and the next.
fn remove_orphans(pins: &Pins, tables: &mut Tables) -> Result<(), CaptureError> {
    let mut pinned = Vec::new();
    for uid in pins.pods()? {
        pinned.extend(pins.places(&uid)?.iter().map(|place| place.netns_cookie));
    }
    for cookie in tables.cookies()? {
        if !pinned.contains(&cookie) {
            tables.remove(cookie)?;
        }
    }
    Ok(())
}

fn netns_cookie(netns: &Netns) -> Result<u64, CaptureError> {
    use std::os::fd::AsFd;
    netns
        .run(|| bpf::netns_cookie(UnixDatagram::unbound()?.as_fd()))
        .and_then(|cookie| cookie)
        .map_err(|error| {
            CaptureError::kernel(
                "ask for the cookie of network namespace",
                netns.path().display(),
                &error,
            )
        })
}
