//! One tunnel from a peer, as its server.

use bytes::Bytes;
use h2::{
    RecvStream,
    server::{Builder, SendResponse},
};
use http::Request;
use tokio::sync::watch;

use super::{MAX_FRAME, MAX_HEADER_LIST, MAX_SEND_BUFFER, connection_window, keepalive};
use crate::{config::HboneConfig, tls};

/// Resets that a peer may have caused without our having seen the streams; beyond it the tunnel is closed
/// (the defence against rapid reset, CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 32;

/// Why a tunnel ended before its peer closed it.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("HTTP/2: {0}")]
    Http2(#[from] h2::Error),
    #[error("HTTP/2: the peer was not done with its preface in time")]
    Timeout,
    #[error("the peer does not answer PING")]
    Silent,
}

/// Hands every request of the tunnel to `handle`, until the peer closes it or `drain` turns true and the last stream ended.
///
/// `handle` must not wait: it spawns what takes time. Once `trusted` says no (a certificate expired, a root was removed), the
/// tunnel takes no new streams and those in it go on; a client may retry what was refused elsewhere (RFC 9113 section 8.7).
pub async fn serve(
    secured: tls::TlsStream,
    config: &HboneConfig,
    mut drain: watch::Receiver<bool>,
    trusted: impl Fn() -> bool,
    mut handle: impl FnMut(Request<RecvStream>, SendResponse<Bytes>),
) -> Result<(), ServeError> {
    // Twice what we use as a client: a peer's own idea of fullness may lag behind ours.
    let streams = config.max_streams_per_tunnel.saturating_mul(2);
    let mut builder = Builder::new();
    builder
        .initial_window_size(config.stream_window)
        .initial_connection_window_size(connection_window(config, streams))
        .max_frame_size(MAX_FRAME)
        .max_send_buffer_size(MAX_SEND_BUFFER)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_concurrent_streams(streams)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS);
    let handshake = tokio::time::timeout(
        config.handshake_timeout,
        builder.handshake::<_, Bytes>(secured),
    );
    let mut connection = handshake.await.map_err(|_| ServeError::Timeout)??;
    let ping_pong = connection.ping_pong().expect("taken once");
    let keepalive = keepalive::until_silent(ping_pong, config.ping_interval, config.ping_timeout);
    tokio::pin!(keepalive);
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            _ = drain.wait_for(|&drain| drain), if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            request = connection.accept() => match request {
                Some(Ok((request, respond))) if trusted() => handle(request, respond),
                Some(Ok((_, mut respond))) => {
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                    connection.graceful_shutdown();
                }
                Some(Err(error)) => return Err(error.into()),
                None => return Ok(()),
            },
            () = &mut keepalive => return Err(ServeError::Silent),
        }
    }
}
