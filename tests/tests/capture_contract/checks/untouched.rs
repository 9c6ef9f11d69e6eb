//! What capture leaves alone.

use std::{net::SocketAddr, process::Command};

use crate::{
    matrix::Family,
    stage::{EXCLUDED, PORT, Stage, own_port},
    talk::talk,
};

#[track_caller]
fn direct(stage: &Stage, dst: SocketAddr) {
    let talked = talk(&stage.mesh.client, dst);
    assert!(
        talked.is_direct(),
        "{dst} saw {} instead of {}",
        talked.seen,
        talked.sockname
    );
    assert_eq!(talked.peername, dst, "getpeername");
}

fn address(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(text.parse().expect("an address"), port)
}

pub fn loopback(stage: &Stage, family: Family) {
    let own = family.pick("127.0.0.1", "::1", "::ffff:127.0.0.1");
    direct(stage, address(own, own_port(family, PORT)));
}

pub fn own_address(stage: &Stage, family: Family) {
    direct(stage, family.at(&stage.mesh.client, own_port(family, PORT)));
}

pub fn excluded_port(stage: &Stage, family: Family) {
    direct(stage, family.at(&stage.mesh.outsider, EXCLUDED));
}

pub fn excluded_cidr(stage: &Stage, family: Family) {
    let dst = family.pick("10.99.1.1", "fd00:99::1", "::ffff:10.99.1.1");
    direct(stage, address(dst, PORT));
}

pub fn metadata(stage: &Stage, family: Family) {
    let dst = family.pick("169.254.169.254", "::", "::ffff:169.254.169.254");
    direct(stage, address(dst, PORT));
}

/// Connections of both directions, and nothing of them in conntrack's table.
pub fn conntrack(stage: &Stage, family: Family) {
    let mesh = &stage.mesh;
    talk(&mesh.client, family.at(&mesh.server, PORT));
    talk(&mesh.client, family.at(&mesh.outsider, PORT));
    for pod in [&mesh.client, &mesh.server] {
        let list = || {
            let family = family.pick("ipv4", "ipv6", "ipv4");
            Command::new("conntrack")
                .args(["-L", "-f", family])
                .output()
        };
        let output = pod.netns().run(list).expect("the namespace can be entered");
        let output = output.expect("conntrack is installed (`cargo xtask setup`)");
        let entries = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(entries, "", "in {}", pod.name());
    }
}
