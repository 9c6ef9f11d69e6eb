//! Waiting until nobody else uses the machine, for as long as is reasonable.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// How long to look, and how long at most to wait for a quiet machine.
const LOOK: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(20);
/// A machine this idle is quiet.
const IDLE: f64 = 0.9;
/// After a run, what it started is still winding down.
const IDLE_AFTER: f64 = 0.8;

/// Runs loads on a quiet machine and counts those where it was not.
#[derive(Debug, Default)]
pub struct Quiet {
    pub runs: usize,
    pub noisy: usize,
}

impl Quiet {
    /// Runs `load`, again once if somebody came in between.
    pub fn run<T>(&mut self, mut load: impl FnMut() -> Result<T>) -> Result<T> {
        self.runs += 1;
        for last in [false, true] {
            let before = wait()?;
            let result = load()?;
            let after = idle()? > IDLE_AFTER;
            if before && after {
                return Ok(result);
            }
            if last {
                self.noisy += 1;
                return Ok(result);
            }
        }
        unreachable!("the last turn returns")
    }
}

fn wait() -> Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if idle()? > IDLE {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The share of time in which the processors had nothing to do.
fn idle() -> Result<f64> {
    let before = jiffies()?;
    thread::sleep(LOOK);
    let after = jiffies()?;
    let (total, idle) = (after.0 - before.0, after.1 - before.1);
    Ok(if total == 0 {
        1.0
    } else {
        idle as f64 / total as f64
    })
}

/// All time and idle time (idle and iowait, fields 4 and 5) since boot.
fn jiffies() -> Result<(u64, u64)> {
    let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let fields: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split(' ')
        .filter_map(|f| f.parse().ok())
        .collect();
    let idle = fields.get(3..5).context("odd /proc/stat")?.iter().sum();
    Ok((fields.iter().sum(), idle))
}
