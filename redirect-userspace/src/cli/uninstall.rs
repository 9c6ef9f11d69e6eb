//! `redirect uninstall`.

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::Args;

use crate::app;

/// Let go of all pods, and remove what the daemon left in the kernel
///
/// Stop the daemon first. Afterwards the pods' connections are as they were before capture.
#[derive(Debug, Args)]
pub struct Uninstall {
    /// The bpffs mount that the daemon used
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
    /// The daemon's state directory
    #[arg(long, value_name = "DIR", default_value = "/run/redirect")]
    state_dir: PathBuf,
}

impl Uninstall {
    pub(super) fn execute(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let removed = app::uninstall(&self.bpffs, &self.state_dir)?;
        writeln!(out, "removed {removed} pinned programs and maps")?;
        Ok(ExitCode::SUCCESS)
    }
}
