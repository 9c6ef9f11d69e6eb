//! Which program is on which hook, and attaching them so that the pins never tell less than there is.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use super::{
    super::{Applied, CaptureError},
    object::Programs,
    pins::{Pins, Place},
    subject::Subject,
};
use crate::{
    pod::{Pod, PodUid},
    sys::{
        bpf::{self, CgroupHook, LinkTarget},
        cgroup::Cgroup,
        netns::Netns,
    },
};

/// Where a program is attached.
#[derive(Clone, Copy)]
pub struct Hook {
    kind: Kind,
    pin: &'static str,
    pub program: &'static str,
}

#[derive(Clone, Copy)]
enum Kind {
    Cgroup(CgroupHook),
    /// `sk_lookup`.
    Netns,
}

const fn hook(kind: CgroupHook, pin: &'static str, program: &'static str) -> Hook {
    let kind = Kind::Cgroup(kind);
    Hook { kind, pin, program }
}

/// On a pod's cgroup and network namespace, in the order of attaching: connections are steered only when all that follows is
/// ready for them.
pub const POD_HOOKS: [Hook; 13] = [
    hook(CgroupHook::Bind4, "bind4", "rdr_bind4"),
    hook(CgroupHook::Bind6, "bind6", "rdr_bind6"),
    hook(CgroupHook::Setsockopt, "setsockopt", "rdr_setsockopt"),
    hook(CgroupHook::SockOps, "sock_ops", "rdr_pod_ops"),
    hook(CgroupHook::Getpeername4, "getpeername4", "rdr_peername4"),
    hook(CgroupHook::Getpeername6, "getpeername6", "rdr_peername6"),
    hook(CgroupHook::Recvmsg4, "recvmsg4", "rdr_recvmsg4"),
    hook(CgroupHook::Recvmsg6, "recvmsg6", "rdr_recvmsg6"),
    hook(CgroupHook::Sendmsg4, "sendmsg4", "rdr_sendmsg4"),
    hook(CgroupHook::Sendmsg6, "sendmsg6", "rdr_sendmsg6"),
    Hook {
        kind: Kind::Netns,
        pin: "sk_lookup",
        program: "rdr_lookup",
    },
    hook(CgroupHook::Connect4, "connect4", "rdr_connect4"),
    hook(CgroupHook::Connect6, "connect6", "rdr_connect6"),
];

/// The hooks of a pod: one that bypasses inbound capture, or shares its namespace with others, has a program there that is laxer.
pub fn pod_hooks(pod: &Pod) -> [Hook; POD_HOOKS.len()] {
    let is_lax = pod.options.bypass_inbound || pod.cgroup_only.is_some();
    POD_HOOKS.map(|hook| match hook.kind {
        Kind::Netns if is_lax => Hook {
            program: "rdr_lookup_any",
            ..hook
        },
        _ => hook,
    })
}

/// On the proxy's cgroup.
pub const PROXY_HOOKS: [Hook; 2] = [
    hook(CgroupHook::SockOps, "sock_ops", "rdr_proxy_ops"),
    hook(CgroupHook::Getsockopt, "getsockopt", "rdr_getsockopt"),
];

/// On the cgroup of whoever probes pods.
pub const PROBER_HOOKS: [Hook; 1] = [hook(CgroupHook::SockOps, "sock_ops", "rdr_prober_ops")];

/// What programs are attached to.
#[derive(Clone, Copy)]
pub struct Targets<'a> {
    pub cgroup: &'a Cgroup,
    /// For hooks of a pod.
    pub netns: Option<&'a Netns>,
}

impl<'a> Targets<'a> {
    pub fn of(subject: &'a Subject<'_>) -> Self {
        Self {
            cgroup: &subject.cgroup,
            netns: Some(subject.netns),
        }
    }

    pub fn cgroup(cgroup: &'a Cgroup) -> Self {
        Self {
            cgroup,
            netns: None,
        }
    }

    fn is(&self, target: LinkTarget) -> bool {
        match target {
            LinkTarget::Cgroup(id) => id == self.cgroup.id,
            LinkTarget::Netns(inode) => self.netns.is_some_and(|netns| netns.inode() == inode),
        }
    }

    fn link(&self, program: BorrowedFd<'_>, kind: Kind) -> io::Result<OwnedFd> {
        match (kind, self.netns) {
            (Kind::Cgroup(hook), _) => {
                bpf::link(program, fs::File::open(&self.cgroup.path)?.as_fd(), hook)
            }
            (Kind::Netns, Some(netns)) => bpf::link_to_netns(program, netns.as_fd()),
            (Kind::Netns, None) => Err(io::Error::other("no network namespace is given")),
        }
    }

    fn name(&self, kind: Kind) -> String {
        match (kind, self.netns) {
            (Kind::Netns, Some(netns)) => netns.path().display().to_string(),
            _ => self.cgroup.path.display().to_string(),
        }
    }
}

/// Attaches what is missing on a pod's cgroup and network namespace, and puts this daemon's programs into the links that are there.
pub fn attach_pod(
    programs: &Programs,
    pins: &Pins,
    uid: &PodUid,
    place: Place,
    targets: Targets<'_>,
    hooks: &[Hook],
) -> Result<Applied, CaptureError> {
    let directory = pins.place(uid, place)?;
    if directory.exists() {
        return adopt(programs, &directory, targets, hooks);
    }
    let staged = pins.stage(uid, place)?;
    attach_all(programs, &staged, targets, hooks)
        .inspect_err(|_| _ = super::pins::remove_links(&staged))?;
    fs::rename(&staged, &directory).map_err(|error| {
        CaptureError::kernel("rename the new links to", directory.display(), &error)
    })?;
    Ok(Applied::Attached)
}

/// Attaches the proxy's programs to the daemon's cgroup.
pub fn attach_proxy(
    programs: &Programs,
    pins: &Pins,
    cgroup: &Cgroup,
    hooks: &[Hook],
) -> Result<(), CaptureError> {
    attach_in(programs, &pins.proxy(cgroup.id), cgroup, hooks)
}

/// Attaches the programs for whoever probes pods; those of cgroups that are not among `cgroups` go.
pub fn attach_probers(
    programs: &Programs,
    pins: &Pins,
    cgroups: &[Cgroup],
    hooks: &[Hook],
) -> Result<(), CaptureError> {
    for cgroup in cgroups {
        attach_in(programs, &pins.prober(cgroup.id), cgroup, hooks)?;
    }
    let keep: Vec<_> = cgroups.iter().map(|cgroup| cgroup.id).collect();
    pins.remove_other_probers(&keep)
}

fn attach_in(
    programs: &Programs,
    directory: &Path,
    cgroup: &Cgroup,
    hooks: &[Hook],
) -> Result<(), CaptureError> {
    let targets = Targets::cgroup(cgroup);
    if directory.exists() {
        return adopt(programs, directory, targets, hooks).map(drop);
    }
    fs::create_dir(directory)
        .map_err(|error| CaptureError::kernel("create", directory.display(), &error))?;
    attach_all(programs, directory, targets, hooks)
}

fn attach_all(
    programs: &Programs,
    directory: &Path,
    targets: Targets<'_>,
    hooks: &[Hook],
) -> Result<(), CaptureError> {
    hooks
        .iter()
        .try_for_each(|hook| attach(programs, directory, targets, hook))
}

fn attach(
    programs: &Programs,
    directory: &Path,
    targets: Targets<'_>,
    hook: &Hook,
) -> Result<(), CaptureError> {
    let pin = directory.join(hook.pin);
    let link = targets
        .link(programs.get(hook.program)?, hook.kind)
        .map_err(|error| {
            let object = format!("{} to {}", hook.program, targets.name(hook.kind));
            CaptureError::kernel("attach", object, &error)
        })?;
    bpf::pin(link.as_fd(), &pin)
        .map_err(|error| CaptureError::kernel("pin the link at", pin.display(), &error))
}

/// The names of the pins in `directory` at which there is no link to `targets`.
pub fn missing(directory: &Path, targets: Targets<'_>, hooks: &[Hook]) -> Vec<&'static str> {
    let is_attached = |hook: &&Hook| {
        let link = bpf::open_link(&directory.join(hook.pin));
        let target = link.and_then(|link| bpf::link_target(link.as_fd()));
        target.is_ok_and(|target| targets.is(target))
    };
    let missing = hooks.iter().filter(|hook| !is_attached(hook));
    missing.map(|hook| hook.pin).collect()
}

/// Goes on with the links in `directory`, all of which are to be on `targets`.
fn adopt(
    programs: &Programs,
    directory: &Path,
    targets: Targets<'_>,
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
            Some(link) if bpf::link_target(link.as_fd()).is_ok_and(|to| targets.is(to)) => {
                bpf::replace_program(link.as_fd(), programs.get(hook.program)?)
                    .map_err(|error| fail("replace the program of the link", error))?;
            }
            // Dead, or not ours: what was removed takes its links with it.
            found => {
                if found.is_some() {
                    fs::remove_file(&pin).map_err(|error| fail("remove the dead link", error))?;
                }
                attach(programs, directory, targets, hook)?;
                applied = Applied::Attached;
            }
        }
    }
    Ok(applied)
}
