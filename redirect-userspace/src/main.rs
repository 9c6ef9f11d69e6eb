//! The `redirect` command: the node daemon and its tools.

use std::process::ExitCode;

fn main() -> ExitCode {
    redirect::cli::main()
}
