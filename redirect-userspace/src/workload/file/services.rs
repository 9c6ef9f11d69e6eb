//! The part `services`.

use std::sync::Arc;

use ipnet::IpNet;

use super::{ListedEndpoint, State, gateway, health, network_address, ports};
use crate::{
    document::Node,
    workload::{
        HealthPolicy, IpFamilies, LoadBalancer, LoadBalancerMode, LoadBalancerScope, Service,
        Visibility, WeightedWaypoint,
    },
};

impl State {
    pub(super) fn add_service(&mut self, node: &Node<'_>) {
        let Some((service, endpoints)) = read_service(node) else {
            return;
        };
        let key = service.key();
        if self
            .service_at
            .insert(key.clone(), self.services.len())
            .is_some()
        {
            node.fail::<()>(format!("the service {key} is in the file already"));
        }
        let mode = service.load_balancer.as_ref().map(|lb| lb.mode);
        if matches!(
            mode,
            Some(LoadBalancerMode::Strict | LoadBalancerMode::Failover)
        ) {
            let what =
                "loadBalancer.mode is read, but endpoints are chosen without regard to locality";
            self.warnings.push(format!("{}: {what}", node.path));
        }
        self.services.push(service);
        self.endpoints.entry(key).or_default().extend(endpoints);
    }
}

fn read_service(node: &Node<'_>) -> Option<(Service, Vec<ListedEndpoint>)> {
    let mut fields = node.fields()?;
    let f = &mut fields;
    let name = f.required("name").and_then(|node| node.text());
    let namespace = f.required("namespace").and_then(|node| node.text());
    let hostname = f.required("hostname").and_then(|node| match node.text()? {
        text if text.is_empty() || text.contains('/') => {
            node.fail(format!("{text:?} is not a host name"))
        }
        text => Some(text.to_ascii_lowercase()),
    });
    let vips = f.required("vips").map(|list| {
        list.each(|node| {
            let text = node.text()?;
            network_address(text).or_else(|| node.fail(format!("{text:?} is not NETWORK/IP")))
        })
    });
    let cidr_vips = f
        .optional("cidrVips")
        .map(|list| list.each(network_cidr))
        .unwrap_or_default();
    let ports = f.required("ports").map(|node| ports(&node));
    let endpoints = f
        .optional("endpoints")
        .map(|node| read_endpoints(&node))
        .unwrap_or_default();
    let subject_alt_names = f
        .optional("subjectAltNames")
        .map(|list| list.each(|node| node.text().map(Arc::from)))
        .unwrap_or_default();
    let waypoint = f.optional("waypoint").and_then(|node| gateway(&node));
    let weighted_waypoints = f
        .optional("weightedWaypoints")
        .map(|list| list.each(weighted_waypoint))
        .unwrap_or_default();
    let load_balancer = f
        .optional("loadBalancer")
        .and_then(|node| load_balancer(&node));
    let families = [
        ("Dual", IpFamilies::Dual),
        ("IPv4", IpFamilies::Ipv4),
        ("IPv6", IpFamilies::Ipv6),
    ];
    let ip_families = f
        .optional("ipFamilies")
        .and_then(|node| node.choice(&families));
    let canonical = f
        .optional("canonical")
        .and_then(|node| node.boolean())
        .unwrap_or_default();
    let visibilities = [
        ("Public", Visibility::Public),
        ("Namespace", Visibility::Namespace),
    ];
    let visibility = f
        .optional("visibility")
        .map_or(Some(Visibility::Public), |node| node.choice(&visibilities));
    fields.end();
    let service = Service {
        name: name?.into(),
        namespace: namespace?.into(),
        hostname: hostname?.into(),
        vips: vips?,
        cidr_vips,
        ports: ports?,
        subject_alt_names,
        waypoint,
        weighted_waypoints,
        load_balancer,
        ip_families,
        canonical,
        visibility: visibility?,
        endpoints: Vec::new(),
        targets: Default::default(),
    };
    Some((service, endpoints))
}

fn network_cidr(node: &Node<'_>) -> Option<(Arc<str>, IpNet)> {
    let text = node.text()?;
    let parsed = text
        .split_once('/')
        .and_then(|(network, cidr)| Some((network.into(), cidr.parse().ok()?)));
    parsed.or_else(|| node.fail(format!("{text:?} is not NETWORK/IP/PREFIX")))
}

/// By any key: the uid is inside.
fn read_endpoints(node: &Node<'_>) -> Vec<ListedEndpoint> {
    let entries = node.entries();
    let read = entries.into_iter().filter_map(|(_, node)| {
        let mut fields = node.fields()?;
        let workload_uid = fields.required("workloadUid").and_then(|node| node.text());
        let ports = fields.required("port").map(|node| ports(&node));
        let status = fields.required("status").and_then(|node| health(&node));
        fields.end();
        Some(ListedEndpoint {
            workload_uid: workload_uid?.into(),
            ports: ports?,
            status: status?,
        })
    });
    read.collect()
}

fn weighted_waypoint(node: &Node<'_>) -> Option<WeightedWaypoint> {
    let mut fields = node.fields()?;
    let destination = fields
        .required("destination")
        .and_then(|node| gateway(&node));
    let weight = fields
        .required("weight")
        .and_then(|node| node.integer(0..=u32::MAX));
    fields.end();
    Some(WeightedWaypoint {
        destination: destination?,
        weight: weight?,
    })
}

fn load_balancer(node: &Node<'_>) -> Option<LoadBalancer> {
    use LoadBalancerScope::{Cluster, Network, Node, Region, Subzone, Zone};
    let scopes = [
        ("Region", Region),
        ("Zone", Zone),
        ("Subzone", Subzone),
        ("Node", Node),
        ("Cluster", Cluster),
        ("Network", Network),
    ];
    let modes = [
        ("Standard", LoadBalancerMode::Standard),
        ("Strict", LoadBalancerMode::Strict),
        ("Failover", LoadBalancerMode::Failover),
        ("Passthrough", LoadBalancerMode::Passthrough),
    ];
    let policies = [
        ("OnlyHealthy", HealthPolicy::OnlyHealthy),
        ("AllowAll", HealthPolicy::AllowAll),
    ];
    let mut fields = node.fields()?;
    let preferences = fields
        .required("routingPreferences")
        .map(|list| list.each(|node| node.choice(&scopes)));
    let mode = fields.required("mode").and_then(|node| node.choice(&modes));
    let health_policy = fields
        .required("healthPolicy")
        .and_then(|node| node.choice(&policies));
    fields.end();
    Some(LoadBalancer {
        routing_preferences: preferences?,
        mode: mode?,
        health_policy: health_policy?,
    })
}
