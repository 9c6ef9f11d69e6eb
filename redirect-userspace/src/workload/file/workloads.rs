//! The part `workloads`.

use std::{net::IpAddr, sync::Arc};

use super::{Defaults, gateway, health, text};
use crate::{
    document::{Fields, Node},
    identity::{
        Identity,
        spiffe::{check_segment, check_trust_domain},
    },
    workload::{
        ApplicationTunnel, Health, Locality, NetworkMode, Protocol, TunnelProtocol, Workload,
    },
};

pub(super) fn read(
    node: &Node<'_>,
    mut fields: Fields<'_>,
    defaults: &Defaults,
) -> Option<Workload> {
    let f = &mut fields;
    let name = text(f, "name");
    let namespace = f
        .required("namespace")
        .and_then(|node| node.checked(|s| check_segment("namespace", s).map(|()| s)));
    let trust_domain = f.optional("trustDomain").filter(|node| !is_blank(node));
    let trust_domain = match trust_domain {
        Some(node) => node.checked(|s| check_trust_domain(s).map(|()| s)),
        None => Some(defaults.trust_domain.as_str()),
    };
    let service_account = match f.optional("serviceAccount").filter(|node| !is_blank(node)) {
        Some(node) => node.checked(|s| check_segment("service account", s).map(|()| s)),
        None => Some("default"),
    };
    let identity = match (trust_domain, namespace, service_account) {
        (Some(trust_domain), Some(namespace), Some(account)) => {
            Identity::new(trust_domain, namespace, account)
                .map_err(|e| node.fail::<()>(e.to_string()))
                .ok()
        }
        _ => None,
    };
    let ips = f
        .required("workloadIps")
        .map(|list| list.each(address))
        .unwrap_or_default();
    let protocols = [("HBONE", Protocol::Hbone), ("TCP", Protocol::Tcp)];
    let modes = [
        ("Standard", NetworkMode::Standard),
        ("HostNetwork", NetworkMode::HostNetwork),
    ];
    let protocol = f
        .optional("protocol")
        .map_or(Some(Protocol::Tcp), |node| node.choice(&protocols));
    let network_mode = f
        .optional("networkMode")
        .map_or(Some(NetworkMode::Standard), |node| node.choice(&modes));
    let uid = text(f, "uid");
    let cluster_id = text(f, "clusterId");
    let status = f
        .optional("status")
        .map_or(Some(Health::Healthy), |node| health(&node));
    let workload = WorkloadTexts {
        hostname: text(f, "hostname"),
        node: text(f, "node"),
        network: text(f, "network"),
        workload_name: text(f, "workloadName"),
        workload_type: text(f, "workloadType"),
        canonical_name: text(f, "canonicalName"),
        canonical_revision: text(f, "canonicalRevision"),
    };
    let locality = f
        .optional("locality")
        .and_then(|node| locality(&node))
        .unwrap_or_default();
    let waypoint = f.optional("waypoint").and_then(|node| gateway(&node));
    let network_gateway = f.optional("networkGateway").and_then(|node| gateway(&node));
    let native_tunnel = f
        .optional("nativeTunnel")
        .and_then(|node| node.boolean())
        .unwrap_or_default();
    let application_tunnel = f
        .optional("applicationTunnel")
        .and_then(|node| application_tunnel(&node));
    let authorization_policies = f
        .optional("authorizationPolicies")
        .map(|list| list.each(|node| node.text().map(Arc::from)))
        .unwrap_or_default();
    let capacity = f
        .optional("capacity")
        .map_or(Some(1), |node| node.integer(0..=u32::MAX));
    if ips.is_empty() && workload.hostname.is_empty() && network_gateway.is_none() {
        fields.fail(
            "has neither workloadIps, nor a hostname, nor a networkGateway: it cannot be reached",
        );
    }
    fields.end();

    let identity = identity?;
    let uid = if uid.is_empty() {
        format!("{cluster_id}//Pod/{}/{name}", identity.namespace).into()
    } else {
        uid
    };
    Some(Workload {
        uid,
        name,
        namespace: identity.namespace.clone(),
        accepted: [Arc::<str>::from(identity.to_string())].into(),
        identity,
        ips,
        hostname: workload.hostname,
        protocol: protocol?,
        network_mode: network_mode?,
        status: status?,
        node: workload.node,
        network: workload.network,
        cluster_id,
        workload_name: workload.workload_name,
        workload_type: workload.workload_type,
        canonical_name: workload.canonical_name,
        canonical_revision: workload.canonical_revision,
        locality,
        waypoint,
        network_gateway,
        native_tunnel,
        application_tunnel,
        authorization_policies,
        capacity: capacity?,
    })
}

struct WorkloadTexts {
    hostname: Arc<str>,
    node: Arc<str>,
    network: Arc<str>,
    workload_name: Arc<str>,
    workload_type: Arc<str>,
    canonical_name: Arc<str>,
    canonical_revision: Arc<str>,
}

fn is_blank(node: &Node<'_>) -> bool {
    node.is_text("")
}

/// A workload's own address.
fn address(node: &Node<'_>) -> Option<IpAddr> {
    let ip: IpAddr = node.parsed("an IP address")?;
    let ip = ip.to_canonical();
    if ip.is_unspecified() || ip.is_multicast() {
        return node.fail(format!("{ip} cannot be a workload's address"));
    }
    Some(ip)
}

fn locality(node: &Node<'_>) -> Option<Locality> {
    let mut fields = node.fields()?;
    let locality = Locality {
        region: text(&mut fields, "region"),
        zone: text(&mut fields, "zone"),
        subzone: text(&mut fields, "subzone"),
    };
    fields.end();
    Some(locality)
}

fn application_tunnel(node: &Node<'_>) -> Option<ApplicationTunnel> {
    let mut fields = node.fields()?;
    let protocols = [
        ("NONE", TunnelProtocol::None),
        ("PROXY", TunnelProtocol::Proxy),
    ];
    let protocol = fields
        .required("protocol")
        .and_then(|node| node.choice(&protocols));
    let port = fields.optional("port").map(|node| node.port());
    fields.end();
    Some(ApplicationTunnel {
        protocol: protocol?,
        port: port.flatten(),
    })
}
