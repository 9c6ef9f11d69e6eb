//! `cargo xtask demo`: builds everything for release and hands over to `rdt-demo`, which knows the testbed.

use std::{os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    ebpf,
    setup::{self, Need},
};

pub fn run() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the demo makes network namespaces, cgroups and BPF programs: run this as root"
    );
    setup::ensure(&[Need::BpfToolchain, Need::Testbed])?;
    ebpf::build()?;
    let mut build = Command::new("cargo");
    build.current_dir(ebpf::workspace());
    build.args([
        "build",
        "--release",
        "--package",
        "redirect-userspace",
        "--package",
        "redirect-tests",
    ]);
    build.args(["--bin", "redirect", "--bin", "rdt-app", "--bin", "rdt-demo"]);
    let status = build.status().with_context(|| format!("run {build:?}"))?;
    if !status.success() {
        bail!("{build:?}: {status}");
    }
    // In this process's place: Ctrl-C and the exit status are the demo's own.
    let demo = ebpf::target_dir().join("release/rdt-demo");
    Err(Command::new(&demo).exec()).with_context(|| format!("run {}", demo.display()))
}
