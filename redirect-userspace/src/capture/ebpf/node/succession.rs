//! Beside another daemon in mode `node`, and alone.

use std::path::Path;

use super::{NodeCapture, prepare};
use crate::{capture::CaptureError, sys::cgroup::Cgroup};

impl NodeCapture {
    /// The daemon in this cgroup opens connections to apps still, which are not captured.
    pub(super) fn stand_beside(&mut self, predecessor: &Path) -> Result<(), CaptureError> {
        self.tables.add_proxy(Cgroup::open(predecessor)?.id)
    }

    pub(super) fn stand_alone(&mut self) -> Result<(), CaptureError> {
        let own = self.pins.proxy(self.own.id);
        prepare(&mut self.state, self.object.programs(), &own)?;
        self.pins.remove_other_proxies(self.own.id)?;
        self.tables.remove_other_proxies(self.own.id)?;
        self.pins.remove_other_versions()
    }
}
