//! The workload file: ztunnel's local configuration, every field of it.

mod policies;
mod services;
mod workloads;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use super::{
    Endpoint, GatewayAddress, GatewayDestination, Health, NamespacedHostname, NetworkAddress,
    NetworkMode, Service, TunnelProtocol, Workload, Workloads,
};
use crate::document::{self, Fields, Format, Mistake, Mistakes, Node, Value};

/// What a file may leave out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    pub trust_domain: String,
}

#[derive(Debug, thiserror::Error)]
pub enum WorkloadFileError {
    #[error("read {path}: {source}")]
    Read {
        path: String,
        source: std::io::Error,
    },
    #[error("{path}: {source}")]
    Syntax {
        path: String,
        source: document::SyntaxError,
    },
    #[error("{path}: the file is empty; a mesh without workloads is written `workloads: []`")]
    Empty { path: String },
    #[error("{path}: {}{}", document::count(mistakes), document::list(mistakes))]
    Invalid {
        path: String,
        mistakes: Vec<Mistake>,
    },
}

impl Workloads {
    pub fn load(path: &Path, defaults: &Defaults) -> Result<Self, WorkloadFileError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| WorkloadFileError::Read {
            path: name.clone(),
            source,
        })?;
        Self::parse(&name, &text, Format::of(path), defaults)
    }

    /// `name` stands for the document in errors.
    pub fn parse(
        name: &str,
        text: &str,
        format: Format,
        defaults: &Defaults,
    ) -> Result<Self, WorkloadFileError> {
        let path = || name.to_owned();
        let value = document::parse(text, format).map_err(|source| WorkloadFileError::Syntax {
            path: path(),
            source,
        })?;
        // What a writer leaves behind who truncates first: taken as data, it would put every destination outside the mesh.
        if matches!(&value, Value::Map(fields) if fields.is_empty()) {
            return Err(WorkloadFileError::Empty { path: path() });
        }
        let mistakes = Mistakes::default();
        let read = read(&Node::root(&value, &mistakes), defaults);
        match (read, mistakes.into_vec()) {
            (Some(workloads), mistakes) if mistakes.is_empty() => Ok(workloads),
            (_, mistakes) => Err(WorkloadFileError::Invalid {
                path: path(),
                mistakes,
            }),
        }
    }
}

fn read(root: &Node<'_>, defaults: &Defaults) -> Option<Workloads> {
    let mut fields = root.fields()?;
    let mut state = State::default();
    if let Some(list) = fields.optional("workloads") {
        for node in list.list() {
            state.add_workload(&node, defaults);
        }
    }
    if let Some(list) = fields.optional("services") {
        for node in list.list() {
            state.add_service(&node);
        }
    }
    let policies = fields
        .optional("policies")
        .map(|list| policies::read(&list))
        .unwrap_or_default();
    fields.end();
    Some(state.finish(policies))
}

/// What has been read so far.
#[derive(Default)]
struct State {
    workloads: Vec<Arc<Workload>>,
    by_uid: HashMap<Arc<str>, Arc<Workload>>,
    addresses: HashMap<NetworkAddress, Arc<str>>,
    services: Vec<Service>,
    service_at: HashMap<NamespacedHostname, usize>,
    /// Endpoints by service, as the workloads and the services themselves list them.
    endpoints: BTreeMap<NamespacedHostname, Vec<ListedEndpoint>>,
    warnings: Vec<String>,
}

struct ListedEndpoint {
    workload_uid: Arc<str>,
    ports: BTreeMap<u16, u16>,
    status: Health,
}

impl State {
    fn add_workload(&mut self, node: &Node<'_>, defaults: &Defaults) {
        let Some(mut fields) = node.fields() else {
            return;
        };
        let services = fields
            .optional("services")
            .map(|node| read_memberships(&node))
            .unwrap_or_default();
        let Some(workload) = workloads::read(node, fields, defaults) else {
            return;
        };
        let workload = Arc::new(workload);
        if self
            .by_uid
            .insert(workload.uid.clone(), workload.clone())
            .is_some()
        {
            node.fail_at(
                "uid",
                format!("{} is another workload's already", workload.uid),
            );
        }
        if workload.network_mode == NetworkMode::Standard {
            for (index, ip) in workload.ips.iter().enumerate() {
                let address = NetworkAddress {
                    network: workload.network.clone(),
                    ip: *ip,
                };
                if let Some(other) = self.addresses.insert(address, workload.uid.clone()) {
                    node.fail_at(
                        &format!("workloadIps[{index}]"),
                        format!("{ip} is the address of {other} already"),
                    );
                }
            }
        }
        if workload
            .application_tunnel
            .is_some_and(|tunnel| tunnel.protocol == TunnelProtocol::Proxy)
        {
            self.warnings.push(format!(
                "{}: applicationTunnel is read but not acted on",
                node.path
            ));
        }
        for (service, ports) in services {
            let listed = ListedEndpoint {
                workload_uid: workload.uid.clone(),
                ports,
                status: workload.status,
            };
            self.endpoints.entry(service).or_default().push(listed);
        }
        self.workloads.push(workload);
    }

    /// Connects services to workloads.
    fn finish(mut self, policies: Vec<Arc<super::Policy>>) -> Workloads {
        for (key, listed) in std::mem::take(&mut self.endpoints) {
            let Some(index) = self.service_at.get(&key).copied() else {
                let who: Vec<_> = listed
                    .iter()
                    .map(|endpoint| &*endpoint.workload_uid)
                    .collect();
                self.warnings.push(format!(
                    "{}: the service {key} is not in the file",
                    who.join(", ")
                ));
                continue;
            };
            for ListedEndpoint {
                workload_uid,
                ports,
                status,
            } in listed
            {
                let Some(workload) = self.by_uid.get(&workload_uid).cloned() else {
                    self.warnings.push(format!(
                        "service {key}: its endpoint {workload_uid} is not in the file"
                    ));
                    continue;
                };
                let endpoints = &mut self.services[index].endpoints;
                // Listed by the workload and by the service: the later, the service's own, counts.
                endpoints.retain(|known| known.workload.uid != workload_uid);
                endpoints.push(Endpoint {
                    workload,
                    ports,
                    status,
                });
            }
        }
        let ready = |mut service: Service| {
            service.plan_targets();
            Arc::new(service)
        };
        let services = self.services.into_iter().map(ready).collect();
        Workloads::new(self.workloads, services, policies, self.warnings)
    }
}

fn text(fields: &mut Fields<'_>, name: &'static str) -> Arc<str> {
    fields
        .optional(name)
        .and_then(|node| node.text())
        .unwrap_or_default()
        .into()
}

fn health(node: &Node<'_>) -> Option<Health> {
    node.choice(&[
        ("Healthy", Health::Healthy),
        ("Unhealthy", Health::Unhealthy),
    ])
}

fn gateway(node: &Node<'_>) -> Option<GatewayAddress> {
    let mut fields = node.fields()?;
    let destination = fields.required("destination").and_then(|node| {
        // `NETWORK/IP`, else `NAMESPACE/HOSTNAME`: what does not parse as the one is the other, as in ztunnel.
        let text = node.text()?;
        match (network_address(text), namespaced_hostname(text)) {
            (Some(address), _) => Some(GatewayDestination::Address(address)),
            (None, Some(hostname)) => Some(GatewayDestination::Hostname(hostname)),
            (None, None) => node.fail(format!(
                "{text:?} is neither NETWORK/IP nor NAMESPACE/HOSTNAME"
            )),
        }
    });
    let port = fields
        .required("hboneMtlsPort")
        .and_then(|node| node.port());
    fields.end();
    Some(GatewayAddress {
        destination: destination?,
        hbone_mtls_port: port?,
    })
}

fn network_address(text: &str) -> Option<NetworkAddress> {
    let (network, ip) = text.split_once('/')?;
    Some(NetworkAddress {
        network: network.into(),
        ip: ip.parse::<IpAddr>().ok()?.to_canonical(),
    })
}

fn namespaced_hostname(text: &str) -> Option<NamespacedHostname> {
    let (namespace, hostname) = text.split_once('/')?;
    let valid = !hostname.is_empty() && !hostname.contains('/');
    valid.then(|| NamespacedHostname {
        namespace: namespace.into(),
        hostname: hostname.to_ascii_lowercase().into(),
    })
}

/// `NAMESPACE/HOSTNAME` → ports.
fn read_memberships(node: &Node<'_>) -> Vec<(NamespacedHostname, BTreeMap<u16, u16>)> {
    let entries = node.entries();
    let read = entries
        .into_iter()
        .filter_map(|(key, node)| match namespaced_hostname(key) {
            Some(service) => Some((service, ports(&node))),
            None => node.fail(format!("{key:?} is not NAMESPACE/HOSTNAME")),
        });
    read.collect()
}

/// Service port → target port; a target port of 0 means that it is not the same for all endpoints.
fn ports(node: &Node<'_>) -> BTreeMap<u16, u16> {
    let entries = node.entries();
    let read = entries
        .into_iter()
        .filter_map(|(key, node)| match key.parse::<u16>() {
            Ok(port) if port != 0 => Some((port, node.integer(0..=u16::MAX)?)),
            _ => node.fail(format!("{key:?} is not a port between 1 and 65535")),
        });
    read.collect()
}
