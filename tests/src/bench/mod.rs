//! `cargo xtask bench`: what a redirect pair costs, beside no proxy and beside Debian's HAProxy.
//!
//! All variants run on one testbed at once and take turns within each round, so that a machine that slows down slows all
//! of them. Only ratios mean something; each is a ratio of medians.

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, ensure};

mod apps;
mod cni;
mod connect;
mod cpu;
mod dns;
mod figure;
mod haproxy;
pub mod helper;
mod load;
mod memory;
mod quiet;
mod report;
mod samples;
mod stage;
mod ways;

use figure::Group;
use load::Load;
use quiet::Quiet;
use samples::Samples;
use stage::{Stage, Variant};

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How often each load runs over each variant.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each load runs, in seconds.
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// One round of one second, and fewer idle connections: shows that everything works, not how fast.
    #[arg(long)]
    quick: bool,
    /// Only these groups of figures.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Group>,
    /// Only these variants.
    #[arg(long, value_enum, value_delimiter = ',')]
    variant: Vec<Variant>,
    /// Let the daemons write their access log, to a file; HAProxy never writes one.
    #[arg(long)]
    access_log: bool,
    /// Worker threads of each daemon.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// How long to wait for a quiet machine before a load, in seconds.
    #[arg(long, default_value_t = 20)]
    patience: u64,
    /// Where the figures go as JSON.
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
}

impl Options {
    fn rounds(&self) -> usize {
        if self.quick { 1 } else { self.rounds }
    }

    fn seconds(&self) -> u32 {
        if self.quick { 1 } else { self.seconds }
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(if self.quick { 0 } else { self.patience })
    }

    fn idle_connections(&self) -> &'static [usize] {
        if self.quick {
            &[1_000]
        } else {
            &[1_000, 5_000]
        }
    }

    fn wants(&self, group: Group) -> bool {
        self.only.is_empty() || self.only.contains(&group)
    }

    fn variants(&self) -> Vec<Variant> {
        Variant::ALL
            .into_iter()
            .filter(|variant| self.variant.is_empty() || self.variant.contains(variant))
            .collect()
    }
}

/// Measures, prints the table and writes the JSON. Fails if something could not be measured, not if a target is missed.
pub fn run(options: &Options) -> Result<()> {
    ensure!(
        options.rounds > 0 && options.seconds > 0,
        "--rounds and --seconds begin at 1"
    );
    let mut quiet = Quiet::new(options.patience());
    let mut report = serde_json::Map::new();
    if options.only.is_empty() || options.only.iter().any(|group| group.is_of_variants()) {
        report.insert("variants".to_owned(), variants(options, &mut quiet)?);
    }
    if options.wants(Group::Backends) || options.wants(Group::Dns) {
        report.insert("ways".to_owned(), ways::run(options, &mut quiet)?);
    }
    if options.wants(Group::Cni) {
        report.insert("cni".to_owned(), cni::run(options, &mut quiet)?);
    }
    report::write_json(report.into(), options)
}

/// What redirect costs beside others.
fn variants(options: &Options, quiet: &mut Quiet) -> Result<serde_json::Value> {
    let variants = options.variants();
    println!("bench: setting the stage");
    let stage = Stage::start(&variants, options.access_log, options.workers)?;
    let mut samples = Samples::default();
    if options.wants(Group::Memory) {
        memory::measure(&stage, &variants, options.idle_connections(), &mut samples)?;
    }
    for round in 0..options.rounds() {
        println!("bench: round {} of {}", round + 1, options.rounds());
        for load in Load::ALL
            .into_iter()
            .filter(|load| options.wants(load.group()))
        {
            for variant in turns(&variants, round) {
                quiet
                    .run(|| load.run(&stage, variant, options.seconds()))?
                    .add_to(&mut samples, variant);
            }
        }
        if options.wants(Group::Connect) && variants.contains(&Variant::Redirect) {
            quiet
                .run(|| connect::round(&stage))?
                .into_iter()
                .for_each(|(variant, part)| part.add_to(&mut samples, variant));
        }
    }
    report::print(&samples, &variants, &stage, quiet, options);
    Ok(report::json(&samples, &stage, quiet, options))
}

/// The variants, another one first in each round: what runs after an idle pause is not always the same.
fn turns(variants: &[Variant], round: usize) -> impl Iterator<Item = Variant> {
    let first = round % variants.len().max(1);
    variants[first..].iter().chain(&variants[..first]).copied()
}
