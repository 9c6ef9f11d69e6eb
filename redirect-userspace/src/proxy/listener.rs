//! The listeners of one site, and the loop that accepts on one of them.

use std::{io, net::SocketAddr, time::Duration};

use redirect_common::ports;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::standpoint::Standpoint;
use crate::sys::{
    netns::Netns,
    socket::{self, ListenOptions},
};

/// The listening sockets of a site. All workers accept on clones of the same sockets.
pub struct Listeners {
    pub outbound: std::net::TcpListener,
    pub inbound_plaintext: std::net::TcpListener,
    pub hbone: std::net::TcpListener,
}

impl Listeners {
    /// Listens inside `netns`; an error names the port. `steered`: capture says which daemon's listeners get a connection, so
    /// that those of two can be beside each other.
    pub fn open(
        netns: &Netns,
        standpoint: Standpoint,
        steered: bool,
    ) -> Result<Self, (u16, io::Error)> {
        let listen = |port| {
            let options = ListenOptions {
                beside_others: steered,
                ..standpoint.listening(port)
            };
            socket::listen(netns, port, options).map_err(|error| (port, error))
        };
        Ok(Self {
            outbound: listen(ports::OUTBOUND)?,
            inbound_plaintext: listen(ports::INBOUND_PLAINTEXT)?,
            hbone: listen(ports::INBOUND_HBONE)?,
        })
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            outbound: self.outbound.try_clone()?,
            inbound_plaintext: self.inbound_plaintext.try_clone()?,
            hbone: self.hbone.try_clone()?,
        })
    }
}

/// After an error that will come again at once (no descriptors, no memory), accepting pauses for this long.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts until `stop` is dropped, handing each connection to `handle`, which must not wait.
pub async fn accept_loop(
    listener: TcpListener,
    mut stop: watch::Receiver<bool>,
    handle: impl Fn(TcpStream, SocketAddr),
) {
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.changed() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => handle(stream, socket::canonical(client)),
            // The client was gone before we came to it: says nothing about the next one.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                let at = listener.local_addr().ok().map(tracing::field::display);
                tracing::warn!(at, %error, "cannot accept connections; is `nofile` too low?");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
