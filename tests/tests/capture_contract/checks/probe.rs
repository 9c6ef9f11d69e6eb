//! Kubelet's probes: they reach the app though its policy denies everybody, and nothing else does.

use std::path::Path;

use redirect_tests::{app_binary, way::Mode};

use crate::{
    matrix::Family,
    stage::{DENIED, PROBED, Stage, own_port},
    talk::{Fate, attempt},
};

/// A connection from the node's own namespace, by a process of `cgroup`.
fn from_node(stage: &Stage, cgroup: &Path, family: Family, port: u16) -> Fate {
    let mesh = &stage.mesh;
    let dst = family.on_wire(&mesh.client, own_port(family, port));
    attempt(
        mesh.a.command_in(cgroup, app_binary()),
        dst,
        &["--nonblocking"],
    )
}

pub fn reaches_the_app(stage: &Stage, family: Family) {
    match from_node(stage, &stage.prober, family, PROBED) {
        Fate::Refused(error) => panic!("the probe failed: {error}"),
        Fate::Talked(talk)
            if stage.way.backend.is_netfilter() && stage.way.mode == Mode::Shared =>
        {
            // Rules in the pod know it by the source that rules on the node give it.
            let probe = ["169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"];
            let probe = family.pick(probe[0], probe[1], probe[0]);
            assert_eq!(talk.seen.ip().to_string(), probe, "whom the app sees");
        }
        Fate::Talked(talk) => assert!(talk.is_direct(), "the app saw {}", talk.seen),
    }
}

#[track_caller]
fn is_refused(fate: Fate) {
    if let Fate::Talked(talk) = fate {
        panic!("it reached the app, which saw {}", talk.seen);
    }
}

/// The pod's spec does not declare it, and its policy denies it.
pub fn of_another_port(stage: &Stage, family: Family) {
    is_refused(from_node(stage, &stage.prober, family, DENIED));
}

/// From the node and as root, but not kubelet's.
pub fn by_somebody_else(stage: &Stage, family: Family) {
    let host = stage.mesh.a.cgroup().join("host");
    is_refused(from_node(stage, &host, family, PROBED));
}
