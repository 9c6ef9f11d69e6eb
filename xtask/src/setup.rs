//! `cargo xtask setup`: finds what is missing on this machine, installs it where it can, and says what it does.
//!
//! Nothing is asked of apt or cargo when nothing is missing, so the other commands call [`ensure`] each time.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

pub mod helm;

/// The linker for BPF objects. Pinned, since its output is what the kernel's verifier judges.
const BPF_LINKER_VERSION: &str = "0.13.0";
/// The LLVM that bpf-linker links against: it must read the bitcode that rustc writes, so it is not older than rustc's.
pub const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const LLVM_FEATURE: &str = "llvm-22";

/// A part of the work that has needs of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Building the eBPF programs.
    BpfToolchain,
    /// Nodes, pods and peers of the end-to-end tests and the demo.
    Testbed,
    /// Load generators and the proxy that the bench compares with.
    Bench,
    /// Small machines that boot old kernels. Large, and so installed for `test-kernels` alone.
    Kernels,
    /// A Kubernetes of two nodes, built from source the first time. Installed for `test-k8s` alone.
    Kubernetes,
}

/// A file that proves that a Debian package is there. A name without a slash is looked for in PATH and the sbin folders.
struct Item {
    file: &'static str,
    package: &'static str,
    need: Need,
}

const fn item(file: &'static str, package: &'static str, need: Need) -> Item {
    Item {
        file,
        package,
        need,
    }
}

const ITEMS: &[Item] = &[
    item("/usr/bin/rustc", "rustc-web", Need::BpfToolchain),
    item(
        "/usr/lib/rustlib/bpfel-unknown-none/lib",
        "libstd-rust-web-dev-bpf",
        Need::BpfToolchain,
    ),
    item(
        "/usr/lib/llvm-22/bin/llvm-config",
        "llvm-22-dev",
        Need::BpfToolchain,
    ),
    item(
        "/usr/lib/llvm-22/lib/libLLVM.so",
        "llvm-22-dev",
        Need::BpfToolchain,
    ),
    item("cc", "gcc", Need::BpfToolchain),
    item("/usr/include/zlib.h", "zlib1g-dev", Need::BpfToolchain),
    item("ip", "iproute2", Need::Testbed),
    item("iptables", "iptables", Need::Testbed),
    item("nft", "nftables", Need::Testbed),
    item("curl", "curl", Need::Testbed),
    item("nginx", "nginx-light", Need::Testbed),
    item("iperf3", "iperf3", Need::Testbed),
    item("tcpdump", "tcpdump", Need::Testbed),
    item("conntrack", "conntrack", Need::Testbed),
    item("bpftool", "bpftool", Need::Testbed),
    item("dig", "bind9-dnsutils", Need::Testbed),
    item("openssl", "openssl", Need::Testbed),
    item("ps", "procps", Need::Testbed),
    item("unzip", "unzip", Need::Testbed),
    item("wrk", "wrk", Need::Bench),
    item("haproxy", "haproxy", Need::Testbed),
    item(
        "/usr/lib/cni/host-local",
        "containernetworking-plugins",
        Need::Testbed,
    ),
    item("ss-redir", "shadowsocks-libev", Need::Testbed),
    item("qemu-system-x86_64", "qemu-system-x86", Need::Kernels),
    item("busybox", "busybox-static", Need::Kernels),
    item("xz", "xz-utils", Need::Kernels),
    item(
        "/usr/lib/go-1.19/bin/go",
        "golang-1.19-go",
        Need::Kubernetes,
    ),
    item("dpkg-source", "dpkg-dev", Need::Kubernetes),
    item("make", "make", Need::Kubernetes),
    item("rsync", "rsync", Need::Kubernetes),
    item("jq", "jq", Need::Kubernetes),
    item("etcd", "etcd-server", Need::Kubernetes),
    item("containerd", "containerd", Need::Kubernetes),
    item("runc", "runc", Need::Kubernetes),
    item(
        "/usr/lib/cni/bridge",
        "containernetworking-plugins",
        Need::Kubernetes,
    ),
    item("kubectl", "kubernetes-client", Need::Kubernetes),
    item("busybox", "busybox-static", Need::Kubernetes),
    item("buildah", "buildah", Need::Kubernetes),
    item("debootstrap", "debootstrap", Need::Kubernetes),
];

pub fn run() -> Result<()> {
    if ensure(&[Need::BpfToolchain, Need::Testbed, Need::Bench])? == Done::Nothing {
        println!("setup: everything is there, nothing to do");
    } else {
        println!("setup: done");
    }
    Ok(())
}

/// Whether [`ensure`] changed the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    Nothing,
    Installed,
}

/// Makes sure that all that `needs` name is there, installing what is missing.
pub fn ensure(needs: &[Need]) -> Result<Done> {
    let mut done = Done::Nothing;
    let packages = missing_packages(needs);
    if !packages.is_empty() {
        if packages_replaced_by_nightly(&packages) {
            println!(
                "setup: no Debian core for BPF; the nightly toolchain with rust-src is used instead"
            );
        } else {
            install_packages(&packages)?;
            done = Done::Installed;
        }
    }
    if needs.contains(&Need::Testbed) {
        helm::provide()?;
    }
    if needs.contains(&Need::BpfToolchain)
        && bpf_linker_version().as_deref() != Some(BPF_LINKER_VERSION)
    {
        install_bpf_linker()?;
        done = Done::Installed;
    }
    Ok(done)
}

/// What is kept from one run to the next, outside the repository.
pub fn cache() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| env::home_dir().map(|home| home.join(".cache")));
    Ok(base
        .context("no home directory: set XDG_CACHE_HOME")?
        .join("redirect"))
}

/// The path of `name` in PATH, in cargo's bin folder, or in the folders of system tools that a user's PATH may lack.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(cargo_bin())
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

fn cargo_bin() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")))?;
    Some(home.join("bin"))
}

fn missing_packages(needs: &[Need]) -> Vec<&'static str> {
    let mut packages: Vec<_> = ITEMS
        .iter()
        .filter(|item| needs.contains(&item.need))
        .filter(|item| match item.file.starts_with('/') {
            true => !Path::new(item.file).exists(),
            false => find_program(item.file).is_none(),
        })
        .map(|item| item.package)
        .collect();
    packages.dedup();
    packages
}

/// Outside Debian, a nightly toolchain with rust-src stands in for the packages of the BPF toolchain.
fn packages_replaced_by_nightly(packages: &[&str]) -> bool {
    !is_debian()
        && crate::ebpf::Toolchain::nightly().is_some()
        && packages.iter().all(|package| {
            ITEMS
                .iter()
                .any(|item| item.package == *package && item.need == Need::BpfToolchain)
        })
}

fn install_packages(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if !is_debian() {
        bail!(
            "missing on this machine: {list} (names of Debian packages).\n\
             Install them with your distribution's tools. For the eBPF programs a nightly toolchain with rust-src does as \
             well: `rustup toolchain install nightly --component rust-src` and `cargo install --locked bpf-linker --version \
             {BPF_LINKER_VERSION}`"
        );
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("missing: {list}. Run `cargo xtask setup` as root, or `sudo apt-get install {list}`");
    }
    if apt_lists_are_missing() {
        say_and_run(Command::new("apt-get").args(["update"]))?;
    }
    let install = || {
        let mut command = Command::new("apt-get");
        command
            .args(["install", "--yes", "--no-install-recommends"])
            .args(packages);
        // No questions, and no service started by an installation: nginx and haproxy are run by the tests alone.
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("RUNLEVEL", "1");
        command
    };
    let policy = PolicyFile::deny_service_starts()?;
    let result = say_and_run(&mut install()).or_else(|_| {
        // Stale package lists name versions that the mirror no longer has.
        say_and_run(Command::new("apt-get").arg("update"))?;
        say_and_run(&mut install())
    });
    drop(policy);
    result.with_context(|| format!("cannot install {list}"))
}

/// Debian's agreed way to keep maintainer scripts from starting services: `policy-rc.d` that says "not allowed".
struct PolicyFile(Option<&'static Path>);

impl PolicyFile {
    fn deny_service_starts() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let path = Path::new("/usr/sbin/policy-rc.d");
        if path.exists() {
            return Ok(Self(None));
        }
        fs::write(path, "#!/bin/sh\nexit 101\n").context("cannot write /usr/sbin/policy-rc.d")?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        Ok(Self(Some(path)))
    }
}

impl Drop for PolicyFile {
    fn drop(&mut self) {
        if let Some(path) = self.0 {
            _ = fs::remove_file(path);
        }
    }
}

fn bpf_linker_version() -> Option<String> {
    let output = Command::new(find_program("bpf-linker")?)
        .arg("--version")
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.split_whitespace().nth(1).map(str::to_owned)
}

fn install_bpf_linker() -> Result<()> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args([
        "install",
        "--locked",
        "--force",
        "bpf-linker",
        "--version",
        BPF_LINKER_VERSION,
    ]);
    if Path::new(LLVM_PREFIX).exists() {
        command
            .args(["--no-default-features", "--features", LLVM_FEATURE])
            .env("LLVM_PREFIX", LLVM_PREFIX);
    }
    for variable in crate::ebpf::INHERITED_FLAGS {
        command.env_remove(variable);
    }
    println!("setup: building bpf-linker {BPF_LINKER_VERSION}, which takes some minutes");
    say_and_run(&mut command).context("cannot install bpf-linker")
}

fn is_debian() -> bool {
    Path::new("/etc/debian_version").exists() && find_program("apt-get").is_some()
}

fn apt_lists_are_missing() -> bool {
    let lists = fs::read_dir("/var/lib/apt/lists")
        .into_iter()
        .flatten()
        .flatten();
    !lists
        .into_iter()
        .any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

fn say_and_run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let args: Vec<_> = command
        .get_args()
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    let line = format!("{program} {}", args.join(" "));
    println!("setup: {line}");
    let status = command
        .status()
        .with_context(|| format!("cannot start `{program}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}
