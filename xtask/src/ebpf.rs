//! `cargo xtask build-ebpf`: builds the BPF object with BTF, and reports what is in it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

mod report;

use crate::setup::{self, Need};

/// What a host build may have in its environment and a build for the kernel must not see.
pub const INHERITED_FLAGS: [&str; 6] = [
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTDOCFLAGS",
];

#[derive(clap::Args)]
pub struct Args {
    /// Byte order of the object; `little` or `big` or both, by default this machine's
    #[arg(long, value_enum, default_value_t = Endian::host())]
    endian: Endian,
    /// Compile the logging of single decisions in (slower: only for looking for a fault)
    #[arg(long)]
    log: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Endian {
    Little,
    Big,
    Both,
}

impl Endian {
    pub const fn host() -> Self {
        if cfg!(target_endian = "big") {
            Self::Big
        } else {
            Self::Little
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    setup::ensure(&[Need::BpfToolchain])?;
    let orders: &[Endian] = match args.endian {
        Endian::Both => &[Endian::Little, Endian::Big],
        Endian::Little => &[Endian::Little],
        Endian::Big => &[Endian::Big],
    };
    for order in orders {
        let object = compile(*order, args.log)?;
        println!("{}", object.display());
        report::print(&object)?;
    }
    Ok(())
}

/// Builds the object for this machine and returns its path: what the commands that need the daemon call.
pub fn build() -> Result<PathBuf> {
    setup::ensure(&[Need::BpfToolchain])?;
    compile(Endian::host(), false)
}

/// Who compiles for BPF: stable rustc has no core for that target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// Debian's rustc, which comes with a precompiled core for BPF.
    Debian { rustc: PathBuf },
    /// A nightly of rustup's that compiles core itself.
    Nightly,
}

impl Toolchain {
    pub fn find(target: &str) -> Result<Self> {
        let rustc = Path::new("/usr/bin/rustc");
        if rustc.exists() && Path::new("/usr/lib/rustlib").join(target).exists() {
            return Ok(Self::Debian {
                rustc: rustc.into(),
            });
        }
        Self::nightly().with_context(|| {
            format!(
                "no compiler has core for {target}: on Debian `cargo xtask setup` installs one; elsewhere run `rustup \
                 toolchain install nightly --component rust-src`"
            )
        })
    }

    pub fn nightly() -> Option<Self> {
        let output = Command::new("rustup")
            .args(["run", "nightly", "rustc", "--print", "sysroot"])
            .output()
            .ok()?;
        let sysroot = String::from_utf8(output.stdout).ok()?;
        let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
        (output.status.success() && core.exists()).then_some(Self::Nightly)
    }

    /// `cargo`, set up so that it compiles with this toolchain.
    fn cargo(&self) -> Command {
        match self {
            Self::Debian { rustc } => {
                let mut command =
                    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
                // aya-ebpf uses `asm_experimental_arch`, which is stable nowhere yet: only this child may.
                command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
                command
            }
            Self::Nightly => {
                let mut command = Command::new("rustup");
                command
                    .args(["run", "nightly", "cargo"])
                    .env_remove("CARGO")
                    .env_remove("RUSTC");
                command
            }
        }
    }
}

fn compile(order: Endian, log: bool) -> Result<PathBuf> {
    let name = match order {
        Endian::Little => "bpfel",
        Endian::Big => "bpfeb",
        Endian::Both => bail!("one byte order at a time"),
    };
    let target = format!("{name}-unknown-none");
    let toolchain = Toolchain::find(&target)?;
    let linker =
        setup::find_program("bpf-linker").context("no bpf-linker: run `cargo xtask setup`")?;
    let folder = target_dir().join("ebpf");
    let build = folder.join("build");

    let mut cargo = toolchain.cargo();
    for variable in INHERITED_FLAGS {
        cargo.env_remove(variable);
    }
    cargo
        .current_dir(workspace())
        .args([
            "build",
            "--quiet",
            "--package",
            "redirect-ebpf",
            "--bin",
            "redirect-ebpf",
            "--profile",
            "ebpf",
        ])
        .args(["--target", &target])
        .env("CARGO_TARGET_DIR", &build)
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            [
                "-Cdebuginfo=2",
                "-Clink-arg=--btf",
                &format!("-Clinker={}", linker.display()),
                "-Dwarnings",
            ]
            .join("\u{1f}"),
        );
    if log {
        cargo.args(["--features", "log"]);
    }
    if toolchain == Toolchain::Nightly {
        cargo.args(["-Z", "build-std=core"]);
    }
    let status = cargo.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("building the eBPF programs for {target} failed: {status}");
    }
    let built = build.join(&target).join("ebpf/redirect-ebpf");
    let object = folder.join(format!("redirect-{name}.o"));
    copy_if_changed(&built, &object)?;
    Ok(object)
}

/// Leaves an unchanged object's time alone, so that the daemon, which embeds it, is not built again.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    let staged = to.with_extension("o.new");
    fs::write(&staged, new).with_context(|| format!("cannot write {}", staged.display()))?;
    fs::rename(&staged, to)
        .with_context(|| format!("cannot rename {} to {}", staged.display(), to.display()))
}

/// The repository's root.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the workspace")
}

/// Cargo's target folder for the host.
pub fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => workspace().join(dir),
        None => workspace().join("target"),
    }
}
