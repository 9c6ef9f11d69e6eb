//! What the programs know of the pods: the maps that the daemon writes.

use std::fmt;

use aya::maps::{
    Array, HashMap, Map, MapData, MapError,
    lpm_trie::{Key, LpmTrie},
};
use redirect_common::{
    maps::{
        CgroupKey, DnsEntry, DnsKey, FlowKey, MAX_FLOWS_PER_POD, MAX_PODS, NetKey, OrigDstEntry,
        OwnKey, PodEntry, PortKey, Settings, names, pod_flags,
    },
    ports,
};

use super::{
    super::CaptureError,
    keys::{entry, extra_ips, net_keys, port_keys},
    object::Object,
    pins::Place,
    sharers::Sharers,
    subject::Subject,
};
use crate::sys::bpf::Plain;

pub(super) type Table<K, V> = HashMap<MapData, Plain<K>, V>;

pub struct Tables {
    pods: HashMap<MapData, u64, Plain<PodEntry>>,
    pending: Array<MapData, i64>,
    own: Table<OwnKey, u8>,
    ports: Table<PortKey, u8>,
    nets: LpmTrie<MapData, Plain<NetKey>, u8>,
    exempt_cgroups: Table<CgroupKey, u8>,
    flows: Table<FlowKey, Plain<OrigDstEntry>>,
    dns: Table<DnsKey, Plain<DnsEntry>>,
    settings: Array<MapData, Plain<Settings>>,
    proxies: HashMap<MapData, u64, u8>,
    sharers: Sharers,
}

/// How the programs call a pod.
#[derive(Clone, Copy)]
pub struct Numbers {
    pub pod: u32,
    /// Of the pod's namespace: another one where workloads share it.
    pub namespace: u32,
}

impl Tables {
    pub fn open(object: &mut Object) -> Result<Self, CaptureError> {
        Ok(Self {
            pods: typed(object, names::PODS)?,
            pending: typed(object, names::PENDING)?,
            own: typed(object, names::OWN)?,
            ports: typed(object, names::PORTS)?,
            nets: typed(object, names::NETS)?,
            exempt_cgroups: typed(object, names::EXEMPT_CGROUPS)?,
            flows: typed(object, names::FLOWS)?,
            dns: typed(object, names::DNS)?,
            settings: typed(object, names::SETTINGS)?,
            proxies: typed(object, names::PROXIES)?,
            sharers: Sharers::open(object)?,
        })
    }

    pub fn configure(&mut self, events: bool) -> Result<(), CaptureError> {
        let settings = Settings {
            events: events.into(),
            max_flows_per_pod: MAX_FLOWS_PER_POD,
        };
        self.settings
            .set(0, Plain(settings), 0)
            .map_err(at(names::SETTINGS, "the settings"))
    }

    /// Tells the guard the proxy's cgroup.
    pub fn add_proxy(&mut self, cgroup: u64) -> Result<(), CaptureError> {
        self.proxies
            .insert(cgroup, 1, 0)
            .map_err(at(names::PROXIES, cgroup))
    }

    /// Makes the guard forget the cgroups of earlier daemons: their ids are not given out again.
    pub fn remove_other_proxies(&mut self, cgroup: u64) -> Result<(), CaptureError> {
        let fail = at(names::PROXIES, cgroup);
        let present: Vec<_> = self.proxies.keys().filter_map(Result::ok).collect();
        for other in present.iter().filter(|other| **other != cgroup) {
            ignore_missing(self.proxies.remove(other)).map_err(&fail)?;
        }
        Ok(())
    }

    /// Where the programs know a pod to be. A pod that has its namespace to itself is given without a cgroup.
    pub fn places(&self) -> Result<Vec<Place>, CaptureError> {
        let cookies = self.pods.keys().collect::<Result<Vec<u64>, _>>();
        let cookies = cookies.map_err(at(names::PODS, "all entries"))?;
        let namespaces = cookies.into_iter().map(|netns_cookie| Place {
            netns_cookie,
            cgroup: 0,
        });
        let sharers = self.sharers.all().into_iter().map(|(place, _)| place);
        Ok(sharers.chain(namespaces).collect())
    }

    pub fn has(&self, subject: &Subject<'_>) -> bool {
        match subject.pod.cgroup_only {
            None => self.namespace(subject.netns_cookie).is_some(),
            Some(_) => self.sharers.get(subject.place()).is_some(),
        }
    }

    fn namespace(&self, netns_cookie: u64) -> Option<PodEntry> {
        let entry: Option<Plain<PodEntry>> = self.pods.get(&netns_cookie, 0).ok();
        entry.map(|entry| entry.0)
    }

    /// Lets the proxy in cgroup `own` take its ports in a pod that an earlier one has captured: it may be in a new cgroup.
    pub fn exempt_dedicated(&mut self, own: u64) -> Result<(), CaptureError> {
        let entries = self.pods.iter().filter_map(Result::ok);
        let dedicated: Vec<_> = entries
            .filter(|(_, entry)| entry.0.flags & pod_flags::DEDICATED != 0)
            .map(|(_, entry)| entry.0.pod)
            .collect();
        for pod in dedicated {
            let key = CgroupKey {
                cgroup: own,
                pod,
                padding: 0,
            };
            self.exempt_cgroups
                .insert(Plain(key), 1, 0)
                .map_err(at(names::EXEMPT_CGROUPS, own))?;
        }
        Ok(())
    }

    /// Tells the programs of a pod, or of what has changed about it, and returns the numbers by which they know it and its
    /// namespace. `dns`: its queries are captured.
    pub fn add(
        &mut self,
        subject: &Subject<'_>,
        flags: u32,
        dns: bool,
    ) -> Result<Numbers, CaptureError> {
        if let Some(services) = &subject.pod.cgroup_only {
            let namespace = self.share(subject.netns_cookie)?;
            let pod = self.number(self.sharers.get(subject.place()))?;
            self.fill(pod, subject)?;
            let new = entry(subject, pod, flags, dns);
            self.sharers.insert(subject.place(), new, services)?;
            return Ok(Numbers { pod, namespace });
        }
        let known = self.namespace(subject.netns_cookie);
        let number = self.number(known)?;
        self.fill(number, subject)?;
        // Last: the flags make the programs look at the rest. Unchanged, it is left alone, for a program may be reading it.
        let new = entry(subject, number, flags, dns);
        if known != Some(new) {
            self.set_namespace(subject.netns_cookie, new)?;
        }
        Ok(Numbers {
            pod: number,
            namespace: number,
        })
    }

    /// A workload whose cgroup was made anew is known in its new place under the same number, until it has
    /// [left](Self::leave) the former one.
    pub fn follow(&mut self, former: Place, place: Place) -> Result<(), CaptureError> {
        match self.sharers.get(former) {
            Some(entry) if self.sharers.get(place).is_none() => self.sharers.set(place, entry),
            _ => Ok(()),
        }
    }

    /// Nobody is in the place any more; whoever was is elsewhere in the same namespace.
    pub fn leave(&mut self, place: Place) -> Result<(), CaptureError> {
        self.sharers.unset(place)
    }

    /// Has the programs ask for the caller's cgroup in a namespace; gives the namespace's number.
    fn share(&mut self, netns_cookie: u64) -> Result<u32, CaptureError> {
        let known = self.namespace(netns_cookie);
        let entry = PodEntry {
            pod: self.number(known)?,
            flags: pod_flags::BY_CGROUP,
            outbound_port: ports::OUTBOUND,
            ..PodEntry::default()
        };
        if known != Some(entry) {
            self.set_namespace(netns_cookie, entry)?;
        }
        Ok(entry.pod)
    }

    fn set_namespace(&mut self, netns_cookie: u64, entry: PodEntry) -> Result<(), CaptureError> {
        self.pods
            .insert(netns_cookie, Plain(entry), 0)
            .map_err(at(names::PODS, netns_cookie))
    }

    /// The number of an entry that is there, or a new one.
    fn number(&mut self, known: Option<PodEntry>) -> Result<u32, CaptureError> {
        if let Some(entry) = known {
            return Ok(entry.pod);
        }
        let number = self.free_number()?;
        self.pending
            .set(number, 0, 0)
            .map_err(at(names::PENDING, number))?;
        Ok(number)
    }

    /// What the programs look up by the pod's number.
    fn fill(&mut self, number: u32, subject: &Subject<'_>) -> Result<(), CaptureError> {
        let pod = subject.pod;
        let of_pod = |key_pod: u32| key_pod == number;
        let own: Vec<_> = extra_ips(pod)
            .map(|ip| OwnKey {
                pod: number,
                addr: ip.into(),
            })
            .collect();
        replace(&mut self.own, names::OWN, |key| of_pod(key.pod), &own)?;
        replace(
            &mut self.ports,
            names::PORTS,
            |key| of_pod(key.pod),
            &port_keys(&pod.options, number),
        )?;
        let cgroups: Vec<_> = subject
            .exempt
            .iter()
            .map(|id| CgroupKey {
                cgroup: *id,
                pod: number,
                padding: 0,
            })
            .collect();
        replace(
            &mut self.exempt_cgroups,
            names::EXEMPT_CGROUPS,
            |key| of_pod(key.pod),
            &cgroups,
        )?;
        self.replace_nets(number, &net_keys(&pod.options, number))
    }

    /// Makes the programs forget the pod in a place, and returns the numbers that are free now. Nothing if they do not know it.
    pub fn remove(&mut self, place: Place) -> Result<Vec<u32>, CaptureError> {
        let netns_cookie = place.netns_cookie;
        let mut free = Vec::from_iter(self.sharers.remove(place)?);
        if let Some(entry) = self.namespace(netns_cookie)
            && (entry.flags & pod_flags::BY_CGROUP == 0 || !self.sharers.has_any(netns_cookie))
        {
            ignore_missing(self.pods.remove(&netns_cookie))
                .map_err(at(names::PODS, netns_cookie))?;
            free.push(entry.pod);
            self.forget_servers(netns_cookie)?;
        }
        free.iter().try_for_each(|number| self.empty(*number))?;
        Ok(free)
    }

    /// Removes the DNS servers that were asked from a namespace.
    fn forget_servers(&mut self, netns_cookie: u64) -> Result<(), CaptureError> {
        let servers: Vec<_> = self.dns.keys().filter_map(Result::ok).collect();
        for server in servers
            .iter()
            .filter(|server| server.0.netns_cookie == netns_cookie)
        {
            ignore_missing(self.dns.remove(server)).map_err(at(names::DNS, netns_cookie))?;
        }
        Ok(())
    }

    /// Removes all that the programs look up by a number.
    fn empty(&mut self, number: u32) -> Result<(), CaptureError> {
        replace(&mut self.own, names::OWN, |key| key.pod == number, &[])?;
        replace(&mut self.ports, names::PORTS, |key| key.pod == number, &[])?;
        replace(
            &mut self.exempt_cgroups,
            names::EXEMPT_CGROUPS,
            |key| key.pod == number,
            &[],
        )?;
        self.replace_nets(number, &[])?;
        let flows: Vec<_> = self.flows.iter().filter_map(Result::ok).collect();
        for (flow, _) in flows.iter().filter(|(_, entry)| entry.0.pod == number) {
            ignore_missing(self.flows.remove(flow)).map_err(at(names::FLOWS, number))?;
        }
        Ok(())
    }

    fn free_number(&self) -> Result<u32, CaptureError> {
        let mut taken: Vec<_> = self
            .pods
            .iter()
            .filter_map(|item| item.ok().map(|(_, entry)| entry.0.pod))
            .chain(self.sharers.all().into_iter().map(|(_, number)| number))
            .collect();
        taken.sort_unstable();
        let free = taken
            .iter()
            .zip(0..)
            .find(|(taken, number)| *taken != number);
        let number = free.map_or(taken.len() as u32, |(_, number)| number);
        if number < MAX_PODS {
            Ok(number)
        } else {
            Err(too_many_pods())
        }
    }

    fn replace_nets(
        &mut self,
        number: u32,
        wanted: &[Key<Plain<NetKey>>],
    ) -> Result<(), CaptureError> {
        let fail = at(names::NETS, number);
        let same = |a: &Key<Plain<NetKey>>, b: &Key<Plain<NetKey>>| {
            a.prefix_len() == b.prefix_len() && a.data() == b.data()
        };
        for key in wanted {
            self.nets.insert(key, 1, 0).map_err(&fail)?;
        }
        let present: Vec<_> = self.nets.keys().filter_map(Result::ok).collect();
        let stale = present.iter().filter(|key| {
            u32::from(key.data().0.pod) == number && !wanted.iter().any(|other| same(key, other))
        });
        for key in stale {
            ignore_missing(self.nets.remove(key)).map_err(&fail)?;
        }
        Ok(())
    }
}

fn too_many_pods() -> CaptureError {
    CaptureError::Kernel {
        call: "add to",
        object: names::PODS.to_owned(),
        cause: format!("there are {MAX_PODS} pods already"),
        hint: "",
    }
}

/// Makes `wanted` all that there is of one pod: first adds, then removes, so that what stays is never missing.
pub(super) fn replace<K: bytemuck::Pod + PartialEq>(
    table: &mut Table<K, u8>,
    name: &'static str,
    of_pod: impl Fn(&K) -> bool,
    wanted: &[K],
) -> Result<(), CaptureError> {
    for key in wanted {
        table
            .insert(Plain(*key), 1, 0)
            .map_err(at(name, "an entry"))?;
    }
    let present: Vec<_> = table.keys().filter_map(Result::ok).collect();
    for key in present
        .iter()
        .filter(|key| of_pod(&key.0) && !wanted.contains(&key.0))
    {
        ignore_missing(table.remove(key)).map_err(at(name, "an entry"))?;
    }
    Ok(())
}

pub(super) fn ignore_missing(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        result => result,
    }
}

pub(super) fn at(map: &'static str, entry: impl fmt::Display) -> impl Fn(MapError) -> CaptureError {
    move |error| CaptureError::kernel("change", format!("{entry} in map {map}"), &error)
}

pub(super) fn typed<T: TryFrom<Map, Error = MapError>>(
    object: &mut Object,
    name: &'static str,
) -> Result<T, CaptureError> {
    object
        .map(name)?
        .try_into()
        .map_err(|error| CaptureError::kernel("use", format!("map {name}"), &error))
}
