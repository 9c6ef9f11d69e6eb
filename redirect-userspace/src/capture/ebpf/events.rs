//! Logs the programs' decisions, one line each.

use std::{io, net::SocketAddr, sync::PoisonError};

use aya::maps::{Map, MapData, MapError, RingBuf};
use redirect_common::{Addr, event::Event};

use super::PodNames;
use crate::sys::bpf;

/// Logs events from now on, inside the daemon's runtime.
pub fn start(map: Map, names: PodNames) {
    tokio::spawn(async move {
        if let Err(error) = log_all(map, &names).await {
            tracing::warn!(%error, "events are not logged any more");
        }
    });
}

async fn log_all(map: Map, names: &PodNames) -> io::Result<()> {
    let ring: RingBuf<MapData> = map
        .try_into()
        .map_err(|error: MapError| io::Error::other(error))?;
    let mut ring = bpf::await_events(ring)?;
    loop {
        let mut ready = ring.readable_mut().await?;
        let ring = ready.get_inner_mut();
        while let Some(bytes) = ring.next() {
            if let Ok(event) = bytemuck::try_pod_read_unaligned(&bytes) {
                log(&event, names);
            }
        }
        ready.clear_ready();
    }
}

fn log(event: &Event, names: &PodNames) {
    let Some((hook, verdict, reason)) = event.names() else {
        return;
    };
    let names = names.read().unwrap_or_else(PoisonError::into_inner);
    let pod = names
        .get(&event.netns_cookie)
        .map_or("", |uid| uid.as_str());
    // Where there is none, the port is 0.
    let shown = |addr: Addr, port| match port {
        0 => String::new(),
        port => SocketAddr::new(addr.to_ip(), port).to_string(),
    };
    tracing::info!(
        target: "redirect::capture::event",
        pod,
        hook = hook.as_str(),
        verdict = verdict.as_str(),
        reason = reason.as_str(),
        dst = %SocketAddr::new(event.dst.to_ip(), event.dst_port),
        to = shown(event.target, event.target_port),
        src = shown(event.src, event.src_port),
        pid = event.pid,
        cgroup = event.cgroup,
        "connect"
    );
}
