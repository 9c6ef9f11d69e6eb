//! One contract for all ways of capture: {ebpf, iptables-nft, iptables-legacy, nftables} × {shared, dedicated, node} ×
//! {IPv4, IPv6, v4-mapped}. Each check is made in each cell, by a real daemon and real apps, or `matrix` says why it cannot be.
//!
//! It has a harness of its own, since the table of all cells is part of what it says. Names are
//! `BACKEND/MODE/FAMILY/CHECK`; arguments select by parts of them, as in other tests.

mod checks;
mod harness;
mod matrix;
mod stage;
mod talk;

use std::process::ExitCode;

fn main() -> ExitCode {
    harness::run(&harness::Args::parse(std::env::args().skip(1)))
}
