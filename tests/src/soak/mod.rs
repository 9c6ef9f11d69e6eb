//! `cargo xtask soak`: many pods that come and go for long, a daemon that is killed in the midst, and what is left of it all.
//!
//! Each part ends with what must hold (an error if it does not) and gives figures; those that have a target are compared with
//! it at the end.

mod churn;
mod figure;
mod kills;
mod rest;
mod stage;

use anyhow::{Result, bail};

use self::{figure::Figures, stage::Stage};

#[derive(clap::Args)]
pub struct Options {
    /// Pods on the node
    #[arg(long, default_value_t = 110)]
    pods: usize,
    /// How often all of them are added and removed
    #[arg(long, default_value_t = 50)]
    rounds: usize,
    /// Connections elsewhere that go on during all of that
    #[arg(long, default_value_t = 1000)]
    connections: usize,
    /// How often the daemon is killed
    #[arg(long, default_value_t = 100)]
    kills: usize,
    /// Seconds of rest in which CPU time is measured
    #[arg(long, default_value_t = 10)]
    rest: u64,
}

pub fn run(options: &Options) -> Result<()> {
    let mut figures = Figures::default();
    let mut stage = Stage::set(options.pods)?;
    println!("soak: {} pods, {} workers", options.pods, stage::WORKERS);
    rest::measure(&mut stage, options.rest, &mut figures)?;
    churn::run(
        &mut stage,
        options.rounds,
        options.connections,
        &mut figures,
    )?;
    kills::run(&mut stage, options.kills, &mut figures)?;
    stage.end()?;
    let missed = figures.print();
    match missed.is_empty() {
        true => Ok(()),
        false => bail!("not reached: {}", missed.join("; ")),
    }
}
