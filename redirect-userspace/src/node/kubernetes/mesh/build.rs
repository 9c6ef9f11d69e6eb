//! From a cluster's objects to the mesh. Pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use super::super::{
    cache::Cache,
    enrolment::{Judgement, judge},
    objects::{
        self, EndpointSlice, Namespace, Pod, Port, Service as KubernetesService, SliceEndpoint,
    },
};
use crate::{
    identity::Identity,
    workload::{
        Endpoint, Health, Locality, NetworkAddress, NetworkMode, Protocol, Service, Visibility,
        Workload, Workloads,
    },
};

const SERVICE_OF_SLICE: &str = "kubernetes.io/service-name";

#[derive(Default)]
pub struct Cluster {
    pub pods: Cache<Pod>,
    pub namespaces: Cache<Namespace>,
    pub services: Cache<KubernetesService>,
    pub slices: Cache<EndpointSlice>,
}

impl Cluster {
    pub fn is_complete(&self) -> bool {
        self.pods.is_complete()
            && self.namespaces.is_complete()
            && self.services.is_complete()
            && self.slices.is_complete()
    }
}

/// What the API does not say of its cluster.
#[derive(Clone, Debug)]
pub struct About {
    pub trust_domain: String,
    pub cluster_id: String,
    pub network: String,
    pub domain: String,
}

pub fn build(cluster: &Cluster, about: &About) -> Workloads {
    let mut mesh = Mesh {
        about,
        network: about.network.as_str().into(),
        workloads: Vec::new(),
        by_pod: HashMap::new(),
        by_address: HashMap::new(),
        warnings: Vec::new(),
    };
    mesh.pods(cluster);
    let services = mesh.services(cluster);
    Workloads::new(mesh.workloads, services, Vec::new(), mesh.warnings)
}

struct Mesh<'a> {
    about: &'a About,
    network: Arc<str>,
    workloads: Vec<Arc<Workload>>,
    /// By namespace and name.
    by_pod: HashMap<(&'a str, &'a str), Arc<Workload>>,
    /// Endpoints that are no pods, by namespace and address.
    by_address: HashMap<(&'a str, IpAddr), Arc<Workload>>,
    warnings: Vec<String>,
}

impl<'a> Mesh<'a> {
    fn pods(&mut self, cluster: &'a Cluster) {
        let mut pods: Vec<_> = cluster.pods.iter().filter(|pod| !pod.is_over()).collect();
        // An address may be another pod's already while the end of the first is not known: it is the later pod's.
        pods.sort_by(|a, b| {
            b.metadata
                .creation_timestamp
                .cmp(&a.metadata.creation_timestamp)
        });
        let mut taken = HashSet::new();
        for pod in pods {
            let meta = &pod.metadata;
            let mut ips = pod.ips();
            if !pod.spec.host_network {
                ips.retain(|ip| taken.insert(*ip));
            }
            if ips.is_empty() {
                continue;
            }
            let namespace = cluster.namespaces.get("", &meta.namespace);
            let judged = judge(pod, namespace.map(|namespace| &namespace.metadata));
            let protocol = match judged {
                Some(Judgement::Enrolled) => Protocol::Hbone,
                _ => Protocol::Tcp,
            };
            match self.workload(pod, ips, protocol) {
                Ok(workload) => {
                    let workload = Arc::new(workload);
                    self.by_pod
                        .insert((&meta.namespace, &meta.name), workload.clone());
                    self.workloads.push(workload);
                }
                Err(error) => self.warnings.push(format!(
                    "pod {}/{}: {error}; it is no workload of the mesh",
                    meta.namespace, meta.name
                )),
            }
        }
    }

    fn workload(
        &self,
        pod: &Pod,
        ips: Vec<IpAddr>,
        protocol: Protocol,
    ) -> Result<Workload, String> {
        let meta = &pod.metadata;
        let account = match pod.spec.service_account_name.as_str() {
            "" => "default",
            account => account,
        };
        let (owner, kind) = owner(pod);
        let label = |names: &[&str]| names.iter().find_map(|name| meta.label(name));
        let canonical_name = label(&[
            "service.istio.io/canonical-name",
            "app.kubernetes.io/name",
            "app",
        ]);
        let canonical_revision = label(&[
            "service.istio.io/canonical-revision",
            "app.kubernetes.io/version",
            "version",
        ]);
        Ok(Workload {
            name: meta.name.as_str().into(),
            node: pod.spec.node_name.as_str().into(),
            protocol,
            network_mode: match pod.spec.host_network {
                true => NetworkMode::HostNetwork,
                false => NetworkMode::Standard,
            },
            canonical_name: canonical_name.unwrap_or(&owner).into(),
            canonical_revision: canonical_revision.unwrap_or("latest").into(),
            workload_name: owner.as_str().into(),
            workload_type: kind.into(),
            ..self.plain(
                &format!("/Pod/{}/{}", meta.namespace, meta.name),
                &meta.namespace,
                account,
                ips,
            )?
        })
    }

    fn plain(
        &self,
        uid: &str,
        namespace: &str,
        account: &str,
        ips: Vec<IpAddr>,
    ) -> Result<Workload, String> {
        let identity = Identity::new(&self.about.trust_domain, namespace, account)
            .map_err(|error| error.to_string())?;
        Ok(Workload {
            uid: format!("{}/{uid}", self.about.cluster_id).into(),
            name: "".into(),
            namespace: identity.namespace.clone(),
            accepted: [Arc::<str>::from(identity.to_string())].into(),
            identity,
            ips,
            hostname: "".into(),
            protocol: Protocol::Tcp,
            // Not known by its address: several may have it.
            network_mode: NetworkMode::HostNetwork,
            status: Health::Healthy,
            node: "".into(),
            network: self.network.clone(),
            cluster_id: self.about.cluster_id.as_str().into(),
            workload_name: "".into(),
            workload_type: "".into(),
            canonical_name: "".into(),
            canonical_revision: "".into(),
            locality: Locality::default(),
            waypoint: None,
            network_gateway: None,
            native_tunnel: false,
            application_tunnel: None,
            authorization_policies: Vec::new(),
            capacity: 1,
        })
    }

    fn services(&mut self, cluster: &'a Cluster) -> Vec<Arc<Service>> {
        let mut slices: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
        for slice in cluster.slices.iter() {
            if let Some(service) = slice.metadata.label(SERVICE_OF_SLICE) {
                let key = (slice.metadata.namespace.as_str(), service);
                slices.entry(key).or_default().push(slice);
            }
        }
        let mut services = Vec::new();
        let named = cluster.services.iter();
        for service in named.filter(|service| service.spec.kind != "ExternalName") {
            let key = (
                service.metadata.namespace.as_str(),
                service.metadata.name.as_str(),
            );
            let slices = slices.get(&key).map_or(&[][..], Vec::as_slice);
            let mut service_of_mesh = self.service(service);
            service_of_mesh.endpoints = self.endpoints(service, slices);
            service_of_mesh.plan_targets();
            services.push(Arc::new(service_of_mesh));
        }
        services
    }

    fn service(&self, service: &KubernetesService) -> Service {
        let (meta, spec) = (&service.metadata, &service.spec);
        // Old clusters have only the one.
        let addresses = match spec.cluster_ips.is_empty() {
            true => std::slice::from_ref(&spec.cluster_ip),
            false => &spec.cluster_ips,
        };
        // "None" is no address.
        let vips = addresses.iter().filter_map(|ip| {
            let ip: IpAddr = ip.parse().ok()?;
            let network = self.network.clone();
            Some(NetworkAddress {
                network,
                ip: ip.to_canonical(),
            })
        });
        let ports = tcp_ports(service).map(|port| {
            let target = match &port.target_port {
                Some(Port::Number(number)) => u16::try_from(*number).unwrap_or(0),
                // Each pod may call another of its ports so; its endpoint says which.
                Some(Port::Name(_)) => 0,
                None => port.port,
            };
            (port.port, target)
        });
        let hostname = format!("{}.{}.svc.{}", meta.name, meta.namespace, self.about.domain);
        Service {
            name: meta.name.as_str().into(),
            namespace: meta.namespace.as_str().into(),
            hostname: hostname.to_ascii_lowercase().into(),
            vips: vips.collect(),
            cidr_vips: Vec::new(),
            ports: ports.collect(),
            subject_alt_names: Vec::new(),
            waypoint: None,
            weighted_waypoints: Vec::new(),
            load_balancer: None,
            ip_families: None,
            canonical: true,
            visibility: Visibility::Public,
            endpoints: Vec::new(),
            targets: BTreeMap::new(),
        }
    }

    fn endpoints(
        &mut self,
        service: &KubernetesService,
        slices: &[&'a EndpointSlice],
    ) -> Vec<Endpoint> {
        // A pod with addresses of both families is in a slice of each.
        let mut endpoints: Vec<Endpoint> = Vec::new();
        let of_ip = |slice: &&&EndpointSlice| slice.address_type != "FQDN";
        for slice in slices.iter().filter(of_ip) {
            let ports = tcp_ports(service).filter_map(|port| {
                let same = |other: &&objects::SlicePort| {
                    other.name == port.name && is_tcp(&other.protocol)
                };
                let target = slice.ports.iter().find(same)?.port?;
                Some((port.port, target))
            });
            let ports: BTreeMap<u16, u16> = ports.collect();
            for endpoint in &slice.endpoints {
                let status = match endpoint.conditions.ready {
                    Some(false) => Health::Unhealthy,
                    Some(true) | None => Health::Healthy,
                };
                for workload in self.behind(&slice.metadata.namespace, endpoint) {
                    let known = endpoints
                        .iter_mut()
                        .find(|known| known.workload.uid == workload.uid);
                    match known {
                        Some(known) => known.ports.extend(&ports),
                        None => endpoints.push(Endpoint {
                            workload,
                            ports: ports.clone(),
                            status,
                        }),
                    }
                }
            }
        }
        endpoints
    }

    /// The pod that is meant, if it is known and has the address; else whoever is at the addresses, such as the API server.
    fn behind(&mut self, namespace: &'a str, endpoint: &'a SliceEndpoint) -> Vec<Arc<Workload>> {
        let addresses = endpoint.addresses.iter();
        let addresses = addresses.filter_map(|text| text.parse::<IpAddr>().ok());
        let addresses: Vec<_> = addresses.map(|ip| ip.to_canonical()).collect();
        let target = endpoint.target_ref.as_ref();
        if let Some(target) = target.filter(|target| target.kind == "Pod") {
            let of = match target.namespace.as_str() {
                "" => namespace,
                of => of,
            };
            let pod = self.by_pod.get(&(of, &target.name));
            // Not known yet, or its address is another's by now: it cannot be said who answers there.
            let pod = pod.filter(|pod| addresses.iter().all(|ip| pod.ips.contains(ip)));
            return pod.cloned().into_iter().collect();
        }
        let mut behind = Vec::new();
        for ip in addresses {
            if let Some(known) = self.by_address.get(&(namespace, ip)) {
                behind.push(known.clone());
                continue;
            }
            let uid = format!("/Endpoint/{namespace}/{ip}");
            if let Ok(workload) = self.plain(&uid, namespace, "default", vec![ip]) {
                let workload = Arc::new(Workload {
                    name: ip.to_string().into(),
                    ..workload
                });
                self.by_address.insert((namespace, ip), workload.clone());
                self.workloads.push(workload.clone());
                behind.push(workload);
            }
        }
        behind
    }
}

fn tcp_ports(service: &KubernetesService) -> impl Iterator<Item = &objects::ServicePort> {
    service
        .spec
        .ports
        .iter()
        .filter(|port| is_tcp(&port.protocol))
}

fn is_tcp(protocol: &str) -> bool {
    matches!(protocol, "" | "TCP")
}

/// The name and the kind of what the pod belongs to, as operators know it: a Deployment, not the ReplicaSet between.
fn owner(pod: &Pod) -> (String, &'static str) {
    let owners = &pod.metadata.owner_references;
    let Some(owner) = owners.iter().find(|owner| owner.controller) else {
        return (pod.metadata.name.clone(), "pod");
    };
    match owner.kind.as_str() {
        "ReplicaSet" => {
            let hash = pod.metadata.label("pod-template-hash");
            let suffix = hash.map(|hash| format!("-{hash}")).unwrap_or_default();
            match owner.name.strip_suffix(&suffix) {
                Some(name) if !suffix.is_empty() => (name.to_owned(), "deployment"),
                _ => (owner.name.clone(), "replicaset"),
            }
        }
        "Job" => match owner.name.rsplit_once('-') {
            // A CronJob's have the minute of their start for an ending.
            Some((name, time)) if time.len() >= 8 && time.bytes().all(|b| b.is_ascii_digit()) => {
                (name.to_owned(), "cronjob")
            }
            _ => (owner.name.clone(), "job"),
        },
        "DaemonSet" => (owner.name.clone(), "daemonset"),
        "StatefulSet" => (owner.name.clone(), "statefulset"),
        _ => (owner.name.clone(), "pod"),
    }
}

#[cfg(test)]
mod tests;
