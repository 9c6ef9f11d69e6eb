//! What mode `node` needs once for all pods, made and taken back; and attaching to interfaces.

use std::{fs, os::fd::AsFd, path::Path};

use aya::maps::{Array, MapData};
use redirect_common::maps::{NodeEntry, names};

use super::{LOCAL, RESET, host, interface::Interface, untracked};
use crate::{
    capture::{
        Applied, CaptureError,
        ebpf::{object::Programs, pins::Pins, tables::at},
    },
    sys::bpf::{self, Plain, TcxHook},
};

/// What was changed on the node, in a pinned map.
pub type State = Array<MapData, Plain<NodeEntry>>;

/// Programs at our interface, with the names of their pins.
pub const DELIVERING: [(&str, &str); 2] = [(LOCAL, "node_local"), (RESET, "node_reset")];

/// Makes on the node what all pods need. What was changed is kept in a pinned map, for whoever takes it back.
pub fn prepare(
    state: &mut State,
    programs: &Programs,
    directory: &Path,
) -> Result<(), CaptureError> {
    let mut entry = state.get(&0, 0).map(|entry| entry.0).unwrap_or_default();
    let device = host::apply().map_err(failed)?;
    match untracked::apply() {
        Ok(true) => {}
        Ok(false) => tracing::warn!(
            "neither nft nor iptables is here: if this node translates the addresses of services (kube-proxy), connections to them go astray"
        ),
        Err(error) => {
            return Err(failed((
                "keep connection tracking off",
                "the delivered packets".into(),
                std::io::Error::other(error),
            )));
        }
    }
    fs::create_dir_all(directory)
        .map_err(|error| CaptureError::kernel("create", directory.display(), &error))?;
    let interface = Interface {
        index: device,
        name: host::DEVICE.to_owned(),
    };
    for (program, pin) in DELIVERING {
        let pin = directory.join(pin);
        attach(programs, program, &pin, TcxHook::Ingress, &interface)?;
    }
    if host::stop_early_demux().map_err(failed)? {
        entry.early_demux = 1;
    }
    entry.device = device;
    state
        .set(0, Plain(entry), 0)
        .map_err(at(names::NODE, "the node's state"))
}

/// Takes back what [`prepare`] made, if it did, with the record of that in the pins below `bpffs`.
pub fn leave(bpffs: &Path) -> Result<(), CaptureError> {
    Pins::every(bpffs)?.iter().try_for_each(leave_version)
}

fn leave_version(pins: &Pins) -> Result<(), CaptureError> {
    let Ok(map) = MapData::from_pin(pins.map(names::NODE)) else {
        return Ok(());
    };
    let state = Array::<_, Plain<NodeEntry>>::try_from(aya::maps::Map::Array(map));
    let mut state = state.map_err(|error| CaptureError::kernel("use map", names::NODE, &error))?;
    let entry = state.get(&0, 0).map(|entry| entry.0).unwrap_or_default();
    if entry.device == 0 {
        return Ok(());
    }
    let mut errors: Vec<_> = host::clean().map_err(failed).err().into_iter().collect();
    if let Err(error) = untracked::clean() {
        let error = std::io::Error::other(error);
        errors.push(failed((
            "remove",
            "the rules without tracking".into(),
            error,
        )));
    }
    if entry.early_demux != 0 {
        errors.extend(host::restore_early_demux().map_err(failed).err());
    }
    if errors.is_empty() {
        let cleared = state.set(0, Plain(NodeEntry::default()), 0);
        errors.extend(cleared.map_err(at(names::NODE, "the node's state")).err());
    }
    CaptureError::collect(errors)
}

pub fn failed((call, object, error): host::Failure) -> CaptureError {
    CaptureError::kernel(call, object, &error)
}

pub fn attach(
    programs: &Programs,
    program: &'static str,
    pin: &Path,
    hook: TcxHook,
    interface: &Interface,
) -> Result<Applied, CaptureError> {
    let name = || format!("{program} to {}", interface.name);
    let fail = |error: std::io::Error| CaptureError::kernel("attach", name(), &error);
    let program = programs.get(program)?;
    if let Ok(link) = bpf::open_link(pin) {
        if bpf::interface_link(link.as_fd()).is_ok_and(|on| on == interface.index) {
            bpf::replace_program(link.as_fd(), program).map_err(fail)?;
            return Ok(Applied::Adopted);
        }
        // Dead: an interface that was removed takes its links with it.
        fs::remove_file(pin).map_err(fail)?;
    }
    let link = bpf::link_interface(program, interface.index, hook).map_err(fail)?;
    bpf::pin(link.as_fd(), pin)
        .map_err(|error| CaptureError::kernel("pin the link at", pin.display(), &error))?;
    Ok(Applied::Attached)
}
