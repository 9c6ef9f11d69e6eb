//! The eBPF programs and their loader by themselves, without the daemon.

mod fixture;
mod inbound;
mod inbound_options;
mod lifecycle;
mod ports;
mod probes;
mod proxy_side;
mod reassert;
mod redirected;
mod told;
mod untouched;
