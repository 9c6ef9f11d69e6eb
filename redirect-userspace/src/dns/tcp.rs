//! DNS over TCP (RFC 7766): several queries on one connection, answered as they are ready.

use std::{cell::Cell, io, rc::Rc, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf},
    sync::{Semaphore, mpsc},
    task::spawn_local,
    time::timeout,
};

use super::{
    Client, Exchange, Shared, Transport,
    resolve::{Outcome, Resolver},
};
use crate::sys::socket::canonical;

/// Connections of one pod.
const MOST_CONNECTIONS: usize = 128;
/// Queries of one connection that wait for their answer; more are left unread.
const MOST_QUERIES: usize = 32;
/// A connection on which nothing comes, or nothing can be sent, is closed after this.
const IDLE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// The connections to one pod's server.
pub struct Connections {
    shared: Arc<Shared>,
    client: Client,
    resolver: Rc<Resolver>,
    open: Rc<Cell<usize>>,
}

impl Connections {
    pub fn new(shared: Arc<Shared>, client: Client, resolver: Rc<Resolver>) -> Self {
        Self {
            shared,
            client,
            resolver,
            open: Rc::default(),
        }
    }

    pub async fn accept(self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.accepted(stream),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(pod = %self.client.pod, %error, "cannot accept DNS connections; is `nofile` too low?");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn accepted(&self, stream: TcpStream) {
        let (Ok(local), Ok(client)) = (stream.local_addr(), stream.peer_addr()) else {
            return;
        };
        let ips = &self.client.ips;
        let found =
            self.shared
                .orig_dst
                .resolve(std::os::fd::AsFd::as_fd(&stream), canonical(local), ips);
        // Also keeps out whoever connects from outside of the pod.
        let Some(found) = found else {
            self.refused(stream, "no_original_destination");
            return;
        };
        if self.open.get() >= MOST_CONNECTIONS {
            self.refused(stream, "pod_connection_limit");
            return;
        }
        let exchange = Exchange {
            client: canonical(client),
            server: Some(found.addr),
            transport: Transport::Tcp,
        };
        let counted = Counted::new(&self.open);
        let resolver = self.resolver.clone();
        spawn_local(async move {
            let _counted = counted;
            if let Err(error) = carry(stream, exchange, resolver).await {
                tracing::debug!(target: "redirect::dns", client = %exchange.client, %error, "connection ended");
            }
        });
    }

    fn refused(&self, stream: TcpStream, reason: &'static str) {
        self.resolver.refused(Transport::Tcp, reason);
        drop(crate::sys::socket::ResetOnDrop::new(stream));
    }
}

/// Counts a connection for as long as it lives.
struct Counted(Rc<Cell<usize>>);

impl Counted {
    fn new(open: &Rc<Cell<usize>>) -> Self {
        open.set(open.get() + 1);
        Self(open.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Reads queries and writes answers until the client has ended and has its answers.
async fn carry(stream: TcpStream, exchange: Exchange, resolver: Rc<Resolver>) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let (answers, mut ready) = mpsc::channel::<Vec<u8>>(MOST_QUERIES);
    let reading = spawn_local(read(BufReader::new(reader), exchange, resolver, answers));
    // Ends when the reader and all who were asked have dropped their sender.
    while let Some(answer) = ready.recv().await {
        // What a parser took for one message fits into one frame, and so does what a server sent in one.
        let mut framed = (answer.len() as u16).to_be_bytes().to_vec();
        framed.extend(answer);
        let written = timeout(IDLE, writer.write_all(&framed)).await;
        if let Err(error) = written.map_err(io::Error::from).flatten() {
            reading.abort();
            return Err(error);
        }
    }
    Ok(())
}

async fn read(
    mut reader: BufReader<OwnedReadHalf>,
    exchange: Exchange,
    resolver: Rc<Resolver>,
    answers: mpsc::Sender<Vec<u8>>,
) {
    let waiting = Arc::new(Semaphore::new(MOST_QUERIES));
    while let Ok(Ok(query)) = timeout(IDLE, frame(&mut reader)).await {
        match resolver.answer(&query, &exchange) {
            Outcome::Answer(answer) => {
                if answers.send(answer).await.is_err() {
                    return;
                }
            }
            // Whoever sends something else here has no use for the connection.
            Outcome::Nothing => return,
            Outcome::Later(ticket) => {
                let Ok(permit) = waiting.clone().acquire_owned().await else {
                    return;
                };
                let (resolver, answers) = (resolver.clone(), answers.clone());
                spawn_local(async move {
                    let _permit = permit;
                    if let Some(answer) = resolver.ask(ticket, &query, &exchange).await {
                        let _ = answers.send(answer).await;
                    }
                });
            }
        }
    }
}

async fn frame(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Vec<u8>> {
    let length = reader.read_u16().await?;
    let mut query = vec![0; length.into()];
    reader.read_exact(&mut query).await?;
    Ok(query)
}
