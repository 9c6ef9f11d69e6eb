//! The part `pods`.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use redirect_common::ports::IN_POD;

use super::{
    Mode,
    clashes::Seen,
    read::{absolute, boolean},
};
use crate::{
    document::{Fields, Node},
    identity::{Identity, spiffe::check_segment},
    pod::{CgroupOnly, OnProxyFailure, Pod, PodOptions, PodUid},
};

/// The daemon's own network namespace.
const OWN_NETNS: &str = "/proc/self/ns/net";

pub(super) fn read(list: &Node<'_>, trust_domain: &str, mode: Mode) -> Vec<Pod> {
    let mut seen = Seen::default();
    let pods = list.each(|node| {
        let pod = read_pod(node, trust_domain, mode)?;
        seen.check(node, &pod);
        Some(pod)
    });
    if mode == Mode::Dedicated && list.list().len() != 1 {
        list.fail::<()>(
            "in dedicated mode there is exactly one pod: the one that the daemon runs in",
        );
    }
    pods
}

pub(super) fn read_pod(node: &Node<'_>, trust_domain: &str, mode: Mode) -> Option<Pod> {
    let mut fields = node.fields()?;
    let f = &mut fields;
    let name = segment(f, "name", "pod name");
    let namespace = segment(f, "namespace", "namespace");
    let account = segment(f, "serviceAccount", "service account");
    let uid = f
        .optional("uid")
        .map(|node| node.checked(|text| check_uid(text).map(|()| text.to_owned())));
    let services = f.optional("cgroupOnly");
    let netns = match (mode, &services) {
        (Mode::Shared | Mode::Node, None) => f.required("netns"),
        (Mode::Dedicated, _) | (_, Some(_)) => f.optional("netns"),
    };
    let netns_is_missing = netns.is_none() && mode != Mode::Dedicated && services.is_none();
    let netns = netns.map_or(Some(OWN_NETNS.into()), |node| absolute(&node));
    let cgroup = f
        .required("cgroup")
        .and_then(|node| absolute(&node))
        .map(normal);
    let ips = f.required("ips").map(|list| ips(&list));
    let cgroup_only = services.map(|node| cgroup_only(&node, ips.as_deref().unwrap_or_default()));
    if let Some(only) = &cgroup_only {
        check_shared(f, only.is_some() && mode == Mode::Dedicated);
    }
    let options = options(f, cgroup.as_deref());
    fields.end();
    if netns_is_missing {
        return None;
    }
    let (name, namespace, account) = (name?, namespace?, account?);
    let identity = Identity::new(trust_domain, namespace, account)
        .map_err(|e| node.fail::<()>(e.to_string()))
        .ok();
    Some(Pod {
        uid: PodUid::new(uid.unwrap_or_else(|| Some(format!("{namespace}/{name}")))?),
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        identity: identity?,
        netns: netns?,
        cgroup: cgroup?,
        ips: ips?,
        cgroup_only: match cgroup_only {
            Some(only) => Some(only?),
            None => None,
        },
        options,
    })
}

/// What a workload serves that shares its network namespace with others.
fn cgroup_only(node: &Node<'_>, ips: &[IpAddr]) -> Option<CgroupOnly> {
    let mut fields = node.fields()?;
    let inbound = fields.optional("inbound").map(|list| {
        list.each(|node| {
            let service: SocketAddr = node.parsed("an address such as 10.0.0.1:8080")?;
            let service = SocketAddr::new(service.ip().to_canonical(), service.port());
            if service.port() == 0 || IN_POD.contains(&service.port()) {
                return node.fail(format!("port {} is not one to serve on", service.port()));
            }
            match ips.contains(&service.ip()) {
                true => Some(service),
                false => node.fail(format!("{} is not among the workload's ips", service.ip())),
            }
        })
    });
    fields.end();
    Some(CgroupOnly {
        inbound: inbound.unwrap_or_default(),
    })
}

/// Options about a network namespace or its interface, which are not one workload's to have where it shares them.
fn check_shared(f: &mut Fields<'_>, dedicated: bool) {
    const NEED_A_NAMESPACE: [&str; 10] = [
        "excludeInboundPorts",
        "excludeInboundCidrs",
        "includeInboundPorts",
        "includeInboundCidrs",
        "bypassInbound",
        "probePorts",
        "refuseUdp",
        "refuseSctp",
        "allowForwarding",
        "resetOlderConnections",
    ];
    for field in NEED_A_NAMESPACE {
        if let Some(node) = f.optional(field) {
            node.fail::<()>(
                "is not for a workload with cgroupOnly: it needs a network namespace of its own",
            );
        }
    }
    if dedicated {
        f.fail("cgroupOnly is not for dedicated mode, in which the daemon is in the pod's own namespace");
    }
}

fn options(f: &mut Fields<'_>, cgroup: Option<&Path>) -> PodOptions {
    let default = PodOptions::default();
    PodOptions {
        exclude_outbound_ports: ports(f, "excludeOutboundPorts"),
        exclude_outbound_cidrs: cidrs(f, "excludeOutboundCidrs"),
        include_outbound_ports: ports(f, "includeOutboundPorts"),
        include_outbound_cidrs: cidrs(f, "includeOutboundCidrs"),
        exclude_inbound_ports: ports(f, "excludeInboundPorts"),
        exclude_inbound_cidrs: cidrs(f, "excludeInboundCidrs"),
        include_inbound_ports: ports(f, "includeInboundPorts"),
        include_inbound_cidrs: cidrs(f, "includeInboundCidrs"),
        bypass_inbound: boolean(f, "bypassInbound", default.bypass_inbound),
        capture_dns: boolean(f, "captureDns", default.capture_dns),
        on_proxy_failure: f
            .optional("onProxyFailure")
            .and_then(|node| {
                node.choice(&[
                    ("refuse", OnProxyFailure::Refuse),
                    ("pass", OnProxyFailure::Pass),
                ])
            })
            .unwrap_or(default.on_proxy_failure),
        probe_ports: f
            .optional("probePorts")
            .map(|list| list.each(|node| node.port())),
        refuse_udp: boolean(f, "refuseUdp", default.refuse_udp),
        refuse_sctp: boolean(f, "refuseSctp", default.refuse_sctp),
        allow_forwarding: boolean(f, "allowForwarding", default.allow_forwarding),
        reset_older_connections: boolean(
            f,
            "resetOlderConnections",
            default.reset_older_connections,
        ),
        exempt_cgroups: f
            .optional("exemptCgroups")
            .map(|list| list.each(|node| exempt_cgroup(node, cgroup)))
            .unwrap_or_default(),
        capture_metadata_address: boolean(
            f,
            "captureMetadataAddress",
            default.capture_metadata_address,
        ),
        preserve_client_ip: boolean(f, "preserveClientIp", default.preserve_client_ip),
    }
}

fn ports(f: &mut Fields<'_>, field: &'static str) -> Vec<u16> {
    f.optional(field)
        .map(|list| list.each(|node| node.port()))
        .unwrap_or_default()
}

fn cidrs(f: &mut Fields<'_>, field: &'static str) -> Vec<IpNet> {
    f.optional(field)
        .map(|list| list.each(cidr))
        .unwrap_or_default()
}

fn segment<'a>(f: &mut Fields<'a>, field: &'static str, part: &'static str) -> Option<&'a str> {
    f.required(field)?
        .checked(|text| check_segment(part, text).map(|()| text))
}

fn check_uid(text: &str) -> Result<(), String> {
    match text
        .split('/')
        .all(|part| check_segment("part of a uid", part).is_ok())
        && text.len() <= 253
    {
        true => Ok(()),
        false => Err(format!(
            "{text:?} cannot be a uid: letters, digits, `.`, `-`, `_`, in parts separated by `/`"
        )),
    }
}

fn ips(list: &Node<'_>) -> Vec<IpAddr> {
    let ips = list.each(|node| {
        let ip = node.parsed::<IpAddr>("an IP address")?.to_canonical();
        let unfit = match ip {
            _ if ip.is_unspecified() => "the unspecified address",
            _ if ip.is_loopback() => "a loopback address",
            _ if ip.is_multicast() => "a multicast address",
            IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
            IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address",
            _ => return Some(ip),
        };
        node.fail(format!("{ip} is {unfit}, which cannot be a pod's"))
    });
    if list.list().is_empty() {
        list.fail::<()>("a pod needs at least one address");
    }
    ips
}

fn cidr(node: &Node<'_>) -> Option<IpNet> {
    let net: IpNet = node.parsed("a network such as 10.9.0.0/16")?;
    if net.trunc() != net {
        return node.fail(format!(
            "{net} has bits set after its prefix; {} is meant?",
            net.trunc()
        ));
    }
    Some(net)
}

fn exempt_cgroup(node: &Node<'_>, pod: Option<&Path>) -> Option<PathBuf> {
    let path = normal(absolute(node)?);
    match pod {
        Some(pod) if !path.starts_with(pod) || path == pod => node.fail(format!(
            "{} is not below the pod's cgroup {}",
            path.display(),
            pod.display()
        )),
        _ => Some(path),
    }
}

/// Without doubled and trailing slashes, so that one directory has one spelling.
pub(super) fn normal(path: PathBuf) -> PathBuf {
    path.components().collect()
}
