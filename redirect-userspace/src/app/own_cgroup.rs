//! The cgroup that a daemon makes for itself. It cannot remove it, being in it: it is on record, for the next daemon and for
//! `uninstall`.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::sys::cgroup;

/// In it: the path of the cgroup; several, with a zero byte between them, while one daemon takes over from another.
const RECORD: &str = "cgroup";

/// Moves this process to a cgroup of its own, and removes that of an earlier daemon, if it has `ended`.
pub fn enter(state_dir: &Path, configured: Option<&Path>, ended: bool) -> anyhow::Result<PathBuf> {
    if ended {
        remove(state_dir)?;
    }
    let own = cgroup::own(configured).context("find a cgroup of the daemon's own")?;
    if own.made {
        let mut made = recorded(state_dir)?;
        made.push(own.path.clone());
        record(state_dir, &made)?;
    }
    Ok(own.path)
}

/// Removes the cgroups of daemons that have ended, other than `own`.
pub fn remove_others(state_dir: &Path, own: &Path) -> anyhow::Result<()> {
    let (stay, go): (Vec<_>, Vec<_>) = recorded(state_dir)?.into_iter().partition(|of| of == own);
    if go.is_empty() {
        return Ok(());
    }
    go.iter().for_each(|path| remove_cgroup(path));
    record(state_dir, &stay)
}

/// Removes the cgroups that are on record, if nobody is in them any more.
pub fn remove(state_dir: &Path) -> anyhow::Result<()> {
    for path in recorded(state_dir)? {
        remove_cgroup(&path);
    }
    let record = state_dir.join(RECORD);
    match fs::remove_file(&record) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.with_context(|| format!("remove {}", record.display())),
    }
}

fn recorded(state_dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let record = state_dir.join(RECORD);
    let bytes = match fs::read(&record) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        bytes => bytes.with_context(|| format!("read {}", record.display()))?,
    };
    let paths = bytes
        .split(|byte| *byte == 0)
        .filter(|path| !path.is_empty());
    Ok(paths
        .map(|path| PathBuf::from(OsString::from_vec(path.to_vec())))
        .collect())
}

fn record(state_dir: &Path, cgroups: &[PathBuf]) -> anyhow::Result<()> {
    let record = state_dir.join(RECORD);
    let paths: Vec<_> = cgroups
        .iter()
        .map(|path| path.as_os_str().as_bytes())
        .collect();
    fs::write(&record, paths.join(&0)).with_context(|| format!("write {}", record.display()))
}

fn remove_cgroup(path: &Path) {
    match fs::remove_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // The daemon is gone, or we would not have its lock; what else went there is not ours to end.
        Err(error) => {
            tracing::warn!(cgroup = %path.display(), %error, "an earlier daemon's cgroup stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_cgroup_is_removed_once_and_only_if_it_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        remove(dir.path()).unwrap();
        let cgroup = dir.path().join("redirect-1");
        let record = dir.path().join(RECORD);
        for in_use in [false, true] {
            fs::create_dir(&cgroup).unwrap();
            if in_use {
                fs::create_dir(cgroup.join("somebody")).unwrap();
            }
            fs::write(&record, cgroup.as_os_str().as_bytes()).unwrap();
            remove(dir.path()).unwrap();
            assert_eq!(cgroup.exists(), in_use);
            assert!(!record.exists());
        }
    }
}
