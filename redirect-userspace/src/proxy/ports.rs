//! The ports that are ours inside a pod.

/// Outbound capture.
pub const OUTBOUND: u16 = 15001;
/// Inbound plaintext capture.
pub const INBOUND_PLAINTEXT: u16 = 15006;
/// Inbound HBONE; the port of every tunnel.
pub const HBONE: u16 = 15008;
/// DNS capture.
pub const DNS: u16 = 15053;

/// Nothing may be sent to these through the proxy: it would reach the proxy itself, with the proxy's rights.
pub fn is_own(port: u16) -> bool {
    matches!(port, OUTBOUND | INBOUND_PLAINTEXT | HBONE | DNS)
}
