//! The BPF file system, which keeps maps and links while no process does.

use std::{fs, io, path::Path};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

/// Whether `path` lies on a BPF file system. False if it does not exist.
pub fn is_bpffs(path: &Path) -> io::Result<bool> {
    match statfs(path) {
        Ok(stat) => Ok(stat.filesystem_type() == BPF_FS_MAGIC),
        Err(Errno::ENOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Makes `path` a BPF file system if it is not on one yet, and that is permitted. True if it was mounted now.
pub fn ensure_mounted(path: &Path, may_mount: bool) -> io::Result<bool> {
    if is_bpffs(path)? {
        return Ok(false);
    }
    if !may_mount {
        return Err(io::Error::other(
            "there is none, and capture.mountBpffs is false; on the node: `mount -t bpf bpf /sys/fs/bpf`",
        ));
    }
    fs::create_dir_all(path)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=0700"))?;
    Ok(true)
}
