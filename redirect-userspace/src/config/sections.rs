//! The parts `proxy`, `hbone` and `admin`, and `capture.probes`.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use super::{AdminConfig, HboneConfig, Mode, ProberCgroups, ProxyConfig, read::absolute};
use crate::document::Fields;

/// RFC 9113, section 6.9.1.
const MAX_WINDOW: u64 = (1 << 31) - 1;

pub fn proxy(f: &mut Fields<'_>) -> ProxyConfig {
    ProxyConfig {
        hold: duration(f, "hold", true, Duration::from_secs(5)),
        connect_timeout: duration(f, "connectTimeout", false, Duration::from_secs(5)),
        drain: duration(f, "drain", true, Duration::from_secs(30)),
        max_connections_per_pod: count(f, "maxConnectionsPerPod", 20_000, 1_000_000),
    }
}

pub fn hbone(f: &mut Fields<'_>) -> Option<HboneConfig> {
    // Less than the protocol's initial window cannot be announced before the peer may have used that one.
    let window = f
        .optional("streamWindow")
        .map_or(Some(2 << 20), |node| node.size(65_535..=MAX_WINDOW));
    let streams = count(f, "maxStreamsPerTunnel", 100, 10_000);
    if let Some(window) = window
        && window * streams as u64 > MAX_WINDOW
    {
        // What we receive on a tunnel is bounded by its streams' windows together, so that no stream stops another.
        f.fail(format!(
            "streamWindow ({window}) times maxStreamsPerTunnel ({streams}) is more than HTTP/2's largest window, {MAX_WINDOW}"
        ));
    }
    let ping_interval = duration(f, "pingInterval", false, Duration::from_secs(10));
    let config = HboneConfig {
        stream_window: 0,
        max_streams_per_tunnel: u32::try_from(streams).ok()?,
        max_tunnels_per_peer: count(f, "maxTunnelsPerPeer", 64, 65_536),
        max_inbound_tunnels: count(f, "maxInboundTunnels", 1024, 1_000_000),
        max_handshakes_per_source: count(f, "maxHandshakesPerSource", 64, 65_536),
        handshake_timeout: duration(f, "handshakeTimeout", false, Duration::from_secs(10)),
        ping_interval,
        ping_timeout: duration(f, "pingTimeout", false, Duration::from_secs(20)),
        idle_timeout: duration(f, "idleTimeout", false, Duration::from_secs(300)),
    };
    Some(HboneConfig {
        stream_window: u32::try_from(window?).ok()?,
        ..config
    })
}

pub fn probers(f: &mut Fields<'_>) -> ProberCgroups {
    match f.optional("cgroups") {
        Some(node) if !node.is_text("auto") => ProberCgroups::Paths(node.each(absolute)),
        _ => ProberCgroups::Auto,
    }
}

pub fn admin(f: &mut Fields<'_>, mode: Mode) -> Option<AdminConfig> {
    // In a pod, who asks is outside of it.
    let ip: IpAddr = match mode {
        Mode::Dedicated => Ipv6Addr::UNSPECIFIED.into(),
        Mode::Shared | Mode::Node => Ipv4Addr::LOCALHOST.into(),
    };
    let address = |f: &mut Fields<'_>, name, port| match f.raw(name) {
        Some(node) if node.is_null() => None,
        Some(node) => node.parsed("an address such as 127.0.0.1:15020"),
        None => Some((ip, port).into()),
    };
    let config = AdminConfig {
        metrics: address(f, "metrics", 15020),
        readiness: address(f, "readiness", 15021),
    };
    match (config.metrics, config.readiness) {
        (Some(a), Some(b)) if a == b && a.port() != 0 => {
            f.fail(format!("metrics and readiness are both at {a}"))
        }
        _ => {}
    }
    Some(config)
}

/// The readers below give the default in place of a wrong value: its mistake is noted, and reading can go on.
pub(super) fn duration(
    f: &mut Fields<'_>,
    name: &'static str,
    zero: bool,
    default: Duration,
) -> Duration {
    f.optional(name)
        .and_then(|node| node.duration(zero))
        .unwrap_or(default)
}

pub(super) fn count(f: &mut Fields<'_>, name: &'static str, default: usize, most: u32) -> usize {
    f.optional(name)
        .and_then(|node| node.integer(1..=most))
        .map_or(default, |n| n as usize)
}
