//! `redirect rules print|apply|verify|clean`.

use std::{io::Write, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, Subcommand};

use self::flags::RuleFlags;
use crate::{
    capture::netfilter::{self, plan::Plan},
    sys::netns::Netns,
};

mod flags;

/// Netfilter rules of one network namespace, without a daemon
#[derive(Debug, Subcommand)]
pub enum RulesCommand {
    Print(Print),
    Apply(Apply),
    Verify(Verify),
    Clean(Clean),
}

/// Print the rules as the input of iptables-restore, or of nft
///
/// Changes nothing. The rules are those for a namespace in which there are none yet.
#[derive(Debug, Args)]
pub struct Print {
    #[command(flatten)]
    rules: Box<RuleFlags>,
}

/// Put the rules in force, in place of what was left of older ones
///
/// Rules of others stay. Verifies what it has done.
#[derive(Debug, Args)]
pub struct Apply {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    rules: Box<RuleFlags>,
}

/// Compare the rules that are in force with those that should be: content and order
///
/// Prints each difference. Exit status: 0 if there is none, 1 if there is one.
#[derive(Debug, Args)]
pub struct Verify {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    rules: Box<RuleFlags>,
}

/// Remove all rules of ours, whichever tool has made them
///
/// Rules of others stay. Does nothing the second time.
#[derive(Debug, Args)]
pub struct Clean {
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
struct Place {
    /// The network namespace, such as /run/netns/NAME or /proc/PID/ns/net
    #[arg(long, value_name = "FILE")]
    netns: PathBuf,
}

impl RulesCommand {
    pub(super) fn execute(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        match self {
            Self::Print(print) => print.execute(out),
            Self::Apply(apply) => apply.execute(out),
            Self::Verify(verify) => verify.execute(out),
            Self::Clean(clean) => clean.execute(out),
        }
    }
}

impl Print {
    fn execute(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let plans = self.rules.plans(&self.rules.families(None)?)?;
        write!(
            out,
            "{}",
            netfilter::render::text(self.rules.tool(), &plans)?
        )?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Apply {
    fn execute(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let netns = self.place.open()?;
        let plans = self.rules.plans(&self.rules.families(Some(&netns))?)?;
        netfilter::apply(self.rules.tool(), &netns, &plans)?;
        let count: usize = plans.iter().map(Plan::rules).sum();
        writeln!(
            out,
            "applied {count} rules in {}",
            self.place.netns.display()
        )?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Verify {
    fn execute(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let netns = self.place.open()?;
        let plans = self.rules.plans(&self.rules.families(Some(&netns))?)?;
        let differences = netfilter::verify(self.rules.tool(), &netns, &plans)?;
        for difference in &differences {
            writeln!(out, "{difference}")?;
        }
        if differences.is_empty() {
            let count: usize = plans.iter().map(Plan::rules).sum();
            writeln!(out, "ok: {count} rules in {}", self.place.netns.display())?;
            return Ok(ExitCode::SUCCESS);
        }
        Ok(ExitCode::FAILURE)
    }
}

impl Clean {
    fn execute(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let what = match netfilter::clean(&self.place.open()?)? {
            true => "removed our rules from",
            false => "no rules of ours in",
        };
        writeln!(out, "{what} {}", self.place.netns.display())?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Place {
    fn open(&self) -> anyhow::Result<Netns> {
        Netns::open(&self.netns)
            .with_context(|| format!("open network namespace {}", self.netns.display()))
    }
}
