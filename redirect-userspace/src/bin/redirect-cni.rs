//! The CNI plugin `redirect-cni`: see `redirect::cni::plugin`.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use redirect::cni::plugin::{self, Environment};

fn main() -> ExitCode {
    let variable = |name: &str| {
        let value = std::env::var_os(name).unwrap_or_default();
        value.to_string_lossy().into_owned()
    };
    let environment = Environment {
        command: variable("CNI_COMMAND"),
        container_id: variable("CNI_CONTAINERID"),
        netns: variable("CNI_NETNS"),
        args: variable("CNI_ARGS"),
    };
    let outcome = plugin::run(&environment, io::stdin().lock());
    // A runtime that does not read the result has not got it.
    let written = io::stdout().write_all(outcome.stdout.as_bytes());
    match outcome.success && written.is_ok() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
