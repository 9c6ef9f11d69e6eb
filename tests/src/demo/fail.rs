//! Steps about what must not work, and about ends.

use std::{fs, time::Instant};

use super::{
    Lines,
    stage::{PORT, Stage, field, line},
};
use crate::{
    exchange::{greeted, refused},
    hbone::{self, Forge, Leaf, Tunnel, run_in},
};

pub fn refusal(stage: &mut Stage) -> Lines {
    let closed = stage.web.at(9);
    let error = refused(&stage.client, closed);
    let milliseconds = error.u64("micros") as f64 / 1000.0;
    assert!(milliseconds < 3000.0, "only after {milliseconds} ms");
    let access = stage.daemon_a.wait_log("line of the access log", |line| {
        line.contains("connection failed") && line.contains(&format!("dst.addr={closed}"))
    });
    vec![
        line(
            "the app asked for",
            format!("{closed}, where nobody listens"),
        ),
        line(
            "the app got",
            format!(
                "{} after {milliseconds:.1} ms, not a clean end",
                error.str("name")
            ),
        ),
        line("the log says", field(&access, "reason")),
    ]
}

pub fn wrong_trust_domain(stage: &mut Stage) -> Lines {
    let forge = Forge::of(stage.bed.ca());
    let to = stage.web.at(hbone::PORT);
    let authority = stage.web.at(PORT).to_string();
    let attempt = |uri: &str| {
        let credentials = forge.leaf(&Leaf::new(uri));
        run_in(stage.b.netns(), || async {
            let mut tunnel = Tunnel::open(to, &credentials)
                .await
                .map_err(|error| error.to_string())?;
            tunnel
                .connect(&authority)
                .await
                .map(|_| ())
                .map_err(|error| error.to_string())
        })
    };
    let good = "spiffe://cluster.local/ns/default/sa/visitor";
    attempt(good).expect("the control: this identity is of the mesh's trust domain");
    let bad = "spiffe://elsewhere.local/ns/default/sa/visitor";
    let error = attempt(bad).expect_err("a certificate of another trust domain was accepted");
    vec![
        line(good, "tunnel opened"),
        line(bad, format!("handshake failed: {error}")),
    ]
}

pub fn dead_daemon(stage: &mut Stage) -> Lines {
    let wall = stage.wall();
    let dst = stage.web.at(PORT);
    stage.daemon_a.sigkill();
    let mut names = Vec::new();
    for dst in [dst, stage.web.at6(PORT)] {
        names.push(refused(&stage.client, dst).str("name").to_owned());
    }
    let started = Instant::now();
    stage.daemon_a = stage.daemon_a.spec().start();
    let ready = started.elapsed();
    greeted(&stage.client, dst, &[]);
    let adopted = stage
        .daemon_a
        .log()
        .iter()
        .filter(|line| line.contains("adopted"))
        .count();
    assert_eq!(adopted, 2, "pods adopted");
    assert_eq!(wall.leaked(), 0, "packets in plaintext between the nodes");
    wall.remove();
    vec![
        line(
            "after SIGKILL",
            format!("the app gets {}", names.join(" and ")),
        ),
        line("packets in plaintext", "0"),
        line(
            "the next daemon",
            format!(
                "adopted {adopted} pods, ready after {:.2} s",
                ready.as_secs_f64()
            ),
        ),
    ]
}

pub fn let_go(stage: &mut Stage) -> Lines {
    let server = &stage.web_app;
    for daemon in [&mut stage.daemon_a, &mut stage.daemon_b] {
        let status = daemon.stop();
        assert!(
            status.success(),
            "{status}: {}",
            daemon.process().transcript(10)
        );
    }
    let before = server.events("accepted").len();
    let connected = greeted(&stage.client, stage.web.at(PORT), &[]);
    let accepted = &server.events("accepted")[before];
    assert_eq!(
        accepted.addr("peer"),
        connected.addr("sockname"),
        "not a direct connection"
    );
    let mut pins = 0;
    for daemon in [&stage.daemon_a, &stage.daemon_b] {
        pins += fs::read_dir(daemon.spec().bpffs().join("redirect")).map_or(0, Iterator::count);
    }
    assert_eq!(pins, 0, "pins left");
    vec![
        line("SIGTERM", "both daemons ended with status 0"),
        line(
            "the app's connection",
            format!("direct again: the server sees {}", accepted.str("peer")),
        ),
        line("pinned objects left", pins.to_string()),
    ]
}
