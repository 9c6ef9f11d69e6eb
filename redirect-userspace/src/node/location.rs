//! Where a pod is on this node: its network namespace, its cgroup, its sandbox.

use std::{net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// What CNI's ADD tells of a sandbox, or what is found in /proc, and the cgroup that was found for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Location {
    /// A file that names the network namespace, as this process can open it.
    pub netns: PathBuf,
    /// The pod's cgroup v2 directory, as this process can open it: at the level of the pod, above its containers.
    pub cgroup: PathBuf,
    pub ips: Vec<IpAddr>,
    /// The sandbox, if a CNI plugin told of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
}
