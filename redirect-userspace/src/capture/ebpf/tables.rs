//! What the programs know of the pods: the maps that the daemon writes.

use std::{fmt, net::IpAddr};

use aya::maps::{
    Array, HashMap, Map, MapData, MapError,
    lpm_trie::{Key, LpmTrie},
};
use ipnet::IpNet;
use redirect_common::{
    Addr,
    maps::{
        CgroupKey, DnsEntry, DnsKey, FlowKey, List, MAX_FLOWS_PER_POD, MAX_PODS, NetKey,
        OrigDstEntry, OwnKey, PodEntry, PortKey, Settings, names, pod_flags,
    },
    ports,
};

use super::{super::CaptureError, object::Object, subject::Subject};
use crate::{
    pod::{OnProxyFailure, Pod, PodOptions},
    sys::bpf::Plain,
};

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

    /// Tells the guard the proxy's cgroup. Those of earlier daemons go: their ids are not given out again.
    pub fn set_proxy(&mut self, cgroup: u64) -> Result<(), CaptureError> {
        let fail = at(names::PROXIES, cgroup);
        self.proxies.insert(cgroup, 1, 0).map_err(&fail)?;
        let present: Vec<_> = self.proxies.keys().filter_map(Result::ok).collect();
        for other in present.iter().filter(|other| **other != cgroup) {
            ignore_missing(self.proxies.remove(other)).map_err(&fail)?;
        }
        Ok(())
    }

    /// Cookies of the network namespaces of all pods that the programs know.
    pub fn cookies(&self) -> Result<Vec<u64>, CaptureError> {
        self.pods
            .keys()
            .collect::<Result<_, _>>()
            .map_err(at(names::PODS, "all entries"))
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

    pub fn has(&self, netns_cookie: u64) -> bool {
        self.pods.get(&netns_cookie, 0).is_ok()
    }

    /// Tells the programs of a pod, or of what has changed about it, and returns the number by which they
    /// know it. `dns`: its queries are captured.
    pub fn add(
        &mut self,
        subject: &Subject<'_>,
        flags: u32,
        dns: bool,
    ) -> Result<u32, CaptureError> {
        let (pod, netns_cookie) = (subject.pod, subject.netns_cookie);
        let known = self.pods.get(&netns_cookie, 0).map(|entry| entry.0).ok();
        let number = match known {
            Some(entry) => entry.pod,
            None => self.free_number()?,
        };
        let entry = entry(subject, number, flags, dns);
        if known.is_none() {
            self.pending
                .set(number, 0, 0)
                .map_err(at(names::PENDING, number))?;
        }
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
        self.replace_nets(number, &net_keys(&pod.options, number))?;
        // Last: the flags make the programs look at the rest. Unchanged, it is left alone, for a program may be reading it.
        if known != Some(entry) {
            self.pods
                .insert(netns_cookie, Plain(entry), 0)
                .map_err(at(names::PODS, netns_cookie))?;
        }
        Ok(number)
    }

    /// Makes the programs forget a pod, and returns the number that it had. `None` if they do not know it.
    pub fn remove(&mut self, netns_cookie: u64) -> Result<Option<u32>, CaptureError> {
        let Ok(entry) = self.pods.get(&netns_cookie, 0) else {
            return Ok(None);
        };
        let number = entry.0.pod;
        ignore_missing(self.pods.remove(&netns_cookie)).map_err(at(names::PODS, netns_cookie))?;
        replace(&mut self.own, names::OWN, |key| key.pod == number, &[])?;
        replace(&mut self.ports, names::PORTS, |key| key.pod == number, &[])?;
        replace(
            &mut self.exempt_cgroups,
            names::EXEMPT_CGROUPS,
            |key| key.pod == number,
            &[],
        )?;
        self.replace_nets(number, &[])?;
        let servers: Vec<_> = self.dns.keys().filter_map(Result::ok).collect();
        for server in servers
            .iter()
            .filter(|server| server.0.netns_cookie == netns_cookie)
        {
            ignore_missing(self.dns.remove(server)).map_err(at(names::DNS, netns_cookie))?;
        }
        let flows: Vec<_> = self.flows.keys().filter_map(Result::ok).collect();
        for flow in flows
            .iter()
            .filter(|flow| flow.0.netns_cookie == netns_cookie)
        {
            ignore_missing(self.flows.remove(flow)).map_err(at(names::FLOWS, netns_cookie))?;
        }
        Ok(Some(number))
    }

    fn free_number(&self) -> Result<u32, CaptureError> {
        let mut taken: Vec<_> = self
            .pods
            .iter()
            .filter_map(|item| item.ok().map(|(_, entry)| entry.0.pod))
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

fn entry(subject: &Subject<'_>, number: u32, more_flags: u32, dns: bool) -> PodEntry {
    let pod = subject.pod;
    let options = &pod.options;
    let flags = [
        (extra_ips(pod).next().is_some(), pod_flags::MORE_ADDRESSES),
        (
            !options.exclude_outbound_ports.is_empty(),
            pod_flags::EXCLUDED_PORTS,
        ),
        (
            !options.exclude_outbound_cidrs.is_empty(),
            pod_flags::EXCLUDED_NETS,
        ),
        (
            !options.include_outbound_ports.is_empty(),
            pod_flags::INCLUDED_PORTS,
        ),
        (
            !options.include_outbound_cidrs.is_empty(),
            pod_flags::INCLUDED_NETS,
        ),
        (!subject.exempt.is_empty(), pod_flags::EXEMPT_CGROUPS),
        (subject.is_dedicated, pod_flags::DEDICATED),
        (
            options.capture_metadata_address,
            pod_flags::CAPTURE_METADATA,
        ),
        (
            options.on_proxy_failure == OnProxyFailure::Pass,
            pod_flags::PASS_ON_FAILURE,
        ),
    ];
    PodEntry {
        v4: first(pod, true).map_or(Addr::UNSPECIFIED, Addr::from),
        v6: first(pod, false).map_or(Addr::UNSPECIFIED, Addr::from),
        pod: number,
        flags: union(&flags) | more_flags,
        outbound_port: ports::OUTBOUND,
        dns_port: if dns { ports::DNS } else { 0 },
    }
}

/// Of the flags that are set.
pub(super) fn union(flags: &[(bool, u32)]) -> u32 {
    let set = flags.iter().filter(|(set, _)| *set);
    set.fold(0, |union, (_, flag)| union | flag)
}

/// The first declared address of a family.
fn first(pod: &Pod, v4: bool) -> Option<IpAddr> {
    let ips = pod.ips.iter().map(IpAddr::to_canonical);
    ips.into_iter().find(|ip| ip.is_ipv4() == v4)
}

/// The declared addresses beyond these.
fn extra_ips(pod: &Pod) -> impl Iterator<Item = IpAddr> {
    let first = [first(pod, true), first(pod, false)];
    let ips = pod.ips.iter().map(IpAddr::to_canonical);
    ips.filter(move |ip| !first.contains(&Some(*ip)))
}

fn port_keys(options: &PodOptions, number: u32) -> Vec<PortKey> {
    let lists = [
        (List::ExcludedOutbound, &options.exclude_outbound_ports),
        (List::IncludedOutbound, &options.include_outbound_ports),
        (List::ExcludedInbound, &options.exclude_inbound_ports),
        (List::IncludedInbound, &options.include_inbound_ports),
    ];
    let probed = options
        .probe_ports
        .iter()
        .map(|ports| (List::Probed, ports));
    let lists = lists.into_iter().chain(probed);
    lists
        .flat_map(|(list, ports)| {
            ports.iter().map(move |port| PortKey {
                pod: number,
                port: *port,
                list: list as u16,
            })
        })
        .collect()
}

/// IPv4 networks are looked up as v4-mapped, and all behind the pod's number and the list: both add to the prefix.
fn net_keys(options: &PodOptions, number: u32) -> Vec<Key<Plain<NetKey>>> {
    let lists = [
        (List::ExcludedOutbound, &options.exclude_outbound_cidrs),
        (List::IncludedOutbound, &options.include_outbound_cidrs),
        (List::ExcludedInbound, &options.exclude_inbound_cidrs),
        (List::IncludedInbound, &options.include_inbound_cidrs),
    ];
    let key = |list: List, net: &IpNet| {
        let mapped = if net.addr().is_ipv4() { 96 } else { 0 };
        let key = NetKey {
            pod: number as u16,
            list: list as u16,
            addr: net.network().into(),
        };
        Key::new(32 + mapped + u32::from(net.prefix_len()), Plain(key))
    };
    lists
        .into_iter()
        .flat_map(|(list, nets)| nets.iter().map(move |net| key(list, net)))
        .collect()
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
