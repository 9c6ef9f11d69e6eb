//! `enter CGROUP NETNS PROGRAM ARGS…`: cgroup first, then namespace, then exec, before any socket exists.

use std::{
    ffi::OsString,
    fs::{self, File},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::Command,
};

use anyhow::Context;
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::SigSet,
};

#[derive(clap::Args)]
pub struct Args {
    cgroup: PathBuf,
    netns: PathBuf,
    program: OsString,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let procs = args.cgroup.join("cgroup.procs");
    // 0 means the writer. One write of the bare number: a second one, of a newline, would be an error.
    fs::write(&procs, "0").with_context(|| format!("write to {}", procs.display()))?;
    let netns =
        File::open(&args.netns).with_context(|| format!("open {}", args.netns.display()))?;
    setns(&netns, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("setns {}", args.netns.display()))?;
    drop(netns);
    // A caller that waits for signals has them blocked, and a blocked signal stays so over exec.
    SigSet::all().thread_unblock().context("unblock signals")?;
    Err(Command::new(&args.program).args(&args.args).exec())
        .with_context(|| format!("exec {}", args.program.display()))
}
