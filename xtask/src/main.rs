//! Build, test, demo and bench commands of redirect: `cargo xtask --help`.

use anyhow::Result;
use clap::{Parser, Subcommand};

mod apt;
mod bench;
mod check;
mod demo;
mod ebpf;
mod kernels;
mod kubernetes;
mod program;
mod setup;
mod soak;
mod test;
mod tree;

/// Everything that is done to this repository, one command each. Each runs what it needs first.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and testing need and is missing (root on Debian or Ubuntu; elsewhere: say how)
    Setup,
    /// Build the eBPF programs and print their size and stack use
    BuildEbpf(ebpf::Args),
    /// Show a connection's whole way on two nodes with real daemons, each step verified and measured
    Demo,
    /// Run all tests, unit and end-to-end, and look for what they left behind
    Test(test::Args),
    /// Boot Debian's kernels 5.10, 6.1 and 6.12 under QEMU and run a self-test of capture there
    TestKernels(kernels::Args),
    /// Run a real Kubernetes of two nodes on this machine, with the chart and the image of this repository
    TestK8s(kubernetes::Args),
    /// Measure a redirect pair beside no proxy and beside HAProxy
    Bench(bench::Args),
    /// Add and remove 110 pods 50 times, kill the daemon 100 times in the midst, and look for what is left
    Soak(soak::Args),
    /// Everything that can be checked without running the daemon: fmt, layering, deny, clippy, BPF, docs
    Check(check::Args),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Setup => setup::run(),
        Command::BuildEbpf(args) => ebpf::run(&args),
        Command::Demo => demo::run(),
        Command::Test(args) => test::run(&args),
        Command::TestKernels(args) => kernels::run(&args),
        Command::TestK8s(args) => kubernetes::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Soak(args) => soak::run(&args),
        Command::Check(args) => check::run(&args),
    }
}
