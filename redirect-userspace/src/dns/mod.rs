//! The DNS server of captured pods, on port 15053 of each: names of the mesh are answered here, all else is asked of the server
//! that the app addressed.
//!
//! Decided purely: [`query`] reads what came, [`search`] and [`names`] say what the mesh knows of it, [`answer`] writes that
//! down, [`cache`] keeps what servers said. Done thinly: [`server`] has the sockets, [`forward`] asks the servers.
//!
//! Answers of servers are passed on as they came, byte for byte: nothing that this library does not know gets lost on the way.

mod answer;
mod cache;
mod forward;
mod names;
mod query;
mod resolve;
mod search;
mod server;
mod tcp;
mod wire;

#[cfg(test)]
mod tests;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use redirect_common::ports;

pub use server::serve;

use crate::{
    config::DnsConfig,
    orig_dst::{Chain, dns::DnsServers},
    pod::PodUid,
    sys::{datagram, netns::Netns, socket},
    telemetry::Metrics,
    workload::WorkloadStore,
};

/// What the servers of all pods share.
pub struct Shared {
    pub config: DnsConfig,
    pub network: String,
    pub workloads: Arc<WorkloadStore>,
    /// Of queries by TCP.
    pub orig_dst: Chain,
    /// Of queries by UDP, in the order of asking.
    pub servers: Vec<Arc<dyn DnsServers>>,
    pub metrics: Arc<Metrics>,
}

/// Whose queries are answered.
#[derive(Clone, Debug)]
pub struct Client {
    pub pod: PodUid,
    pub namespace: String,
    pub ips: Vec<IpAddr>,
    pub netns: Netns,
    /// On what is sent for the pod (`SO_MARK`).
    pub mark: Option<u32>,
}

/// The sockets of one pod.
pub struct Sockets {
    pub udp: std::net::UdpSocket,
    pub tcp: std::net::TcpListener,
}

impl Sockets {
    /// Opens both inside `netns`.
    pub fn open(netns: &Netns, steered: bool) -> io::Result<Self> {
        Ok(Self {
            udp: datagram::listen(netns, ports::DNS)?,
            tcp: listen(netns, steered)?,
        })
    }

    /// Goes on with those of another daemon: both receive, until that one stops. Where capture says which of several listeners
    /// gets a connection, the one for TCP is a new one (see `proxy::Listeners::open`).
    pub fn inherit(self, netns: &Netns, steered: bool) -> io::Result<Self> {
        Ok(match steered {
            true => Self {
                tcp: listen(netns, steered)?,
                ..self
            },
            false => self,
        })
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            udp: self.udp.try_clone()?,
            tcp: self.tcp.try_clone()?,
        })
    }
}

fn listen(netns: &Netns, steered: bool) -> io::Result<std::net::TcpListener> {
    let options = socket::ListenOptions {
        beside_others: steered,
        ..socket::ListenOptions::default()
    };
    socket::listen(netns, ports::DNS, options)
}

/// How a query came, and how it is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

impl Transport {
    fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// Who asks, and whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exchange {
    client: SocketAddr,
    server: Option<SocketAddr>,
    transport: Transport,
}
