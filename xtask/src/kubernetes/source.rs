//! The programs of Kubernetes, built once from Debian's source package and kept outside of the repository. And the base of the
//! daemon's image.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    apt::{Apt, Kind},
    program::{output, succeed},
};

const SUITES: [(&str, &str); 2] = [
    ("debian", "bookworm"),
    ("debian-security", "bookworm-security"),
];
/// The version that Debian's package is, which the build cannot find out without git.
const VERSION: &str = "v1.20.2";
/// Debian's kubernetes is built by it; newer ones do not build this Kubernetes.
const GO: &str = "/usr/lib/go-1.19/bin";
const PROGRAMS: [&str; 4] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
];
/// The folder of [`PROGRAMS`]; builds them if the cache has them not, from `source` if one is given that is unpacked already.
pub fn kubernetes(cache: &Path, source: Option<&Path>) -> Result<PathBuf> {
    let built = cache.join(VERSION);
    if built.exists() {
        return Ok(built);
    }
    let work = cache.join("source");
    let source = match source {
        Some(source) => source.to_owned(),
        None => fetch(cache, &work)?,
    };
    build(&source).with_context(|| format!("build Kubernetes in {}", source.display()))?;
    let staged = cache.join(format!("{VERSION}.new"));
    renew(&staged)?;
    for program in PROGRAMS {
        let from = source.join("_output/bin").join(program);
        fs::copy(&from, staged.join(program))
            .with_context(|| format!("copy {}", from.display()))?;
    }
    fs::rename(&staged, &built).with_context(|| format!("rename {}", staged.display()))?;
    // Go's module cache, which the build may have filled, is read-only.
    if work.exists() {
        output(Command::new("chmod").args(["-R", "u+w"]).arg(&work))?;
        fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))?;
    }
    Ok(built)
}

/// Debian's source package, with Debian's changes applied.
fn fetch(cache: &Path, work: &Path) -> Result<PathBuf> {
    println!("test-k8s: fetching the source of Kubernetes");
    renew(work)?;
    let apt = Apt::update(&cache.join("apt"), Kind::Source, &SUITES)
        .context("Debian's lists of source packages; the first run needs the network")?;
    apt.run_in(work, "apt-get", &["source", "kubernetes"])?;
    let mut entries = fs::read_dir(work)?.flatten().map(|entry| entry.path());
    entries
        .find(|path| path.is_dir())
        .context("apt-get unpacked nothing")
}

fn build(source: &Path) -> Result<()> {
    println!("test-k8s: building Kubernetes, which takes ten minutes of two cores, once");
    let path = env::var("PATH").unwrap_or_default();
    let what: String = PROGRAMS.map(|name| format!("cmd/{name} ")).concat();
    succeed(
        Command::new("make")
            .current_dir(source)
            .arg(format!("WHAT={}", what.trim_end()))
            .env("PATH", format!("{GO}:{path}"))
            .env("GOPATH", source.join(".go"))
            .env("CGO_ENABLED", "0")
            .env("KUBE_GIT_VERSION", VERSION)
            .env("KUBE_GIT_COMMIT", "debian")
            .env("KUBE_GIT_TREE_STATE", "archive")
            .env("KUBE_GIT_MAJOR", "1")
            .env("KUBE_GIT_MINOR", "20"),
    )
}

/// Debian's smallest root file system, as an archive: what the image of the daemon is built upon.
pub fn debian(cache: &Path) -> Result<PathBuf> {
    let archive = cache.join("bookworm.tar");
    if archive.exists() {
        return Ok(archive);
    }
    println!("test-k8s: making Debian's base system");
    let root = cache.join("bookworm.new");
    renew(&root)?;
    output(
        Command::new("debootstrap")
            .args(["--variant=minbase", "bookworm"])
            .arg(&root)
            .arg("http://deb.debian.org/debian"),
    )?;
    // As Debian's slim images: what no program needs.
    for below in [
        "var/cache/apt/archives",
        "var/lib/apt/lists",
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
    ] {
        renew(&root.join(below))?;
    }
    let staged = cache.join("bookworm.tar.new");
    output(
        Command::new("tar")
            .arg("-C")
            .arg(&root)
            .arg("-cf")
            .arg(&staged)
            .arg("."),
    )?;
    fs::rename(&staged, &archive)?;
    fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
    Ok(archive)
}

/// An empty folder, whatever was there.
pub fn renew(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))
}
