//! What is left when a daemon is dead, and when it has let go.

use crate::{
    matrix::Family,
    stage::{PORT, Stage, own_port},
    talk::{refused, talk},
};

pub fn outbound_refused(stage: &Stage, family: Family) {
    let mesh = &stage.mesh;
    for dst in [
        family.at(&mesh.server, PORT),
        family.at(&mesh.outsider, PORT),
    ] {
        refused(&mesh.client, dst);
    }
}

pub fn inbound_refused(stage: &Stage, family: Family) {
    let mesh = &stage.mesh;
    refused(
        &mesh.outsider,
        family.on_wire(&mesh.client, own_port(family, PORT)),
    );
}

pub fn nothing_leaked(stage: &Stage, _: Family) {
    assert_eq!(
        stage.mesh.wall.leaked(),
        0,
        "packets in plaintext between the nodes"
    );
}

pub fn direct(stage: &Stage, family: Family) {
    let mesh = &stage.mesh;
    let outbound = talk(&mesh.client, family.at(&mesh.outsider, PORT));
    assert!(outbound.is_direct(), "the server saw {}", outbound.seen);
    let inbound = talk(
        &mesh.outsider,
        family.on_wire(&mesh.client, own_port(family, PORT)),
    );
    assert!(inbound.is_direct(), "the app saw {}", inbound.seen);
}

pub fn as_before(stage: &Stage, _: Family) {
    let changed = stage.changed();
    assert!(changed.is_empty(), "not as before:\n{}", changed.join("\n"));
}
