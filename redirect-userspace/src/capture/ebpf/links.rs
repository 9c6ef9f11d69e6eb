//! Which program is on which hook, and attaching them so that the pins never tell less than there is.

use std::{fs, os::fd::AsFd, path::Path};

use super::{
    super::{Applied, CaptureError},
    object::Object,
    pins::{Pins, Place},
};
use crate::{
    pod::PodUid,
    sys::{
        bpf::{self, CgroupHook},
        cgroup::Cgroup,
    },
};

/// Where a program is attached.
pub struct Hook {
    kind: CgroupHook,
    pin: &'static str,
    program: &'static str,
}

const fn hook(kind: CgroupHook, pin: &'static str, program: &'static str) -> Hook {
    Hook { kind, pin, program }
}

/// On a pod's cgroup, in the order of attaching: connects are steered only when all that follows is ready for them.
pub const POD_HOOKS: [Hook; 9] = [
    hook(CgroupHook::SockOps, "sock_ops", "rdr_pod_ops"),
    hook(CgroupHook::Getpeername4, "getpeername4", "rdr_peername4"),
    hook(CgroupHook::Getpeername6, "getpeername6", "rdr_peername6"),
    hook(CgroupHook::Recvmsg4, "recvmsg4", "rdr_recvmsg4"),
    hook(CgroupHook::Recvmsg6, "recvmsg6", "rdr_recvmsg6"),
    hook(CgroupHook::Sendmsg4, "sendmsg4", "rdr_sendmsg4"),
    hook(CgroupHook::Sendmsg6, "sendmsg6", "rdr_sendmsg6"),
    hook(CgroupHook::Connect4, "connect4", "rdr_connect4"),
    hook(CgroupHook::Connect6, "connect6", "rdr_connect6"),
];

/// On the proxy's cgroup.
pub const PROXY_HOOKS: [Hook; 2] = [
    hook(CgroupHook::SockOps, "sock_ops", "rdr_proxy_ops"),
    hook(CgroupHook::Getsockopt, "getsockopt", "rdr_getsockopt"),
];

/// Attaches what is missing on a pod's cgroup, and puts this daemon's programs into the links that are there.
pub fn attach_pod(
    object: &Object,
    pins: &Pins,
    uid: &PodUid,
    place: Place,
    cgroup: &Cgroup,
    hooks: &[Hook],
) -> Result<Applied, CaptureError> {
    let directory = pins.place(uid, place)?;
    if directory.exists() {
        return adopt(object, &directory, cgroup, hooks);
    }
    let staged = pins.stage(uid, place)?;
    attach_all(object, &staged, cgroup, hooks)
        .inspect_err(|_| _ = super::pins::remove_links(&staged))?;
    fs::rename(&staged, &directory).map_err(|error| {
        CaptureError::kernel("rename the new links to", directory.display(), &error)
    })?;
    Ok(Applied::Attached)
}

/// Attaches the proxy's programs to the daemon's cgroup; those of earlier daemons' cgroups go.
pub fn attach_proxy(
    object: &Object,
    pins: &Pins,
    cgroup: &Cgroup,
    hooks: &[Hook],
) -> Result<(), CaptureError> {
    let directory = pins.proxy(cgroup.id);
    if directory.exists() {
        adopt(object, &directory, cgroup, hooks)?;
    } else {
        fs::create_dir(&directory)
            .map_err(|error| CaptureError::kernel("create", directory.display(), &error))?;
        attach_all(object, &directory, cgroup, hooks)?;
    }
    pins.remove_other_proxies(cgroup.id)
}

fn attach_all(
    object: &Object,
    directory: &Path,
    cgroup: &Cgroup,
    hooks: &[Hook],
) -> Result<(), CaptureError> {
    hooks
        .iter()
        .try_for_each(|hook| attach(object, directory, cgroup, hook))
}

fn attach(
    object: &Object,
    directory: &Path,
    cgroup: &Cgroup,
    hook: &Hook,
) -> Result<(), CaptureError> {
    let pin = directory.join(hook.pin);
    let fail = |error: std::io::Error| {
        CaptureError::kernel(
            "attach",
            format!("{} to {}", hook.program, cgroup.path.display()),
            &error,
        )
    };
    let on = fs::File::open(&cgroup.path).map_err(fail)?;
    let link = bpf::link(object.program(hook.program)?, on.as_fd(), hook.kind).map_err(fail)?;
    bpf::pin(link.as_fd(), &pin)
        .map_err(|error| CaptureError::kernel("pin the link at", pin.display(), &error))
}

/// Goes on with the links in `directory`, all of which are to be on `cgroup`.
fn adopt(
    object: &Object,
    directory: &Path,
    cgroup: &Cgroup,
    hooks: &[Hook],
) -> Result<Applied, CaptureError> {
    let mut applied = Applied::Adopted;
    for hook in hooks {
        let pin = directory.join(hook.pin);
        let fail = |call, error: std::io::Error| CaptureError::kernel(call, pin.display(), &error);
        let link = match bpf::open_link(&pin) {
            Ok(link) => Some(link),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(fail("open the pinned link", error)),
        };
        match link {
            // Another daemon's build may have other programs; replaced in place, no connect passes in between.
            Some(link)
                if bpf::cgroup_link(link.as_fd()).is_ok_and(|link| link.cgroup == cgroup.id) =>
            {
                bpf::replace_program(link.as_fd(), object.program(hook.program)?)
                    .map_err(|error| fail("replace the program of the link", error))?;
            }
            // Dead, or not ours: a cgroup that was removed takes its links with it.
            found => {
                if found.is_some() {
                    fs::remove_file(&pin).map_err(|error| fail("remove the dead link", error))?;
                }
                attach(object, directory, cgroup, hook)?;
                applied = Applied::Attached;
            }
        }
    }
    Ok(applied)
}
