//! Marks (fwmark) that are ours in every captured pod.

/// Of the proxy's connections to apps: a routing rule brings what bears it to loopback, so that answers to a client's address
/// reach the proxy, which speaks from that address.
pub const TO_APP: u32 = 0x111;
/// Of the proxy's own packets, where netfilter's rules exempt it by that.
pub const PROXY: u32 = 0x539;
pub const MASK: u32 = 0xfff;
