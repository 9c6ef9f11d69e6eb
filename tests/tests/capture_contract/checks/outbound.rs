//! Connections that the client's app makes.

use crate::{
    matrix::Family,
    stage::{CLOSED, DENIED, PORT, Stage},
    talk::{access, canonical, refused, talk},
};

pub fn by_hbone(stage: &Stage, family: Family) {
    let mesh = &stage.mesh;
    let asked = family.at(&mesh.server, PORT);
    let talked = talk(&mesh.client, asked);
    let line = access(&mesh.daemon_a, "outbound", talked.sockname);
    let dst = format!(" dst.addr={} ", canonical(asked));
    assert!(line.contains(&dst), "not{dst}in: {line}");
    let tunnel = family.on_wire(&mesh.server, 15008);
    let tunnel = format!(" dst.hbone_addr={tunnel} ");
    assert!(line.contains(&tunnel), "not{tunnel}in: {line}");
    // The trace is one: the server's daemon carried this very connection, for this destination.
    let trace = line.split(" trace_id=").nth(1).expect("a trace id");
    let trace = trace.split(' ').next().expect("a word");
    mesh.daemon_b.wait_log("the other end of it", |line| {
        line.contains(trace) && line.contains("direction=\"inbound\"") && line.contains(&dst)
    });
}

pub fn passed_through(stage: &Stage, family: Family) {
    let mesh = &stage.mesh;
    let asked = family.at(&mesh.outsider, PORT);
    let talked = talk(&mesh.client, asked);
    let line = access(&mesh.daemon_a, "outbound", talked.sockname);
    let dst = format!(" dst.addr={} ", canonical(asked));
    assert!(line.contains(&dst), "not{dst}in: {line}");
    assert!(!line.contains("dst.hbone_addr"), "{line}");
}

pub fn names(stage: &Stage, family: Family) {
    let mesh = &stage.mesh;
    let own = family.at(&mesh.client, 0).ip();
    for asked in [
        family.at(&mesh.server, PORT),
        family.at(&mesh.outsider, PORT),
    ] {
        let talked = talk(&mesh.client, asked);
        assert_eq!(talked.peername, asked, "getpeername");
        assert_eq!(talked.sockname.ip(), own, "getsockname");
    }
}

pub fn client_address(stage: &Stage, family: Family) {
    let mesh = &stage.mesh;
    let talked = talk(&mesh.client, family.at(&mesh.server, PORT));
    let client = family.on_wire(&mesh.client, 0).ip();
    assert_eq!(talked.seen.ip(), client, "whom the server sees");
}

pub fn refusal(stage: &Stage, family: Family) {
    let mesh = &stage.mesh;
    for port in [CLOSED, DENIED] {
        refused(&mesh.client, family.at(&mesh.server, port));
    }
    refused(&mesh.client, family.at(&mesh.outsider, CLOSED));
}

/// A tunnel and a passed-through connection that came back to the listener would be counted, too.
pub fn proxy_itself(stage: &Stage, family: Family) {
    let mesh = &stage.mesh;
    let opened = || {
        let directions = ["outbound", "inbound"];
        directions.map(|direction| {
            let labels = [("direction", direction)];
            let metrics = mesh.daemon_a.metrics();
            metrics.sum("redirect_connections_opened_total", &labels) as u64
        })
    };
    let before = opened();
    for dst in [
        family.at(&mesh.server, PORT),
        family.at(&mesh.outsider, PORT),
    ] {
        talk(&mesh.client, dst);
    }
    let [outbound, inbound] = opened();
    assert_eq!(
        (outbound - before[0], inbound - before[1]),
        (2, 0),
        "(outbound, inbound)"
    );
}
