//! A captured workload on this node: what the configuration says of it.

use std::{fmt, net::IpAddr, path::PathBuf, sync::Arc};

use ipnet::IpNet;

use crate::identity::Identity;

/// Names a pod on this node: `namespace/name`, or the uid that the source of pods gave. Unique within a daemon.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Arc<str>);

impl PodUid {
    pub fn new(uid: impl Into<Arc<str>>) -> Self {
        Self(uid.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PodUid({})", self.0)
    }
}

/// What the daemon captures: a network namespace, a cgroup, and the identity that speaks for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub uid: PodUid,
    pub name: String,
    pub namespace: String,
    pub identity: Identity,
    /// A file that names the network namespace, such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    pub netns: PathBuf,
    /// The pod's cgroup v2 directory, as an absolute path in the file system.
    pub cgroup: PathBuf,
    /// The pod's own addresses; at least one, at most one of each family is used as the source of redirected connects.
    pub ips: Vec<IpAddr>,
    pub options: PodOptions,
}

/// What an operator may change for one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodOptions {
    /// Destination ports that outbound capture leaves alone.
    pub exclude_outbound_ports: Vec<u16>,
    /// Destination networks that outbound capture leaves alone.
    pub exclude_outbound_cidrs: Vec<IpNet>,
    /// Cgroups v2 below the pod's whose processes are left alone.
    pub exempt_cgroups: Vec<PathBuf>,
    /// Whether the link-local metadata address 169.254.169.254 is captured too.
    pub capture_metadata_address: bool,
    /// Whether the app sees the client's IP address (needs a route and sysctls in the pod's netns).
    pub preserve_client_ip: bool,
}

impl Default for PodOptions {
    fn default() -> Self {
        Self {
            exclude_outbound_ports: Vec::new(),
            exclude_outbound_cidrs: Vec::new(),
            exempt_cgroups: Vec::new(),
            capture_metadata_address: false,
            preserve_client_ip: true,
        }
    }
}
