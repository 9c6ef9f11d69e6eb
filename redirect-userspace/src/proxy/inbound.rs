//! Connections from peers: a tunnel on the pod's HBONE port, and for each stream in it a connection to the app.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{Method, Request, Response, StatusCode};
use tokio::{
    net::TcpStream,
    time::{Timeout, timeout},
};

use super::{
    Admission, PodContext,
    authority::inbound_target,
    authorization, client_ip, connector,
    copy::{self, CopyError},
    refused,
    worker::Worker,
};
use crate::{
    hbone::{Stream, TraceParent, server},
    identity::tls::{Peer, handshake_reason},
    sys::socket::{ClientOptions, ResetOnDrop},
    telemetry::{Direction, Traffic},
    tls::{self, TlsError},
};

/// Accepts the tunnels of one pod on one worker, within limits.
pub struct Acceptor {
    worker: Rc<Worker>,
    context: Arc<PodContext>,
    limits: Rc<Limits>,
}

/// What peers use of the pod's listener now.
#[derive(Default)]
struct Limits {
    tunnels: Cell<usize>,
    handshakes: RefCell<HashMap<IpAddr, usize>>,
}

/// One tunnel's share of the limits.
struct Share {
    limits: Rc<Limits>,
    source: IpAddr,
    shaking: bool,
}

impl Share {
    fn ask(
        limits: &Rc<Limits>,
        source: IpAddr,
        max_tunnels: usize,
        max_handshakes: usize,
    ) -> Result<Self, &'static str> {
        if limits.tunnels.get() >= max_tunnels {
            return Err("tunnel_limit");
        }
        let mut handshakes = limits.handshakes.borrow_mut();
        let shaking = handshakes.entry(source).or_default();
        if *shaking >= max_handshakes {
            return Err("handshake_limit");
        }
        *shaking += 1;
        limits.tunnels.set(limits.tunnels.get() + 1);
        drop(handshakes);
        Ok(Self {
            limits: limits.clone(),
            source,
            shaking: true,
        })
    }

    fn shook_hands(&mut self) {
        if std::mem::take(&mut self.shaking) {
            let mut handshakes = self.limits.handshakes.borrow_mut();
            if let Some(count) = handshakes.get_mut(&self.source) {
                *count -= 1;
                if *count == 0 {
                    handshakes.remove(&self.source);
                }
            }
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shook_hands();
        self.limits.tunnels.set(self.limits.tunnels.get() - 1);
    }
}

impl Acceptor {
    pub fn new(worker: Rc<Worker>, context: Arc<PodContext>) -> Self {
        Self {
            worker,
            context,
            limits: Rc::default(),
        }
    }

    /// Takes an accepted connection; returns at once.
    pub fn accepted(&self, stream: TcpStream, client: SocketAddr) {
        let hbone = &self.worker.shared.hbone;
        match Share::ask(
            &self.limits,
            client.ip(),
            hbone.max_inbound_tunnels,
            hbone.max_handshakes_per_source,
        ) {
            Ok(share) => {
                let (worker, context) = (self.worker.clone(), self.context.clone());
                self.worker
                    .spawn(serve(worker, context, stream, client, share));
            }
            Err(reason) => {
                refused(
                    &self.worker.shared,
                    &self.context,
                    Direction::inbound,
                    reason,
                    client,
                );
                drop(ResetOnDrop::new(stream));
            }
        }
    }
}

/// Who is at the other end of a tunnel.
pub(super) struct Caller {
    pub address: SocketAddr,
    pub peer: Peer,
}

async fn serve(
    worker: Rc<Worker>,
    context: Arc<PodContext>,
    stream: TcpStream,
    client: SocketAddr,
    mut share: Share,
) {
    let shared = &worker.shared;
    let roots = shared.identities.roots().fingerprint;
    let (stream, peer) = match Box::pin(secure(&worker, &context, stream)).await {
        Ok(secured) => secured,
        Err(error) => {
            shared.metrics.failed(Direction::inbound, error.reason());
            tracing::warn!(
                target: "redirect::access", direction = "inbound", pod = %context.pod.uid, src.addr = %client,
                reason = error.reason(), %error, "tunnel refused"
            );
            return;
        }
    };
    share.shook_hands();
    let not_after = shared
        .identities
        .get(&context.pod.identity)
        .map_or(peer.not_after, |own| own.not_after.min(peer.not_after));
    let caller = Rc::new(Caller {
        address: client,
        peer,
    });
    tracing::debug!(pod = %context.pod.uid, src.addr = %client, src.identity = %caller.peer.uri, "tunnel opened");
    let _open = shared.metrics.tunnel(Direction::inbound);
    let trusted = || {
        let trust = connector::trust(shared);
        trust.now < not_after && trust.roots == roots
    };
    let handle = |request: Request<RecvStream>, respond| {
        let (at, context, caller) = (worker.clone(), context.clone(), caller.clone());
        worker.spawn(async move { carry(at, context, caller, request, respond).await });
    };
    if let Err(error) =
        server::serve(stream, &shared.hbone, worker.drain.clone(), trusted, handle).await
    {
        shared.metrics.failed(Direction::inbound, "tunnel_broken");
        tracing::info!(pod = %context.pod.uid, src.addr = %client, src.identity = %caller.peer.uri, %error, "tunnel broke");
    }
}

/// Why a tunnel did not come about.
#[derive(Debug, thiserror::Error)]
enum SecureError {
    #[error("no certificate for {0}")]
    NoCertificate(#[from] crate::identity::IdentityError),
    #[error("handshake not done in {0:?}")]
    Timeout(Duration),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Peer(#[from] crate::identity::tls::PeerError),
}

impl SecureError {
    fn reason(&self) -> &'static str {
        match self {
            Self::NoCertificate(_) => "no_certificate",
            Self::Timeout(_) => "handshake_timeout",
            Self::Tls(TlsError::Rustls(error)) => handshake_reason(error),
            Self::Tls(_) => "handshake_io",
            Self::Peer(error) => error.reason(),
        }
    }
}

async fn secure(
    worker: &Worker,
    context: &PodContext,
    stream: TcpStream,
) -> Result<(tls::TlsStream, Peer), SecureError> {
    let config = worker.shared.tls.server(&context.pod.identity)?;
    let limit = worker.shared.hbone.handshake_timeout;
    let established = timeout(limit, tls::accept(stream, config))
        .await
        .map_err(|_| SecureError::Timeout(limit))??;
    let peer = crate::identity::tls::peer(&established.peer_certificates)?;
    Ok((established.stream, peer))
}

async fn carry(
    worker: Rc<Worker>,
    context: Arc<PodContext>,
    caller: Rc<Caller>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let began = Instant::now();
    let trace = request
        .headers()
        .get("traceparent")
        .and_then(TraceParent::parse);
    let opened = Box::pin(open(&worker, &context, &caller, &request)).await;
    let (app, destination, _admission) = match opened {
        Ok(opened) => opened,
        Err(refusal) => {
            worker
                .shared
                .metrics
                .failed(Direction::inbound, refusal.reason);
            tracing::warn!(
                target: "redirect::access", direction = "inbound", pod = %context.pod.uid, src.addr = %caller.address,
                src.identity = %caller.peer.uri, authority = ?request.uri().authority().map(|a| a.as_str()),
                trace_id = trace.map(|trace| format!("{:032x}", trace.trace_id)),
                status = refusal.status.as_u16(), reason = refusal.reason, error = refusal.error, "connection refused"
            );
            let mut response = Response::new(());
            *response.status_mut() = refusal.status;
            // Fails only if the peer reset the stream meanwhile.
            let _ = respond.send_response(response, true);
            return;
        }
    };
    let traffic = Traffic::inbound(&worker.shared.inbound);
    let result = match respond.send_response(Response::new(()), false) {
        Ok(send) => {
            let stream = Stream {
                send,
                recv: request.into_body(),
            };
            tokio::select! {
                result = copy::hbone(app, stream, None, &traffic) => result,
                policy = authorization::revoked(&worker, &context, &caller, destination) => Err(CopyError::Denied(policy)),
            }
        }
        Err(error) => Err(error.into()),
    };
    if result.is_err() {
        worker.shared.metrics.failed(Direction::inbound, "broken");
    }
    tracing::info!(
        target: "redirect::access",
        direction = "inbound",
        pod = %context.pod.uid,
        src.addr = %caller.address,
        src.identity = %caller.peer.uri,
        dst.addr = %destination,
        dst.identity = %context.pod.identity,
        bytes_sent = traffic.bytes_sent(),
        bytes_recv = traffic.bytes_received(),
        trace_id = trace.map(|trace| format!("{:032x}", trace.trace_id)),
        duration = ?began.elapsed(),
        error = result.err().map(tracing::field::display),
        "connection closed"
    );
}

/// An answer other than 200.
pub(super) struct Refusal {
    status: StatusCode,
    reason: &'static str,
    error: String,
}

impl Refusal {
    pub fn new(status: StatusCode, reason: &'static str, error: impl ToString) -> Self {
        Self {
            status,
            reason,
            error: error.to_string(),
        }
    }
}

async fn open(
    worker: &Worker,
    context: &Arc<PodContext>,
    caller: &Caller,
    request: &Request<RecvStream>,
) -> Result<(ResetOnDrop, SocketAddr, Admission), Refusal> {
    let shared = &worker.shared;
    if request.method() != Method::CONNECT {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "not_connect",
            format!("method {}", request.method()),
        ));
    }
    let authority = request
        .uri()
        .authority()
        .map_or("", |authority| authority.as_str());
    // Without the data there are no policies, and whom they would refuse is not known.
    let hold = shared.proxy.hold;
    let workloads = shared.workloads.wait_ready(hold).await.ok_or_else(|| {
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "workloads_not_ready",
            "no complete workload data yet",
        )
    })?;
    let app = inbound_target(Some(&workloads), &context.pod, authority)
        .map_err(|error| Refusal::new(error.status(), error.as_str(), error))?;
    authorization::check(shared, &workloads, context, caller, app)?;
    drop(workloads);
    let admission =
        Admission::ask(context, shared.proxy.max_connections_per_pod).ok_or_else(|| {
            Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "pod_connection_limit",
                "too many connections in this pod",
            )
        })?;
    let stream = connect_app(worker, context, caller.address.ip(), app).await?;
    Ok((ResetOnDrop::new(stream), app, admission))
}

async fn connect_app(
    worker: &Worker,
    context: &PodContext,
    client: IpAddr,
    app: SocketAddr,
) -> Result<TcpStream, Refusal> {
    let options = if context.client_ip && client.is_ipv4() == app.is_ipv4() {
        ClientOptions {
            bind: Some(client),
            transparent: true,
            mark: Some(client_ip::MARK),
        }
    } else {
        ClientOptions::default()
    };
    let limit: Timeout<_> = timeout(
        worker.shared.proxy.connect_timeout,
        connector::connect(&context.netns, app, options),
    );
    match limit.await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => {
            let reason = if error.kind() == std::io::ErrorKind::ConnectionRefused {
                "app_refused"
            } else {
                "app_connect"
            };
            Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                reason,
                format!("connect to {app}: {error}"),
            ))
        }
        Err(_) => Err(Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "app_timeout",
            format!("connect to {app}: no answer in time"),
        )),
    }
}
