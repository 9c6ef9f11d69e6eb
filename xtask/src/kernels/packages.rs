//! Debian's kernel packages: found by a package list of our own, kept and unpacked outside the repository.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::Release;
use crate::{
    apt::{Apt, Kind},
    program::output,
};

const SUITES: [(&str, &str); 3] = [
    ("debian-security", "bullseye-security"),
    ("debian", "bookworm"),
    ("debian-security", "bookworm-security"),
];

/// A kernel and its modules on disk.
pub struct Kernel {
    pub vmlinuz: PathBuf,
    /// The folder of its modules, whose name is what `uname -r` says.
    pub modules: PathBuf,
}

/// The kernels of `releases`, in their order; asks the network only for those that the cache has not.
pub fn provide(cache: &Path, releases: &[&Release]) -> Result<Vec<Kernel>> {
    let folder = |release: &Release| cache.join(release.version);
    let missing: Vec<&&Release> = releases
        .iter()
        .filter(|release| !folder(release).exists())
        .collect();
    if !missing.is_empty() {
        fs::create_dir_all(cache).with_context(|| format!("create {}", cache.display()))?;
        let apt = Apt::update(&cache.join("apt"), Kind::Binary, &SUITES).with_context(|| {
            format!(
                "Debian's package lists; without the network only kernels that {} has can be tested",
                cache.display()
            )
        })?;
        for release in missing {
            fetch(&apt, release, cache, &folder(release))
                .with_context(|| format!("fetch Debian's kernel {}", release.version))?;
        }
    }
    releases
        .iter()
        .map(|release| Kernel::find(&folder(release)))
        .collect()
}

impl Kernel {
    fn find(folder: &Path) -> Result<Self> {
        let only = |folder: PathBuf, prefix: &str| -> Result<PathBuf> {
            let entries =
                fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
            let mut paths = entries.flatten().map(|entry| entry.path());
            let found = paths.find(|path| {
                let name = path.file_name().unwrap_or_default();
                name.to_string_lossy().starts_with(prefix)
            });
            found.with_context(|| {
                let folder = folder.display();
                format!("no {prefix}* in {folder}; remove that folder to fetch the kernel again")
            })
        };
        Ok(Self {
            vmlinuz: only(folder.join("boot"), "vmlinuz")?,
            modules: only(folder.join("lib/modules"), "")?,
        })
    }
}

/// Unpacks beside the place, with plain modules and a list of what each needs, and renames at the end.
fn fetch(apt: &Apt, release: &Release, cache: &Path, folder: &Path) -> Result<()> {
    let names = apt.run("apt-cache", &["pkgnames", "linux-image-"])?;
    let name = newest(names.lines(), release.prefix).context("no such package")?;
    println!("test-kernels: fetching {name}");
    let staged = cache.join(format!("{}.new", release.version));
    if staged.exists() {
        fs::remove_dir_all(&staged).with_context(|| format!("remove {}", staged.display()))?;
    }
    fs::create_dir_all(&staged).with_context(|| format!("create {}", staged.display()))?;
    apt.run_in(&staged, "apt-get", &["download", name])?;
    let mut entries = fs::read_dir(&staged)?.flatten().map(|entry| entry.path());
    let package = entries
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded nothing")?;
    output(Command::new("dpkg-deb").arg("-x").args([&package, &staged]))?;
    fs::remove_file(&package)?;
    let merged = staged.join("usr/lib/modules");
    if merged.exists() {
        fs::create_dir_all(staged.join("lib"))?;
        fs::rename(merged, staged.join("lib/modules"))?;
    }
    let kernel = Kernel::find(&staged)?;
    output(
        Command::new("find")
            .arg(&kernel.modules)
            .args(["-name", "*.ko.xz", "-exec", "xz", "-d", "{}", "+"]),
    )?;
    let version = kernel.modules.file_name().unwrap_or_default();
    output(
        Command::new("busybox")
            .arg("depmod")
            .arg("-b")
            .arg(&staged)
            .arg(version),
    )?;
    fs::rename(&staged, folder).with_context(|| format!("rename {}", staged.display()))
}

/// The package `linux-image-PREFIX…-cloud-amd64` with the highest number after the prefix; builds for other releases of
/// Debian, which carry another word there, do not count.
fn newest<'a>(names: impl Iterator<Item = &'a str>, prefix: &str) -> Option<&'a str> {
    let number = |name: &str| -> Option<u32> {
        let rest = name.strip_prefix("linux-image-")?.strip_prefix(prefix)?;
        let rest = rest.strip_suffix("-cloud-amd64")?;
        let (number, origin) = rest.split_once('+').unwrap_or((rest, "deb12"));
        number.parse().ok().filter(|_| origin == "deb12")
    };
    names
        .filter_map(|name| Some((number(name)?, name)))
        .max()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_package_of_a_release() {
        let names = [
            "linux-image-5.10.0-9-cloud-amd64",
            "linux-image-5.10.0-46-cloud-amd64",
            "linux-image-5.10.0-46-cloud-amd64-dbg",
            "linux-image-5.10.0-99-amd64",
            "linux-image-6.1.0-0.deb11.48-cloud-amd64",
            "linux-image-6.1.0-52-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64-unsigned",
            "linux-image-6.12.120+deb13-cloud-amd64",
            "linux-image-6.12.99+deb12-cloud-amd64",
            "linux-image-6.12-cloud-amd64",
        ];
        for (prefix, expected) in [
            ("5.10.0-", Some(names[1])),
            ("6.1.0-", Some(names[5])),
            ("6.12.", Some(names[6])),
            ("7.0.", None),
        ] {
            assert_eq!(newest(names.into_iter(), prefix), expected, "{prefix}");
        }
    }
}
