//! Who says which pods are to be captured, and what they say.

use std::{fmt, future::Future, pin::Pin};

use crate::{
    cni::protocol::PodName,
    identity::Identity,
    pod::{PodOptions, PodUid},
};

/// Where a wish comes from. A pod is captured as long as any source wants it; where several do, the first in this order says as
/// what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// `pods` in the configuration: for the daemon's lifetime.
    Config,
    /// `redirect pod add`: until `redirect pod remove`, also over restarts.
    Command,
    /// A pod that the Kubernetes API knows as enrolled, wherever it was learnt that it runs here (CNI, /proc).
    Kubernetes,
    /// The CNI plugin, where no Kubernetes API is asked: until DEL.
    Cni,
    /// A node agent that drives our proxy.
    Zds,
}

impl Source {
    pub fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Command => "command",
            Self::Kubernetes => "kubernetes",
            Self::Cni => "cni",
            Self::Zds => "zds",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a pod is to be captured as; together with its location it makes a [`Pod`](crate::pod::Pod).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub uid: PodUid,
    pub name: String,
    pub namespace: String,
    pub identity: Identity,
    pub options: PodOptions,
    /// Whether its cgroup's name is the hash of its manifest and not its uid: a static pod (`kubernetes.io/config.hash`).
    pub config_hash: Option<String>,
}

/// What is known of a pod that a runtime starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enrolled {
    /// It is to be captured, as this and for this source.
    Yes(Source, Box<Description>),
    /// It is not, for this reason.
    No(String),
    /// Nobody can say now: the pod is held, not let through. Why, and what to do.
    Unknown(String),
}

/// Knows whether a pod is enrolled. Asked by the CNI plugin's requests, before the pod's first process runs.
pub trait Enrolment: Send + Sync {
    /// `pod` is `None` where the runtime is not Kubernetes'; `container_id` then names the sandbox.
    fn of<'a>(
        &'a self,
        pod: Option<&'a PodName>,
        container_id: &'a str,
    ) -> Pin<Box<dyn Future<Output = Enrolled> + Send + 'a>>;
}
