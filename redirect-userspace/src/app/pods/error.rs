//! What can stand against the capture of one pod.

use std::{io, path::PathBuf};

use crate::{
    capture::CaptureError,
    identity::IdentityError,
    node::zds::server::ServeError,
    proxy::{WorkersError, client_ip::ClientIpError},
};

/// Why a pod is not captured.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    #[error(transparent)]
    Carried(#[from] ServeError),
    #[error("open network namespace {}: {source}", path.display())]
    Netns { path: PathBuf, source: io::Error },
    #[error("network namespace {} is the daemon's own; a pod has one of its own", .0.display())]
    OwnNetns(PathBuf),
    #[error(
        "network namespace {} is not the daemon's own; in dedicated mode the daemon captures the pod that it runs in", .0.display()
    )]
    NotOwnNetns(PathBuf),
    #[error("find the daemon's own network namespace: {0}")]
    FindOwnNetns(#[source] io::Error),
    #[error("network namespace {} is shared with another pod, which has none of its own", .0.display())]
    SharedNetns(PathBuf),
    #[error("listen on port {port} in {}: {source}; does something else listen there?", netns.display())]
    Listen {
        port: u16,
        netns: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    ClientIp(#[from] ClientIpError),
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Workers(#[from] WorkersError),
    #[error("record the pod in {}: {source}", path.display())]
    Record { path: PathBuf, source: io::Error },
}
