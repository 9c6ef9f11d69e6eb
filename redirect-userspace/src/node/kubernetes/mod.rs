//! Kubernetes as a source: which pods of this node are enrolled, and, where no control plane says so, what the mesh consists of.
//!
//! [`watch`] follows the API's lists, [`cache`] knows what they say, [`enrolment`] and [`plan`] (pure) decide, and the
//! [`keeper`] tells the agent. CNI's requests are [answered](ask) from the same knowledge, or by asking for that pod. What has become
//! of a pod is [reported](report) back. [`mesh`] makes workloads and services of pods, Services and EndpointSlices.

pub mod annotations;
mod api;
mod ask;
mod cache;
mod enrolment;
mod keeper;
mod mesh;
pub mod objects;
mod plan;
mod probes;
mod report;
mod watch;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch as channel};
use tracing::info;

pub use self::api::ApiError;
use self::{
    api::{Api, Kind},
    enrolment::Common,
    keeper::{Heard, Keeper},
    plan::Known,
};
use super::agent::Agent;
use crate::{
    config::{Config, HostPaths, KubernetesConfig},
    workload::WorkloadStore,
};

/// What is asked, and on whose behalf.
#[derive(Clone, Debug)]
pub struct Settings {
    pub api: KubernetesConfig,
    /// As the API calls this node.
    pub node: String,
    pub trust_domain: String,
    pub cluster_id: String,
    pub network: String,
    /// Whether pods' DNS may be captured.
    pub dns: bool,
    /// Below which services have their names.
    pub domain: String,
    pub host: HostPaths,
}

impl Settings {
    /// `None` if the configuration says nothing of Kubernetes.
    pub fn of(config: &Config) -> Option<Self> {
        Some(Self {
            api: config.agent.kubernetes.clone()?,
            node: config.node.clone(),
            trust_domain: config.trust_domain.clone(),
            cluster_id: config.cluster_id.clone(),
            network: config.network.clone(),
            dns: config.dns.enabled,
            domain: config.dns.domain.clone(),
            host: config.agent.host.clone(),
        })
    }
}

/// Knows the pods of this node; answers whether one is enrolled.
pub struct Kubernetes {
    api: Api,
    node: String,
    common: Common,
    known: Mutex<Known>,
    heard: mpsc::Sender<Heard>,
    ready: channel::Receiver<Ready>,
}

/// Whether the agent was told of all pods that are enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ready {
    /// Why not.
    NotYet(String),
    Yes,
}

/// A connection to the API that is configured well; it need not answer now.
pub struct Connected {
    settings: Settings,
    api: Api,
}

impl Connected {
    /// Reads credentials. Must be called in a runtime.
    pub async fn new(settings: Settings) -> Result<Self, ApiError> {
        let api = Api::connect(settings.api.kubeconfig.as_deref()).await?;
        info!(target: "redirect::kubernetes", server = api.server(), node = settings.node, "the Kubernetes API is asked for pods");
        Ok(Self { settings, api })
    }

    /// Keeps the store as the cluster is, for ever.
    pub fn feed(&self, store: Arc<WorkloadStore>) {
        mesh::start(self.api.clone(), &self.settings, store);
    }

    /// Follows the pods of this node, and tells the agent of those that are enrolled, for ever.
    pub fn keep(self, agent: Agent) -> Arc<Kubernetes> {
        let Self { settings, api } = self;
        let (heard, hears) = mpsc::channel(256);
        let waiting = Ready::NotYet("the Kubernetes API has not been heard yet".to_owned());
        let (ready, is_ready) = channel::channel(waiting);
        let of_node = format!("spec.nodeName={}", settings.node);
        tokio::spawn(watch::watch(
            api.clone(),
            Kind::core().with_fields(of_node),
            heard.clone(),
            Heard::Pod,
        ));
        tokio::spawn(watch::watch(
            api.clone(),
            Kind::core(),
            heard.clone(),
            Heard::Namespace,
        ));
        let kubernetes = Arc::new(Kubernetes {
            api: api.clone(),
            node: settings.node.clone(),
            common: Common {
                trust_domain: settings.trust_domain,
                dns: settings.dns,
            },
            known: Mutex::default(),
            heard: heard.clone(),
            ready: is_ready,
        });
        let reports = report::start(api, settings.node, heard);
        let keeper = Keeper::new(kubernetes.clone(), agent, settings.host, reports, ready);
        tokio::spawn(keeper.run(hears));
        kubernetes
    }
}

impl Kubernetes {
    /// Held for moments only, and never across an await.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
