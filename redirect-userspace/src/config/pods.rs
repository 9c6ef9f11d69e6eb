//! The part `pods`.

use std::{
    collections::HashMap,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;

use super::read::{absolute, boolean};
use crate::{
    document::{Fields, Node},
    identity::{Identity, spiffe::check_segment},
    pod::{OnProxyFailure, Pod, PodOptions, PodUid},
};

pub(super) fn read(list: &Node<'_>, trust_domain: &str) -> Vec<Pod> {
    let mut seen = Seen::default();
    list.each(|node| {
        let pod = read_pod(node, trust_domain)?;
        seen.check(node, &pod);
        Some(pod)
    })
}

fn read_pod(node: &Node<'_>, trust_domain: &str) -> Option<Pod> {
    let mut fields = node.fields()?;
    let f = &mut fields;
    let name = segment(f, "name", "pod name");
    let namespace = segment(f, "namespace", "namespace");
    let account = segment(f, "serviceAccount", "service account");
    let uid = f
        .optional("uid")
        .map(|node| node.checked(|text| check_uid(text).map(|()| text.to_owned())));
    let netns = f.required("netns").and_then(|node| absolute(&node));
    let cgroup = f
        .required("cgroup")
        .and_then(|node| absolute(&node))
        .map(normal);
    let ips = f.required("ips").map(|list| ips(&list));
    let options = options(f, cgroup.as_deref());
    fields.end();
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
        cgroup_only: None,
        options,
    })
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
fn normal(path: PathBuf) -> PathBuf {
    path.components().collect()
}

/// What earlier pods took.
#[derive(Default)]
struct Seen {
    uids: HashMap<PodUid, String>,
    netns: HashMap<PathBuf, String>,
    cgroups: Vec<(PathBuf, String)>,
    ips: HashMap<IpAddr, String>,
}

impl Seen {
    fn check(&mut self, node: &Node<'_>, pod: &Pod) {
        let here = || node.path.clone();
        if let Some(other) = self.uids.insert(pod.uid.clone(), here()) {
            node.fail_at("uid", format!("{} is that of {other}, too", pod.uid));
        }
        if let Some(other) = self.netns.insert(normal(pod.netns.clone()), here()) {
            node.fail_at(
                "netns",
                format!("{} is that of {other}, too", pod.netns.display()),
            );
        }
        // One inside the other would be captured twice.
        let clash = self
            .cgroups
            .iter()
            .find(|(path, _)| path.starts_with(&pod.cgroup) || pod.cgroup.starts_with(path));
        if let Some((path, other)) = clash {
            let what = if *path == pod.cgroup {
                "is that of"
            } else {
                "is inside, or around, that of"
            };
            node.fail_at(
                "cgroup",
                format!("{} {what} {other}, too", pod.cgroup.display()),
            );
        }
        self.cgroups.push((pod.cgroup.clone(), here()));
        for ip in &pod.ips {
            if let Some(other) = self.ips.insert(*ip, here()) {
                let what = if other == node.path {
                    "is given twice".to_owned()
                } else {
                    format!("is that of {other}, too")
                };
                node.fail_at("ips", format!("{ip} {what}"));
            }
        }
    }
}
