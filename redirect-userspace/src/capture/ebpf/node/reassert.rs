//! Looking after what mode `node` made on the node, and after the programs at pods' interfaces.

use std::{os::fd::AsFd, path::Path};

use redirect_common::maps::names;

use super::{
    HOOKS, Interface, NodeCapture, host, interfaces_of, key_of,
    prepare::{self, DELIVERING, failed},
    untracked,
};
use crate::{
    capture::{
        CaptureError, Repair,
        ebpf::{pins::Place, tables::at},
    },
    pod::PodUid,
    sys::{bpf, netns::Netns},
};

const NODE: &str = "node";

impl NodeCapture {
    pub(super) fn look_after(&mut self, pods: &[PodUid]) -> Vec<Repair> {
        let node = Repair::of(NODE, self.look_after_node());
        let pods = pods.iter().filter_map(|uid| {
            let netns = self.applied.get(uid)?.clone();
            Repair::of(uid.as_str(), self.look_after_pod(uid, &netns))
        });
        node.into_iter().chain(pods).collect()
    }

    fn look_after_node(&mut self) -> Result<Vec<String>, CaptureError> {
        let mut wrong = host::missing().map_err(failed)?;
        if untracked::is_missing() {
            wrong.push("the rules that keep connection tracking off were missing".to_owned());
        }
        let entry = self.state.get(&0, 0).map(|entry| entry.0);
        let device = entry.map_err(at(names::NODE, "the node's state"))?.device;
        let directory = self.pins.proxy(self.own.id);
        for (program, pin) in DELIVERING {
            if !is_on(&directory.join(pin), device) {
                wrong.push(format!("{program} was not attached to {}", host::DEVICE));
            }
        }
        if !wrong.is_empty() {
            prepare::prepare(&mut self.state, self.object.programs(), &directory)?;
        }
        Ok(wrong)
    }

    fn look_after_pod(&mut self, uid: &PodUid, netns: &Netns) -> Result<Vec<String>, CaptureError> {
        let key = key_of(netns);
        let place = Place {
            netns_cookie: key,
            cgroup: 0,
        };
        let directory = self.pins.place(uid, place)?;
        let interfaces = interfaces_of(netns)?;
        let mut wrong = Vec::new();
        for interface in &interfaces {
            if !self.is_captured(&directory, key, interface) {
                wrong.push(format!("{} was not captured", interface.name));
                self.attach(&directory, key, interface)?;
            }
        }
        if !wrong.is_empty() {
            self.keep_interfaces(key, &interfaces)?;
        }
        Ok(wrong)
    }

    fn is_captured(&self, directory: &Path, key: u64, interface: &Interface) -> bool {
        let pin = |name: &str| directory.join(format!("{name}-{}", interface.index));
        let is_known = self
            .interfaces
            .get(&interface.index, 0)
            .is_ok_and(|of| of == key);
        is_known
            && HOOKS
                .iter()
                .all(|(_, _, name)| is_on(&pin(name), interface.index))
    }
}

fn is_on(pin: &Path, interface: u32) -> bool {
    let link = bpf::open_link(pin);
    let on = link.and_then(|link| bpf::interface_link(link.as_fd()));
    on.is_ok_and(|on| on == interface)
}
