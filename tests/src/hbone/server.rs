//! An HBONE server that behaves as told: what the daemon's client makes of it is the question.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use http::{Request, Response};
use redirect::sys::netns::Netns;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
};
use tokio_rustls::TlsAcceptor;

use super::{Credentials, runtime};

/// What the server does.
#[derive(Clone, Copy, Debug)]
pub enum Behaviour {
    /// Answers each CONNECT with 200 and sends back what comes.
    Echo,
    /// As `Echo`, but says GOAWAY after so many streams of a connection, and serves those to their end.
    GoAwayAfter(usize),
    /// Answers each CONNECT with this status.
    Status(u16),
    /// Accepts TCP connections and never says anything.
    Mute,
    /// Completes the handshakes and never answers a request.
    Silent,
}

/// Runs on a thread of its own inside a namespace until dropped.
#[derive(Debug)]
pub struct Server {
    counts: Arc<Counts>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicUsize,
    failed_handshakes: AtomicUsize,
    streams: AtomicUsize,
}

impl Server {
    /// Listens on `addr`; is listening when this returns.
    pub fn start(
        netns: &Netns,
        addr: SocketAddr,
        credentials: &Credentials,
        behaviour: Behaviour,
    ) -> Self {
        let counts = Arc::new(Counts::default());
        let (stop, stopped) = oneshot::channel();
        let (listening, is_listening) = std::sync::mpsc::channel();
        let acceptor = TlsAcceptor::from(credentials.server_config());
        let (netns, shared) = (netns.clone(), Arc::clone(&counts));
        let thread = std::thread::spawn(move || {
            let serve = || {
                runtime().block_on(async {
                    let listener = TcpListener::bind(addr).await?;
                    listening.send(()).expect("`start` waits");
                    tokio::select! {
                        result = accept(listener, acceptor, behaviour, shared) => result,
                        _ = stopped => Ok(()),
                    }
                })
            };
            let served: io::Result<()> = netns.run(serve).expect("the namespace can be entered");
            served.unwrap_or_else(|error| panic!("HBONE server on {addr}: {error}"));
        });
        is_listening.recv().expect("the server listens");
        Self {
            counts,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// TCP connections accepted until now.
    pub fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::Relaxed)
    }

    pub fn failed_handshakes(&self) -> usize {
        self.counts.failed_handshakes.load(Ordering::Relaxed)
    }

    /// CONNECT requests until now.
    pub fn streams(&self) -> usize {
        self.counts.streams.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        if let Some(Err(panic)) = ended
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    behaviour: Behaviour,
    counts: Arc<Counts>,
) -> io::Result<()> {
    loop {
        let (tcp, _) = listener.accept().await?;
        counts.connections.fetch_add(1, Ordering::Relaxed);
        let (acceptor, counts) = (acceptor.clone(), Arc::clone(&counts));
        tokio::spawn(async move {
            // Peers that go away are part of the tests.
            let _ = serve(tcp, acceptor, behaviour, &counts).await;
        });
    }
}

async fn serve(
    tcp: TcpStream,
    acceptor: TlsAcceptor,
    behaviour: Behaviour,
    counts: &Counts,
) -> Result<(), h2::Error> {
    if let Behaviour::Mute = behaviour {
        let _ = tcp.ready(tokio::io::Interest::ERROR).await;
        return Ok(());
    }
    let Ok(tls) = acceptor.accept(tcp).await else {
        counts.failed_handshakes.fetch_add(1, Ordering::Relaxed);
        return Ok(());
    };
    let mut connection: Connection<_, Bytes> = h2::server::handshake(tls).await?;
    let mut served = 0;
    while let Some(next) = connection.accept().await {
        let (request, respond) = next?;
        counts.streams.fetch_add(1, Ordering::Relaxed);
        served += 1;
        tokio::spawn(answer(request, respond, behaviour));
        if let Behaviour::GoAwayAfter(limit) = behaviour
            && served == limit
        {
            connection.graceful_shutdown();
        }
    }
    Ok(())
}

async fn answer(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    behaviour: Behaviour,
) -> Result<(), h2::Error> {
    let response = |status: u16| {
        Response::builder()
            .status(status)
            .body(())
            .expect("a valid status")
    };
    match behaviour {
        Behaviour::Status(status) => respond.send_response(response(status), true).map(|_| ()),
        Behaviour::Mute | Behaviour::Silent => std::future::pending().await,
        Behaviour::Echo | Behaviour::GoAwayAfter(_) => {
            let mut send = respond.send_response(response(200), false)?;
            let mut body = request.into_body();
            while let Some(data) = body.data().await {
                let data = data?;
                body.flow_control().release_capacity(data.len())?;
                send.send_data(data, false)?;
            }
            send.send_data(Bytes::new(), true)
        }
    }
}
