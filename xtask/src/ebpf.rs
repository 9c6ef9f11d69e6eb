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
        let object = compile(*order)?;
        println!("{}", object.display());
        report::print(&object)?;
    }
    Ok(())
}

/// Builds the object for this machine and returns its path: what the commands that need the daemon call.
pub fn build() -> Result<PathBuf> {
    setup::ensure(&[Need::BpfToolchain])?;
    compile(Endian::host())
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

fn compile(order: Endian) -> Result<PathBuf> {
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
                "-Ctarget-cpu=v3",
                &format!("-Clinker={}", linker.display()),
                "-Dwarnings",
            ]
            .join("\u{1f}"),
        );
    if toolchain == Toolchain::Nightly {
        cargo.args(["-Z", "build-std=core"]);
    }
    let status = cargo.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("building the eBPF programs for {target} failed: {status}");
    }
    let built = build.join(&target).join("ebpf/redirect-ebpf");
    let object = folder.join(format!("redirect-{name}.o"));
    let staged = folder.join(format!("redirect-{name}.o.new"));
    strip(&built, &staged)?;
    replace_if_changed(&staged, &object)?;
    Ok(object)
}

/// Leaves out the debug information, four fifths of the object, which has served its purpose when BTF was made of it.
fn strip(from: &Path, to: &Path) -> Result<()> {
    let llvm_strip = Path::new(setup::LLVM_PREFIX).join("bin/llvm-strip");
    let llvm_strip = llvm_strip.exists().then_some(llvm_strip);
    let Some(llvm_strip) = llvm_strip.or_else(|| setup::find_program("llvm-strip")) else {
        fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
        return Ok(());
    };
    let status = Command::new(&llvm_strip)
        .arg("--strip-debug")
        .arg("-o")
        .args([to, from])
        .status();
    let status = status.with_context(|| format!("cannot start {}", llvm_strip.display()))?;
    if !status.success() {
        bail!("{} {}: {status}", llvm_strip.display(), from.display());
    }
    Ok(())
}

/// Leaves an unchanged object's time alone, so that the daemon, which embeds it, is not built again.
fn replace_if_changed(new: &Path, old: &Path) -> Result<()> {
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    if old.exists() && read(old)? == read(new)? {
        return fs::remove_file(new).with_context(|| format!("cannot remove {}", new.display()));
    }
    fs::rename(new, old).with_context(|| format!("cannot rename {}", new.display()))
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
