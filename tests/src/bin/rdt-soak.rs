//! The body of `cargo xtask soak`.

use clap::Parser;
use redirect_tests::soak::{self, Options};

#[derive(Parser)]
#[command(name = "rdt-soak")]
struct Cli {
    #[command(flatten)]
    options: Options,
}

fn main() -> anyhow::Result<()> {
    soak::run(&Cli::parse().options)
}
