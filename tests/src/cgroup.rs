//! Child cgroups of the v2 hierarchy: made, emptied and removed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::wait::wait_until;

/// Where the cgroup v2 hierarchy is mounted, as mountinfo says: often not `/sys/fs/cgroup`.
pub fn mount_point() -> PathBuf {
    let mounts = redirect::sys::mountinfo::read().expect("mountinfo is readable");
    mounts
        .lines()
        .find(|line| {
            line.split(" - ")
                .nth(1)
                .is_some_and(|rest| rest.starts_with("cgroup2 "))
        })
        .and_then(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .expect(
            "a cgroup2 file system is mounted; mount one with `mount -t cgroup2 none DIRECTORY`",
        )
}

/// The pids directly in `cgroup`, without those of its children.
pub fn pids(cgroup: &Path) -> io::Result<Vec<i32>> {
    Ok(fs::read_to_string(cgroup.join("cgroup.procs"))?
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect())
}

/// Kills every process in `cgroup` and below, and waits until they are gone.
pub fn kill_all(cgroup: &Path) -> io::Result<()> {
    let mut failed = None;
    let empty = wait_until(Duration::from_secs(10), || {
        let mut left = 0;
        for dir in tree(cgroup) {
            for pid in pids(&dir).unwrap_or_default() {
                left += 1;
                match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(error) => failed = Some(io::Error::from(error)),
                }
            }
        }
        left == 0
    });
    match failed {
        _ if empty => Ok(()),
        Some(error) => Err(error),
        None => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("processes stay in {}", cgroup.display()),
        )),
    }
}

/// Removes `cgroup` and what is below it, children first. A cgroup that is gone already is no error.
pub fn remove(cgroup: &Path) -> io::Result<()> {
    let mut last = Ok(());
    // A process that has just exited may hold its cgroup for a moment (EBUSY).
    let removed = wait_until(Duration::from_secs(5), || {
        last = tree(cgroup)
            .iter()
            .try_for_each(|dir| match fs::remove_dir(dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            });
        last.is_ok()
    });
    if removed { Ok(()) } else { last }
}

/// `cgroup` and its descendants, children before parents.
fn tree(cgroup: &Path) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    let Ok(entries) = fs::read_dir(cgroup) else {
        return dirs;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            dirs.extend(tree(&entry.path()));
        }
    }
    dirs.push(cgroup.to_path_buf());
    dirs
}
