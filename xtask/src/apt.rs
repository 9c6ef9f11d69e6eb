//! apt with sources, lists and caches of its own: what is fetched by it leaves this machine's packages as they are.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::program::output;

const MIRROR: &str = "http://deb.debian.org";
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What is asked of an archive.
#[derive(Clone, Copy)]
pub enum Kind {
    Binary,
    Source,
}

pub struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// Reads the lists of `suites` (archive and suite) into `folder`.
    pub fn update(folder: &Path, kind: Kind, suites: &[(&str, &str)]) -> Result<Self> {
        for below in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(folder.join(below))
                .with_context(|| format!("create {}", folder.display()))?;
        }
        let line = |(archive, suite): &(&str, &str)| match kind {
            Kind::Binary => {
                format!("deb [arch=amd64 signed-by={KEYS}] {MIRROR}/{archive} {suite} main\n")
            }
            Kind::Source => format!("deb-src [signed-by={KEYS}] {MIRROR}/{archive} {suite} main\n"),
        };
        let sources: String = suites.iter().map(line).collect();
        let list = folder.join("sources.list");
        fs::write(&list, sources).with_context(|| format!("write {}", list.display()))?;
        let path = |below: &str| folder.join(below).display().to_string();
        let options = [
            ("Dir::Etc::sourcelist", path("sources.list")),
            ("Dir::Etc::sourceparts", "/dev/null".to_owned()),
            ("Dir::State::lists", path("lists")),
            ("Dir::Cache::archives", path("archives")),
            ("Dir::Cache::pkgcache", String::new()),
            ("Dir::Cache::srcpkgcache", String::new()),
            // apt's own user cannot write into somebody's home.
            ("APT::Sandbox::User", "root".to_owned()),
            ("APT::Update::Error-Mode", "any".to_owned()),
        ];
        let options = options.map(|(name, value)| format!("--option={name}={value}"));
        let apt = Self {
            options: options.to_vec(),
        };
        apt.run("apt-get", &["update"])?;
        Ok(apt)
    }

    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        output(Command::new(program).args(&self.options).args(args))
    }

    pub fn run_in(&self, folder: &Path, program: &str, args: &[&str]) -> Result<String> {
        output(
            Command::new(program)
                .current_dir(folder)
                .args(&self.options)
                .args(args),
        )
    }
}
