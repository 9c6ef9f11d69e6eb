//! The host's processes, as /proc shows them. A process may end at any moment: what is not there is not said.

use std::{
    fs, io,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::ifaddrs::getifaddrs;

use super::{LocationError, Sandbox, sandbox};
use crate::sys::netns::Netns;

/// A process by its folder in /proc.
#[derive(Clone, Debug)]
pub struct Process(PathBuf);

/// All of them.
pub fn all(proc: &Path) -> Result<Vec<Process>, LocationError> {
    let entries = fs::read_dir(proc).map_err(|source| LocationError::Io {
        call: "read",
        path: proc.to_owned(),
        source,
    })?;
    let is_pid = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    Ok(entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(is_pid))
        .map(|entry| Process(entry.path()))
        .collect())
}

/// The network namespaces that are no pod's: the host's, and this process's own.
pub fn hosts(proc: &Path) -> Vec<u64> {
    let files = [proc.join("1/ns/net"), "/proc/self/ns/net".into()];
    files.iter().filter_map(|file| inode(file).ok()).collect()
}

/// The number of the namespace that the file names.
pub fn inode(file: &Path) -> Result<u64, LocationError> {
    let metadata = fs::metadata(file).map_err(|source| LocationError::Io {
        call: "open the network namespace",
        path: file.to_owned(),
        source,
    })?;
    Ok(metadata.ino())
}

impl Process {
    /// The text of its file `cgroup`.
    pub fn cgroups(&self) -> Option<String> {
        fs::read_to_string(self.0.join("cgroup")).ok()
    }

    pub fn netns_path(&self) -> PathBuf {
        self.0.join("ns/net")
    }

    pub fn netns(&self) -> Option<u64> {
        inode(&self.netns_path()).ok()
    }

    /// When, in clock ticks since boot.
    pub fn started(&self) -> Option<u64> {
        started(&fs::read_to_string(self.0.join("stat")).ok()?)
    }

    /// The addresses of its network namespace.
    pub fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        let addresses = || -> io::Result<Vec<IpAddr>> {
            let found = getifaddrs()?.filter_map(|interface| {
                let address = interface.address?;
                let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
            });
            Ok(found.collect())
        };
        Netns::open(&self.netns_path())?.run(addresses)?
    }

    /// What it is part of, if that has a network stack of its own.
    pub fn sandbox(&self) -> Option<Sandbox> {
        let command = fs::read(self.0.join("cmdline")).unwrap_or_default();
        let first = command.split(|byte| *byte == 0).next().unwrap_or_default();
        let executable = fs::read_link(self.0.join("exe")).unwrap_or_default();
        sandbox::of(
            &String::from_utf8_lossy(first),
            &executable.to_string_lossy(),
        )
    }
}

/// Field 22 of /proc/PID/stat; the name in field 2 may hold anything, also blanks and brackets (proc(5)).
pub fn started(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}
