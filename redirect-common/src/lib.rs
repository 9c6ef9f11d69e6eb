//! Types and decisions shared by the eBPF programs and the daemon.
//!
//! What crosses the border between kernel and daemon is in [`maps`] (keys, values, settings) and [`event`]; what decides
//! the fate of a `connect()` is in [`decide`], of a connection that arrives in [`inbound`], and of what leaves a captured pod's
//! interface in [`guard`]: pure, and so the same code in the kernel, in host tests and in explanations.
#![cfg_attr(target_arch = "bpf", no_std)]
#![forbid(unsafe_code)]

pub mod addr;
pub mod counter;
pub mod decide;
pub mod dns;
pub mod event;
pub mod guard;
pub mod inbound;
pub mod maps;
pub mod mark;
pub mod node;
pub mod ports;

pub use addr::Addr;
pub use counter::{Hook, Reason, Verdict};

/// The version of everything in [`maps`] and of what the programs do with it: it names the folder of our pins, so that a
/// daemon never adopts maps that it would misread. Raise it with every change of a layout, a map's size or a meaning.
pub const ABI_VERSION: u32 = 2;

#[cfg(test)]
mod tests;
