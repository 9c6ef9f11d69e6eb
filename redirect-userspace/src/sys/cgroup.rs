//! Control groups v2: where they are mounted, their ids, and a cgroup of the daemon's own.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process,
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::mountinfo;

/// Names of the cgroups that the daemon makes for itself: this and its process id.
const PREFIX: &str = "redirect-";
/// Between these, in the names of a [`Scratch`].
const TRY: &str = "try-";

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error(
        "cgroup v2 is not mounted; mount it, for example with `mount -t cgroup2 none /sys/fs/cgroup/unified`"
    )]
    NotMounted,
    #[error("this process is in no cgroup v2: no line `0::` in /proc/self/cgroup")]
    NotInOne,
    #[error("{0} is not a cgroup v2 directory")]
    NotCgroup2(PathBuf),
    #[error("cannot {what} {path}: {source}")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// A cgroup v2 that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    pub path: PathBuf,
    /// What BPF programs call it.
    pub id: u64,
}

impl Cgroup {
    pub fn open(path: &Path) -> Result<Self, CgroupError> {
        let fail = |source: io::Error| CgroupError::Io {
            what: "use cgroup",
            path: path.to_owned(),
            source,
        };
        let stat = statfs(path).map_err(|errno| fail(errno.into()))?;
        if stat.filesystem_type() != CGROUP2_SUPER_MAGIC {
            return Err(CgroupError::NotCgroup2(path.to_owned()));
        }
        // The inode number of a cgroup's directory is its id (kernfs).
        let id = fs::metadata(path).map_err(fail)?.ino();
        Ok(Self {
            path: path.to_owned(),
            id,
        })
    }

    /// Whether it is the root of the hierarchy, in which every process is.
    pub fn is_root(&self) -> bool {
        !self.path.join("cgroup.type").exists()
    }

    /// Whether this is `other`, or below it.
    pub fn is_in(&self, other: &Self) -> bool {
        let device = |path: &Path| fs::metadata(path).map(|of| (of.dev(), of.ino()));
        let other = device(&other.path).ok();
        other.is_some() && self.path.ancestors().any(|path| device(path).ok() == other)
    }

    fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        let path = self.path.join("cgroup.procs");
        let text = fs::read_to_string(&path).map_err(|source| CgroupError::Io {
            what: "read",
            path,
            source,
        })?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Moves this process, with all of its threads, here. Sockets that it has already stay where they were made.
    fn enter(&self) -> Result<(), CgroupError> {
        let path = self.path.join("cgroup.procs");
        // One write: the kernel takes each for a command of its own.
        fs::write(&path, process::id().to_string()).map_err(|source| CgroupError::Io {
            what: "write",
            path,
            source,
        })
    }
}

/// Makes sure that this process is alone in a cgroup, so that programs attached there see no other's sockets.
///
/// Goes to `configured` if given. Otherwise keeps the present one if no other process is in it and it is not the root,
/// or makes a child of it. To be called before the first socket is made.
pub fn own(configured: Option<&Path>) -> Result<Own, CgroupError> {
    let kept = |path| Own { path, made: false };
    if let Some(path) = configured {
        fs::create_dir_all(path).map_err(|source| CgroupError::Io {
            what: "create",
            path: path.to_owned(),
            source,
        })?;
        let cgroup = Cgroup::open(path)?;
        cgroup.enter()?;
        return Ok(kept(cgroup.path));
    }
    let present = Cgroup::open(&current()?)?;
    if !present.is_root() && present.processes()? == [process::id()] {
        return Ok(kept(present.path));
    }
    remove_stale(&present.path);
    let path = present.path.join(format!("{PREFIX}{}", process::id()));
    match fs::create_dir(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(CgroupError::Io {
                what: "create",
                path,
                source: error,
            });
        }
        _ => {}
    }
    let cgroup = Cgroup::open(&path)?;
    cgroup.enter()?;
    Ok(Own { path, made: true })
}

/// A cgroup that this process is alone in.
pub struct Own {
    pub path: PathBuf,
    /// It was made for that: somebody has to remove it when the process has ended.
    pub made: bool,
}

/// The directory of this process's cgroup v2.
pub fn current() -> Result<PathBuf, CgroupError> {
    let cgroups = read("/proc/self/cgroup")?;
    let of_process = cgroups
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .ok_or(CgroupError::NotInOne)?;
    directory_of(of_process)
}

/// The directory of the cgroup that the kernel calls `name`: the reverse of [`in_hierarchy`].
pub fn directory_of(name: &str) -> Result<PathBuf, CgroupError> {
    directory(&mounted()?, name).ok_or(CgroupError::NotMounted)
}

fn mounted() -> Result<String, CgroupError> {
    mountinfo::read().map_err(|source| CgroupError::Io {
        what: "read",
        path: mountinfo::TABLE.into(),
        source,
    })
}

fn read(path: &str) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|source| CgroupError::Io {
        what: "read",
        path: path.into(),
        source,
    })
}

/// Where the cgroup `path` of /proc/PID/cgroup is in the file system, from the text of mountinfo (proc(5)).
fn directory(mountinfo: &str, path: &str) -> Option<PathBuf> {
    mounts(mountinfo).find_map(|(root, point)| {
        // A bind mount of a part of the hierarchy shows only what is below its root.
        let below = Path::new(path).strip_prefix(root).ok()?;
        Some(if below.as_os_str().is_empty() {
            point
        } else {
            point.join(below)
        })
    })
}

/// The mounts of cgroup v2 in the text of mountinfo: which cgroup is seen there, and where that is.
pub fn mounts(mountinfo: &str) -> impl Iterator<Item = (PathBuf, PathBuf)> {
    mountinfo.lines().filter_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        if source.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3).map(|field| unescape(field).into());
        Some((fields.next()?, fields.next()?))
    })
}

/// The cgroup whose directory is `path`, as the kernel calls it: from the root of the hierarchy, or of this process's cgroup
/// namespace.
pub fn in_hierarchy(path: &Path) -> Result<String, CgroupError> {
    kernel_name(&mounted()?, path).ok_or(CgroupError::NotMounted)
}

/// The reverse of [`directory`].
fn kernel_name(mountinfo: &str, path: &Path) -> Option<String> {
    let mounts = mounts(mountinfo).filter_map(|(root, point)| {
        // A part that is outside of this process's cgroup namespace has no name here.
        let is_named = !root.starts_with("/..");
        let below = path.strip_prefix(&point).ok()?;
        is_named.then(|| (point.as_os_str().len(), root.join(below)))
    });
    let (_, name) = mounts.max_by_key(|(length, _)| *length)?;
    Some(name.to_string_lossy().into_owned())
}

/// Mountinfo writes blanks, tabs, newlines and backslashes as three octal digits.
fn unescape(field: &str) -> String {
    let mut text = field.to_owned();
    for (code, character) in [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ] {
        text = text.replace(code, character);
    }
    text
}

/// A cgroup below this process's own, removed when dropped: to try things on.
pub struct Scratch {
    path: PathBuf,
    /// Where this process was before it came here.
    left: Option<Cgroup>,
}

impl Scratch {
    pub fn create() -> Result<Self, CgroupError> {
        let path = current()?.join(format!("{PREFIX}{TRY}{}", process::id()));
        match fs::create_dir(&path) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(CgroupError::Io {
                what: "create",
                path,
                source,
            }),
            _ => Ok(Self { path, left: None }),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves this process there, and back when dropped.
    pub fn enter(mut self) -> Result<Self, CgroupError> {
        let left = Cgroup::open(&current()?)?;
        Cgroup::open(&self.path)?.enter()?;
        self.left = Some(left);
        Ok(self)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // An empty cgroup that stays does no harm.
        if let Some(left) = &self.left {
            _ = left.enter();
        }
        _ = fs::remove_dir(&self.path);
    }
}

/// Removes cgroups that daemons which no longer run made for themselves. The kernel keeps those that are in use.
fn remove_stale(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX))
            .map(|pid| pid.strip_prefix(TRY).unwrap_or(pid))
            .and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_of_a_cgroup() {
        let hybrid = "25 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      26 25 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      30 25 0:27 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        let part = "30 25 0:27 /kubepods/pod1 /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        let blank = "30 25 0:27 / /mnt/with\\040blank rw - cgroup2 cgroup rw\n";
        for (mounts, path, expected) in [
            (hybrid, "/", Some("/sys/fs/cgroup/unified")),
            (
                hybrid,
                "/system.slice/a",
                Some("/sys/fs/cgroup/unified/system.slice/a"),
            ),
            (part, "/kubepods/pod1/c", Some("/sys/fs/cgroup/c")),
            (part, "/kubepods/pod1", Some("/sys/fs/cgroup")),
            (part, "/elsewhere", None),
            (blank, "/a", Some("/mnt/with blank/a")),
            ("", "/", None),
        ] {
            assert_eq!(
                directory(mounts, path),
                expected.map(PathBuf::from),
                "{path}"
            );
        }
    }

    #[test]
    fn the_kernels_name_of_a_directory() {
        let hybrid = "30 25 0:26 / /sys/fs/cgroup ro - tmpfs cgroup ro\n\
            41 30 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        let part = "30 25 0:27 /kubepods/pod1 /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        let outside = "30 25 0:27 /../other /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        for (mounts, path, expected) in [
            (hybrid, "/sys/fs/cgroup/unified/a/b", Some("/a/b")),
            (hybrid, "/sys/fs/cgroup/a", None),
            (part, "/sys/fs/cgroup/c", Some("/kubepods/pod1/c")),
            (outside, "/sys/fs/cgroup/c", None),
        ] {
            let name = kernel_name(mounts, Path::new(path));
            assert_eq!(name.as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn a_directory_elsewhere_is_no_cgroup() {
        assert!(matches!(
            Cgroup::open(Path::new("/proc")),
            Err(CgroupError::NotCgroup2(_))
        ));
        assert!(matches!(
            Cgroup::open(Path::new("/nonexistent")),
            Err(CgroupError::Io { .. })
        ));
    }
}
