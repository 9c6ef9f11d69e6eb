//! All pods added and removed, again and again, while connections go on elsewhere: nothing may become more.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, ensure};

use super::{
    figure::Figures,
    stage::{Stage, timed, uid},
};
use crate::{exchange::serve, wait_until};

/// Rounds until what the daemon keeps is as it stays.
const WARM: usize = 5;
/// What may be more after the last round than after these.
const FDS: usize = 16;
const RSS_KIB: u64 = 8 * 1024;

/// What the daemon holds while only the pods of the configuration are captured.
#[derive(Clone, Copy, Debug)]
struct Held {
    fds: usize,
    rss_kib: u64,
    pins: usize,
    cgroups: usize,
}

pub fn run(
    stage: &mut Stage,
    rounds: usize,
    connections: usize,
    figures: &mut Figures,
) -> Result<()> {
    let _server = serve(&stage.callee, 8080, "echo");
    let count = connections.to_string();
    let mut clients = stage.caller.app([
        "many",
        &stage.callee.at(8080).to_string(),
        "--count",
        &count,
    ]);
    clients.event("held");
    println!("soak: {connections} connections are held");

    let (mut adding, mut removing) = (Duration::ZERO, Duration::ZERO);
    let mut warm = None;
    for round in 0..rounds {
        let ((), took) = timed(|| stage.add_all())?;
        adding = adding.max(took);
        if round == 0 {
            stage.verify(&stage.pods.iter().map(uid).collect())?;
        }
        let ((), took) = timed(|| stage.remove_all())?;
        removing = removing.max(took);
        if round + 1 == WARM.min(rounds) {
            warm = Some(settled(stage)?);
        }
    }
    let warm = warm.unwrap_or(settled(stage)?);
    let after = settled(stage)?;
    println!("soak: after {WARM} rounds {warm:?}, after {rounds} {after:?}");
    ensure!(
        after.fds <= warm.fds + FDS,
        "descriptors leak: {warm:?}, {after:?}"
    );
    ensure!(after.pins == warm.pins, "links leak: {warm:?}, {after:?}");
    ensure!(
        after.cgroups == warm.cgroups,
        "cgroups leak: {warm:?}, {after:?}"
    );
    ensure!(
        after.rss_kib <= warm.rss_kib + RSS_KIB,
        "memory leaks: {warm:?}, {after:?}"
    );
    stage.verify(&BTreeSet::new())?;
    // All of the connections are still there.
    clients.write("again\n");
    let again = clients.next_event();
    ensure!(again.name() == "again", "the connections: {}", again.json());
    let ok = again.json()["ok"].as_u64();
    ensure!(ok == Some(connections as u64), "lost: {}", again.json());
    clients.close_stdin();
    let name = |what: &str| format!("{what} all pods, slowest of {rounds} rounds");
    figures.add(name("adding"), adding.as_secs_f64() * 1000.0, "ms");
    figures.add(name("removing"), removing.as_secs_f64() * 1000.0, "ms");
    let more = after.rss_kib as f64 - warm.rss_kib as f64;
    figures.add(
        format!("memory more after round {rounds} than after {WARM}"),
        more,
        "KiB",
    );
    let more = after.fds as f64 - warm.fds as f64;
    figures.add(
        format!("descriptors more after round {rounds} than after {WARM}"),
        more,
        "",
    );
    Ok(())
}

/// What is held when the last pod's end is over.
fn settled(stage: &Stage) -> Result<Held> {
    let mut last = stage.daemon.fds();
    let is_settled = wait_until(Duration::from_secs(30), || {
        let now = stage.daemon.fds();
        std::mem::replace(&mut last, now) == now
    });
    ensure!(is_settled, "the daemon's descriptors do not settle");
    Ok(Held {
        fds: stage.daemon.fds(),
        rss_kib: stage.daemon.rss_kib(),
        pins: stage.pins(),
        cgroups: stage.cgroups(),
    })
}
