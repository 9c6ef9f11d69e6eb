//! Going on with what other daemons left, or still have: of this version of the programs, and of others.

use std::path::Path;

use redirect_common::maps::{NodeEntry, OrigDstEntry, names};

use super::{
    EbpfCapture,
    inbound::Inbound,
    links::{self, PROXY_HOOKS},
    pins::{Pins, Place},
    tables::Tables,
};
use crate::{capture::CaptureError, sys::cgroup::Cgroup};

impl EbpfCapture {
    /// The daemon in this cgroup carries on what it has: its packets pass the guard, and what it sends to apps is not captured.
    pub(super) fn stand_beside(&mut self, predecessor: &Path) -> Result<(), CaptureError> {
        let predecessor = Cgroup::open(predecessor)?;
        // It may be of another version, whose programs are there too.
        self.tables.add_proxy(predecessor.id)?;
        let programs = self.object.programs();
        links::attach_proxy(programs, &self.pins, &predecessor, &PROXY_HOOKS)?;
        self.predecessor = Some(predecessor);
        Ok(())
    }

    pub(super) fn stand_alone(&mut self) -> Result<(), CaptureError> {
        self.predecessor = None;
        self.tables.remove_other_proxies(self.own.id)?;
        self.pins.remove_other_proxies(self.own.id)?;
        self.pins.remove_other_versions()
    }
}

/// Goes on with what another version's programs keep on sockets, and with what was made on the node.
pub fn inherit(pins: &Pins) -> Result<(), CaptureError> {
    for (name, value_size) in [
        (names::KNOWN, size_of::<u32>()),
        (names::CLIENT, size_of::<OrigDstEntry>()),
        (names::NODE, size_of::<NodeEntry>()),
    ] {
        pins.inherit(name, value_size as u32)?;
    }
    Ok(())
}

/// Removes map entries of pods without pins: a daemon was killed between one step and the next.
pub fn remove_orphans(
    pins: &Pins,
    tables: &mut Tables,
    inbound: &mut Inbound,
) -> Result<(), CaptureError> {
    let mut pinned = Vec::new();
    for uid in pins.pods()? {
        pinned.extend(pins.places(&uid)?);
    }
    for place in tables.places()? {
        let is_pinned = |pin: &Place| {
            let is_there = place.cgroup == 0 || place.cgroup == pin.cgroup;
            place.netns_cookie == pin.netns_cookie && is_there
        };
        if !pinned.iter().any(is_pinned) {
            for number in tables.remove(place)? {
                inbound.remove(number)?;
            }
        }
    }
    let cookies: Vec<_> = pinned.iter().map(|place| place.netns_cookie).collect();
    inbound.remove_orphans(&cookies)
}
