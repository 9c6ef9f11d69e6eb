//! `cargo xtask test`: installs and builds what is needed, runs all tests, and looks for what they left behind.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    ebpf,
    setup::{self, Need},
};

#[derive(clap::Args)]
pub struct Args {
    /// Tests of one binary that run at once [default: cores, at least 2, at most 4]
    #[arg(long)]
    threads: Option<usize>,
    /// Passed on to `cargo test`, such as `--package redirect-tests --test outbound`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the end-to-end tests make network namespaces, cgroups and BPF programs: run this as root"
    );
    let started = Instant::now();
    setup::ensure(&[Need::BpfToolchain, Need::Testbed])?;
    ebpf::build()?;
    // The tests run the real binaries, which `cargo test` alone would not build.
    succeed(cargo().args(["build", "--workspace", "--bins"]))?;
    let built = started.elapsed();

    let counts = test(args)?;
    let left = leftovers()?;
    println!();
    println!(
        "built in {} s, tested in {} s",
        built.as_secs(),
        (started.elapsed() - built).as_secs()
    );
    for line in &left {
        println!("left behind: {line}");
    }
    println!("{} passed, {} failed", counts.passed, counts.failed);
    ensure!(counts.finished, "cargo test failed");
    ensure!(counts.failed == 0, "{} tests failed", counts.failed);
    ensure!(counts.passed > 0, "no test ran");
    ensure!(left.is_empty(), "the tests left something behind");
    Ok(())
}

#[derive(Debug, Default)]
struct Counts {
    passed: usize,
    failed: usize,
    /// Whether cargo itself was content.
    finished: bool,
}

/// Runs `cargo test`, shows what it says, and adds up its results.
fn test(args: &Args) -> Result<Counts> {
    let cores = thread::available_parallelism().map_or(2, usize::from);
    let threads = args.threads.unwrap_or(cores.clamp(2, 4));
    let mut command = cargo();
    command.args(["test", "--no-fail-fast"]);
    if args.options.is_empty() {
        command.arg("--workspace");
    }
    command.args(&args.options);
    command.env("RDT_HELM", setup::helm::provide()?);
    command.args(["--", &format!("--test-threads={threads}")]);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("run cargo test")?;
    let mut counts = Counts::default();
    for line in BufReader::new(child.stdout.take().context("cargo's output")?).lines() {
        let line = line?;
        if let Some((passed, failed)) = result(&line) {
            counts.passed += passed;
            counts.failed += failed;
        }
        println!("{line}");
    }
    counts.finished = child.wait()?.success() || counts.failed > 0;
    Ok(counts)
}

/// Passed and failed of `test result: ok. 3 passed; 0 failed; …`.
fn result(line: &str) -> Option<(usize, usize)> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |word: &str| {
        let part = counts.split("; ").find(|part| part.ends_with(word))?;
        part.split(' ').next()?.parse().ok()
    };
    Some((number(" passed")?, number(" failed")?))
}

/// What is still there of testbeds, as the program says that knows their names.
fn leftovers() -> Result<Vec<String>> {
    let app = ebpf::target_dir().join("debug/rdt-app");
    let output = Command::new(&app)
        .arg("leftovers")
        .output()
        .context("run rdt-app leftovers")?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_owned)
        .collect())
}

fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(ebpf::workspace());
    cargo
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("run {command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_libtest_are_read() {
        for (line, expected) in [
            (
                "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s",
                Some((3, 0)),
            ),
            (
                "test result: FAILED. 10 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 62.35s",
                Some((10, 4)),
            ),
            ("test outbound ... ok", None),
            ("test result: ", None),
        ] {
            assert_eq!(result(line), expected, "{line}");
        }
    }
}
