//! The DNS server that an app asked, from the map in which the programs keep what each local address stands for.

use std::{io, net::SocketAddr, path::Path, sync::Arc};

use aya::maps::{HashMap, Map, MapData, MapError};
use redirect_common::maps::{DnsEntry, DnsKey};

use super::{super::CaptureError, subject::netns_cookie};
use crate::{
    orig_dst::dns::{AskedServer, DnsServers},
    sys::{bpf::Plain, netns::Netns},
};

type Servers = HashMap<MapData, Plain<DnsKey>, Plain<DnsEntry>>;

/// The map of all pods; lookups need no lock.
pub struct DnsMap(Arc<Servers>);

impl DnsMap {
    /// Opens the map by its pin: another handle than that which cleans up.
    pub fn open(pin: &Path) -> Result<Self, CaptureError> {
        let open =
            || -> Result<Servers, MapError> { Map::HashMap(MapData::from_pin(pin)?).try_into() };
        let servers = open().map_err(|error| {
            CaptureError::kernel("open", format!("the pinned map {}", pin.display()), &error)
        })?;
        Ok(Self(Arc::new(servers)))
    }
}

struct OfNamespace {
    servers: Arc<Servers>,
    netns_cookie: u64,
}

impl DnsServers for DnsMap {
    fn open(&self, netns: &Netns) -> io::Result<Box<dyn AskedServer>> {
        Ok(Box::new(OfNamespace {
            servers: self.0.clone(),
            netns_cookie: netns_cookie(netns).map_err(io::Error::other)?,
        }))
    }

    fn name(&self) -> &'static str {
        "map"
    }
}

impl AskedServer for OfNamespace {
    fn find(&self, _: SocketAddr, local: SocketAddr) -> io::Result<Option<SocketAddr>> {
        let key = DnsKey {
            netns_cookie: self.netns_cookie,
            target: local.ip().into(),
        };
        match self.servers.get(&Plain(key), 0) {
            Ok(Plain(entry)) => Ok(Some(SocketAddr::new(entry.addr.to_ip(), entry.port))),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(MapError::SyscallError(error)) => Err(error.io_error),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}
