//! Network namespaces: opening them, and running code or making sockets inside.

use std::{
    cell::Cell,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    libc,
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};

/// An open network namespace. Clones share the file.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<File>,
    inode: u64,
    path: Arc<Path>,
}

impl Netns {
    /// Opens the namespace that the file at `path` names.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let inode = file.metadata()?.ino();
        Ok(Self {
            file: Arc::new(file),
            inode,
            path: path.into(),
        })
    }

    /// The namespace that a descriptor from somebody else refers to. Its path is good in this process, for as long as it or a
    /// clone lives.
    pub fn of(fd: OwnedFd) -> io::Result<Self> {
        let is_netns =
            fstatfs(&fd)?.filesystem_type() == NSFS_MAGIC && kind(&fd)? == libc::CLONE_NEWNET;
        if !is_netns {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it refers to something else",
            ));
        }
        let file = File::from(fd);
        let inode = file.metadata()?.ino();
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        Ok(Self {
            file: Arc::new(file),
            inode,
            path: path.into(),
        })
    }

    /// The calling thread's own namespace.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Identifies the namespace as long as anything holds it open.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    pub fn path(&self) -> PathBuf {
        self.path.to_path_buf()
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Moves the calling thread into this namespace for as long as it lives, or until the next `enter`.
    ///
    /// Remembers where the thread is, so that entering the same namespace again costs nothing. Meant for proxy workers,
    /// which make every socket through a factory that enters first.
    pub fn enter(&self) -> io::Result<()> {
        thread_local!(static CURRENT: Cell<u64> = const { Cell::new(0) });
        if CURRENT.get() == self.inode {
            return Ok(());
        }
        setns(self.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
        CURRENT.set(self.inode);
        Ok(())
    }

    /// Runs `f` on a thread of its own inside the namespace, so that no other code can find itself there by mistake.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("netns".into())
                .spawn_scoped(scope, || {
                    setns(self.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
                    Ok(f())
                })?;
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// Which kind of namespace a file of nsfs is: the flag of `clone` for it (ioctl_ns(2)).
fn kind(fd: &OwnedFd) -> io::Result<libc::c_int> {
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: the call takes no argument, and touches no memory of ours.
    match unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) } {
        -1 => Err(io::Error::last_os_error()),
        kind => Ok(kind),
    }
}

/// Runs `f` on a thread of its own in a new namespace, which ends with it.
pub fn in_new<T: Send>(f: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, || {
                unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
                Ok(f())
            })?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Brings up the loopback interface of the calling thread's namespace, which is down in a new one.
pub fn raise_loopback() -> io::Result<()> {
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    let mut name = [0; libc::IFNAMSIZ];
    name[..2].copy_from_slice(&[b'l' as libc::c_char, b'o' as libc::c_char]);
    let request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short,
        },
    };
    // SAFETY: the request lives until the call returns, which reads it.
    match unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw const request,
        )
    } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
