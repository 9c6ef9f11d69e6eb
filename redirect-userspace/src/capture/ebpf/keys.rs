//! What is said of a pod in the configuration, as keys and values of the programs' maps.

use std::net::IpAddr;

use aya::maps::lpm_trie::Key;
use ipnet::IpNet;
use redirect_common::{
    Addr,
    maps::{List, NetKey, PodEntry, PortKey, pod_flags},
    ports,
};

use super::subject::Subject;
use crate::{
    pod::{OnProxyFailure, Pod, PodOptions},
    sys::bpf::Plain,
};

pub fn entry(subject: &Subject<'_>, number: u32, more_flags: u32, dns: bool) -> PodEntry {
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
pub fn union(flags: &[(bool, u32)]) -> u32 {
    let set = flags.iter().filter(|(set, _)| *set);
    set.fold(0, |union, (_, flag)| union | flag)
}

/// The first declared address of a family.
fn first(pod: &Pod, v4: bool) -> Option<IpAddr> {
    let ips = pod.ips.iter().map(IpAddr::to_canonical);
    ips.into_iter().find(|ip| ip.is_ipv4() == v4)
}

/// The declared addresses beyond these.
pub fn extra_ips(pod: &Pod) -> impl Iterator<Item = IpAddr> {
    let first = [first(pod, true), first(pod, false)];
    let ips = pod.ips.iter().map(IpAddr::to_canonical);
    ips.filter(move |ip| !first.contains(&Some(*ip)))
}

pub fn port_keys(options: &PodOptions, number: u32) -> Vec<PortKey> {
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
pub fn net_keys(options: &PodOptions, number: u32) -> Vec<Key<Plain<NetKey>>> {
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
