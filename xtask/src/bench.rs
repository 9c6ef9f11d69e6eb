//! `cargo xtask bench`: builds everything for release and hands over to `rdt-bench`, which knows the testbed.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{
    ebpf,
    setup::{self, Need},
};

#[derive(clap::Args)]
pub struct Args {
    /// Passed on to `rdt-bench run`: --rounds N, --seconds N, --quick, --only GROUP, --variant NAME; see --help
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    setup::ensure(&[Need::BpfToolchain, Need::Testbed, Need::Bench])?;
    build()?;
    let mut bench = Command::new(ebpf::target_dir().join("release/rdt-bench"));
    succeed(bench.arg("run").args(&args.options))
}

/// Everything that is measured, and what measures it, for release.
pub fn build() -> Result<()> {
    ebpf::build()?;
    let mut build = Command::new("cargo");
    build.args([
        "build",
        "--release",
        "--package",
        "redirect-userspace",
        "--package",
        "redirect-tests",
        "--bins",
    ]);
    succeed(&mut build)
}

pub fn succeed(command: &mut Command) -> Result<()> {
    let status = command.current_dir(ebpf::workspace()).status();
    let status = status.with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}
