//! A node's cgroups: in every hierarchy of this machine one of the same name, below which the node sees nothing else.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill as kill_process},
    unistd::Pid,
};

/// Where this machine has its hierarchies, of both versions, and the cgroup `name` in each.
pub struct Cgroups {
    directories: Vec<PathBuf>,
}

impl Cgroups {
    /// Makes them. `name` may have several parts.
    pub fn create(name: &str) -> Result<Self> {
        let mut directories = Vec::new();
        for mount in mounts(&fs::read_to_string("/proc/self/mountinfo")?) {
            let mut directory = mount.clone();
            for part in name.split('/') {
                directory.push(part);
                make(&directory).with_context(|| format!("make {}", directory.display()))?;
            }
            directories.push(directory);
        }
        Ok(Self { directories })
    }

    /// What a shell has to say so that it is in them all.
    pub fn enter(&self) -> String {
        let line =
            |directory: &PathBuf| format!("echo $$ > {}/cgroup.procs\n", directory.display());
        self.directories.iter().map(line).collect()
    }
}

/// Kills what runs in `name` and below.
pub fn kill(name: &str) -> Result<()> {
    for mount in mounts(&fs::read_to_string("/proc/self/mountinfo")?) {
        let mut left = vec![mount.join(name)];
        while let Some(directory) = left.pop() {
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            left.extend(
                entries
                    .map(|entry| entry.path())
                    .filter(|path| path.is_dir()),
            );
            let pids = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            for pid in pids.lines().filter_map(|pid| pid.parse().ok()) {
                // It may have ended since.
                _ = kill_process(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
    Ok(())
}

/// Removes `name` and all below, whose processes have been killed.
pub fn remove(name: &str) -> Result<()> {
    for mount in mounts(&fs::read_to_string("/proc/self/mountinfo")?) {
        let directory = mount.join(name);
        let started = Instant::now();
        // What has just exited may hold its cgroup for a moment.
        while let Err(error) = remove_tree(&directory) {
            if started.elapsed() > Duration::from_secs(10) {
                bail!("remove {}: {error}", directory.display());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

/// The top-level cgroups whose name begins with `prefix`.
pub fn named(prefix: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for mount in mounts(&fs::read_to_string("/proc/self/mountinfo")?) {
        let entries = fs::read_dir(&mount)?.flatten();
        names.extend(
            entries
                .filter_map(|entry| entry.file_name().into_string().ok())
                .filter(|name| name.starts_with(prefix)),
        );
    }
    names.sort();
    names.dedup();
    Ok(names)
}

fn make(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // A cgroup of version 1 takes no process before it has processors and memory.
    if let Some(parent) = directory.parent() {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            // Only version 1 has this file.
            if directory.join("cpuset.cpu_exclusive").exists() {
                fs::write(directory.join(file), fs::read(parent.join(file))?)?;
            }
        }
    }
    Ok(())
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(directory)
}

/// The mount points of hierarchies in the text of a mountinfo.
fn mounts(text: &str) -> Vec<PathBuf> {
    let place = |line: &str| {
        let (mount, kind) = line.split_once(" - ")?;
        let cgroup = kind.starts_with("cgroup ") || kind.starts_with("cgroup2 ");
        let mut words = mount.split(' ');
        // A mount of another's part of the hierarchy is not the machine's.
        let root = words.nth(3)?;
        (cgroup && root == "/").then(|| words.next().map(PathBuf::from))?
    };
    text.lines().filter_map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions() {
        let text = "30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                    31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                    32 30 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
                    33 30 0:28 /a /elsewhere rw,relatime - cgroup2 cgroup2 rw\n";
        let expected = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/unified"].map(PathBuf::from);
        assert_eq!(mounts(text), expected);
    }
}
