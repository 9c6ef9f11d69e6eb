//! The immutable whole, with its indexes.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use super::{NamespacedHostname, NetworkMode, Policy, Service, Visibility, Workload};

/// One complete state of the mesh.
#[derive(Debug, Default, PartialEq)]
pub struct Workloads {
    workloads: Vec<Arc<Workload>>,
    services: Vec<Arc<Service>>,
    policies: Vec<Arc<Policy>>,
    /// What was accepted but is not acted on, or looks like a slip; for the log.
    warnings: Vec<String>,
    by_address: HashMap<IpAddr, Vec<Arc<Workload>>>,
    by_vip: HashMap<IpAddr, Vec<Arc<Service>>>,
    by_hostname: HashMap<Arc<str>, Vec<Arc<Service>>>,
    /// By their DNS names, in lower case.
    by_workload_hostname: HashMap<String, Vec<Arc<Workload>>>,
    /// Services with a range of virtual addresses; rare, so searched in order.
    with_cidr: Vec<Arc<Service>>,
}

impl Workloads {
    pub(crate) fn new(
        workloads: Vec<Arc<Workload>>,
        services: Vec<Arc<Service>>,
        policies: Vec<Arc<Policy>>,
        warnings: Vec<String>,
    ) -> Self {
        let mut new = Self {
            workloads,
            services,
            policies,
            warnings,
            ..Self::default()
        };
        let named = new
            .workloads
            .iter()
            .filter(|workload| !workload.hostname.is_empty());
        for workload in named {
            new.by_workload_hostname
                .entry(workload.hostname.to_ascii_lowercase())
                .or_default()
                .push(workload.clone());
        }
        for workload in new
            .workloads
            .iter()
            .filter(|workload| workload.network_mode == NetworkMode::Standard)
        {
            for ip in &workload.ips {
                new.by_address
                    .entry(*ip)
                    .or_default()
                    .push(workload.clone());
            }
        }
        for service in &new.services {
            for vip in &service.vips {
                new.by_vip.entry(vip.ip).or_default().push(service.clone());
            }
            new.by_hostname
                .entry(service.hostname.clone())
                .or_default()
                .push(service.clone());
            if !service.cidr_vips.is_empty() {
                new.with_cidr.push(service.clone());
            }
        }
        new
    }

    /// The workload with an address of its own in the network.
    pub fn workload(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.by_address
            .get(&ip)?
            .iter()
            .find(|workload| *workload.network == *network)
    }

    /// The service with a virtual address, as a client of `namespace` sees it: an exact address before a range, then the
    /// client's own namespace, then the longer range, then a service marked canonical, then the earlier one.
    pub fn service(&self, network: &str, vip: IpAddr, namespace: &str) -> Option<&Arc<Service>> {
        let visible = |service: &&Arc<Service>| {
            service.visibility == Visibility::Public || *service.namespace == *namespace
        };
        let exact = self
            .by_vip
            .get(&vip)
            .into_iter()
            .flatten()
            .filter(|service| {
                service
                    .vips
                    .iter()
                    .any(|address| address.ip == vip && *address.network == *network)
            });
        let rank = |service: &Arc<Service>| (*service.namespace == *namespace, service.canonical);
        // `max_by_key` takes the last of equals, hence the reversal.
        let exact: Vec<_> = exact.filter(visible).collect();
        if let Some(best) = exact.into_iter().rev().max_by_key(|service| rank(service)) {
            return Some(best);
        }
        let prefix = |service: &Arc<Service>| {
            let matching = service
                .cidr_vips
                .iter()
                .filter(|(net, cidr)| **net == *network && cidr.contains(&vip));
            matching.map(|(_, cidr)| cidr.prefix_len()).max()
        };
        let ranges = self.with_cidr.iter().filter(visible).rev();
        let ranked = ranges.filter_map(|service| {
            let (own, canonical) = rank(service);
            prefix(service).map(|prefix| ((own, prefix, canonical), service))
        });
        ranked
            .max_by_key(|(rank, _)| *rank)
            .map(|(_, service)| service)
    }

    /// The services with a host name, which are in different namespaces.
    pub fn services_named(&self, hostname: &str) -> &[Arc<Service>] {
        self.by_hostname.get(hostname).map_or(&[], Vec::as_slice)
    }

    /// The workloads with a DNS name of their own, given in lower case, that have addresses too.
    pub fn workloads_named(&self, hostname: &str) -> impl Iterator<Item = &Arc<Workload>> {
        let named = self.by_workload_hostname.get(hostname);
        named
            .into_iter()
            .flatten()
            .filter(|workload| !workload.ips.is_empty())
    }

    pub fn service_by_key(&self, key: &NamespacedHostname) -> Option<&Arc<Service>> {
        self.services_named(&key.hostname)
            .iter()
            .find(|service| service.namespace == key.namespace)
    }

    pub fn workloads(&self) -> &[Arc<Workload>] {
        &self.workloads
    }

    pub fn services(&self) -> &[Arc<Service>] {
        &self.services
    }

    pub fn policies(&self) -> &[Arc<Policy>] {
        &self.policies
    }

    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}
