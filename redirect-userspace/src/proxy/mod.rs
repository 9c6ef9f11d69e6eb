//! The proxy of captured pods: listeners in their network namespaces (a site each), outbound and inbound connections.
//!
//! One thread per worker with a runtime of its own; a connection lives and dies on the worker that accepted it.

mod app;
pub mod authority;
mod authorization;
pub mod client_ip;
mod connector;
mod copy;
mod inbound;
mod inbound_plaintext;
mod limits;
mod listener;
mod outbound;
pub mod ports;
pub mod route;
mod running_pod;
pub mod site;
mod sites;
pub mod standpoint;
mod worker;

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::HeaderValue;
use tokio::net::TcpStream;

pub use listener::Listeners;
pub use worker::{Accept, Workers, WorkersError};

use standpoint::Standpoint;

use crate::{
    config::{HboneConfig, ProxyConfig},
    dns, hbone,
    identity::{IdentityStore, tls::TlsConfigs},
    orig_dst::Chain,
    pod::Pod,
    sys::{netns::Netns, socket::ResetOnDrop},
    telemetry::{Direction, Metrics, TrafficCounters},
    workload::WorkloadStore,
};

/// What all workers and connections share.
pub struct Shared {
    pub proxy: ProxyConfig,
    pub hbone: HboneConfig,
    pub network: String,
    pub cluster_id: String,
    pub orig_dst: Chain,
    pub workloads: Arc<WorkloadStore>,
    pub identities: Arc<IdentityStore>,
    pub tls: TlsConfigs,
    pub metrics: Arc<Metrics>,
    pub outbound: Arc<TrafficCounters>,
    pub inbound: Arc<TrafficCounters>,
    pub dns: Arc<dns::Shared>,
}

/// A pod as the proxy knows it.
pub struct PodContext {
    pub pod: Pod,
    pub netns: Netns,
    /// Whether an app can be let see the client's address.
    pub client_ip: bool,
    pub standpoint: Standpoint,
    baggage: HeaderValue,
    connections: AtomicUsize,
}

impl PodContext {
    pub fn new(
        pod: Pod,
        netns: Netns,
        client_ip: bool,
        standpoint: Standpoint,
        cluster_id: &str,
    ) -> Self {
        let baggage = hbone::baggage([
            ("k8s.cluster.name", cluster_id),
            ("k8s.namespace.name", pod.namespace.as_str()),
            ("k8s.pod.name", pod.name.as_str()),
            ("service.name", pod.name.as_str()),
        ]);
        Self {
            pod,
            netns,
            client_ip,
            standpoint,
            baggage,
            connections: AtomicUsize::new(0),
        }
    }

    /// How many connections of the pod are open.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The address to open a tunnel from: the app's own where it is the pod's, else the pod's of that family.
    fn source_ip(&self, app: IpAddr, peer: IpAddr) -> Option<IpAddr> {
        let app = app.to_canonical();
        let same_family = |ip: &IpAddr| ip.is_ipv4() == peer.is_ipv4();
        if self.pod.ips.contains(&app) && same_family(&app) {
            return Some(app);
        }
        self.pod.ips.iter().copied().find(same_family)
    }
}

/// Counts a connection of a pod for as long as it lives.
struct Admission(Arc<PodContext>);

impl Admission {
    /// `None`: the pod has as many connections as it may.
    fn ask(context: &Arc<PodContext>, limit: usize) -> Option<Self> {
        let admitted = Self(context.clone());
        // Taken first and checked after: two workers at the limit refuse one too many rather than admit one too many.
        (context.connections.fetch_add(1, Ordering::Relaxed) < limit).then_some(admitted)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Resets, counts and logs what was refused before it became a connection.
fn refuse(
    shared: &Shared,
    pod: Option<&PodContext>,
    direction: Direction,
    reason: &'static str,
    stream: TcpStream,
    client: std::net::SocketAddr,
) {
    drop(ResetOnDrop::new(stream));
    shared.metrics.failed(direction, reason);
    let pod = pod.map(|context| tracing::field::display(&context.pod.uid));
    tracing::info!(target: "redirect::access", pod, direction = ?direction, src = %client, reason, "refused");
}
