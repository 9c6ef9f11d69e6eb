//! The sockets of one pod's DNS server.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use redirect_common::ports;
use tokio::{
    io::Interest,
    net::{TcpListener, UdpSocket},
    sync::watch,
    task::spawn_local,
};

use super::{
    Client, Exchange, Shared, Sockets, Transport,
    resolve::{Outcome, Resolver},
    tcp,
};
use crate::{
    orig_dst::dns::ServerChain,
    sys::datagram::{self, Received},
};

/// After an error that will come again at once, receiving pauses for this long.
const PAUSE: Duration = Duration::from_millis(50);

/// Answers the pod's queries, on this worker, until `stop` turns true or its sender is gone.
pub fn serve(
    shared: &Arc<Shared>,
    client: Client,
    sockets: Sockets,
    stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let udp = Rc::new(UdpSocket::from_std(sockets.udp)?);
    let tcp = TcpListener::from_std(sockets.tcp)?;
    let fallback = shared.config.upstream;
    let servers = ServerChain::open(&shared.servers, &client.netns, fallback, &ports::IN_POD);
    let resolver = Resolver::new(shared.clone(), client.clone());
    let datagrams = Datagrams {
        socket: udp,
        servers,
        resolver: resolver.clone(),
        client: client.clone(),
    };
    let until = stop.clone();
    spawn_local(async move { stopped_by(until, datagrams.run()).await });
    let connections = tcp::Connections::new(shared.clone(), client, resolver);
    spawn_local(async move { stopped_by(stop, connections.accept(tcp)).await });
    Ok(())
}

async fn stopped_by(mut stop: watch::Receiver<bool>, run: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => {}
        () = run => {}
    }
}

struct Datagrams {
    socket: Rc<UdpSocket>,
    servers: ServerChain,
    resolver: Rc<Resolver>,
    client: Client,
}

impl Datagrams {
    async fn run(self) {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            let socket = self.socket.as_fd();
            let receive = || datagram::receive(socket, &mut buffer);
            match self.socket.async_io(Interest::READABLE, receive).await {
                Ok(received) => self.received(&buffer[..received.bytes], received),
                Err(error) => {
                    tracing::warn!(pod = %self.client.pod, %error, "cannot receive DNS queries");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn received(&self, bytes: &[u8], received: Received) {
        if !is_from_inside(&received, &self.client.ips) {
            self.resolver.refused(Transport::Udp, "from_outside");
            return;
        }
        let local = SocketAddr::new(received.local, ports::DNS);
        let exchange = Exchange {
            client: received.client,
            server: self.servers.find(received.client, local, &self.client.ips),
            transport: Transport::Udp,
        };
        match self.resolver.answer(bytes, &exchange) {
            Outcome::Answer(answer) => send(&self.socket, &answer, received),
            Outcome::Nothing => {}
            Outcome::Later(ticket) => {
                let (socket, resolver) = (self.socket.clone(), self.resolver.clone());
                let bytes = bytes.to_vec();
                spawn_local(async move {
                    if let Some(answer) = resolver.ask(ticket, &bytes, &exchange).await {
                        send(&socket, &answer, received);
                    }
                });
            }
        }
    }
}

/// Whether a datagram was sent in the pod's namespace: captured queries go to local addresses, and from addresses of the pod.
///
/// The kernel drops what comes from elsewhere to loopback addresses, and what claims to come from its own IPv4 addresses. For
/// IPv6 it does neither, but says truly by which device such a datagram came.
fn is_from_inside(received: &Received, pod_ips: &[IpAddr]) -> bool {
    let source = received.client.ip();
    let own = source.is_loopback() || pod_ips.contains(&source);
    own && (received.local.is_loopback() || received.by_loopback)
}

/// An answer that cannot be sent is lost, as it may be on any way: the app asks again.
fn send(socket: &UdpSocket, answer: &[u8], to: Received) {
    if let Err(error) = datagram::send_from(socket.as_fd(), answer, to.local, to.client) {
        tracing::debug!(target: "redirect::dns", client = %to.client, %error, "answer not sent");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pod_itself_is_answered() {
        let pod = ["10.0.0.2", "fd00::2"].map(|ip| ip.parse().expect("an address"));
        for (client, local, by_loopback, expected) in [
            ("10.0.0.2:4000", "127.128.0.9", false, true),
            ("10.0.0.2:4000", "127.0.0.1", true, true),
            ("127.0.0.1:4000", "127.0.0.1", true, true),
            ("[fd00::2]:4000", "fd72:6472:6374::1:5", true, true),
            ("[fd00::2]:4000", "::1", true, true),
            // Forged by a neighbour.
            ("[fd00::2]:4000", "fd72:6472:6374::1:5", false, false),
            ("[fd00::9]:4000", "fd72:6472:6374::1:5", false, false),
            ("10.0.0.9:4000", "127.128.0.9", false, false),
            ("10.0.0.9:4000", "10.0.0.2", false, false),
            ("10.0.0.2:4000", "10.0.0.2", false, false),
        ] {
            let received = Received {
                bytes: 0,
                client: client.parse().expect("an address"),
                local: local.parse().expect("an address"),
                by_loopback,
            };
            assert_eq!(is_from_inside(&received, &pod), expected, "{received:?}");
        }
    }
}
