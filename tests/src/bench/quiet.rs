//! Waiting until nobody else uses the machine, for as long as is reasonable.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// How long to look.
const LOOK: Duration = Duration::from_millis(300);
/// A machine this idle is quiet.
const IDLE: f64 = 0.9;
/// After a run, what it started is still winding down.
const IDLE_AFTER: f64 = 0.8;

/// Runs loads on a quiet machine and counts those where it was not.
#[derive(Debug)]
pub struct Quiet {
    /// How long to wait for it, at most.
    patience: Duration,
    pub runs: usize,
    pub noisy: usize,
}

impl Quiet {
    pub fn new(patience: Duration) -> Self {
        Self {
            patience,
            runs: 0,
            noisy: 0,
        }
    }

    /// Runs `load`, again once if somebody came in between.
    pub fn run<T>(&mut self, mut load: impl FnMut() -> Result<T>) -> Result<T> {
        self.runs += 1;
        let before = self.wait()?;
        let mut result = load()?;
        let mut quiet = before && idle()? > IDLE_AFTER;
        if before && !quiet {
            quiet = self.wait()?;
            result = load()?;
            quiet = quiet && idle()? > IDLE_AFTER;
        }
        self.noisy += usize::from(!quiet);
        Ok(result)
    }

    fn wait(&self) -> Result<bool> {
        let deadline = Instant::now() + self.patience;
        loop {
            if idle()? > IDLE {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
        }
    }
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
