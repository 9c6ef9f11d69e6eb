//! What pods cost that do nothing, and how fast a new daemon takes them over.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    figure::Figures,
    stage::{Stage, timed},
};

pub fn measure(stage: &mut Stage, seconds: u64, figures: &mut Figures) -> Result<()> {
    let count = stage.pods.len() as f64;
    // Once before, so that what an allocator keeps anyway is not counted.
    stage.add_all()?;
    stage.remove_all()?;
    let before = stage.daemon.rss_kib();
    let ((), took) = timed(|| stage.add_all())?;
    figures.add("adding all pods", took.as_secs_f64() * 1000.0, "ms");
    let after = stage.daemon.rss_kib();
    let each = (after as f64 - before as f64) / count;
    figures.at_most("memory of an idle captured pod", each, "KiB", 100.0);

    let busy = stage.daemon.cpu();
    thread::sleep(Duration::from_secs(seconds));
    let busy = (stage.daemon.cpu() - busy).as_secs_f64();
    let percent = 100.0 * busy / seconds as f64;
    figures.at_most("CPU at rest, of one core", percent, "%", 2.0);

    stage.daemon.sigkill();
    let started = Instant::now();
    stage.daemon = stage.daemon.spec().spawn();
    let ready = stage
        .daemon
        .wait_log("ready", |line| line.contains(" ready "));
    let took = started.elapsed().as_secs_f64() * 1000.0;
    let expected = format!("pods={}", stage.pods.len() + 2);
    anyhow::ensure!(ready.contains(&expected), "not all are adopted: {ready}");
    figures.at_most("start to ready, all pods adopted", took, "ms", 1000.0);
    // Says the same on a machine that has other things to do.
    let busy = stage.daemon.cpu().as_secs_f64() * 1000.0;
    figures.add("CPU time until then", busy, "ms");
    stage.remove_all()
}
