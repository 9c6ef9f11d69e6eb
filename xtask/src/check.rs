//! `cargo xtask check`: everything that is known to be wrong without running the daemon.
//!
//! Each step runs even when an earlier one failed, so that one run shows all there is to mend.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, bail};

use crate::ebpf;

mod layers;
mod source;

/// The release that `deny.toml` is written for.
const CARGO_DENY: &str = "0.20.2";

#[derive(clap::Args)]
pub struct Args {
    /// Run only these steps.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Step>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Step {
    /// rustfmt agrees with every file.
    Fmt,
    /// Module dependencies, `unsafe`, file lengths, words.
    Layers,
    /// clippy on the host, every target, warnings denied.
    Clippy,
    /// The eBPF crate for its own target, warnings denied.
    Bpf,
    /// rustdoc, private items too, warnings denied.
    Doc,
    /// Licences, bans, sources and advisories of the dependencies.
    Deny,
}

impl Step {
    /// Cheap ones first.
    const ALL: [Self; 6] = [
        Self::Fmt,
        Self::Layers,
        Self::Deny,
        Self::Clippy,
        Self::Bpf,
        Self::Doc,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Fmt => "fmt",
            Self::Layers => "layers",
            Self::Clippy => "clippy",
            Self::Bpf => "bpf",
            Self::Doc => "doc",
            Self::Deny => "deny",
        }
    }

    /// Returns a remark for the summary, or what is wrong.
    fn run(self, root: &Path) -> anyhow::Result<String> {
        match self {
            Self::Fmt => {
                cargo(root, &["fmt", "--all", "--check", "--", "-l"], &[]).map(|()| String::new())
            }
            Self::Layers => layers::check(root),
            Self::Clippy => cargo(
                root,
                &[
                    "clippy",
                    "--keep-going",
                    "--workspace",
                    "--all-targets",
                    "--quiet",
                    "--",
                    "-D",
                    "warnings",
                ],
                &[],
            )
            .map(|()| "host, eBPF crate included".into()),
            Self::Bpf => bpf(root),
            Self::Doc => cargo(
                root,
                &[
                    "doc",
                    "--workspace",
                    "--no-deps",
                    "--document-private-items",
                    "--quiet",
                ],
                &[(
                    "RUSTDOCFLAGS",
                    "-D warnings -A rustdoc::private_intra_doc_links",
                )],
            )
            .map(|()| String::new()),
            Self::Deny => deny(root),
        }
    }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let root = ebpf::workspace();
    let steps: Vec<Step> = Step::ALL
        .into_iter()
        .filter(|step| args.only.is_empty() || args.only.contains(step))
        .collect();
    let mut failed = Vec::new();
    for step in &steps {
        println!("== {}", step.name());
        let started = Instant::now();
        match step.run(root) {
            Ok(remark) => println!(
                "   ok in {:.1} s  {remark}",
                started.elapsed().as_secs_f64()
            ),
            Err(error) => {
                println!("   FAILED: {error:#}");
                failed.push(step.name());
            }
        }
    }
    println!(
        "check: {} passed, {} failed",
        steps.len() - failed.len(),
        failed.len()
    );
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn cargo(root: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<()> {
    succeed(
        Command::new("cargo")
            .args(arguments)
            .envs(environment.iter().copied())
            .current_dir(root),
    )
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}

/// Runs cargo-deny, installing it first where it is missing.
///
/// The advisories need a database from the network. A machine that cannot reach it checks the rest and says so.
fn deny(root: &Path) -> anyhow::Result<String> {
    let version = Command::new("cargo-deny")
        .arg("--version")
        .stderr(Stdio::null())
        .output();
    if !version.is_ok_and(|output| output.status.success()) {
        println!("   installing cargo-deny {CARGO_DENY} (once; takes some minutes)");
        cargo(
            root,
            &[
                "install",
                "--locked",
                "--quiet",
                "cargo-deny",
                "--version",
                CARGO_DENY,
            ],
            &[],
        )?;
    }
    cargo(
        root,
        &[
            "deny",
            "--log-level",
            "error",
            "check",
            "bans",
            "licenses",
            "sources",
        ],
        &[],
    )?;
    let advisories = Command::new("cargo")
        .args(["deny", "--log-level", "error", "check", "advisories"])
        .current_dir(root)
        .output()
        .context("cannot run cargo deny")?;
    if advisories.status.success() {
        return Ok("bans, licenses, sources, advisories".into());
    }
    let said = String::from_utf8_lossy(&advisories.stderr);
    if !said.contains("failed to fetch advisory database") {
        bail!("advisories:\n{said}");
    }
    println!("   !! ADVISORIES NOT CHECKED: their database cannot be fetched from here.");
    println!("   !! Run `cargo deny check advisories` on a machine that reaches github.com.");
    Ok("bans, licenses, sources; ADVISORIES NOT CHECKED".into())
}

/// Builds the programs as `build-ebpf` does, which denies warnings; lints them too where a toolchain can.
///
/// clippy needs a core of its own compiler's version: a nightly with rust-src builds one, Debian's is another version's.
fn bpf(root: &Path) -> anyhow::Result<String> {
    ebpf::build()?;
    if ebpf::Toolchain::nightly().is_none() {
        return Ok(
            "built with warnings denied; linted for the host only (no nightly with rust-src)"
                .into(),
        );
    }
    let mut clippy = Command::new("rustup");
    clippy
        .args([
            "run",
            "nightly",
            "cargo",
            "clippy",
            "--quiet",
            "--package",
            "redirect-ebpf",
            "--bin",
            "redirect-ebpf",
        ])
        .args([
            "--target",
            "bpfel-unknown-none",
            "-Z",
            "build-std=core",
            "--",
            "-D",
            "warnings",
        ])
        .env_remove("CARGO")
        .env_remove("RUSTC")
        .env("CARGO_TARGET_DIR", ebpf::target_dir().join("ebpf/clippy"))
        .current_dir(root);
    succeed(&mut clippy).map(|()| "built, and linted for BPF, with warnings denied".into())
}
