//! `redirect check`.

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::{Args, ValueEnum};

use crate::{
    capture::probe::{self, Asked},
    config::{IptablesVariant, Mode},
};

/// Find out what this node can do for capture, and which backend `capture.backend: auto` would choose
///
/// Tries each feature, in namespaces and a cgroup made for it: what it is needed for, whether it is there or why not, and what
/// follows. Ends with the backend and the reason. Changes nothing that stays. Exit status: 0 if a backend works, 1 if none does.
#[derive(Debug, Args)]
pub struct Check {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// As for `capture.mode`
    #[arg(long, value_enum, default_value = "shared")]
    mode: ModeArg,
    /// As for `capture.bpffs`
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModeArg {
    Shared,
    Dedicated,
    Node,
}

impl Check {
    pub(super) fn execute(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let mode = match self.mode {
            ModeArg::Shared => Mode::Shared,
            ModeArg::Dedicated => Mode::Dedicated,
            ModeArg::Node => Mode::Node,
        };
        let report = probe::probe(Asked {
            mode,
            bpffs: &self.bpffs,
            iptables: IptablesVariant::Auto,
        });
        match self.json {
            true => writeln!(out, "{:#}", report.json())?,
            false => write!(out, "{}", report.table())?,
        }
        Ok(match report.choice.backend {
            Some(_) => ExitCode::SUCCESS,
            None => ExitCode::FAILURE,
        })
    }
}
