//! Connections from peers: a tunnel on the pod's HBONE port, and for each stream in it a connection to the app.

use std::{
    net::SocketAddr,
    os::fd::AsFd,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{Method, Request, Response, StatusCode};
use tokio::{net::TcpStream, time::timeout};

use super::{
    Admission, PodContext, app,
    authority::inbound_target,
    authorization::{self, Caller},
    connector,
    copy::{self, CopyError},
    limits::Share,
    refuse,
    running_pod::RunningPod,
    site::Members,
    sites::SiteMembers,
    worker::Worker,
};
use crate::{
    hbone::{Stream, TraceParent, server},
    identity::tls::{Peer, handshake_reason},
    orig_dst::{OrigDstResolver, SoOriginalDst},
    sys::socket::{self, ResetOnDrop},
    telemetry::{Direction, Traffic},
    tls::{self, TlsError},
};

/// Takes an accepted connection; returns at once.
pub fn accepted(worker: &Rc<Worker>, site: &SiteMembers, stream: TcpStream, client: SocketAddr) {
    let shared = &worker.shared;
    let members = site.borrow();
    let refuse = |pod, reason, stream| {
        refuse(shared, pod, Direction::inbound, reason, stream, client);
    };
    let Some(pod) = addressed(&members, &stream) else {
        return refuse(None, "unknown_pod", stream);
    };
    let (tunnels, handshakes) = (
        shared.hbone.max_inbound_tunnels,
        shared.hbone.max_handshakes_per_source,
    );
    match Share::ask(&pod.limits, client.ip(), tunnels, handshakes) {
        Ok(share) => {
            let tunnel = serve(
                worker.clone(),
                site.clone(),
                pod.clone(),
                stream,
                client,
                share,
            );
            pod.spawn(worker, tunnel);
        }
        Err(reason) => refuse(Some(pod), reason, stream),
    }
}

/// The pod at whose address a tunnel arrived: the socket's own, or the one from which the node's rules redirected it.
fn addressed<'a>(
    members: &'a Members<RunningPod>,
    stream: &TcpStream,
) -> Option<&'a Rc<RunningPod>> {
    let local = stream.local_addr().ok()?.ip().to_canonical();
    members.tunnel(local).or_else(|| {
        let asked = SoOriginalDst.resolve(stream.as_fd()).ok()??.addr;
        members.tunnel(asked.ip())
    })
}

async fn serve(
    worker: Rc<Worker>,
    site: SiteMembers,
    context: Rc<RunningPod>,
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
    tracing::debug!(pod = %context.pod.uid, src.addr = %client, src.identity = %peer.uri, "tunnel opened");
    let caller = Rc::new(Caller {
        address: client,
        peer: Some(peer),
    });
    let _open = shared.metrics.tunnel(Direction::inbound);
    let trusted = || {
        let trust = connector::trust(shared);
        trust.now < not_after && trust.roots == roots
    };
    let handle = |request: Request<RecvStream>, respond| {
        let pod = stream_pod(&site, &context, &request);
        let (at, of, caller) = (worker.clone(), pod.clone(), caller.clone());
        pod.spawn(&worker, async move {
            carry(at, of, caller, request, respond).await;
        });
    };
    let stopping = context.stopping();
    if let Err(error) = server::serve(stream, &shared.hbone, stopping, trusted, handle).await {
        shared.metrics.failed(Direction::inbound, "tunnel_broken");
        tracing::info!(
            pod = %context.pod.uid, src.addr = %client, src.identity = caller.identity(), %error, "tunnel broke"
        );
    }
}

/// The workload that a stream is for: the tunnel's own, or the one that has the address and port where several share one.
fn stream_pod(
    site: &SiteMembers,
    tunnel: &Rc<RunningPod>,
    request: &Request<RecvStream>,
) -> Rc<RunningPod> {
    if tunnel.pod.cgroup_only.is_none() {
        return tunnel.clone();
    }
    let asked = request
        .uri()
        .authority()
        .map(|authority| authority.as_str());
    let asked: Option<SocketAddr> = asked.and_then(|authority| authority.parse().ok());
    let members = site.borrow();
    let pod = asked.and_then(|asked| members.inbound(socket::canonical(asked)));
    // What is nobody's is refused by the check of the authority, whichever workload does it.
    pod.unwrap_or(tunnel).clone()
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
    context: Rc<RunningPod>,
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
                src.identity = caller.identity(), authority = ?request.uri().authority().map(|a| a.as_str()),
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
        src.identity = caller.identity(),
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
struct Refusal {
    status: StatusCode,
    reason: &'static str,
    error: String,
}

impl Refusal {
    fn new(status: StatusCode, reason: &'static str, error: impl ToString) -> Self {
        Self {
            status,
            reason,
            error: error.to_string(),
        }
    }
}

async fn open(
    worker: &Worker,
    context: &RunningPod,
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
    authorization::check(shared, &workloads, context, caller, app)
        .map_err(|denied| Refusal::new(StatusCode::UNAUTHORIZED, "policy_denied", denied))?;
    drop(workloads);
    let admission = Admission::ask(&context.context, shared.proxy.max_connections_per_pod)
        .ok_or_else(|| {
            Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "pod_connection_limit",
                "too many connections in this pod",
            )
        })?;
    let stream = app::connect(worker, context, caller.address.ip(), app)
        .await
        .map_err(|error| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error.reason(), error))?;
    Ok((ResetOnDrop::new(stream), app, admission))
}
