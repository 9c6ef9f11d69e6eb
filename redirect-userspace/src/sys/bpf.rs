//! What of bpf(2) and its surroundings aya does not wrap.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use nix::libc;
use tokio::io::{Interest, unix::AsyncFd};

/// A map's key or value that is plain bytes, as aya wants it marked.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plain<T>(pub T);

// SAFETY: bytemuck's `Pod` promises just what aya's asks for: no padding, and every pattern of bytes is a value.
unsafe impl<T: bytemuck::Pod> aya::Pod for Plain<T> {}

const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;
const BPF_LINK_TYPE_CGROUP: u32 = 3;
const BPF_LINK_TYPE_NETNS: u32 = 5;
const BPF_SK_LOOKUP: u32 = 36;
const BPF_LINK_TYPE_TCX: u32 = 11;
/// Before all others of the hook.
const BPF_F_BEFORE: u32 = 1 << 3;

/// Hooks of cgroups: `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CgroupHook {
    InetEgress = 1,
    SockOps = 3,
    Bind4 = 8,
    Bind6 = 9,
    Connect4 = 10,
    Connect6 = 11,
    Sendmsg4 = 14,
    Sendmsg6 = 15,
    Recvmsg4 = 19,
    Recvmsg6 = 20,
    Getsockopt = 21,
    Setsockopt = 22,
    Getpeername4 = 29,
    Getpeername6 = 30,
}

/// Hooks of interfaces: `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum TcxHook {
    Ingress = 46,
    Egress = 47,
}

/// What a link attaches its program to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkTarget {
    /// The cgroup's id; 0 if it was removed: the link then is dead for good.
    Cgroup(u64),
    /// The network namespace's inode; 0 if it is gone.
    Netns(u64),
}

/// The start of `union bpf_attr` for BPF_OBJ_PIN and BPF_OBJ_GET.
#[repr(C)]
#[derive(Default)]
struct Pinned {
    pathname: u64,
    fd: u32,
    flags: u32,
}

/// For BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
struct ObjInfo {
    fd: u32,
    len: u32,
    info: u64,
}

/// For BPF_LINK_CREATE.
#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// For BPF_LINK_UPDATE.
#[repr(C)]
struct LinkUpdate {
    link: u32,
    new_program: u32,
    flags: u32,
    old_program: u32,
}

/// The start of `struct bpf_link_info`, with the part for cgroups.
#[repr(C, align(8))]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    /// Cgroups: the id in two halves, as it lies in memory. Network namespaces: inode and attach type.
    target: [u32; 2],
    rest: [u32; 2],
}

/// A reader of events that can be awaited, inside a runtime.
pub fn await_events(ring: RingBuf<MapData>) -> io::Result<AsyncFd<RingBuf<MapData>>> {
    // SAFETY: the reader owns its descriptor and never changes it.
    unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }.map_err(io::Error::from)
}

/// A reader of the programs' log that can be awaited, inside a runtime.
pub fn await_log<L>(logger: EbpfLogger<L>) -> io::Result<AsyncFd<EbpfLogger<L>>> {
    // SAFETY: the logger owns its ring buffer's descriptor and never changes it.
    unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }.map_err(io::Error::from)
}

/// Attaches `program` to a cgroup, beside what may be there. It stays until the link is closed, unless it is pinned.
pub fn link(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    hook: CgroupHook,
) -> io::Result<OwnedFd> {
    create_link(&LinkCreate {
        program: program.as_raw_fd() as u32,
        target: cgroup.as_raw_fd() as u32,
        attach_type: hook as u32,
        flags: 0,
    })
}

/// Attaches a program of the kind `sk_lookup` to a network namespace, after what may be there.
pub fn link_to_netns(program: BorrowedFd<'_>, netns: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    create_link(&LinkCreate {
        program: program.as_raw_fd() as u32,
        target: netns.as_raw_fd() as u32,
        attach_type: BPF_SK_LOOKUP,
        flags: 0,
    })
}

/// Attaches `program` to an interface of the calling thread's network namespace (Linux 6.6), before what may be there.
pub fn link_interface(
    program: BorrowedFd<'_>,
    interface: u32,
    hook: TcxHook,
) -> io::Result<OwnedFd> {
    create_link(&LinkCreate {
        program: program.as_raw_fd() as u32,
        target: interface,
        attach_type: hook as u32,
        flags: BPF_F_BEFORE,
    })
}

fn create_link(attr: &LinkCreate) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { bpf(BPF_LINK_CREATE, attr) }?;
    // SAFETY: the kernel just gave this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Gives a link a name in a BPF file system, which keeps it when it is closed.
pub fn pin(link: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = Pinned {
        pathname: path.as_ptr() as u64,
        fd: link.as_raw_fd() as u32,
        flags: 0,
    };
    // SAFETY: the path lives until the call returns.
    unsafe { bpf(BPF_OBJ_PIN, &attr) }.map(drop)
}

/// Opens a link that is pinned at `path`.
pub fn open_link(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = Pinned {
        pathname: path.as_ptr() as u64,
        ..Pinned::default()
    };
    // SAFETY: the path lives until the call returns.
    let fd = unsafe { bpf(BPF_OBJ_GET, &attr) }?;
    // SAFETY: the kernel just gave this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// What a link is attached to; an error if that is neither a cgroup nor a network namespace.
pub fn link_target(link: BorrowedFd<'_>) -> io::Result<LinkTarget> {
    let info = link_info(link)?;
    match info.kind {
        BPF_LINK_TYPE_CGROUP => Ok(LinkTarget::Cgroup(bytemuck::cast(info.target))),
        BPF_LINK_TYPE_NETNS => Ok(LinkTarget::Netns(info.target[0].into())),
        kind => Err(io::Error::other(format!(
            "a link of type {kind}, neither to a cgroup nor to a network namespace"
        ))),
    }
}

/// The index of the interface that a link is on, in its network namespace; 0 if the interface was removed.
pub fn interface_link(link: BorrowedFd<'_>) -> io::Result<u32> {
    let info = link_info(link)?;
    match info.kind {
        // A word, where links to cgroups have an id of two.
        BPF_LINK_TYPE_TCX => Ok(info.target[0]),
        kind => Err(io::Error::other(format!(
            "a link of type {kind}, not to an interface"
        ))),
    }
}

fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    let attr = ObjInfo {
        fd: link.as_raw_fd() as u32,
        len: size_of::<LinkInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: `info` lives until the call returns and is as long as it says.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &attr) }?;
    Ok(info)
}

/// Puts `program` in the place of the link's, without a moment in between.
pub fn replace_program(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = LinkUpdate {
        link: link.as_raw_fd() as u32,
        new_program: program.as_raw_fd() as u32,
        flags: 0,
        old_program: 0,
    };
    // SAFETY: no pointers.
    unsafe { bpf(BPF_LINK_UPDATE, &attr) }.map(drop)
}

/// Takes the link's program off before this returns; only to close or unpin the link would do so some time later.
///
/// A link that does not know how to (before Linux 5.9) is left to its unpinning.
pub fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    match detach_now(link) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
            Ok(())
        }
        result => result,
    }
}

/// The same, and an error for a link that does not know how to.
pub fn detach_now(link: BorrowedFd<'_>) -> io::Result<()> {
    let attr = link.as_raw_fd() as u32;
    // SAFETY: no pointers.
    unsafe { bpf(BPF_LINK_DETACH, &attr) }.map(drop)
}

/// The cookie of the network namespace that a socket is in, which programs see too (Linux 5.14).
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the buffer is as long as `len` says.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// # Safety
///
/// Addresses in `attr` are valid for what `command` does with them.
unsafe fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads no further than the size it is told, and takes what is missing as zero.
    match unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attr),
            size_of::<T>(),
        )
    } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}
