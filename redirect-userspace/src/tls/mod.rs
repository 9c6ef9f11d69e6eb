//! TLS 1.3 on a TCP connection: rustls shakes hands and derives keys, [`record`] protects the records.
//!
//! The record layer is our own because it decides how fast bulk data goes: it seals straight from the sender's buffer into
//! one large write, and opens in place what one large read brought. See `docs/adr/0003`.

mod handshake;
mod inbox;
mod outbox;
mod record;
mod stream;
#[cfg(test)]
mod tests;

pub use handshake::{Established, accept, connect};
pub use stream::TlsStream;

/// Why a connection could not be secured, or broke.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
    #[error("TLS handshake: {0}")]
    Io(#[from] std::io::Error),
    #[error("TLS handshake: the peer closed the connection")]
    Closed,
    #[error("TLS handshake: the peer sent {0} bytes without finishing")]
    TooLong(usize),
    #[error("TLS: cipher suite {0:?} is not one that this record layer supports")]
    Suite(rustls::CipherSuite),
}
