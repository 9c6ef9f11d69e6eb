//! System calls of the tests that no safe wrapper has.

use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use nix::libc;

/// Dissolves a TCP socket's association: `connect` with `AF_UNSPEC`, after which it may connect elsewhere.
pub fn disconnect(socket: &impl AsRawFd) -> io::Result<()> {
    let unspecified = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    let length = mem::size_of_val(&unspecified) as libc::socklen_t;
    // SAFETY: `unspecified` outlives the call, which reads `length` bytes of it and writes nothing.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &unspecified, length) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `getsockopt` with a buffer of `len` bytes: what it says that it wrote.
pub fn getsockopt(socket: RawFd, level: i32, option: i32, len: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0_u8; len];
    let mut length = len as libc::socklen_t;
    // SAFETY: the buffer is as long as `length` says.
    let result = unsafe {
        libc::getsockopt(
            socket,
            level,
            option,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    buffer.truncate(length as usize);
    Ok(buffer)
}

/// Takes a descriptor that came over a socket, or was just made, and that nobody else in this process knows.
pub fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the kernel made the descriptor for the message that brought it, or for the call, so that it has no owner yet.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// `setsockopt` of a number, for options that nobody names.
pub fn set_option(socket: &impl AsRawFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the value outlives the call, which reads as many bytes of it as it has.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
