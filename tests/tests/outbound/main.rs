//! Outbound capture: every way in which an app may connect, what is left alone, and what it is told.

mod connects;
mod decisions;
mod left_alone;
mod programs;

use std::net::SocketAddr;

use redirect_tests::{App, Event};

/// Whether the server's last connection is the client's own socket, not one of a proxy: they have the same port.
#[track_caller]
fn is_direct(server: &App, connected: &Event) -> bool {
    server.event("accepted").addr("peer").port() == connected.addr("sockname").port()
}

fn mapped(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        SocketAddr::V6(_) => addr,
    }
}
