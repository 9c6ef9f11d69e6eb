//! What the mesh consists of: workloads, services and policies, indexed for the way of a connection.
//!
//! [`Workloads`] is immutable; [`WorkloadStore`] holds the current one and [`WorkloadStore::watch`] replaces it when the
//! workload file changes. The file has the form of ztunnel's `LOCAL_XDS_PATH`.

mod file;
mod index;
mod policy;
mod service;
mod store;

pub use file::{Defaults, WorkloadFileError};
pub use index::Workloads;
pub use policy::{Action, Policy, PolicyMatch, Rule, Scope, ServiceAccountName, StringMatch};
pub use service::{
    Endpoint, HealthPolicy, IpFamilies, LoadBalancer, LoadBalancerMode, LoadBalancerScope, Service,
    Target, Targets, Visibility, WeightedWaypoint,
};
pub use store::{StoreStats, WorkloadStore};

use std::{fmt, net::IpAddr, sync::Arc};

use crate::identity::Identity;

/// A discovered endpoint, in the mesh or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    pub uid: Arc<str>,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub identity: Identity,
    /// The identity as the one SPIFFE URI that its certificate must have; ready-made for each connection.
    pub accepted: Arc<[Arc<str>]>,
    pub ips: Vec<IpAddr>,
    /// A DNS name, for a workload without addresses.
    pub hostname: Arc<str>,
    pub protocol: Protocol,
    pub network_mode: NetworkMode,
    pub status: Health,
    pub node: Arc<str>,
    pub network: Arc<str>,
    pub cluster_id: Arc<str>,
    pub workload_name: Arc<str>,
    pub workload_type: Arc<str>,
    pub canonical_name: Arc<str>,
    pub canonical_revision: Arc<str>,
    pub locality: Locality,
    pub waypoint: Option<GatewayAddress>,
    pub network_gateway: Option<GatewayAddress>,
    /// It terminates HBONE itself.
    pub native_tunnel: bool,
    pub application_tunnel: Option<ApplicationTunnel>,
    /// `NAMESPACE/NAME` of the policies that select it.
    pub authorization_policies: Vec<Arc<str>>,
    /// Its share among the endpoints of a service.
    pub capacity: u32,
}

/// How a workload takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Hbone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkMode {
    Standard,
    /// Its address is its node's: an address alone does not name it.
    HostNetwork,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Healthy,
    Unhealthy,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub subzone: Arc<str>,
}

/// An address is unique only within its network.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    pub network: Arc<str>,
    pub ip: IpAddr,
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.ip)
    }
}

/// A service's key: its host name is unique only within its namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedHostname {
    pub namespace: Arc<str>,
    pub hostname: Arc<str>,
}

impl fmt::Display for NamespacedHostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// Where a waypoint or a gateway to another network is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayAddress {
    pub destination: GatewayDestination,
    pub hbone_mtls_port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayDestination {
    Address(NetworkAddress),
    Hostname(NamespacedHostname),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApplicationTunnel {
    pub protocol: TunnelProtocol,
    pub port: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelProtocol {
    None,
    Proxy,
}
