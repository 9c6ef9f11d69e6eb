//! What `cargo xtask demo` runs, after everything is built.

use std::process::ExitCode;

fn main() -> ExitCode {
    redirect_tests::demo::run()
}
