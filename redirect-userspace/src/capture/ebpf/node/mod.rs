//! Mode `node`: pods are captured on the node's side of their interfaces, and nothing is done inside of them (docs/adr/0016).
//!
//! Programs at both directions of a pod's interface decide on each packet of TCP (see `redirect-ebpf/src/node.rs`); what is for
//! the proxy arrives once more at an interface of ours (see [`host`]) and is given to the proxy's sockets there. No address is
//! rewritten, so that the original destination is the local address of the accepted socket.

use std::{
    fs,
    net::IpAddr,
    path::Path,
    sync::{Arc, PoisonError},
};

use aya::maps::{HashMap, MapData};
use redirect_common::{
    guard::rules,
    maps::names,
    node::{ON_NODE, RULES_SHIFT},
};

use super::{
    super::{Applied, Capture, CaptureError, Delivery, Repair, Sockets, VerdictCounters},
    PodNames, counters, events,
    inbound::Inbound,
    object::Object,
    pins::{Pins, Place},
    prober::Prober,
    subject::Subject,
    succession::{inherit, remove_orphans},
    tables::{Tables, at, ignore_missing, typed},
};
use crate::{
    config::CaptureConfig,
    orig_dst::{LocalAddress, OrigDstResolver},
    pod::{Pod, PodOptions, PodUid},
    sys::{bpf::TcxHook, bpffs, cgroup::Cgroup, netns::Netns},
};

mod host;
mod interface;
mod prepare;
mod reassert;
mod succession;
mod untracked;

pub use prepare::leave;

use interface::Interface;
use prepare::{attach, prepare};

/// Of this way of capture, in records of what pods were captured by.
pub const NAME: &str = "ebpf-node";

/// Programs of this mode; no other needs them.
pub const PROGRAMS: [&str; 4] = [FROM_POD, TO_POD, LOCAL, RESET];
const FROM_POD: &str = "rdr_node_out";
const TO_POD: &str = "rdr_node_in";
const LOCAL: &str = "rdr_node_local";
const RESET: &str = "rdr_node_reset";
/// Of a pod's interface, with what names of their pins begin with.
const HOOKS: [(TcxHook, &str, &str); 2] = [
    (TcxHook::Ingress, FROM_POD, "from-pod"),
    (TcxHook::Egress, TO_POD, "to-pod"),
];
/// Serves every mode.
const PROBER: &str = "rdr_prober_ops";

pub struct NodeCapture {
    object: Object,
    own: Cgroup,
    state: prepare::State,
    pins: Pins,
    tables: Tables,
    inbound: Inbound,
    interfaces: HashMap<MapData, u32, u64>,
    /// Namespaces of the pods that this daemon applied.
    applied: std::collections::HashMap<PodUid, Netns>,
    counters: VerdictCounters,
    events: bool,
    names: PodNames,
    /// Until it follows the probers' cgroups.
    prober: Option<Prober>,
}

impl NodeCapture {
    /// Loads the programs, and prepares the node. `cgroup` is the daemon's own.
    pub fn load(config: &CaptureConfig, cgroup: &Path) -> Result<Self, CaptureError> {
        bpffs::ensure_mounted(&config.bpffs, config.mount_bpffs).map_err(|error| {
            CaptureError::kernel("find a BPF file system at", config.bpffs.display(), &error)
        })?;
        let pins = Pins::create(&config.bpffs, config.abi)?;
        inherit(&pins)?;
        let mut object = Object::load_only(&pins, &[FROM_POD, TO_POD, LOCAL, RESET, PROBER])?;
        let mut tables = Tables::open(&mut object)?;
        tables.configure(config.events)?;
        let own = Cgroup::open(cgroup)?;
        tables.add_proxy(own.id)?;
        let mut inbound = Inbound::open(&mut object)?;
        remove_orphans(&pins, &mut tables, &mut inbound)?;
        let counters = counters::reader(object.map(names::COUNTERS)?)?;
        let interfaces = typed(&mut object, names::NODE_PODS)?;
        let mut state = typed(&mut object, names::NODE)?;
        prepare(&mut state, object.programs(), &pins.proxy(own.id))?;
        pins.remove_other_proxies(own.id)?;
        let probers = config.probers.clone();
        let prober = Prober::attach(object.programs().clone(), pins.clone(), probers)?;
        Ok(Self {
            object,
            own,
            state,
            pins,
            tables,
            inbound,
            interfaces,
            applied: std::collections::HashMap::new(),
            counters,
            events: config.events,
            names: PodNames::default(),
            prober: Some(prober),
        })
    }

    /// The pod of a connection is found by its address.
    fn check_addresses(&self, pod: &Pod, key: u64) -> Result<(), CaptureError> {
        let places = self.pins.places(&pod.uid)?;
        let mut own: Vec<_> = places.iter().map(|place| place.netns_cookie).collect();
        own.push(key);
        match self.inbound.conflict(&pod.ips, &own) {
            None => Ok(()),
            Some(conflict) => Err(CaptureError::SharedAddress {
                ip: conflict.ip,
                pod: pod.uid.clone(),
                other: "another pod".to_owned(),
            }),
        }
    }

    /// Tells the programs what they need to know of the pod, before they run.
    fn tell(&mut self, subject: &Subject<'_>, sockets: &Sockets<'_>) -> Result<(), CaptureError> {
        let flags = rules_of(&subject.pod.options) << RULES_SHIFT;
        let numbers = self.tables.add(subject, flags, false)?;
        self.inbound.add(numbers, subject, sockets)
    }

    fn forget(&mut self, place: Place) -> Result<(), CaptureError> {
        self.keep_interfaces(place.netns_cookie, &[])?;
        let free = self.tables.remove(place)?;
        free.into_iter()
            .try_for_each(|number| self.inbound.remove(number))
    }

    /// Makes the programs forget the pod's interfaces other than these.
    fn keep_interfaces(&mut self, key: u64, keep: &[Interface]) -> Result<(), CaptureError> {
        let known: Vec<_> = self.interfaces.iter().filter_map(Result::ok).collect();
        let is_kept = |index| keep.iter().any(|interface| interface.index == index);
        for (index, of) in known {
            if of == key && !is_kept(index) {
                ignore_missing(self.interfaces.remove(&index))
                    .map_err(at(names::NODE_PODS, index))?;
            }
        }
        Ok(())
    }

    /// Attaches both programs to an interface, or puts this daemon's into the links that are there.
    fn attach(
        &mut self,
        directory: &Path,
        key: u64,
        interface: &Interface,
    ) -> Result<Applied, CaptureError> {
        let mut applied = Applied::Adopted;
        for (hook, program, pin) in HOOKS {
            let pin = directory.join(format!("{pin}-{}", interface.index));
            let done = attach(self.object.programs(), program, &pin, hook, interface)?;
            if done == Applied::Attached {
                applied = done;
            }
        }
        // Last: from here on the programs know whose interface it is.
        self.interfaces
            .insert(interface.index, key, 0)
            .map_err(at(names::NODE_PODS, &interface.name))?;
        Ok(applied)
    }

    fn capture(
        &mut self,
        subject: &Subject<'_>,
        interfaces: &[Interface],
        sockets: &Sockets<'_>,
    ) -> Result<Applied, CaptureError> {
        let (key, place, uid) = (subject.netns_cookie, subject.place(), &subject.pod.uid);
        self.tell(subject, sockets)?;
        let directory = self.pins.place(uid, place)?;
        fs::create_dir_all(&directory)
            .map_err(|error| CaptureError::kernel("create", directory.display(), &error))?;
        let mut applied = Applied::Adopted;
        for interface in interfaces {
            if self.attach(&directory, key, interface)? == Applied::Attached {
                applied = Applied::Attached;
            }
        }
        self.keep_interfaces(key, interfaces)?;
        for old in self.pins.remove_other_places(uid, place)? {
            self.forget(old)?;
        }
        Ok(applied)
    }
}

impl Capture for NodeCapture {
    fn apply(
        &mut self,
        pod: &Pod,
        netns: &Netns,
        sockets: &Sockets<'_>,
    ) -> Result<Applied, CaptureError> {
        if pod.cgroup_only.is_some() {
            return Err(CaptureError::CgroupOnly);
        }
        check(&pod.options)?;
        let interfaces = interfaces_of(netns)?;
        if interfaces.is_empty() {
            return Err(no_interface(netns));
        }
        let key = key_of(netns);
        let subject = Subject {
            pod,
            netns,
            netns_cookie: key,
            // Not used here, and so not looked for.
            cgroup: Cgroup {
                id: 0,
                path: pod.cgroup.clone(),
            },
            ips: pod.ips.iter().map(IpAddr::to_canonical).collect(),
            exempt: Vec::new(),
            is_dedicated: false,
        };
        self.check_addresses(pod, key)?;
        let is_new = !self.tables.has(&subject);
        let applied = self.capture(&subject, &interfaces, sockets);
        if applied.is_err() && is_new {
            _ = self.clean(&pod.uid);
        }
        let applied = applied?;
        self.names
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key, pod.uid.clone());
        self.applied.insert(pod.uid.clone(), netns.clone());
        Ok(applied)
    }

    fn clean(&mut self, uid: &PodUid) -> Result<(), CaptureError> {
        self.applied.remove(uid);
        let places = self.pins.places(uid)?;
        let mut errors: Vec<_> = self.pins.remove_pod(uid).err().into_iter().collect();
        for place in places {
            errors.extend(self.forget(place).err());
            self.names
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&place.netns_cookie);
        }
        CaptureError::collect(errors)
    }

    fn reassert(&mut self, pods: &[PodUid]) -> Vec<Repair> {
        self.look_after(pods)
    }

    fn inspect(&self) -> Result<Vec<PodUid>, CaptureError> {
        self.pins.pods_of_all_versions()
    }

    fn resolver(&self) -> Arc<dyn OrigDstResolver> {
        Arc::new(LocalAddress)
    }

    fn name(&self) -> &'static str {
        NAME
    }

    fn delivery(&self) -> Delivery {
        Delivery::Assigned
    }

    fn counters(&self) -> VerdictCounters {
        self.counters.clone()
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

/// By which the programs know the pod of a namespace.
fn key_of(netns: &Netns) -> u64 {
    ON_NODE | netns.inode()
}

fn interfaces_of(netns: &Netns) -> Result<Vec<Interface>, CaptureError> {
    interface::leading_to(netns.as_fd()).map_err(|error| {
        CaptureError::kernel(
            "find the node's interface of network namespace",
            netns.path().display(),
            &error,
        )
    })
}

/// Options that ask for what cannot be known outside of the pod.
fn check(options: &PodOptions) -> Result<(), CaptureError> {
    match options.exempt_cgroups.is_empty() {
        true => Ok(()),
        false => Err(CaptureError::Kernel {
            call: "apply",
            object: "exemptCgroups".to_owned(),
            cause: "in mode node nobody knows the cgroup that a packet of a pod comes from"
                .to_owned(),
            hint: "; exclude ports or networks instead, or use mode shared",
        }),
    }
}

fn no_interface(netns: &Netns) -> CaptureError {
    CaptureError::Kernel {
        call: "find",
        object: format!(
            "the node's interface of network namespace {}",
            netns.path().display()
        ),
        cause: "no interface here has its other end there".to_owned(),
        hint: "; mode node needs pods whose interface is one end of a veth pair with the other on the node",
    }
}

/// What may leave the pod beside TCP: see `redirect_common::guard`.
fn rules_of(options: &PodOptions) -> u32 {
    let bits = [
        (options.allow_forwarding, rules::ALLOW_FORWARDING),
        (options.refuse_udp, rules::REFUSE_UDP),
        (options.refuse_udp && !options.capture_dns, rules::ALLOW_DNS),
        (options.refuse_sctp, rules::REFUSE_SCTP),
    ];
    super::keys::union(&bits)
}
