//! Connections to the client's pod, from one that is in no mesh.

use std::process::Command;

use redirect_tests::way::Mode;

use crate::{
    matrix::Family,
    stage::{CLOSED, DENIED, EXCLUDED_INBOUND, POLICY, PORT, Stage, own_port},
    talk::{access, not_served, refused, talk, talk_with},
};

pub fn captured(stage: &Stage, family: Family) {
    let mesh = &stage.mesh;
    let dst = family.on_wire(&mesh.client, own_port(family, PORT));
    let talked = talk(&mesh.outsider, dst);
    let line = access(&mesh.daemon_a, "inbound", talked.sockname);
    assert!(line.contains(&format!(" dst.addr={dst} ")), "{line}");
    // In plaintext, so that nobody is known.
    assert!(!line.contains("src.identity"), "{line}");
    assert_eq!(talked.seen.ip(), talked.sockname.ip(), "whom the app sees");
}

pub fn to_no_app(stage: &Stage, family: Family) {
    refused(
        &stage.mesh.outsider,
        family.on_wire(&stage.mesh.client, CLOSED),
    );
}

pub fn denied(stage: &Stage, family: Family) {
    let mesh = &stage.mesh;
    let from = mesh.daemon_a.process().line_count();
    let dst = family.on_wire(&mesh.client, own_port(family, DENIED));
    refused(&mesh.outsider, dst);
    mesh.daemon_a
        .wait_log_from(from, "the policy's name", |line| {
            line.contains(POLICY) && line.contains(&dst.to_string())
        });
}

/// What only the pod itself may reach; where nobody of ours listens, it is a port like any other.
pub fn our_ports(stage: &Stage, family: Family) {
    let ip = family.on_wire(&stage.mesh.client, 0).ip();
    not_served(&stage.mesh.outsider, ip, &[15001, 15006, 15053]);
}

/// What `ss -tln` lists in the pod.
pub fn listeners(stage: &Stage, family: Family) {
    let pod = &stage.mesh.client;
    let run = || Command::new("ss").args(["-Htln"]).output();
    let output = pod.netns().run(run).expect("the namespace can be entered");
    let listed = output.expect("ss is installed").stdout;
    let listed = String::from_utf8_lossy(&listed);
    let ports: Vec<&str> = listed
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3)?.rsplit(':').next())
        .collect();
    let _ = family;
    for port in ["15001", "15006", "15008"] {
        assert_eq!(
            ports.contains(&port),
            stage.way.mode != Mode::Node,
            "{port} in {ports:?}"
        );
    }
}

pub fn excluded_port(stage: &Stage, family: Family) {
    let dst = family.on_wire(&stage.mesh.client, own_port(family, EXCLUDED_INBOUND));
    let talked = talk(&stage.mesh.outsider, dst);
    assert!(talked.is_direct(), "the app saw {}", talked.seen);
}

pub fn excluded_cidr(stage: &Stage, family: Family) {
    let source = family.pick("10.98.1.1:0", "[fd00:98::1]:0", "10.98.1.1:0");
    let dst = family.on_wire(&stage.mesh.client, own_port(family, PORT));
    let talked = talk_with(&stage.mesh.outsider, dst, &["--bind", source]);
    assert!(talked.is_direct(), "the app saw {}", talked.seen);
}
