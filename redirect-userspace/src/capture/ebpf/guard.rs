//! The guard on the interfaces of a captured pod: what went around capture is dropped there.
//!
//! What the pod's options allow is a constant of the program, so there is one program for each set of options in use. The
//! links are pinned beside the pod's others, as `guard-INTERFACE`; where UDP or SCTP is refused there is one more on the pod's
//! cgroup, `guard-cgroup`, by which sends fail visibly.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use redirect_common::guard::rules;

use super::{
    super::CaptureError,
    classifier::{self, Interface},
    object::Single,
    pins::Pins,
};
use crate::{
    pod::PodOptions,
    sys::{
        bpf::{self, CgroupHook, LinkTarget},
        cgroup::Cgroup,
        netns::Netns,
    },
};

/// What names of the guard's links begin with.
pub const PIN: &str = "guard-";
const ON_CGROUP: &str = "guard-cgroup";
const PROGRAM: &str = "rdr_guard";
const REFUSING: &str = "rdr_refuse";
const CONSTANT: &str = "RDR_GUARD_RULES";

/// How programs are attached to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachBy {
    /// By tcx, or by a filter where the kernel has no tcx.
    Link,
    /// By a filter of the clsact qdisc.
    Filter,
}

/// Loads and attaches the guard's programs.
pub struct Guard {
    programs: HashMap<(&'static str, u32), Single>,
    by: AttachBy,
}

impl Guard {
    pub fn new(by: AttachBy) -> Self {
        Self {
            programs: HashMap::new(),
            by,
        }
    }

    /// Puts the guard on all interfaces of `netns` that are there now, and takes it from none. Links go to `directory`.
    pub fn apply(
        &mut self,
        pins: &Pins,
        directory: &Path,
        netns: &Netns,
        cgroup: &Cgroup,
        options: &PodOptions,
    ) -> Result<(), CaptureError> {
        let interfaces = interfaces(netns)?;
        for interface in &interfaces {
            let known = self.by;
            let program = self.program(pins, PROGRAM, rules_of(options, interface))?;
            let by = attach(netns, program, directory, interface, known).map_err(|error| {
                let object = format!(
                    "{PROGRAM} to {} in {}",
                    interface.name,
                    netns.path().display()
                );
                CaptureError::kernel("attach", object, &error)
            })?;
            if by != known {
                tracing::debug!(
                    "no tcx in this kernel: the leak guard is a filter of the clsact qdisc"
                );
                self.by = by;
            }
        }
        // An interface that is gone took its link along, and left the pin.
        let is_there = |name: &str| interfaces.iter().any(|there| pin_name(there) == name);
        let refuses = options.refuse_udp || options.refuse_sctp;
        if refuses {
            self.refuse_sends(pins, directory, cgroup, options)?;
        }
        remove_pins(directory, |name| {
            let is_wanted = is_there(name) || (refuses && name == ON_CGROUP);
            !is_wanted
        })
    }

    /// In words, which interfaces and cgroups it is not on. As [`apply`](Self::apply) found the kernel to attach it.
    pub fn missing(
        &self,
        directory: &Path,
        netns: &Netns,
        cgroup: &Cgroup,
        options: &PodOptions,
    ) -> Result<Vec<String>, CaptureError> {
        let mut missing = Vec::new();
        for interface in interfaces(netns)? {
            let is_on = match self.by {
                AttachBy::Link => is_linked(&directory.join(pin_name(&interface)), |link| {
                    Ok(bpf::interface_link(link)? == interface.index)
                }),
                AttachBy::Filter => netns
                    .run(|| classifier::has_filter(interface.index))
                    .and_then(|has| has)
                    .map_err(|error| {
                        CaptureError::kernel("look for the filter of", &interface.name, &error)
                    })?,
            };
            if !is_on {
                missing.push(format!("the guard was not on {}", interface.name));
            }
        }
        let refuses = options.refuse_udp || options.refuse_sctp;
        let is_on = |link: BorrowedFd<'_>| Ok(bpf::link_target(link)? == on(cgroup));
        if refuses && !is_linked(&directory.join(ON_CGROUP), is_on) {
            missing.push("the guard was not on the cgroup".to_owned());
        }
        Ok(missing)
    }

    fn refuse_sends(
        &mut self,
        pins: &Pins,
        directory: &Path,
        cgroup: &Cgroup,
        options: &PodOptions,
    ) -> Result<(), CaptureError> {
        let program = self.program(pins, REFUSING, options_rules(options))?;
        let pin = directory.join(ON_CGROUP);
        let attach = || -> io::Result<()> {
            if let Some(link) = live(&pin, |link| Ok(bpf::link_target(link)? == on(cgroup)))? {
                return bpf::replace_program(link.as_fd(), program);
            }
            let directory = fs::File::open(&cgroup.path)?;
            let link = bpf::link(program, directory.as_fd(), CgroupHook::InetEgress)?;
            bpf::pin(link.as_fd(), &pin)
        };
        attach().map_err(|error| {
            let object = format!("{REFUSING} to {}", cgroup.path.display());
            CaptureError::kernel("attach", object, &error)
        })
    }

    fn program(
        &mut self,
        pins: &Pins,
        name: &'static str,
        rules: u32,
    ) -> Result<BorrowedFd<'_>, CaptureError> {
        let program = match self.programs.entry((name, rules)) {
            Entry::Occupied(loaded) => loaded.into_mut(),
            Entry::Vacant(empty) => empty.insert(Single::load(pins, name, CONSTANT, rules)?),
        };
        Ok(program.fd())
    }
}

/// Moves the links on interfaces from `former`, the folder of a cgroup that the pod had in the same namespace, to `directory`. An
/// interface takes a program only once, so that what is there cannot be attached anew beside it.
pub fn take_over(former: &Path, directory: &Path) -> Result<(), CaptureError> {
    let fail = |error: io::Error| {
        CaptureError::kernel("take over the guard from", former.display(), &error)
    };
    for entry in fs::read_dir(former).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(PIN) && name != ON_CGROUP {
            fs::rename(entry.path(), directory.join(&*name)).map_err(fail)?;
        }
    }
    Ok(())
}

/// Takes the guard from a pod whose links are in `directory`.
pub fn remove(directory: &Path, netns: &Netns) -> Result<(), CaptureError> {
    let pins = remove_pins(directory, |_| true);
    pins.and(remove_filters(netns))
}

/// Removes the filters that stand for links where the kernel has none.
pub fn remove_filters(netns: &Netns) -> Result<(), CaptureError> {
    let remove = |interface: &Interface| {
        let removed = netns.run(|| classifier::remove_filter(interface.index));
        removed.and_then(|removed| removed).map_err(|error| {
            let object = format!("{} in {}", interface.name, netns.path().display());
            CaptureError::kernel("remove the filter from", object, &error)
        })
    };
    let errors = interfaces(netns)?
        .iter()
        .filter_map(|i| remove(i).err())
        .collect();
    CaptureError::collect(errors)
}

fn interfaces(netns: &Netns) -> Result<Vec<Interface>, CaptureError> {
    let found = netns.run(classifier::interfaces);
    found.and_then(|found| found).map_err(|error| {
        CaptureError::kernel("list the interfaces of", netns.path().display(), &error)
    })
}

fn pin_name(interface: &Interface) -> String {
    format!("{PIN}{}", interface.index)
}

/// Attaches the program, or puts it into the link that is there. Says how.
fn attach(
    netns: &Netns,
    program: BorrowedFd<'_>,
    directory: &Path,
    interface: &Interface,
    by: AttachBy,
) -> io::Result<AttachBy> {
    let pin = directory.join(pin_name(interface));
    let is_on = |link: BorrowedFd<'_>| Ok(bpf::interface_link(link)? == interface.index);
    if by == AttachBy::Link {
        if let Some(link) = live(&pin, is_on)? {
            bpf::replace_program(link.as_fd(), program)?;
            return Ok(AttachBy::Link);
        }
        let link = netns.run(|| classifier::link_egress(program, interface.index))??;
        if let Some(link) = link {
            bpf::pin(link.as_fd(), &pin)?;
            // What a daemon left that attached by a filter.
            netns.run(|| classifier::remove_filter(interface.index))??;
            return Ok(AttachBy::Link);
        }
    }
    netns.run(|| classifier::filter_egress(program, interface.index))??;
    if live(&pin, is_on)?.is_some() {
        unpin(&pin)?;
    }
    Ok(AttachBy::Filter)
}

fn on(cgroup: &Cgroup) -> LinkTarget {
    LinkTarget::Cgroup(cgroup.id)
}

fn is_linked(pin: &Path, is_on: impl Fn(BorrowedFd<'_>) -> io::Result<bool>) -> bool {
    let link = bpf::open_link(pin);
    link.and_then(|link| is_on(link.as_fd())).unwrap_or(false)
}

/// Detaches a link and removes its pin.
fn unpin(pin: &Path) -> io::Result<()> {
    bpf::detach(bpf::open_link(pin)?.as_fd())?;
    fs::remove_file(pin)
}

/// The link that is pinned there, if `is_on` finds it where it belongs. The pin of a dead one is removed.
fn live(
    pin: &Path,
    is_on: impl Fn(BorrowedFd<'_>) -> io::Result<bool>,
) -> io::Result<Option<OwnedFd>> {
    let link = match bpf::open_link(pin) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        link => link?,
    };
    if is_on(link.as_fd()).unwrap_or(false) {
        return Ok(Some(link));
    }
    fs::remove_file(pin)?;
    Ok(None)
}

/// Detaches those of the guard's links in `directory` that are to go by their names.
fn remove_pins(directory: &Path, is_to_go: impl Fn(&str) -> bool) -> Result<(), CaptureError> {
    let fail = |error: io::Error| {
        CaptureError::kernel("remove the guard from", directory.display(), &error)
    };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(fail)?,
    };
    for entry in entries {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(PIN) && is_to_go(&name) {
            unpin(&entry.path()).map_err(fail)?;
        }
    }
    Ok(())
}

/// What may leave by an interface of a pod with these options.
fn rules_of(options: &PodOptions, interface: &Interface) -> u32 {
    match interface.is_ethernet {
        true => options_rules(options),
        false => options_rules(options) | rules::NO_ETHERNET,
    }
}

fn options_rules(options: &PodOptions) -> u32 {
    let bits = [
        (options.allow_forwarding, rules::ALLOW_FORWARDING),
        (options.refuse_udp, rules::REFUSE_UDP),
        (options.refuse_udp && !options.capture_dns, rules::ALLOW_DNS),
        (options.refuse_sctp, rules::REFUSE_SCTP),
    ];
    bits.iter()
        .filter(|(set, _)| *set)
        .fold(0, |all, (_, bit)| all | bit)
}
