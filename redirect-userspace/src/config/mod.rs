//! The daemon's configuration, resolved once from file, environment and flags.

mod agent;
mod clashes;
mod dns;
pub mod entry;
mod pods;
mod read;
mod sections;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    document::{self, Format, Mistake, SyntaxError},
    pod::Pod,
};

/// Everything that the daemon was told, checked and with defaults filled in. Nobody reads the environment later.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub node: String,
    pub trust_domain: String,
    pub cluster_id: String,
    pub network: String,
    /// Threads that carry connections, each with its own runtime.
    pub workers: NonZeroUsize,
    /// What `redirect` keeps while it runs (lock file, development certificates): a directory.
    pub state_dir: PathBuf,
    /// The local workload file, reloaded when it changes; `None`: the Kubernetes API says what the mesh is.
    pub workloads: Option<PathBuf>,
    pub capture: CaptureConfig,
    pub proxy: ProxyConfig,
    pub hbone: HboneConfig,
    pub dns: DnsConfig,
    pub identity: IdentityConfig,
    pub admin: AdminConfig,
    pub log: LogConfig,
    pub agent: AgentConfig,
    pub pods: Vec<Pod>,
}

impl Config {
    /// Reads a file, and puts environment and flags over it.
    pub fn load(path: &Path, host: &Host, flags: &Flags) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text, Format::of(path), host, flags)
    }

    /// The same for a text; `path` stands for it in errors.
    pub fn parse(
        path: &Path,
        text: &str,
        format: Format,
        host: &Host,
        flags: &Flags,
    ) -> Result<Self, ConfigError> {
        let value = document::parse(text, format).map_err(|source| ConfigError::Syntax {
            path: path.to_owned(),
            source,
        })?;
        read::read(&value, host, flags).map_err(|mistakes| ConfigError::Invalid {
            path: path.to_owned(),
            mistakes,
        })
    }
}

/// What is known of the machine and the process, so that nothing here asks for it.
#[derive(Clone, Debug, Default)]
pub struct Host {
    pub environment: BTreeMap<String, String>,
    pub hostname: String,
    pub cores: usize,
}

/// What the command line says; it wins over environment and file.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    pub node: Option<String>,
    pub workers: Option<NonZeroUsize>,
    pub log: Option<String>,
    pub log_format: Option<LogFormat>,
    /// Permits `identity.source: devCa`.
    pub dev_ca: bool,
    pub detach_on_exit: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Syntax { path: PathBuf, source: SyntaxError },
    #[error("{}: {}{}", path.display(), document::count(mistakes), document::list(mistakes))]
    Invalid {
        path: PathBuf,
        mistakes: Vec<Mistake>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The best that this node can do, as found when the daemon starts.
    Auto,
    Ebpf,
    Iptables,
    Nftables,
    None,
}

impl Backend {
    pub const ALL: [Self; 5] = [
        Self::Auto,
        Self::Ebpf,
        Self::Iptables,
        Self::Nftables,
        Self::None,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Ebpf => "ebpf",
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::None => "none",
        }
    }
}

/// Where the proxy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the node's daemon, with listeners inside each pod's network namespace.
    Shared,
    /// In the pod that it captures, which is the only one.
    Dedicated,
    /// In the node's daemon, with listeners in the node's network namespace, to which captured connections are sent.
    Node,
}

impl Mode {
    pub const ALL: [Self; 3] = [Self::Shared, Self::Dedicated, Self::Node];

    pub fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Dedicated => "dedicated",
            Self::Node => "node",
        }
    }
}

/// The two programs that are called iptables: they keep their rules in different places of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IptablesVariant {
    /// The one whose rules are in use in a namespace already, else the one that works.
    Auto,
    Nft,
    Legacy,
}

/// The cgroups v2 whose processes may connect to ports that pods declare for probes, whatever policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProberCgroups {
    /// That of kubelet, found among the node's processes.
    Auto,
    /// These; none: nobody may.
    Paths(Vec<PathBuf>),
}

/// Which part of a pod's way is this daemon's. What is not, is another's that it speaks ZDS with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// Connections are brought to another's proxy.
    Capture,
    /// Connections are brought here by another's rules.
    Proxy,
}

#[derive(Clone, Debug, PartialEq)]
pub struct CaptureConfig {
    /// As `agent.zds` says.
    pub part: Part,
    pub backend: Backend,
    pub mode: Mode,
    /// With `backend: iptables`: which of its variants carries the rules in.
    pub iptables: IptablesVariant,
    /// Whether packets that went around capture are dropped on the pod's interface (eBPF).
    pub leak_guard: bool,
    /// Where whoever probes pods runs (eBPF).
    pub probers: ProberCgroups,
    /// A bpffs mount, or a directory where one is mounted if it is missing. Pins go to a folder of ours below it.
    pub bpffs: PathBuf,
    /// The version of the pins below it: daemons of one version go on with each other's maps, others replace them.
    pub abi: u32,
    /// Whether to mount one there if there is none. Not in a container: pins would be gone with it, and capture with them.
    pub mount_bpffs: bool,
    /// The cgroup v2 directory that the daemon moves itself to; `None` means: keep its own if it is alone there, else make one.
    pub cgroup: Option<PathBuf>,
    /// In dedicated mode, with rules: the proxy is exempt by this user id, which whoever may change users can take. `None`: by
    /// its cgroup.
    pub exempt_uid: Option<u32>,
    /// One ring-buffer event per decision, logged at `info` by the target `redirect::capture::event`.
    pub events: bool,
    /// Let go of the pods when the daemon ends.
    pub detach_on_exit: bool,
    /// How often it is looked after that capture is still as it was applied, for a few pods at a time.
    pub verify_interval: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ProxyConfig {
    /// How long a captured connection waits for the first complete workload data.
    pub hold: Duration,
    /// Limit on a connect to an app or to a destination outside the mesh.
    pub connect_timeout: Duration,
    /// How long established connections may go on after SIGTERM.
    pub drain: Duration,
    /// Limit on open connections of one pod, both directions together.
    pub max_connections_per_pod: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct HboneConfig {
    /// What a peer may send on one stream before we read it, in bytes.
    pub stream_window: u32,
    /// Streams on one tunnel, both as client and as server.
    pub max_streams_per_tunnel: u32,
    /// Tunnels between one source and one destination, per worker.
    pub max_tunnels_per_peer: usize,
    /// Tunnels that one pod's inbound listener holds, per worker.
    pub max_inbound_tunnels: usize,
    /// Handshakes under way from one source address, per pod.
    pub max_handshakes_per_source: usize,
    /// TCP connect, TLS handshake and HTTP/2 preface together.
    pub handshake_timeout: Duration,
    pub ping_interval: Duration,
    pub ping_timeout: Duration,
    /// A tunnel without streams is closed after this.
    pub idle_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DnsConfig {
    /// Whether pods' DNS queries go through the proxy. If not, no pod's do.
    pub enabled: bool,
    /// The domain below which the cluster's services have their names.
    pub domain: String,
    /// For how long clients may keep what is answered from the workload data.
    pub ttl: Duration,
    /// How long a server may take to answer.
    pub timeout: Duration,
    /// Answers of servers that are kept, per pod; 0 keeps none.
    pub cache_size: usize,
    /// Queries of one pod that wait for servers.
    pub max_in_flight_per_pod: usize,
    /// The server to ask where it is not known which one the app addressed; without one, such queries fail.
    pub upstream: Option<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum IdentityConfig {
    /// Sign leaves with the development root in `dir` (see `redirect ca init`). Needs `--dev-ca`.
    DevCa { dir: PathBuf, ttl: Duration },
    /// Read `roots.pem`, and per identity `NAMESPACE/SERVICE_ACCOUNT/{cert,key}.pem`, below `dir`; reloaded on change.
    Files { dir: PathBuf },
}

#[derive(Clone, Debug, PartialEq)]
pub struct AdminConfig {
    /// `/metrics`.
    pub metrics: Option<SocketAddr>,
    /// `/healthz/ready`.
    pub readiness: Option<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LogConfig {
    /// In the syntax of `tracing_subscriber::EnvFilter`, such as `info` or `redirect::identity=debug,info`.
    pub filter: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Where the node agent learns of pods, beside the configuration's own list.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentConfig {
    /// The unix socket for the CNI plugin and `redirect pod`; only root may use it.
    pub socket: Option<PathBuf>,
    pub host: HostPaths,
    /// Ask the Kubernetes API.
    pub kubernetes: Option<KubernetesConfig>,
    pub cni: CniEnrolment,
    pub zds: ZdsConfig,
}

/// Where the node's own file systems are, for a daemon in a container.
#[derive(Clone, Debug, PartialEq)]
pub struct HostPaths {
    /// The /proc of the node's process namespace.
    pub proc: PathBuf,
    /// The node's cgroup v2 hierarchy; found in the mount table if not said.
    pub cgroup: Option<PathBuf>,
    /// The cgroup that a runtime without pods will use for a container, below that, with [`CONTAINER_ID`] in its place: for
    /// runtimes that make it after the network.
    pub container_cgroup: Option<String>,
}

/// What stands for a container's id in [`HostPaths::container_cgroup`].
pub const CONTAINER_ID: &str = "{containerId}";

#[derive(Clone, Debug, PartialEq)]
pub struct KubernetesConfig {
    /// Credentials and address of the API; `None`: those of a pod (in-cluster).
    pub kubeconfig: Option<PathBuf>,
    /// Whether the API is where workloads and services come from, in place of the file.
    pub workloads: bool,
}

/// What becomes of pods that a CNI plugin tells of where no Kubernetes API is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct CniEnrolment {
    /// Capture them all.
    pub enroll: bool,
    /// For pods whose runtime names none.
    pub namespace: String,
    /// Of all of them.
    pub service_account: String,
}

/// The protocol between Istio's node agent and ztunnel.
#[derive(Clone, Debug, PartialEq)]
pub struct ZdsConfig {
    /// We capture, and another proxy carries: the socket that it connects to.
    pub serve: Option<PathBuf>,
    /// Another agent captures, and we carry: the socket where it listens.
    pub connect: Option<PathBuf>,
}

impl ZdsConfig {
    pub fn part(&self) -> Part {
        match (&self.serve, &self.connect) {
            (Some(_), _) => Part::Capture,
            (None, Some(_)) => Part::Proxy,
            (None, None) => Part::Whole,
        }
    }
}
