//! HBONE peers of our own: well-behaved, hostile, and with whatever certificate. They share no code with the daemon.

mod client;
mod credentials;
pub mod frames;
mod server;

pub use client::{Rejected, Stream, TlsStream, Tunnel, handshake};
pub use credentials::{Credentials, Forge, Leaf};
pub use server::{Behaviour, Server};

use redirect::sys::netns::Netns;

/// The port of inbound HBONE.
pub const PORT: u16 = 15008;

/// Runs a future on a thread inside `netns`, and with it all sockets that it makes.
pub fn run_in<T, F>(netns: &Netns, future: impl FnOnce() -> F + Send) -> T
where
    T: Send,
    F: Future<Output = T>,
{
    netns
        .run(|| runtime().block_on(future()))
        .expect("the namespace can be entered")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("make a runtime")
}
