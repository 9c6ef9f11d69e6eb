//! The daemon's HTTP endpoints: `/metrics` for Prometheus, `/healthz/ready` for probes.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{config::AdminConfig, sys::socket, telemetry::Metrics};

/// Whether the daemon has done what it was started for; one pod's failure does not count.
#[derive(Clone, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Release);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

#[derive(Debug, thiserror::Error)]
#[error(
    "listen on {address} for {what}: {source}; another daemon on this node? set {field} to another address or to null"
)]
pub struct AdminError {
    what: &'static str,
    field: &'static str,
    address: SocketAddr,
    source: io::Error,
}

/// The endpoints, as tasks.
#[derive(Default)]
pub struct Endpoints(Vec<JoinHandle<()>>);

impl Endpoints {
    /// Leaves the ports: another daemon may have them.
    pub async fn close(self) {
        for task in self.0 {
            task.abort();
            // Cancelled, which is what was wanted.
            let _ = task.await;
        }
    }
}

/// Starts the endpoints that are configured; they run as tasks of the current runtime.
pub async fn start(
    config: &AdminConfig,
    metrics: Arc<Metrics>,
    readiness: Readiness,
) -> Result<Endpoints, AdminError> {
    let mut endpoints = Vec::new();
    if let Some(address) = config.metrics {
        let listener = bind(address, "metrics", "admin.metrics").await?;
        endpoints.push(serve(
            listener,
            Router::new()
                .route("/metrics", get(render))
                .with_state(metrics),
        ));
    }
    if let Some(address) = config.readiness {
        let listener = bind(address, "readiness", "admin.readiness").await?;
        endpoints.push(serve(
            listener,
            Router::new()
                .route("/healthz/ready", get(ready))
                .with_state(readiness),
        ));
    }
    Ok(Endpoints(endpoints))
}

async fn bind(
    address: SocketAddr,
    what: &'static str,
    field: &'static str,
) -> Result<TcpListener, AdminError> {
    let mut bound = TcpListener::bind(address).await;
    // All addresses, also where IPv6 is switched off.
    if address.ip() == Ipv6Addr::UNSPECIFIED && bound.as_ref().is_err_and(socket::no_ipv6) {
        bound = TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await;
    }
    bound.map_err(|source| AdminError {
        what,
        field,
        address,
        source,
    })
}

fn serve(listener: TcpListener, router: Router) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "an admin endpoint ended");
        }
    })
}

async fn render(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    (
        [(
            header::CONTENT_TYPE,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        metrics.render(),
    )
}

async fn ready(State(readiness): State<Readiness>) -> impl IntoResponse {
    if readiness.get() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}
