//! Capture: how a pod's connections come to the proxy. Backends: [`ebpf`], [`netfilter`], [`none`].

use std::{
    error::Error,
    net::IpAddr,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    config::{Backend, CaptureConfig, Mode, Part},
    orig_dst::{
        OrigDstResolver,
        dns::{DnsServers, NoDnsServers},
    },
    pod::{Pod, PodUid},
    sys::{cgroup::CgroupError, netns::Netns},
};

pub mod ebpf;
pub mod netfilter;
pub mod none;
mod older;
pub mod probe;

/// Brings a pod's connections to the proxy's listeners, and lets go of them again.
///
/// `apply` is idempotent and adopts what an earlier daemon left; `clean` is idempotent and needs nothing but the uid.
pub trait Capture: Send {
    /// Captures `pod`, whose network namespace is `netns`, for the proxy that listens on `sockets`. On an error nothing stays
    /// half-applied.
    fn apply(
        &mut self,
        pod: &Pod,
        netns: &Netns,
        sockets: &Sockets<'_>,
    ) -> Result<Applied, CaptureError>;

    /// Lets go of the pod: afterwards its connections are as before capture.
    fn clean(&mut self, uid: &PodUid) -> Result<(), CaptureError>;

    /// The same, but for what the pod's connections that stand need in its namespace: [`clean_netns`] takes that away.
    fn release(&mut self, uid: &PodUid) -> Result<(), CaptureError> {
        self.clean(uid)
    }

    /// The uids that are captured in the kernel now, as found there (not as remembered).
    fn inspect(&self) -> Result<Vec<PodUid>, CaptureError>;

    /// How what the kernel holds for a pod differs from what was applied, in words; nothing if it does not. Changes nothing.
    fn faults(&self, uid: &PodUid) -> Result<Vec<String>, CaptureError> {
        Ok(match self.inspect()?.contains(uid) {
            true => Vec::new(),
            false => vec!["nothing of its capture is there".to_owned()],
        })
    }

    /// Looks whether what was applied for these pods is still there, and makes good what something else has changed. Tells
    /// only of what was not right.
    fn reassert(&mut self, pods: &[PodUid]) -> Vec<Repair> {
        let _ = pods;
        Vec::new()
    }

    /// The daemon ends in order. Where the kernel cannot know whether a proxy listens, pods whose connections shall go on
    /// without one are let go.
    fn stand_down(&mut self) -> Result<(), CaptureError> {
        Ok(())
    }

    /// How accepted sockets tell their original destination under this backend.
    fn resolver(&self) -> Arc<dyn OrigDstResolver>;

    /// How the proxy learns which DNS server an app asked by UDP under this backend.
    fn dns_servers(&self) -> Arc<dyn DnsServers> {
        Arc::new(NoDnsServers)
    }

    fn name(&self) -> &'static str;

    /// A reader of what the programs counted, for metrics.
    fn counters(&self) -> VerdictCounters {
        Arc::new(Vec::new)
    }

    /// As `apply`, for a proxy of another's that listens in the pod, and whose sockets are not ours to hand on.
    fn apply_for_another(&mut self, _: &Pod, _: &Netns) -> Result<Applied, CaptureError> {
        Err(CaptureError::ForeignProxy)
    }

    /// How connections come to the proxy that listens on the node (mode `node`).
    fn delivery(&self) -> Delivery {
        Delivery::Addressed
    }

    /// Whether it says which of several listeners on a port gets a connection (where it captures inside of pods).
    fn steers(&self) -> bool {
        false
    }

    /// Another daemon, whose cgroup this is, captured these pods until now, and goes on with the connections that it has until
    /// [`settle`](Self::settle): neither's are captured. Called before any pod is applied.
    fn succeed(&mut self, predecessor: &Path) -> Result<(), CaptureError> {
        let _ = predecessor;
        Ok(())
    }

    /// No other daemon runs on this node any more: what was done for one goes.
    fn settle(&mut self) -> Result<(), CaptureError> {
        Ok(())
    }

    /// Begins what goes on beside the pods: to log decisions, where the configuration asks for it, and to follow changes on the
    /// node. Called once, inside the daemon's runtime.
    fn start(&mut self) {}
}

/// How captured connections come to the proxy's listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// They are addressed to them.
    Addressed,
    /// They bear their own addresses, and are given to the listeners all the same.
    Assigned,
}

/// The proxy's listening sockets for one pod.
#[derive(Clone, Copy, Debug)]
pub struct Sockets<'a> {
    pub outbound: BorrowedFd<'a>,
    pub inbound_plaintext: BorrowedFd<'a>,
    pub hbone: BorrowedFd<'a>,
    /// Where the proxy answers DNS queries by TCP, if it does: then, and only then, they are captured, those by UDP too.
    pub dns: Option<BorrowedFd<'a>>,
}

/// Reads how often each verdict was given, and why.
pub type VerdictCounters = Arc<dyn Fn() -> Vec<VerdictCount> + Send + Sync>;

/// One counter of the eBPF programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerdictCount {
    pub hook: &'static str,
    pub verdict: &'static str,
    pub reason: &'static str,
    pub count: u64,
}

/// Puts the backend that fits this node in the place of `auto`, and says why; anything else stays as it is.
pub fn choose_backend(mut config: CaptureConfig) -> Result<CaptureConfig, CaptureError> {
    if config.backend != Backend::Auto {
        return Ok(config);
    }
    let report = probe::probe_for_choice(probe::Asked {
        mode: config.mode,
        bpffs: &config.bpffs,
        iptables: config.iptables,
    });
    for warning in &report.warnings {
        tracing::warn!("{warning}");
    }
    let because = report.choice.because;
    match report.choice.backend {
        Some(backend) => {
            tracing::info!(backend = backend.name(), because, "chose the backend");
            config.backend = backend;
            Ok(config)
        }
        None => Err(CaptureError::NoBackend(because)),
    }
}

/// The backend that the configuration names. `cgroup` is the daemon's own, from `sys::cgroup::own`.
pub fn open(
    config: &CaptureConfig,
    cgroup: Option<&Path>,
) -> Result<Box<dyn Capture>, CaptureError> {
    let own = || cgroup.ok_or(CaptureError::NoCgroup);
    let by_rules = |tool| -> Result<Box<dyn Capture>, CaptureError> {
        let setting = netfilter::Setting {
            mode: config.mode,
            proxy: own()?.to_owned(),
            exempt_uid: config.exempt_uid,
            probers: config.probers.clone(),
            dns: config.mode != Mode::Node,
            by_mark: config.part == Part::Capture,
        };
        let capture = netfilter::NetfilterCapture::new(tool, &setting)?;
        Ok(Box::new(capture))
    };
    match config.backend {
        Backend::Auto => open(&choose_backend(config.clone())?, cgroup),
        Backend::Ebpf if config.mode == Mode::Node => {
            Ok(Box::new(ebpf::node::NodeCapture::load(config, own()?)?))
        }
        Backend::Ebpf => Ok(Box::new(ebpf::EbpfCapture::load(config, own()?)?)),
        Backend::Iptables => by_rules(netfilter::Tool::of(config.iptables)),
        Backend::Nftables => by_rules(netfilter::Tool::Nftables),
        Backend::None => Ok(Box::new(none::NoCapture::default())),
    }
}

/// Removes all that daemons pinned below `bpffs`, whether one runs or not; returns how many pins there were. Needs neither the
/// programs nor the pods, and does nothing the second time.
pub fn uninstall(bpffs: &Path) -> Result<usize, CaptureError> {
    ebpf::uninstall(bpffs)
}

/// Takes back what captures of a backend leave in a pod's network namespace, for a namespace whose pod nobody remembers.
pub fn clean_netns(netns: &Netns, backend: &str) -> Result<(), CaptureError> {
    if !enters_pods(backend) {
        return Ok(());
    }
    match is_by_rules(backend) {
        true => netfilter::clean(netns).map(drop),
        false => ebpf::clean_netns(netns),
    }
}

/// Whether captures of a backend leave anything inside of pods.
pub fn enters_pods(backend: &str) -> bool {
    backend != ebpf::node::NAME
}

/// The same where the backend `now` has captured the pod since then, and nothing of that may go.
pub fn clean_netns_after(netns: &Netns, backend: &str, now: &str) -> Result<(), CaptureError> {
    // Each of these has replaced the rules of the other when it applied its own.
    if is_by_rules(backend) && is_by_rules(now) {
        return Ok(());
    }
    if is_by_rules(backend) {
        clean_own(backend)?;
    }
    clean_netns(netns, backend)
}

/// Takes back what captures of a backend leave in the namespace of the calling thread, which is the daemon's own.
pub fn clean_own(backend: &str) -> Result<(), CaptureError> {
    if !is_by_rules(backend) {
        return Ok(());
    }
    let own = Netns::current().map_err(netfilter::NetfilterError::Namespace)?;
    netfilter::clean(&own).map(drop)
}

fn is_by_rules(backend: &str) -> bool {
    [Backend::Iptables, Backend::Nftables]
        .iter()
        .any(|by_rules| by_rules.name() == backend)
}

/// What was not as it had been applied, and whether it is again.
#[derive(Debug)]
pub struct Repair {
    /// A pod's uid, or `node`.
    pub place: String,
    /// In words, what was made good; or why it could not be.
    pub result: Result<Vec<String>, CaptureError>,
}

impl Repair {
    /// `None` if all was right.
    pub fn of(place: &str, result: Result<Vec<String>, CaptureError>) -> Option<Self> {
        let is_right = matches!(&result, Ok(repaired) if repaired.is_empty());
        (!is_right).then(|| Self {
            place: place.to_owned(),
            result,
        })
    }
}

/// What `apply` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Newly captured.
    Attached,
    /// An earlier daemon's pinned links were found right and kept.
    Adopted,
}

#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error(
        "the eBPF backend is not in this build; build the programs first with `cargo xtask build-ebpf`, or set \
         capture.backend: none"
    )]
    NotInBuild,
    #[error("no backend works on this node: {0}; see `redirect check`")]
    NoBackend(String),
    #[error(
        "this backend steers to sockets of our own proxy only; use nftables or iptables for another's"
    )]
    ForeignProxy,
    #[error("capture needs a cgroup of the daemon's own")]
    NoCgroup,
    #[error(
        "`cgroupOnly` needs capture.backend: ebpf and capture.mode: shared: neither rules nor packets tell whose of the \
         workloads in a namespace a connection is"
    )]
    CgroupOnly,
    #[error(
        "pod {pod} has the address {ip}, which {other} has, too: connections to it could be either's; remove one of the two"
    )]
    SharedAddress {
        ip: IpAddr,
        pod: PodUid,
        /// The pod, or what is known of it.
        other: String,
    },
    #[error(
        "the daemon's cgroup {} is the pod's: the daemon would capture itself; give it one below the pod's, beside the app's",
        .0.display()
    )]
    CapturesItself(PathBuf),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Netfilter(#[from] netfilter::NetfilterError),
    /// `cause` is the whole chain of causes as text, since aya's errors show theirs only in part.
    #[error("{call} {object}: {cause}{hint}")]
    Kernel {
        call: &'static str,
        object: String,
        cause: String,
        hint: &'static str,
    },
    #[error("{}", .0.join("; "))]
    Several(Vec<String>),
}

impl CaptureError {
    fn kernel(call: &'static str, object: impl ToString, source: &(dyn Error + 'static)) -> Self {
        Self::Kernel {
            call,
            object: object.to_string(),
            cause: causes(source),
            hint: hint(source),
        }
    }

    /// Nothing, or all of `errors` as one.
    fn collect(errors: Vec<Self>) -> Result<(), Self> {
        match errors.is_empty() {
            true => Ok(()),
            false => Err(Self::Several(errors.iter().map(Self::to_string).collect())),
        }
    }
}

/// An error with its causes, none of them twice.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// What an operator can do about the innermost cause.
fn hint(error: &(dyn Error + 'static)) -> &'static str {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    let Some(errno) = innermost
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::raw_os_error)
    else {
        return "";
    };
    match errno {
        nix::libc::EPERM | nix::libc::EACCES => {
            "; run as root, or with the capabilities BPF, PERFMON, NET_ADMIN and SYS_ADMIN"
        }
        nix::libc::EINVAL | nix::libc::EOPNOTSUPP => {
            "; the kernel may lack this: Linux 5.15 or newer is needed"
        }
        nix::libc::ENOSYS => "; this kernel is built without eBPF (CONFIG_BPF_SYSCALL)",
        nix::libc::ENOMEM => "; out of memory, or the memory cgroup's limit is too low",
        nix::libc::E2BIG | nix::libc::ENOSPC => "; a map is full: fewer pods or fewer exclusions",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn errors_name_call_object_cause_and_hint() {
        let denied = io::Error::from_raw_os_error(nix::libc::EPERM);
        let error = CaptureError::kernel("attach", "connect4 to /sys/fs/cgroup/a", &denied);
        assert_eq!(
            error.to_string(),
            "attach connect4 to /sys/fs/cgroup/a: Operation not permitted (os error 1); run as root, or with the \
             capabilities BPF, PERFMON, NET_ADMIN and SYS_ADMIN"
        );
        let plain = io::Error::other("no such thing");
        assert_eq!(
            CaptureError::kernel("load", "x", &plain).to_string(),
            "load x: no such thing"
        );
    }

    #[test]
    fn collected_errors_are_all_told() {
        assert!(CaptureError::collect(Vec::new()).is_ok());
        let both = CaptureError::collect(vec![CaptureError::NotInBuild, CaptureError::NoCgroup]);
        assert!(both.unwrap_err().to_string().contains("not in this build"));
    }
}
