//! Connections to the apps of our pods: from inside the pod's namespace, and from the client's address.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use tokio::{net::TcpStream, time::timeout};

use super::{PodContext, connector, worker::Worker};

/// Why an app could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error("connect to {app}: {error}")]
    Connect { app: SocketAddr, error: io::Error },
    #[error("connect to {0}: no answer in time")]
    Timeout(SocketAddr),
}

impl AppError {
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Connect { error, .. } if error.kind() == io::ErrorKind::ConnectionRefused => {
                "app_refused"
            }
            Self::Connect { .. } => "app_connect",
            Self::Timeout(_) => "app_timeout",
        }
    }
}

/// Connects to `app`, which sees `client` as its peer where the pod is prepared for that.
pub async fn connect(
    worker: &Worker,
    context: &PodContext,
    client: IpAddr,
    app: SocketAddr,
) -> Result<TcpStream, AppError> {
    // An app answers its own pod's address within the pod, where nobody waits for that.
    let is_itself = context.standpoint.is_on_node() && client == app.ip();
    let as_client = context.client_ip && client.is_ipv4() == app.is_ipv4() && !is_itself;
    let options = context.standpoint.to_app(as_client.then_some(client));
    let connecting = connector::connect(&context.netns, app, options);
    timeout(worker.shared.proxy.connect_timeout, connecting)
        .await
        .map_err(|_| AppError::Timeout(app))?
        .map_err(|error| AppError::Connect { app, error })
}
