//! One daemon at a time: a locked file in the state directory. One that takes over from another shares the lock.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, Write},
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use crate::node::{attachments, remembered};

const LOCK: &str = "lock";
/// Where `agent.socket` is if nothing else is said.
const SOCKET: &str = "agent.sock";

/// Held for the daemon's lifetime; the kernel releases it however the daemon ends.
pub struct Instance {
    lock: File,
    state_dir: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    #[error("{call} {}: {source}", path.display())]
    Io {
        call: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("another daemon (pid {pid}) uses {}; stop it, take over from it (--take-over), or give this one another stateDir", path.display())]
    Taken { pid: String, path: PathBuf },
}

impl Instance {
    /// Makes the directory if it is missing, for root alone, and takes the lock in it.
    pub fn claim(state_dir: &Path) -> Result<Self, InstanceError> {
        let io = |call, path: &Path| {
            let path = path.to_owned();
            move |source| InstanceError::Io { call, path, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .map_err(io("create", state_dir))?;
        let path = state_dir.join(LOCK);
        let mut lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // Only for the message.
                let _ = lock.read_to_string(&mut pid);
                return Err(InstanceError::Taken {
                    pid: pid.trim().to_owned(),
                    path: state_dir.to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(io("lock", &path)(source)),
        }
        let instance = Self {
            lock,
            state_dir: state_dir.to_owned(),
        };
        instance.sign()?;
        Ok(instance)
    }

    /// Shares the lock with the daemon that gave it: it is free when both have ended.
    pub fn inherit(state_dir: &Path, lock: OwnedFd) -> Self {
        Self {
            lock: lock.into(),
            state_dir: state_dir.to_owned(),
        }
    }

    /// The lock, for a daemon that takes over.
    pub fn share(&self) -> Result<File, InstanceError> {
        self.lock.try_clone().map_err(|source| InstanceError::Io {
            call: "share",
            path: self.state_dir.join(LOCK),
            source,
        })
    }

    /// Says in the file whose the directory is.
    pub fn sign(&self) -> Result<(), InstanceError> {
        let mut lock = &self.lock;
        let mut write = || -> io::Result<()> {
            lock.set_len(0)?;
            lock.rewind()?;
            writeln!(lock, "{}", std::process::id())
        };
        write().map_err(|source| InstanceError::Io {
            call: "write",
            path: self.state_dir.join(LOCK),
            source,
        })
    }

    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }
}

/// Removes all that daemons keep in the directory for the next one, and the directory if nothing else is in it.
pub fn remove(state_dir: &Path) -> io::Result<()> {
    for result in [
        fs::remove_dir_all(state_dir.join(remembered::FOLDER)),
        fs::remove_dir_all(state_dir.join(attachments::FOLDER)),
        fs::remove_file(state_dir.join(SOCKET)),
        fs::remove_file(state_dir.join(LOCK)),
        fs::remove_dir(state_dir),
    ] {
        match result {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_daemon_is_told_who_has_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let first = Instance::claim(&state).unwrap();
        let error = Instance::claim(&state).err().unwrap().to_string();
        assert!(
            error.contains(&format!("pid {}", std::process::id())),
            "{error}"
        );
        drop(first);
        drop(Instance::claim(&state).unwrap());
        remove(&state).unwrap();
        assert!(!state.exists());
        remove(&state).unwrap();
    }
}
