//! The ports that are ours inside a pod.

pub use redirect_common::ports::INBOUND_HBONE;

/// Nothing may be sent to these through the proxy: it would reach the proxy itself, with the proxy's rights.
pub fn is_own(port: u16) -> bool {
    redirect_common::ports::IN_POD.contains(&port)
}
