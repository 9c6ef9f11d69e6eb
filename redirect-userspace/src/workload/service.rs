//! Services, and the endpoints among which a connection is spread.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{GatewayAddress, Health, NamespacedHostname, NetworkAddress, Workload};

/// A name with virtual addresses, and the workloads behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub hostname: Arc<str>,
    pub vips: Vec<NetworkAddress>,
    pub cidr_vips: Vec<(Arc<str>, IpNet)>,
    /// Service port → target port; 0 means that each endpoint says its own.
    pub ports: BTreeMap<u16, u16>,
    pub subject_alt_names: Vec<Arc<str>>,
    pub waypoint: Option<GatewayAddress>,
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    pub load_balancer: Option<LoadBalancer>,
    pub ip_families: Option<IpFamilies>,
    pub canonical: bool,
    pub visibility: Visibility,
    pub endpoints: Vec<Endpoint>,
    /// Per service port and network, ready to be picked from.
    pub targets: BTreeMap<u16, Vec<Targets>>,
}

impl Service {
    pub fn key(&self) -> NamespacedHostname {
        NamespacedHostname {
            namespace: self.namespace.clone(),
            hostname: self.hostname.clone(),
        }
    }

    pub fn has_waypoint(&self) -> bool {
        self.waypoint.is_some() || !self.weighted_waypoints.is_empty()
    }

    /// The targets of a port that are in the network.
    pub fn targets(&self, port: u16, network: &str) -> Option<&Targets> {
        self.targets
            .get(&port)?
            .iter()
            .find(|targets| *targets.network == *network)
    }

    /// The endpoint that stands for the workload with one of these addresses in this namespace and with this name.
    pub fn endpoint_of(&self, namespace: &str, name: &str, ips: &[IpAddr]) -> Option<&Endpoint> {
        self.endpoints.iter().find(|endpoint| {
            let workload = &endpoint.workload;
            *workload.namespace == *namespace
                && *workload.name == *name
                && workload.ips.iter().any(|ip| ips.contains(ip))
        })
    }

    /// The port on the endpoint for a port of the service.
    pub fn target_port(&self, endpoint: &Endpoint, port: u16) -> Option<u16> {
        let own = endpoint.ports.get(&port).copied();
        own.or_else(|| self.ports.get(&port).copied())
            .filter(|port| *port != 0)
    }

    /// The endpoints that may be used now.
    pub fn ready(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints
            .iter()
            .filter(|endpoint| self.includes(endpoint))
    }

    fn includes(&self, endpoint: &Endpoint) -> bool {
        let all = self
            .load_balancer
            .as_ref()
            .is_some_and(|lb| lb.health_policy == HealthPolicy::AllowAll);
        all || (endpoint.status == Health::Healthy && endpoint.workload.status == Health::Healthy)
    }

    /// Fills `targets` from `endpoints`.
    pub(crate) fn plan_targets(&mut self) {
        let mut planned = BTreeMap::<u16, Vec<Targets>>::new();
        for endpoint in self.ready() {
            let workload = &endpoint.workload;
            let v4 = workload.ips.iter().find(|ip| ip.is_ipv4()).copied();
            let v6 = workload.ips.iter().find(|ip| ip.is_ipv6()).copied();
            if workload.capacity == 0 {
                continue;
            }
            let accepted: Arc<[Arc<str>]> = if self.subject_alt_names.is_empty() {
                workload.accepted.clone()
            } else {
                workload
                    .accepted
                    .iter()
                    .chain(&self.subject_alt_names)
                    .cloned()
                    .collect()
            };
            for port in self.ports.keys() {
                let Some(target_port) = self.target_port(endpoint, *port) else {
                    continue;
                };
                let networks = planned.entry(*port).or_default();
                let index = networks
                    .iter()
                    .position(|targets| targets.network == workload.network);
                let targets = match index {
                    Some(index) => &mut networks[index],
                    None => {
                        networks.push(Targets {
                            network: workload.network.clone(),
                            all: Vec::new(),
                        });
                        networks.last_mut().expect("one was pushed just now")
                    }
                };
                let before = targets.all.last().map_or(0, |target| target.up_to);
                targets.all.push(Target {
                    workload: workload.clone(),
                    v4,
                    v6,
                    port: target_port,
                    accepted: accepted.clone(),
                    up_to: before + u64::from(workload.capacity),
                });
            }
        }
        self.targets = planned;
    }
}

/// One workload behind a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub workload: Arc<Workload>,
    /// Service port → target port, where it differs from the service's.
    pub ports: BTreeMap<u16, u16>,
    pub status: Health,
}

/// The endpoints of one service port that may be picked, in one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets {
    pub network: Arc<str>,
    all: Vec<Target>,
}

impl Targets {
    /// Counting `pick` up takes each target in turn, in proportion to its capacity.
    pub fn pick(&self, pick: u64) -> &Target {
        let total = self
            .all
            .last()
            .expect("targets are made with a first member, and never shrink")
            .up_to;
        let at = pick % total;
        &self.all[self.all.partition_point(|target| target.up_to <= at)]
    }

    pub fn iter(&self) -> impl Iterator<Item = &Target> {
        self.all.iter()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub workload: Arc<Workload>,
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
    pub port: u16,
    /// The workload's identity and the service's further names.
    pub accepted: Arc<[Arc<str>]>,
    /// The sum of capacities up to this one and with it.
    up_to: u64,
}

impl Target {
    /// An address of the same family as `like`, else one of the other; `None` for a workload that only has a DNS name.
    pub fn ip(&self, like: IpAddr) -> Option<IpAddr> {
        if like.is_ipv4() {
            self.v4.or(self.v6)
        } else {
            self.v6.or(self.v4)
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedWaypoint {
    pub destination: GatewayAddress,
    pub weight: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadBalancer {
    pub routing_preferences: Vec<LoadBalancerScope>,
    pub mode: LoadBalancerMode,
    pub health_policy: HealthPolicy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadBalancerScope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadBalancerMode {
    Standard,
    Strict,
    Failover,
    /// No endpoint is chosen: the connection goes where it was going.
    Passthrough,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthPolicy {
    OnlyHealthy,
    AllowAll,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpFamilies {
    Dual,
    Ipv4,
    Ipv6,
}

/// Who may resolve and reach a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    Public,
    /// Clients of the same namespace only.
    Namespace,
}
