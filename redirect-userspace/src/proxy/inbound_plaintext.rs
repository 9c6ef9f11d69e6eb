//! Connections in plaintext to a pod, which capture has brought here before its app sees them: judged with an empty identity,
//! then carried on to the app from the client's address.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    rc::Rc,
    time::Instant,
};

use tokio::net::TcpStream;

use super::{
    Admission, app,
    authorization::{self, Caller},
    copy::{self, CopyError},
    ports, refuse,
    running_pod::RunningPod,
    sites::SiteMembers,
    worker::Worker,
};
use crate::{
    orig_dst::Chain,
    sys::socket::{self, ResetOnDrop},
    telemetry::{Direction, Traffic},
};

/// Why a connection did not come to the app.
#[derive(Debug, thiserror::Error)]
enum PlaintextError {
    #[error("no complete workload data yet")]
    NotReady,
    #[error("{0}")]
    Denied(String),
    #[error(transparent)]
    App(#[from] app::AppError),
}

impl PlaintextError {
    fn reason(&self) -> &'static str {
        match self {
            Self::NotReady => "workloads_not_ready",
            Self::Denied(_) => "policy_denied",
            Self::App(error) => error.reason(),
        }
    }
}

/// Takes an accepted connection; returns at once.
pub fn accepted(worker: &Rc<Worker>, site: &SiteMembers, stream: TcpStream, client: SocketAddr) {
    let shared = &worker.shared;
    let members = site.borrow();
    let refuse = |pod, reason, stream| {
        refuse(shared, pod, Direction::inbound, reason, stream, client);
    };
    let Some(destination) = original_destination(&shared.orig_dst, &stream, members.ips()) else {
        return refuse(None, "no_original_destination", stream);
    };
    let Some(pod) = members.inbound(destination) else {
        return refuse(None, "unknown_pod", stream);
    };
    let limit = shared.proxy.max_connections_per_pod;
    let Some(admission) = Admission::ask(&pod.context, limit) else {
        return refuse(Some(pod), "pod_connection_limit", stream);
    };
    let stream = ResetOnDrop::new(stream);
    let (at, of) = (worker.clone(), pod.clone());
    pod.spawn(worker, async move {
        let _admission = admission;
        carry(at, of, stream, client, destination).await;
    });
}

/// Where the client wanted to go. Where capture does not rewrite, the socket has that for its own address; a socket on our own
/// port was either redirected by rules, or connected to us directly, and then there is no answer that can be believed.
fn original_destination(
    chain: &Chain,
    stream: &TcpStream,
    pod_ips: &[IpAddr],
) -> Option<SocketAddr> {
    let local = socket::canonical(stream.local_addr().ok()?);
    let asked = match local.port() {
        redirect_common::ports::INBOUND_PLAINTEXT => {
            let orig_dst = chain.resolve(stream.as_fd(), local, pod_ips)?;
            orig_dst.addr
        }
        _ => local,
    };
    is_the_pods(asked, pod_ips).then_some(asked)
}

/// An address of the pod, and no port that is ours: the proxy connects there with its own rights.
fn is_the_pods(asked: SocketAddr, pod_ips: &[IpAddr]) -> bool {
    pod_ips.contains(&asked.ip()) && asked.port() != 0 && !ports::is_own(asked.port())
}

async fn carry(
    worker: Rc<Worker>,
    context: Rc<RunningPod>,
    stream: ResetOnDrop,
    client: SocketAddr,
    destination: SocketAddr,
) {
    let began = Instant::now();
    let shared = &worker.shared;
    let caller = Caller {
        address: client,
        peer: None,
    };
    // What is needed only until the connection stands is boxed away from what an idle connection keeps.
    let app = match Box::pin(open(&worker, &context, &caller, destination)).await {
        Ok(app) => app,
        Err(error) => {
            drop(stream);
            shared.metrics.failed(Direction::inbound, error.reason());
            tracing::warn!(
                target: "redirect::access", direction = "inbound", pod = %context.pod.uid, src.addr = %client,
                dst.addr = %destination, duration = ?began.elapsed(), reason = error.reason(), %error,
                "plaintext connection refused"
            );
            return;
        }
    };
    let traffic = Traffic::inbound(&shared.inbound);
    let result = tokio::select! {
        result = copy::passthrough(app, stream, &traffic) => result,
        policy = authorization::revoked(&worker, &context, &caller, destination) => Err(CopyError::Denied(policy)),
    };
    if result.is_err() {
        shared.metrics.failed(Direction::inbound, "broken");
    }
    tracing::info!(
        target: "redirect::access",
        direction = "inbound",
        pod = %context.pod.uid,
        src.addr = %client,
        dst.addr = %destination,
        dst.identity = %context.pod.identity,
        bytes_sent = traffic.bytes_sent(),
        bytes_recv = traffic.bytes_received(),
        duration = ?began.elapsed(),
        error = result.err().map(tracing::field::display),
        "plaintext connection closed"
    );
}

async fn open(
    worker: &Worker,
    context: &RunningPod,
    caller: &Caller,
    destination: SocketAddr,
) -> Result<ResetOnDrop, PlaintextError> {
    let shared = &worker.shared;
    // Without the data there are no policies, and whom they would refuse is not known.
    let workloads = shared.workloads.wait_ready(shared.proxy.hold).await;
    let workloads = workloads.ok_or(PlaintextError::NotReady)?;
    authorization::check(shared, &workloads, context, caller, destination)
        .map_err(PlaintextError::Denied)?;
    drop(workloads);
    let app = app::connect(worker, context, caller.address.ip(), destination).await?;
    Ok(ResetOnDrop::new(app))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pods_own_addresses_and_none_of_our_ports() {
        let ips: [IpAddr; 2] = ["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        for (asked, expected) in [
            ("10.0.0.2:80", true),
            ("[fd00::2]:80", true),
            ("10.0.0.2:15001", false),
            ("10.0.0.2:15006", false),
            ("[fd00::2]:15008", false),
            ("10.0.0.3:80", false),
            ("127.0.0.1:80", false),
            ("10.0.0.2:0", false),
        ] {
            assert_eq!(
                is_the_pods(asked.parse().unwrap(), &ips),
                expected,
                "{asked}"
            );
        }
    }
}
