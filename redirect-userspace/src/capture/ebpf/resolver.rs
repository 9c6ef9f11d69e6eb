//! The original destination of an accepted socket, from the socket's own storage.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use aya::maps::{Map, MapData, MapError, SkStorage};
use redirect_common::maps::OrigDstEntry;

use super::super::CaptureError;
use crate::{
    orig_dst::{OrigDst, OrigDstResolver},
    sys::bpf::Plain,
};

/// One lookup by file descriptor; shared by all workers without a lock.
pub struct AcceptedSockets {
    storage: SkStorage<MapData, Plain<OrigDstEntry>>,
}

impl AcceptedSockets {
    pub fn new(map: Map) -> Result<Self, CaptureError> {
        let storage = map
            .try_into()
            .map_err(|error: MapError| CaptureError::kernel("use", "map rdr_accepted", &error))?;
        Ok(Self { storage })
    }
}

impl OrigDstResolver for AcceptedSockets {
    fn resolve(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<OrigDst>> {
        match self.storage.get(&accepted.as_raw_fd(), 0) {
            Ok(Plain(entry)) => Ok(Some(OrigDst {
                addr: SocketAddr::new(entry.addr.to_ip(), entry.port),
                cgroup_id: Some(entry.cgroup),
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
