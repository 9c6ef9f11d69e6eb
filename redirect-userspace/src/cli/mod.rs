//! The command line: one file per subcommand.

mod ca;
mod check;
mod cni;
mod config;
mod pod;
mod rules;
mod run;
mod uninstall;

#[cfg(test)]
mod tests;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::config::Host;

/// Puts pods and plain cgroups into a zero-trust mesh without their knowing.
///
/// eBPF programs steer the connections of captured pods to this daemon, which carries them to the peer's node over HBONE
/// (HTTP/2 CONNECT over mutual TLS).
#[derive(Debug, Parser)]
#[command(name = "redirect", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Check(check::Check),
    #[command(subcommand)]
    Config(config::ConfigCommand),
    #[command(subcommand)]
    Ca(ca::CaCommand),
    #[command(subcommand)]
    Rules(rules::RulesCommand),
    #[command(subcommand)]
    Pod(pod::PodCommand),
    #[command(subcommand)]
    Cni(cni::CniCommand),
    Uninstall(uninstall::Uninstall),
    /// Print the version
    Version,
}

/// Parses the process's arguments and does what they say. Exit status: 0 done, 1 failed, 2 wrong usage.
pub fn main() -> ExitCode {
    // clap prints usage errors itself, and exits with 2.
    let cli = Cli::parse();
    match execute(cli.command, &this_host(), &mut io::stdout().lock()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", explain(&error));
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command, host: &Host, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(run) => run.execute(host),
        Command::Check(check) => check.execute(out),
        Command::Config(command) => command.execute(host, out),
        Command::Ca(command) => command.execute(out),
        Command::Rules(command) => command.execute(out),
        Command::Pod(command) => command.execute(out),
        Command::Cni(command) => command.execute(out),
        Command::Uninstall(uninstall) => uninstall.execute(out),
        Command::Version => {
            writeln!(out, "redirect {}", env!("CARGO_PKG_VERSION"))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The error and its causes in one line, each once: our own errors name their cause already.
fn explain(error: &anyhow::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .fold(String::new(), |told, cause| match told {
            told if told.is_empty() => cause,
            told if told.contains(&cause) => told,
            told => format!("{told}: {cause}"),
        })
}

/// The only place that looks at the process's environment.
fn this_host() -> Host {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| name.starts_with("REDIRECT_"))
        // What is not UTF-8 fails the check of its variable, rather than being overlooked.
        .map(|(name, value)| (name, value.to_string_lossy().into_owned()))
        .collect();
    let hostname = nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Host {
        environment,
        hostname,
        cores,
    }
}
