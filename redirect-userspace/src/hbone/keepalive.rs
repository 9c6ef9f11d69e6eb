//! HTTP/2 PING: finds peers that vanished without closing (node lost, network cut).

use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{sleep, timeout};

/// Pings for as long as the peer answers; returns when one PING stays unanswered, or the connection ended.
pub async fn until_silent(mut ping_pong: PingPong, interval: Duration, limit: Duration) {
    loop {
        sleep(interval).await;
        match timeout(limit, ping_pong.ping(Ping::opaque())).await {
            Ok(Ok(_pong)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}
