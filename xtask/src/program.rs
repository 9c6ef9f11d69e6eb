//! Other programs: run to their end, with an error that says what they said. And where what they made is kept.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};

/// Runs a command and gives its output; what it says on its errors is in ours.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?}: {}: {}",
        output.status,
        errors.trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command whose output is for whoever watches.
pub fn succeed(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// `$XDG_CACHE_HOME/redirect/NAME`: what is fetched or built once, outside of the repository.
pub fn cache(name: &str) -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| env::home_dir().map(|home| home.join(".cache")));
    let base = base.context("no home directory: give --cache DIR")?;
    Ok(base.join("redirect").join(name))
}
