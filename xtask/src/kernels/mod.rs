//! `cargo xtask test-kernels`: boots Debian's old kernels in a small machine each, with a static build of the daemon, and runs
//! `rdt-kernel` there.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    ebpf,
    setup::{self, Need},
};

mod image;
mod machine;
mod packages;

/// Emulation is slow, and other work may share the machine: this ends only what hangs.
const LIMIT: Duration = Duration::from_secs(600);
const TARGET: &str = "x86_64-unknown-linux-gnu";

#[derive(clap::Args)]
pub struct Args {
    /// Only the kernel of this version, such as 6.1
    #[arg(long, value_name = "VERSION")]
    only: Option<String>,
    /// Where Debian's packages are kept [default: $XDG_CACHE_HOME/redirect/kernels]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Show what the machines write on their consoles
    #[arg(long)]
    console: bool,
}

/// A kernel to boot, and what must be chosen there.
pub struct Release {
    /// Also its folder in the cache.
    pub version: &'static str,
    /// Its packages are called `linux-image-PREFIX…-cloud-amd64`.
    pub prefix: &'static str,
    /// One of these backends must be chosen.
    backends: &'static [&'static str],
    /// `redirect check` must name these as missing.
    missing: &'static [&'static str],
}

const RELEASES: [Release; 3] = [
    Release {
        version: "5.10",
        prefix: "5.10.0-",
        backends: &["iptables", "nftables"],
        missing: &["netns_cookie in sock_ops", "SO_NETNS_COOKIE"],
    },
    Release {
        version: "6.1",
        prefix: "6.1.0-",
        backends: &["ebpf"],
        missing: &[],
    },
    Release {
        version: "6.12",
        prefix: "6.12.",
        backends: &["ebpf"],
        missing: &[],
    },
];

pub fn run(args: &Args) -> Result<()> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the kernels are packages for amd64: run this on x86_64"
    );
    let wanted = |release: &&Release| {
        args.only
            .as_ref()
            .is_none_or(|only| only == release.version)
    };
    let releases: Vec<&Release> = RELEASES.iter().filter(wanted).collect();
    ensure!(
        !releases.is_empty(),
        "no such kernel; there are {}",
        RELEASES.map(|release| release.version).join(", ")
    );
    setup::ensure(&[Need::BpfToolchain, Need::Testbed, Need::Kernels])?;
    let object = ebpf::build()?;
    let cache = match &args.cache {
        Some(cache) => cache.clone(),
        None => setup::cache()?.join("kernels"),
    };
    let kernels = packages::provide(&cache, &releases)?;
    let programs = build(&object)?;
    let work = ebpf::target_dir().join("kernels");
    fs::create_dir_all(&work).with_context(|| format!("create {}", work.display()))?;

    let mut failed = 0;
    for (release, kernel) in releases.iter().zip(&kernels) {
        let image = image::pack(&work.join(release.version), kernel, &programs)?;
        let outcome = machine::boot(&kernel.vmlinuz, &image, LIMIT, args.console)?;
        let faults = outcome.faults(release.backends, release.missing);
        println!("{}", outcome.line(release.version));
        for fault in &faults {
            println!("    {fault}");
        }
        if !faults.is_empty() {
            failed += 1;
            if !args.console {
                print!("{}", outcome.tail(100));
            }
        }
    }
    ensure!(failed == 0, "{failed} of {} kernels failed", releases.len());
    Ok(())
}

/// The daemon, the apps and the self-test without shared libraries, which the small machine has not.
fn build(object: &std::path::Path) -> Result<Vec<PathBuf>> {
    let names = ["redirect", "rdt-app", "rdt-kernel"];
    let folder = ebpf::target_dir().join("static");
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(ebpf::workspace())
        .args(["build", "--quiet", "--target", TARGET, "--target-dir"])
        .arg(&folder)
        .args([
            "--package",
            "redirect-userspace",
            "--package",
            "redirect-tests",
        ])
        .args(names.iter().flat_map(|name| ["--bin", name]))
        .env("REDIRECT_EBPF_OBJECT", object)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        // Built to run a few seconds. Nobody debugs there, and all of it is unpacked into memory at boot.
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "0")
        .env("CARGO_PROFILE_DEV_DEBUG", "false");
    let status = cargo.status().with_context(|| format!("run {cargo:?}"))?;
    if !status.success() {
        bail!("the static build failed: {status}");
    }
    let built = folder.join(TARGET).join("debug");
    Ok(names.iter().map(|name| built.join(name)).collect())
}
