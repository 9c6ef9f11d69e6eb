//! The original destination of an accepted socket, from the socket's own storage.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd},
    sync::Arc,
};

use arc_swap::ArcSwap;
use aya::maps::{Map, MapData, MapError, SkStorage};
use redirect_common::maps::OrigDstEntry;

use super::super::CaptureError;
use crate::{
    orig_dst::{OrigDst, OrigDstResolver},
    pod::PodUid,
    sys::bpf::Plain,
};

/// One lookup by file descriptor; shared by all workers without a lock.
pub struct AcceptedSockets {
    storage: SkStorage<MapData, Plain<OrigDstEntry>>,
    pods: PodNumbers,
}

/// The pods by the numbers that the programs know them by.
#[derive(Clone, Default)]
pub struct PodNumbers(Arc<ArcSwap<HashMap<u32, PodUid>>>);

impl PodNumbers {
    pub fn insert(&self, number: u32, uid: &PodUid) {
        self.0.rcu(|pods| {
            let mut pods = HashMap::clone(pods);
            pods.insert(number, uid.clone());
            pods
        });
    }

    pub fn remove(&self, uid: &PodUid) {
        self.0.rcu(|pods| {
            let mut pods = HashMap::clone(pods);
            pods.retain(|_, other| other != uid);
            pods
        });
    }

    /// Wait-free.
    fn get(&self, number: u32) -> Option<PodUid> {
        self.0.load().get(&number).cloned()
    }
}

impl AcceptedSockets {
    pub fn new(map: Map, pods: PodNumbers) -> Result<Self, CaptureError> {
        let storage = map
            .try_into()
            .map_err(|error: MapError| CaptureError::kernel("use", "map rdr_accepted", &error))?;
        Ok(Self { storage, pods })
    }
}

impl OrigDstResolver for AcceptedSockets {
    fn resolve(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<OrigDst>> {
        match self.storage.get(&accepted.as_raw_fd(), 0) {
            Ok(Plain(entry)) => Ok(Some(OrigDst {
                addr: SocketAddr::new(entry.addr.to_ip(), entry.port),
                cgroup_id: Some(entry.cgroup),
                pod: self.pods.get(entry.pod),
            })),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(MapError::SyscallError(error)) => Err(error.io_error),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn name(&self) -> &'static str {
        "sk_storage"
    }
}
