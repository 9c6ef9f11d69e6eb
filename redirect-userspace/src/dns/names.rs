//! Which names of the mesh answer which query: pure.

use std::{net::IpAddr, sync::Arc};

use super::search;
use crate::workload::{NetworkAddress, Service, Visibility, Workload, Workloads};

/// Most addresses in one answer: what fits into it without being cut, and more than any client tries.
const MOST_ADDRESSES: usize = 64;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    pub namespace: &'a str,
    pub network: &'a str,
    /// The cluster's domain, such as `cluster.local`.
    pub domain: &'a str,
}

/// A name that the mesh knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The name that the queried one is an alias of.
    pub canonical: Option<String>,
    /// Of both families; none if nobody is there now.
    pub addresses: Vec<IpAddr>,
}

/// Looks for `name`, which is in lower case and without the last dot. `None`: not ours to answer.
pub fn look_up(workloads: &Workloads, asker: &Asker<'_>, name: &str) -> Option<Found> {
    search::candidates(name, asker.namespace, asker.domain)
        .into_iter()
        .find_map(|candidate| {
            let addresses = addresses(workloads, asker, &candidate.hostname)?;
            Some(Found {
                canonical: candidate.is_stripped.then_some(candidate.hostname),
                addresses,
            })
        })
}

fn addresses(workloads: &Workloads, asker: &Asker<'_>, hostname: &str) -> Option<Vec<IpAddr>> {
    let by_service =
        |hostname: &str| best(workloads.services_named(hostname), asker).map(|s| of(s, asker));
    let by_workload = || {
        let of_network = |workload: &&Arc<Workload>| *workload.network == *asker.network;
        let mut named = workloads.workloads_named(hostname);
        named.find(of_network).map(|workload| workload.ips.clone())
    };
    by_service(hostname)
        .or_else(by_workload)
        .or_else(|| member(workloads, asker, hostname))
        .or_else(|| search::wildcards(hostname).find_map(|wildcard| by_service(&wildcard)))
}

/// The one that a client in this namespace means, of services with one host name.
fn best<'a>(services: &'a [Arc<Service>], asker: &Asker<'_>) -> Option<&'a Arc<Service>> {
    let is_own = |service: &Arc<Service>| *service.namespace == *asker.namespace;
    let visible =
        |service: &&Arc<Service>| service.visibility == Visibility::Public || is_own(service);
    // `max_by_key` takes the last of equals, hence the reversal.
    let services = services.iter().filter(visible).rev();
    services.max_by_key(|service| (is_own(service), service.canonical))
}

fn of(service: &Service, asker: &Asker<'_>) -> Vec<IpAddr> {
    let reachable = |address: &&NetworkAddress| *address.network == *asker.network;
    let vips = service.vips.iter().filter(reachable).map(|vip| vip.ip);
    let mut all: Vec<IpAddr> = vips.collect();
    if service.vips.is_empty() {
        let members = service.ready().map(|endpoint| &endpoint.workload);
        let near = members.filter(|workload| *workload.network == *asker.network);
        all.extend(near.flat_map(|workload| &workload.ips));
    }
    all.truncate(MOST_ADDRESSES);
    all
}

/// `POD.SERVICE`: a member of a service without virtual addresses, by its own name.
fn member(workloads: &Workloads, asker: &Asker<'_>, hostname: &str) -> Option<Vec<IpAddr>> {
    let (name, service) = hostname.split_once('.')?;
    let service = best(workloads.services_named(service), asker)?;
    if !service.vips.is_empty() {
        return None;
    }
    let named = |workload: &&Arc<Workload>| workload.name.eq_ignore_ascii_case(name);
    let workload = service
        .ready()
        .map(|endpoint| &endpoint.workload)
        .find(named)?;
    (*workload.network == *asker.network).then(|| workload.ips.clone())
}
