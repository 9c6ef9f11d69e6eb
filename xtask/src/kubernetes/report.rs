//! What the test shows, step by step. A step that fails does not end the test: the others may tell why.

use std::time::Instant;

use anyhow::{Result, bail, ensure};

pub struct Report {
    started: Instant,
    steps: usize,
    failed: Vec<String>,
}

impl Report {
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            steps: 0,
            failed: Vec::new(),
        }
    }

    /// Does a step and prints what it saw, or why it failed. Gives what it saw for steps that build upon it.
    pub fn step(&mut self, what: &str, act: impl FnOnce() -> Result<String>) -> bool {
        self.steps += 1;
        let begun = Instant::now();
        let outcome = act();
        let at = self.started.elapsed().as_secs();
        let took = begun.elapsed().as_secs_f32();
        let (mark, text) = match &outcome {
            Ok(seen) => ("ok  ", seen.clone()),
            Err(error) => ("FAIL", format!("{error:#}")),
        };
        println!("{at:>4} s  {mark}  {what} ({took:.1} s)");
        for line in text.lines() {
            println!("              {line}");
        }
        if outcome.is_err() {
            self.failed.push(what.to_owned());
        }
        outcome.is_ok()
    }

    /// What an earlier failure keeps from being shown. It counts as failed.
    pub fn not_shown(&mut self, what: &str) {
        self.step(what, || {
            bail!("not tried, since what it builds upon failed")
        });
    }

    pub fn end(self) -> Result<()> {
        let seconds = self.started.elapsed().as_secs();
        println!(
            "{} of {} steps passed, in {seconds} s",
            self.steps - self.failed.len(),
            self.steps
        );
        ensure!(self.failed.is_empty(), "failed: {}", self.failed.join("; "));
        Ok(())
    }
}
