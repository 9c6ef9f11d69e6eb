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

/// In it: the path of the cgroup.
const RECORD: &str = "cgroup";

/// Moves this process to a cgroup of its own, and removes that of an earlier daemon.
pub fn enter(state_dir: &Path, configured: Option<&Path>) -> anyhow::Result<PathBuf> {
    remove(state_dir)?;
    let own = cgroup::own(configured).context("find a cgroup of the daemon's own")?;
    if own.made {
        let record = state_dir.join(RECORD);
        fs::write(&record, own.path.as_os_str().as_bytes())
            .with_context(|| format!("write {}", record.display()))?;
    }
    Ok(own.path)
}

/// Removes the cgroup that is on record, if nobody is in it any more.
pub fn remove(state_dir: &Path) -> anyhow::Result<()> {
    let record = state_dir.join(RECORD);
    let path = match fs::read(&record) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        path => path.with_context(|| format!("read {}", record.display()))?,
    };
    let path = PathBuf::from(OsString::from_vec(path));
    match fs::remove_dir(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // The daemon is gone, or we would not have its lock; what else went there is not ours to end.
        Err(error) => {
            tracing::warn!(cgroup = %path.display(), %error, "an earlier daemon's cgroup stays");
        }
    }
    fs::remove_file(&record).with_context(|| format!("remove {}", record.display()))
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
