//! A captured workload on this node: what the configuration says of it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

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

    /// A name for the pod's file in some folder.
    pub fn file_name(&self) -> String {
        self.0.replace('%', "%25").replace('/', "%2f")
    }

    /// Of a [`file_name`](Self::file_name).
    pub fn of_file(name: &str) -> Self {
        Self::new(name.replace("%2f", "/").replace("%25", "%"))
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
    /// Set where the cgroup is all that the workload has to itself: host networking, systemd units.
    pub cgroup_only: Option<CgroupOnly>,
    pub options: PodOptions,
}

/// What stands for a namespace of its own, for a workload that shares one with others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupOnly {
    /// What it serves: connections to these are captured, and are its own. The addresses are among its `ips`.
    pub inbound: Vec<SocketAddr>,
}

/// What an operator may change for one pod.
///
/// Of ports and networks: what is excluded is left alone, whatever is included. Where something is included, a connection is
/// captured if its port or its network is among that; where nothing is, all are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodOptions {
    /// Destination ports that outbound capture leaves alone.
    pub exclude_outbound_ports: Vec<u16>,
    /// Destination networks that outbound capture leaves alone.
    pub exclude_outbound_cidrs: Vec<IpNet>,
    pub include_outbound_ports: Vec<u16>,
    pub include_outbound_cidrs: Vec<IpNet>,
    /// The pod's own ports to which connections in plaintext are left alone.
    pub exclude_inbound_ports: Vec<u16>,
    /// Source networks whose connections in plaintext are left alone.
    pub exclude_inbound_cidrs: Vec<IpNet>,
    pub include_inbound_ports: Vec<u16>,
    pub include_inbound_cidrs: Vec<IpNet>,
    /// No connection in plaintext to the pod is captured. HBONE goes on to be accepted.
    pub bypass_inbound: bool,
    /// Whether the pod's DNS queries (port 53) go through the proxy.
    pub capture_dns: bool,
    /// What becomes of the pod's connections while no proxy listens.
    pub on_proxy_failure: OnProxyFailure,
    /// The ports that the pod's spec declares for probes; `None` if the spec is not known, and any may be probed.
    pub probe_ports: Option<Vec<u16>>,
    /// Refuse UDP other than DNS, which is not captured.
    pub refuse_udp: bool,
    /// Refuse SCTP, which is not captured.
    pub refuse_sctp: bool,
    /// The pod forwards for network namespaces nested in it: the leak guard lets that pass.
    pub allow_forwarding: bool,
    /// Reset connections that are older than capture; otherwise the leak guard drops their packets.
    pub reset_older_connections: bool,
    /// Cgroups v2 below the pod's whose processes are left alone.
    pub exempt_cgroups: Vec<PathBuf>,
    /// Whether the link-local metadata address 169.254.169.254 is captured too.
    pub capture_metadata_address: bool,
    /// Whether the app sees the client's IP address (needs a route and sysctls in the pod's netns).
    pub preserve_client_ip: bool,
}

/// What becomes of a pod's connections while no proxy listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnProxyFailure {
    /// They fail: nothing leaves in plaintext.
    Refuse,
    /// They go on without the proxy.
    Pass,
}

impl Default for PodOptions {
    fn default() -> Self {
        Self {
            exclude_outbound_ports: Vec::new(),
            exclude_outbound_cidrs: Vec::new(),
            include_outbound_ports: Vec::new(),
            include_outbound_cidrs: Vec::new(),
            exclude_inbound_ports: Vec::new(),
            exclude_inbound_cidrs: Vec::new(),
            include_inbound_ports: Vec::new(),
            include_inbound_cidrs: Vec::new(),
            bypass_inbound: false,
            capture_dns: true,
            on_proxy_failure: OnProxyFailure::Refuse,
            probe_ports: None,
            refuse_udp: false,
            refuse_sctp: false,
            allow_forwarding: false,
            reset_older_connections: false,
            exempt_cgroups: Vec::new(),
            capture_metadata_address: false,
            preserve_client_ip: true,
        }
    }
}
