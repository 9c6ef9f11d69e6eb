//! What the plugin, the command line and the node agent say to each other: over a unix stream socket, one request and one answer per connection,
//! each a JSON object on one line.

use std::{net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// Where the agent listens, if nothing else is said.
pub const SOCKET: &str = "/run/redirect/agent.sock";
/// Longest request in bytes, with its line end; longest answer to the plugin.
pub const MAX_LINE: usize = 256 * 1024;
/// Longest list of pods.
pub const MAX_LIST: usize = 64 * 1024 * 1024;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "camelCase")]
pub enum Request {
    /// Capture the pod, and answer when it is captured.
    Add(Attachment),
    /// Verify in the kernel that the pod is captured.
    Check(Attachment),
    /// The pod's sandbox is going. No error if it is not known.
    #[serde(rename_all = "camelCase")]
    Del { container_id: String },
    /// Only these sandboxes are still there; whatever else is known of may go.
    #[serde(rename_all = "camelCase")]
    Gc {
        /// Only of this network: others' sandboxes are not told of here.
        network: String,
        container_ids: Vec<String>,
    },
    /// Whether pods can be added now.
    Status,
    /// `redirect pod add`: an entry as the configuration's `pods` has them.
    PodAdd { pod: serde_json::Value },
    /// `redirect pod remove`.
    PodRemove { uid: String },
    /// `redirect pod list`.
    PodList,
}

/// A sandbox that the container runtime has made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    pub container_id: String,
    pub netns: PathBuf,
    /// The name of the network configuration that it was made by.
    #[serde(default)]
    pub network: String,
    /// As Kubernetes calls the pod; `None` where the runtime is not Kubernetes'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodName>,
    /// The addresses that the network gave to the pod.
    pub ips: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
    /// Not every version of Kubernetes tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "camelCase")]
pub enum Answer {
    Done,
    /// The pod is none of those to be captured.
    NotEnrolled,
    /// The pod cannot be captured; `hint` is what an operator can do.
    Failed {
        error: String,
        hint: String,
    },
    Pods {
        pods: Vec<ListedPod>,
    },
}

/// A pod that somebody wants to be captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedPod {
    /// As the configuration's `pods` has it.
    pub pod: serde_json::Value,
    /// Who wants it, in their order.
    pub sources: Vec<String>,
    /// Why it is not captured now; `None`: it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
