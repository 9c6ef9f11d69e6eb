//! Composition root: builds the daemon of a resolved configuration, and runs it until a signal.

use std::path::Path;

use crate::config::Config;

/// Runs the node daemon until SIGTERM or SIGINT.
pub fn run(config: Config) -> anyhow::Result<()> {
    anyhow::bail!("the daemon is not built yet (node {})", config.node)
}

/// Lets go of every pod whose capture is pinned below `bpffs`, and returns how many.
pub fn uninstall(bpffs: &Path) -> anyhow::Result<usize> {
    anyhow::bail!("the daemon is not built yet ({})", bpffs.display())
}
