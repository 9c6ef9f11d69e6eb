//! Ports that are ours in every captured pod, as the ecosystem expects them.

/// Outbound capture: captured connects arrive here.
pub const OUTBOUND: u16 = 15001;
/// Inbound plaintext capture.
pub const INBOUND_PLAINTEXT: u16 = 15006;
/// Inbound HBONE.
pub const INBOUND_HBONE: u16 = 15008;
/// Administration, on loopback.
pub const ADMIN: u16 = 15000;
pub const METRICS: u16 = 15020;
pub const READINESS: u16 = 15021;
/// DNS capture.
pub const DNS: u16 = 15053;

/// Where DNS servers listen.
pub const DOMAIN: u16 = 53;

/// The ports on which our proxy listens inside a pod's network namespace.
pub const IN_POD: [u16; 4] = [OUTBOUND, INBOUND_PLAINTEXT, INBOUND_HBONE, DNS];
