//! `cargo xtask soak`: builds everything for release and hands over to `rdt-soak`, which knows the testbed.

use std::process::Command;

use anyhow::Result;

use crate::{
    bench, ebpf,
    setup::{self, Need},
};

#[derive(clap::Args)]
pub struct Args {
    /// Passed on to `rdt-soak`: --pods N, --rounds N, --connections N, --kills N, --rest SECONDS; see --help
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    setup::ensure(&[Need::BpfToolchain, Need::Testbed])?;
    bench::build()?;
    let mut soak = Command::new(ebpf::target_dir().join("release/rdt-soak"));
    bench::succeed(soak.args(&args.options))
}
