//! What the programs know of the pods: the maps that the daemon writes.

use std::{fmt, net::IpAddr};

use aya::maps::{
    Array, HashMap, Map, MapData, MapError,
    lpm_trie::{Key, LpmTrie},
};
use redirect_common::{
    Addr,
    maps::{
        CgroupKey, DnsEntry, DnsKey, FlowKey, MAX_FLOWS_PER_POD, MAX_PODS, NetKey, OrigDstEntry,
        OwnKey, PodEntry, PortKey, Settings, names, pod_flags,
    },
    ports,
};

use super::{super::CaptureError, object::Object};
use crate::{pod::Pod, sys::bpf::Plain};

type Table<K, V> = HashMap<MapData, Plain<K>, V>;

pub struct Tables {
    pods: HashMap<MapData, u64, Plain<PodEntry>>,
    pending: Array<MapData, i64>,
    own: Table<OwnKey, u8>,
    excluded_ports: Table<PortKey, u8>,
    excluded_nets: LpmTrie<MapData, Plain<NetKey>, u8>,
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
            excluded_ports: typed(object, names::EXCLUDED_PORTS)?,
            excluded_nets: typed(object, names::EXCLUDED_NETS)?,
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

    pub fn has(&self, netns_cookie: u64) -> bool {
        self.pods.get(&netns_cookie, 0).is_ok()
    }

    /// Tells the programs of a pod, or of what has changed about it; gives the number by which they know it. `exempt` are ids
    /// of cgroups; `dns`: queries are captured.
    pub fn add(
        &mut self,
        netns_cookie: u64,
        pod: &Pod,
        exempt: &[u64],
        is_guarded: bool,
        dns: bool,
    ) -> Result<u32, CaptureError> {
        let known = self.pods.get(&netns_cookie, 0).map(|entry| entry.0).ok();
        let number = match known {
            Some(entry) => entry.pod,
            None => self.free_number()?,
        };
        let entry = entry(pod, number, !exempt.is_empty(), is_guarded, dns);
        if known.is_none() {
            self.pending
                .set(number, 0, 0)
                .map_err(at(names::PENDING, number))?;
        }
        let of_pod = |key_pod: u32| key_pod == number;
        replace(
            &mut self.own,
            names::OWN,
            |key| of_pod(key.pod),
            &keys(pod, |addr| OwnKey { pod: number, addr }),
        )?;
        let ports = pod.options.exclude_outbound_ports.iter();
        let ports: Vec<_> = ports
            .map(|port| PortKey {
                pod: number,
                port: *port,
                padding: 0,
            })
            .collect();
        replace(
            &mut self.excluded_ports,
            names::EXCLUDED_PORTS,
            |key| of_pod(key.pod),
            &ports,
        )?;
        let cgroups: Vec<_> = exempt
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
        self.replace_nets(number, &nets(pod, number))?;
        // Last: the flags make the programs look at the rest. Unchanged, it is left alone, for a program may be reading it.
        if known != Some(entry) {
            self.pods
                .insert(netns_cookie, Plain(entry), 0)
                .map_err(at(names::PODS, netns_cookie))?;
        }
        Ok(number)
    }

    /// Makes the programs forget a pod. No error if they do not know it.
    pub fn remove(&mut self, netns_cookie: u64) -> Result<(), CaptureError> {
        let Ok(entry) = self.pods.get(&netns_cookie, 0) else {
            return Ok(());
        };
        let number = entry.0.pod;
        ignore_missing(self.pods.remove(&netns_cookie)).map_err(at(names::PODS, netns_cookie))?;
        replace(&mut self.own, names::OWN, |key| key.pod == number, &[])?;
        replace(
            &mut self.excluded_ports,
            names::EXCLUDED_PORTS,
            |key| key.pod == number,
            &[],
        )?;
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
        Ok(())
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
        let fail = at(names::EXCLUDED_NETS, number);
        let same = |a: &Key<Plain<NetKey>>, b: &Key<Plain<NetKey>>| {
            a.prefix_len() == b.prefix_len() && a.data() == b.data()
        };
        for key in wanted {
            self.excluded_nets.insert(key, 1, 0).map_err(&fail)?;
        }
        let present: Vec<_> = self.excluded_nets.keys().filter_map(Result::ok).collect();
        let stale = present.iter().filter(|key| {
            key.data().0.pod == number && !wanted.iter().any(|other| same(key, other))
        });
        for key in stale {
            ignore_missing(self.excluded_nets.remove(key)).map_err(&fail)?;
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

fn entry(pod: &Pod, number: u32, has_exempt: bool, is_guarded: bool, dns: bool) -> PodEntry {
    let first = |want_v4: bool| {
        pod.ips
            .iter()
            .map(|ip| ip.to_canonical())
            .find(|ip| ip.is_ipv4() == want_v4)
    };
    let options = &pod.options;
    let flags = [
        (!extra_ips(pod).is_empty(), pod_flags::MORE_ADDRESSES),
        (
            !options.exclude_outbound_ports.is_empty(),
            pod_flags::EXCLUDED_PORTS,
        ),
        (
            !options.exclude_outbound_cidrs.is_empty(),
            pod_flags::EXCLUDED_NETS,
        ),
        (has_exempt, pod_flags::EXEMPT_CGROUPS),
        (
            options.capture_metadata_address,
            pod_flags::CAPTURE_METADATA,
        ),
        (is_guarded, pod_flags::GUARDED),
    ];
    PodEntry {
        v4: first(true).map_or(Addr::UNSPECIFIED, Addr::from),
        v6: first(false).map_or(Addr::UNSPECIFIED, Addr::from),
        pod: number,
        flags: flags
            .iter()
            .filter(|(set, _)| *set)
            .fold(0, |flags, (_, flag)| flags | flag),
        outbound_port: ports::OUTBOUND,
        dns_port: if dns { ports::DNS } else { 0 },
    }
}

/// The pod's addresses beyond the first of each family.
fn extra_ips(pod: &Pod) -> Vec<IpAddr> {
    let ips: Vec<_> = pod.ips.iter().map(|ip| ip.to_canonical()).collect();
    let v4 = ips.iter().filter(|ip| ip.is_ipv4()).skip(1);
    v4.chain(ips.iter().filter(|ip| ip.is_ipv6()).skip(1))
        .copied()
        .collect()
}

fn keys<K>(pod: &Pod, key: impl Fn(Addr) -> K) -> Vec<K> {
    extra_ips(pod)
        .into_iter()
        .map(|ip| key(ip.into()))
        .collect()
}

/// IPv4 networks are looked up as v4-mapped, and all behind the pod's number: both add to the prefix.
fn nets(pod: &Pod, number: u32) -> Vec<Key<Plain<NetKey>>> {
    let nets = pod.options.exclude_outbound_cidrs.iter();
    nets.map(|net| {
        let mapped = if net.addr().is_ipv4() { 96 } else { 0 };
        let prefix_len = 32 + mapped + u32::from(net.prefix_len());
        Key::new(
            prefix_len,
            Plain(NetKey {
                pod: number,
                addr: net.network().into(),
            }),
        )
    })
    .collect()
}

/// Makes `wanted` all that there is of one pod: first adds, then removes, so that what stays is never missing.
fn replace<K: bytemuck::Pod + PartialEq>(
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

fn ignore_missing(result: Result<(), MapError>) -> Result<(), MapError> {
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

fn at(map: &'static str, entry: impl fmt::Display) -> impl Fn(MapError) -> CaptureError {
    move |error| CaptureError::kernel("change", format!("{entry} in map {map}"), &error)
}

fn typed<T: TryFrom<Map, Error = MapError>>(
    object: &mut Object,
    name: &'static str,
) -> Result<T, CaptureError> {
    object
        .map(name)?
        .try_into()
        .map_err(|error| CaptureError::kernel("use", format!("map {name}"), &error))
}
