//! Capture: how a pod's connections come to the proxy. Backends: [`ebpf`], [`none`].

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    config::{Backend, CaptureConfig},
    orig_dst::OrigDstResolver,
    pod::{Pod, PodUid},
    sys::netns::Netns,
};

pub mod ebpf;
pub mod none;

/// Brings a pod's connections to the proxy's listeners, and lets go of them again.
///
/// `apply` is idempotent and adopts what an earlier daemon left; `clean` is idempotent and needs nothing but the uid.
pub trait Capture: Send {
    /// Captures `pod`, whose network namespace is `netns`. On an error nothing stays half-applied.
    fn apply(&mut self, pod: &Pod, netns: &Netns) -> Result<Applied, CaptureError>;

    /// Lets go of the pod: afterwards its connections are as before capture.
    fn clean(&mut self, uid: &PodUid) -> Result<(), CaptureError>;

    /// The uids that are captured in the kernel now, as found there (not as remembered).
    fn inspect(&self) -> Result<Vec<PodUid>, CaptureError>;

    /// How accepted sockets tell their original destination under this backend.
    fn resolver(&self) -> Arc<dyn OrigDstResolver>;

    fn name(&self) -> &'static str;

    /// A reader of what the programs counted, for metrics.
    fn counters(&self) -> VerdictCounters {
        Arc::new(Vec::new)
    }

    /// Begins to log decisions, where the configuration asks for it. Called inside the daemon's runtime.
    fn start_events(&mut self) {}
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

/// The backend that the configuration names. `cgroup` is the daemon's own.
pub fn open(
    config: &CaptureConfig,
    cgroup: Option<&Path>,
) -> Result<Box<dyn Capture>, CaptureError> {
    let _ = cgroup;
    match config.backend {
        Backend::Ebpf => Err(CaptureError::NotInBuild),
        Backend::None => Ok(Box::new(none::NoCapture::default())),
    }
}

/// Removes all that the daemon pinned below `bpffs`.
pub fn uninstall(bpffs: &Path) -> Result<usize, CaptureError> {
    let _ = bpffs;
    Err(CaptureError::NotInBuild)
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
        "the eBPF backend is not in this build; build the programs first with `cargo xtask build-ebpf`"
    )]
    NotInBuild,
    #[error("{call} {object}: {source}{hint}")]
    Syscall {
        call: &'static str,
        object: String,
        source: io::Error,
        hint: &'static str,
    },
    #[error("pod {pod}: {what} {}: {source}", path.display())]
    Pod {
        pod: PodUid,
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{0}")]
    Other(String),
}
