//! HBONE: HTTP/2 CONNECT over mutual TLS, one stream for each TCP connection, many streams in one tunnel.

pub mod client;
mod headers;
mod keepalive;
pub mod pool;
pub mod server;

pub use headers::{TraceParent, baggage, forwarded};

use bytes::Bytes;

use crate::config::HboneConfig;

/// HTTP/2 frames that we accept; larger ones cost fewer headers and hold up other streams of the tunnel for longer.
const MAX_FRAME: u32 = 1 << 18;

/// Bytes of one stream that h2 may hold while the tunnel is busy.
const MAX_SEND_BUFFER: usize = 1 << 20;

/// All headers of one request or response together, as HPACK counts them.
const MAX_HEADER_LIST: u32 = 16 * 1024;

/// HTTP/2 limits a window to 2^31-1 (RFC 9113 section 6.9.1).
const MAX_WINDOW: u64 = (1 << 31) - 1;

/// One CONNECT stream after the 200: bytes in both directions.
pub struct Stream {
    pub send: h2::SendStream<Bytes>,
    pub recv: h2::RecvStream,
}

/// A connection window in which every stream may fill its own: a stalled reader never takes another stream's room.
fn connection_window(config: &HboneConfig, streams: u32) -> u32 {
    let window = u64::from(config.stream_window) * u64::from(streams);
    u32::try_from(window.min(MAX_WINDOW)).expect("bounded by 2^31-1")
}

/// Why a tunnel or a stream in it could not be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HboneError {
    #[error("connect to {peer}: {error}")]
    Connect {
        peer: std::net::SocketAddr,
        error: std::sync::Arc<std::io::Error>,
    },
    #[error("secure the tunnel to {peer}: {error}")]
    Tls {
        peer: std::net::SocketAddr,
        error: std::sync::Arc<crate::tls::TlsError>,
    },
    #[error("no certificate for {identity}: {error}")]
    Identity { identity: String, error: String },
    #[error("tunnel to {peer}: not done in {limit:?}")]
    Timeout {
        peer: std::net::SocketAddr,
        limit: std::time::Duration,
    },
    #[error("tunnel to {peer}: HTTP/2: {error}")]
    Http2 {
        peer: std::net::SocketAddr,
        error: std::sync::Arc<h2::Error>,
    },
    #[error("{peer} answered {status} to CONNECT {authority}")]
    Status {
        peer: std::net::SocketAddr,
        status: http::StatusCode,
        authority: String,
    },
    #[error("{tunnels} tunnels to {peer} are full; see hbone.maxTunnelsPerPeer")]
    TunnelLimit {
        peer: std::net::SocketAddr,
        tunnels: usize,
    },
    #[error("tunnel to {peer}: a certificate expired, or the roots changed, while it was made")]
    Distrusted { peer: std::net::SocketAddr },
    #[error("the daemon is draining")]
    Draining,
}

impl HboneError {
    /// A label for counters.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "peer_connect",
            Self::Tls { .. } => "peer_tls",
            Self::Identity { .. } => "no_certificate",
            Self::Timeout { .. } => "peer_timeout",
            Self::Http2 { .. } => "peer_http2",
            Self::Status { status, .. } => match status.as_u16() {
                400 => "peer_status_400",
                401 => "peer_status_401",
                503 => "peer_status_503",
                _ => "peer_status",
            },
            Self::TunnelLimit { .. } => "tunnel_limit",
            Self::Distrusted { .. } => "peer_distrusted",
            Self::Draining => "draining",
        }
    }
}
