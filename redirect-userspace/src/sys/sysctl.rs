//! Kernel parameters (sysctls), those below `net` being of the calling thread's network namespace.
//!
//! In a container that is not privileged, /proc/sys is mounted read-only. A mount of procfs of our own, which has no place in
//! any directory and ends with the process, is not (fsopen(2), fsmount(2); Linux 5.2, CAP_SYS_ADMIN).

use std::{
    ffi::CStr,
    fs::{self, File},
    io::{self, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::PathBuf,
    ptr,
    sync::OnceLock,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    libc,
    sys::stat::Mode,
};

/// Where a parameter is to be seen; `name` is as `net/ipv4/tcp_fwmark_accept`.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name)
}

pub fn read(name: &str) -> io::Result<String> {
    fs::read_to_string(path(name))
}

/// Whether the calling thread's network namespace has IPv6.
pub fn has_ipv6() -> bool {
    path("net/ipv6").exists()
}

pub fn write(name: &str, value: &str) -> io::Result<()> {
    match fs::write(path(name), value) {
        Err(error) if error.raw_os_error() == Some(libc::EROFS) => {
            let file = openat(
                own_procfs()?,
                &*PathBuf::from("sys").join(name),
                OFlag::O_WRONLY | OFlag::O_CLOEXEC,
                Mode::empty(),
            )?;
            File::from(file).write_all(value.as_bytes())
        }
        result => result,
    }
}

/// Made once, and kept.
fn own_procfs() -> io::Result<&'static OwnedFd> {
    static PROCFS: OnceLock<Result<OwnedFd, Errno>> = OnceLock::new();
    let mounted = PROCFS.get_or_init(|| mount_procfs().map_err(|_| Errno::last()));
    mounted.as_ref().map_err(|errno| (*errno).into())
}

fn mount_procfs() -> io::Result<OwnedFd> {
    const NAME: &CStr = c"proc";
    const FLAGS: libc::c_uint = 1; // FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC (linux/mount.h)
    const CREATE: libc::c_uint = 6; // FSCONFIG_CMD_CREATE
    // SAFETY: the name is a string that ends with zero, and lives for ever.
    let context = descriptor(unsafe { libc::syscall(libc::SYS_fsopen, NAME.as_ptr(), FLAGS) })?;
    // SAFETY: this command takes no key and no value.
    let created = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            CREATE,
            ptr::null::<u8>(),
            ptr::null::<u8>(),
            0,
        )
    };
    Errno::result(created)?;
    // SAFETY: numbers only.
    descriptor(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FLAGS, 0) })
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    let number = Errno::result(result)?;
    let number = i32::try_from(number).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, so that it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns;

    #[test]
    fn a_mount_of_our_own_shows_the_threads_namespace() {
        let name = "net/ipv4/ip_default_ttl";
        netns::in_new(|| {
            let file = openat(
                own_procfs().unwrap(),
                &*PathBuf::from("sys").join(name),
                OFlag::O_WRONLY,
                Mode::empty(),
            );
            File::from(file.unwrap()).write_all(b"77").unwrap();
            assert_eq!(read(name).unwrap().trim(), "77");
        })
        .unwrap();
        assert_ne!(read(name).unwrap().trim(), "77", "nowhere else");
    }

    #[test]
    fn what_does_not_exist_is_not_found() {
        let error = write("net/ipv4/no_such_parameter", "1").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
