//! The body of `cargo xtask bench`, and the helpers that it runs inside pods.

use clap::{Parser, Subcommand};
use redirect_tests::bench::{self, helper};

#[derive(Parser)]
#[command(name = "rdt-bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure all variants and print the table.
    Run(bench::Options),
    /// What the bench runs inside pods.
    #[command(hide = true)]
    Helper {
        #[command(subcommand)]
        helper: helper::Helper,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Run(options) => bench::run(&options),
        Command::Helper { helper } => helper::run(&helper),
    }
}
