//! Where an outbound connection goes: a pure decision.

#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc};

use super::ports;
use crate::workload::{LoadBalancerMode, Protocol, Service, Workload, Workloads};

/// Who connects.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The network that this node is in.
    pub network: &'a str,
    /// The pod's; decides which of several services with one address is meant, and whether one is visible.
    pub namespace: &'a str,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Route {
    Hbone(HboneRoute),
    Passthrough(Passthrough),
    Refuse(RefuseReason),
}

/// Through a tunnel. Never retried in plaintext.
#[derive(Clone, Debug, PartialEq)]
pub struct HboneRoute {
    /// Where the tunnel ends: the workload's address and port 15008.
    pub peer: SocketAddr,
    /// What CONNECT asks for: the same address with the target port.
    pub authority: SocketAddr,
    /// SPIFFE URIs, one of which the peer must prove.
    pub accepted: Arc<[Arc<str>]>,
    pub workload: Arc<Workload>,
    /// The service whose virtual address was asked for.
    pub service: Option<Arc<Service>>,
}

/// As it is, in plaintext: the destination is not in the mesh.
#[derive(Clone, Debug, PartialEq)]
pub struct Passthrough {
    pub dst: SocketAddr,
    pub workload: Option<Arc<Workload>>,
    pub service: Option<Arc<Service>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefuseReason {
    /// The service has the port, but no endpoint that could take the connection.
    NoHealthyEndpoint,
    UnknownServicePort,
    /// Going around the waypoint would go around its policies.
    WaypointUnsupported,
    /// The destination is one of our own ports on a pod.
    OwnPort,
    /// Only endpoints in other networks, which need a gateway.
    OtherNetwork,
    /// The endpoint has a DNS name only.
    EndpointWithoutAddress,
}

impl RefuseReason {
    pub const ALL: [Self; 6] = [
        Self::NoHealthyEndpoint,
        Self::UnknownServicePort,
        Self::WaypointUnsupported,
        Self::OwnPort,
        Self::OtherNetwork,
        Self::EndpointWithoutAddress,
    ];

    /// For counters and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoHealthyEndpoint => "no_healthy_endpoint",
            Self::UnknownServicePort => "unknown_service_port",
            Self::WaypointUnsupported => "waypoint_unsupported",
            Self::OwnPort => "own_port",
            Self::OtherNetwork => "other_network",
            Self::EndpointWithoutAddress => "endpoint_without_address",
        }
    }
}

/// Decides for one connection to `dst`. `pick` chooses among the endpoints of a service: count it up per connection.
pub fn route(workloads: &Workloads, source: Source<'_>, dst: SocketAddr, pick: u64) -> Route {
    let dst = SocketAddr::new(dst.ip().to_canonical(), dst.port());
    if let Some(service) = workloads.service(source.network, dst.ip(), source.namespace) {
        return to_service(service, source, dst, pick);
    }
    match workloads.workload(source.network, dst.ip()) {
        Some(workload) => to_workload(workload, dst),
        None => Route::Passthrough(Passthrough {
            dst,
            workload: None,
            service: None,
        }),
    }
}

fn to_service(service: &Arc<Service>, source: Source<'_>, dst: SocketAddr, pick: u64) -> Route {
    if service.has_waypoint() {
        return Route::Refuse(RefuseReason::WaypointUnsupported);
    }
    if service
        .load_balancer
        .as_ref()
        .is_some_and(|lb| lb.mode == LoadBalancerMode::Passthrough)
    {
        return Route::Passthrough(Passthrough {
            dst,
            workload: None,
            service: Some(service.clone()),
        });
    }
    if !service.ports.contains_key(&dst.port()) {
        return Route::Refuse(RefuseReason::UnknownServicePort);
    }
    let Some(targets) = service.targets(dst.port(), source.network) else {
        let elsewhere = service.targets.contains_key(&dst.port());
        return Route::Refuse(if elsewhere {
            RefuseReason::OtherNetwork
        } else {
            RefuseReason::NoHealthyEndpoint
        });
    };
    let target = targets.pick(pick);
    let Some(ip) = target.ip(dst.ip()) else {
        return Route::Refuse(RefuseReason::EndpointWithoutAddress);
    };
    // A workload's own waypoint is for connections to its address; the service's, above, for those to the service.
    to_endpoint(
        &target.workload,
        Some(service),
        SocketAddr::new(ip, target.port),
        &target.accepted,
    )
}

/// By its own address: also while it is unhealthy, as without a mesh.
fn to_workload(workload: &Arc<Workload>, dst: SocketAddr) -> Route {
    if workload.waypoint.is_some() {
        return Route::Refuse(RefuseReason::WaypointUnsupported);
    }
    to_endpoint(workload, None, dst, &workload.accepted)
}

fn to_endpoint(
    workload: &Arc<Workload>,
    service: Option<&Arc<Service>>,
    target: SocketAddr,
    accepted: &Arc<[Arc<str>]>,
) -> Route {
    let (workload, service) = (workload.clone(), service.cloned());
    match workload.protocol {
        Protocol::Tcp => Route::Passthrough(Passthrough {
            dst: target,
            workload: Some(workload),
            service,
        }),
        Protocol::Hbone if ports::is_own(target.port()) => Route::Refuse(RefuseReason::OwnPort),
        Protocol::Hbone => Route::Hbone(HboneRoute {
            peer: SocketAddr::new(target.ip(), ports::INBOUND_HBONE),
            authority: target,
            accepted: accepted.clone(),
            workload,
            service,
        }),
    }
}
