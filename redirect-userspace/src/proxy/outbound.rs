//! A connection that an app made: from its original destination to a tunnel, or straight on, or refused.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    rc::Rc,
    time::Instant,
};

use tokio::{net::TcpStream, time::timeout};

use super::{
    Admission, PodContext, connector, copy, refuse,
    route::{HboneRoute, Route, Source, route},
    running_pod::RunningPod,
    sites::SiteMembers,
    worker::Worker,
};
use crate::{
    hbone::{
        self, HboneError, Stream, TraceParent, client::ConnectHeaders, client::Slot, pool::PoolKey,
    },
    sys::socket::ResetOnDrop,
    telemetry::{Direction, Traffic},
};

/// Why an app's connection was refused or could not be made.
#[derive(Debug, thiserror::Error)]
enum OutboundError {
    #[error("no original destination: a direct connection to the proxy's port")]
    NoOrigDst,
    #[error("no complete workload data yet")]
    NotReady,
    #[error("refused: {0}")]
    Refused(&'static str),
    #[error(transparent)]
    Hbone(#[from] HboneError),
    #[error("connect to {destination}: {error}")]
    Connect {
        destination: SocketAddr,
        error: std::io::Error,
    },
    #[error("connect to {0}: no answer in time")]
    ConnectTimeout(SocketAddr),
    #[error("the pod has no address of the family of {0}")]
    NoSource(SocketAddr),
}

impl OutboundError {
    fn reason(&self) -> &'static str {
        match self {
            Self::NoOrigDst => "no_original_destination",
            Self::NotReady => "workloads_not_ready",
            Self::Refused(reason) => reason,
            Self::Hbone(error) => error.reason(),
            Self::Connect { .. } => "destination_connect",
            Self::ConnectTimeout(_) => "destination_timeout",
            Self::NoSource(_) => "no_source_address",
        }
    }
}

/// Takes an accepted connection; returns at once.
pub fn accepted(worker: &Rc<Worker>, site: &SiteMembers, app: TcpStream, client: SocketAddr) {
    let shared = &worker.shared;
    let members = site.borrow();
    let orig_dst = app
        .local_addr()
        .ok()
        .and_then(|local| shared.orig_dst.resolve(app.as_fd(), local, members.ips()));
    let named = orig_dst.as_ref().and_then(|orig_dst| orig_dst.pod.as_ref());
    let refuse = |pod, reason, app| refuse(shared, pod, Direction::outbound, reason, app, client);
    let Some(pod) = members.outbound(named, client.ip()) else {
        return refuse(None, "unknown_pod", app);
    };
    let limit = shared.proxy.max_connections_per_pod;
    let Some(admission) = Admission::ask(&pod.context, limit) else {
        return refuse(Some(pod), "pod_connection_limit", app);
    };
    let app = ResetOnDrop::new(app);
    let destination = orig_dst.map(|orig_dst| orig_dst.addr);
    let (at, of) = (worker.clone(), pod.clone());
    pod.spawn(worker, async move {
        let _admission = admission;
        carry(at, of, app, client, destination).await;
    });
}

/// The other end of a connection, once there is one.
enum Opened {
    Hbone(Stream, Slot),
    Plain(TcpStream),
}

async fn carry(
    worker: Rc<Worker>,
    context: Rc<RunningPod>,
    app: ResetOnDrop,
    client: SocketAddr,
    destination: Option<SocketAddr>,
) {
    let began = Instant::now();
    let traffic = Traffic::outbound(&worker.shared.outbound);
    // What is needed only until the connection stands is boxed away from what an idle connection keeps.
    let mut log = AccessLog {
        context: &context,
        client,
        began,
        trace: None,
        destination,
        via: None,
    };
    let opened = match Box::pin(open(&worker, &context, client, &mut log)).await {
        Ok(opened) => opened,
        Err(error) => {
            // connect() succeeded long ago: only a reset still tells the app that there is nobody.
            drop(app);
            worker
                .shared
                .metrics
                .failed(Direction::outbound, error.reason());
            log.failed(&error);
            return;
        }
    };
    let result = match opened {
        Opened::Hbone(stream, slot) => copy::hbone(app, stream, Some(&slot), &traffic).await,
        Opened::Plain(peer) => copy::passthrough(app, ResetOnDrop::new(peer), &traffic).await,
    };
    if result.is_err() {
        worker.shared.metrics.failed(Direction::outbound, "broken");
    }
    log.closed(&traffic, result.err());
}

async fn open(
    worker: &Rc<Worker>,
    context: &PodContext,
    client: SocketAddr,
    log: &mut AccessLog<'_>,
) -> Result<Opened, OutboundError> {
    let shared = &worker.shared;
    let destination = log.destination.ok_or(OutboundError::NoOrigDst)?;
    let workloads = match shared.workloads.snapshot() {
        Some(workloads) => workloads,
        None => {
            shared.workloads.wait_ready(shared.proxy.hold).await;
            shared.workloads.snapshot().ok_or(OutboundError::NotReady)?
        }
    };
    let source = Source {
        network: &shared.network,
        namespace: &context.pod.namespace,
    };
    let routed = route(&workloads, source, destination, worker.pick(destination));
    drop(workloads);
    match routed {
        Route::Hbone(to) => {
            log.via = Some(to.peer);
            open_hbone(worker, context, client, to, log).await
        }
        Route::Passthrough(to) => open_plain(worker, context, client.ip(), to.dst).await,
        Route::Refuse(reason) => Err(OutboundError::Refused(reason.as_str())),
    }
}

async fn open_hbone(
    worker: &Rc<Worker>,
    context: &PodContext,
    client: SocketAddr,
    to: HboneRoute,
    log: &mut AccessLog<'_>,
) -> Result<Opened, OutboundError> {
    let source_ip = context
        .source_ip(client.ip(), to.peer.ip())
        .ok_or(OutboundError::NoSource(to.peer))?;
    let key = PoolKey {
        pod: context.pod.uid.clone(),
        source_ip,
        source: context.pod.identity.clone(),
        accepted: to.accepted,
        peer: to.peer,
    };
    let trace = TraceParent::random();
    log.trace = Some(trace);
    let headers = || ConnectHeaders {
        baggage: context.baggage.clone(),
        forwarded: hbone::forwarded(client),
        traceparent: trace.header(),
    };
    let (stream, slot) = worker.pool.open(&key, to.authority, headers).await?;
    Ok(Opened::Hbone(stream, slot))
}

async fn open_plain(
    worker: &Rc<Worker>,
    context: &PodContext,
    app_ip: IpAddr,
    destination: SocketAddr,
) -> Result<Opened, OutboundError> {
    // The app's own source address, where it chose one of several; else the routing table's choice, as without us.
    let bind = Some(app_ip)
        .filter(|ip| context.pod.ips.contains(ip) && ip.is_ipv4() == destination.is_ipv4());
    let options = context.standpoint.as_pod(bind);
    let connecting = connector::connect(&context.netns, destination, options);
    let peer = timeout(worker.shared.proxy.connect_timeout, connecting)
        .await
        .map_err(|_| OutboundError::ConnectTimeout(destination))?
        .map_err(|error| OutboundError::Connect { destination, error })?;
    Ok(Opened::Plain(peer))
}

/// What the access log says of a connection.
struct AccessLog<'a> {
    context: &'a PodContext,
    client: SocketAddr,
    began: Instant,
    trace: Option<TraceParent>,
    destination: Option<SocketAddr>,
    via: Option<SocketAddr>,
}

impl AccessLog<'_> {
    fn failed(&self, error: &OutboundError) {
        tracing::warn!(
            target: "redirect::access",
            direction = "outbound",
            pod = %self.context.pod.uid,
            src.addr = %self.client,
            dst.addr = self.destination.map(tracing::field::display),
            dst.hbone_addr = self.via.map(tracing::field::display),
            trace_id = self.trace.map(|trace| format!("{:032x}", trace.trace_id)),
            duration = ?self.began.elapsed(),
            reason = error.reason(),
            error = %error,
            "connection failed"
        );
    }

    fn closed(&self, traffic: &Traffic, error: Option<copy::CopyError>) {
        tracing::info!(
            target: "redirect::access",
            direction = "outbound",
            pod = %self.context.pod.uid,
            src.addr = %self.client,
            src.identity = %self.context.pod.identity,
            dst.addr = self.destination.map(tracing::field::display),
            dst.hbone_addr = self.via.map(tracing::field::display),
            bytes_sent = traffic.bytes_sent(),
            bytes_recv = traffic.bytes_received(),
            trace_id = self.trace.map(|trace| format!("{:032x}", trace.trace_id)),
            duration = ?self.began.elapsed(),
            error = error.map(tracing::field::display),
            "connection closed"
        );
    }
}
