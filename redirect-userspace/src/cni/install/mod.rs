//! Installs the plugin on a node: its binary, and its entry in the primary network configuration. [`plan`] decides.

pub mod plan;
mod watch;

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use self::plan::{Found, Plan, SAVED, Step};
use super::conflist::{Entry, PLUGIN};

pub use watch::watch;

/// Where things go on this node.
#[derive(Clone, Debug)]
pub struct Installation {
    /// The plugin's binary to be copied.
    pub binary: PathBuf,
    /// Where the container runtime looks for plugins, such as `/opt/cni/bin`.
    pub bin_dir: PathBuf,
    /// Where it looks for network configurations, such as `/etc/cni/net.d`.
    pub net_dir: PathBuf,
    /// The name of a list of our own, rather than an entry in the primary one.
    pub own_conflist: Option<String>,
    pub entry: Entry,
}

/// What was done, or is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What was changed, in words.
    pub done: Vec<String>,
    /// What was left alone, since it cannot be helped from here.
    pub problems: Vec<String>,
    /// The configuration that starts pods through us now.
    pub primary: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("{call} {}: {source}", path.display())]
    Io {
        call: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl Installation {
    /// Makes it so; does nothing where it is so already. The binary comes first: a configuration never names a plugin that is
    /// not there.
    pub fn install(&self) -> Result<Report, InstallError> {
        let mut report = Report::default();
        if self.copy_binary()? {
            let to = self.installed_binary();
            report.done.push(format!("copied {}", to.display()));
        }
        let plan = plan::install(
            &configurations(&self.net_dir)?,
            &self.entry,
            self.own_conflist.as_deref(),
        );
        report.primary = plan.primary.as_ref().map(|name| self.net_dir.join(name));
        self.perform(plan, &mut report)?;
        Ok(report)
    }

    /// Takes back all that was installed here, by whichever options. The binary goes last.
    pub fn uninstall(&self) -> Result<Report, InstallError> {
        let mut report = Report::default();
        let plan = plan::uninstall(&configurations(&self.net_dir)?, &saved(&self.net_dir)?);
        let broken = !plan.problems.is_empty();
        self.perform(plan, &mut report)?;
        let binary = self.installed_binary();
        if broken {
            // What still names it would fail without it.
            return Ok(report);
        }
        match fs::remove_file(&binary) {
            Ok(()) => report.done.push(format!("removed {}", binary.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(at("remove", &binary)(error)),
        }
        Ok(report)
    }

    fn installed_binary(&self) -> PathBuf {
        self.bin_dir.join(PLUGIN)
    }

    /// Whether there was something to do.
    fn copy_binary(&self) -> Result<bool, InstallError> {
        let bytes = fs::read(&self.binary).map_err(at("read", &self.binary))?;
        let to = self.installed_binary();
        let executable = |path: &Path| {
            fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o111 == 0o111)
        };
        if fs::read(&to).is_ok_and(|there| there == bytes) && executable(&to) {
            return Ok(false);
        }
        fs::create_dir_all(&self.bin_dir).map_err(at("create", &self.bin_dir))?;
        replace(&to, &bytes, 0o755)?;
        Ok(true)
    }

    fn perform(&self, plan: Plan, report: &mut Report) -> Result<(), InstallError> {
        report.problems.extend(plan.problems);
        let path = |name: &str| self.net_dir.join(name);
        for step in plan.steps {
            report.done.push(match step {
                Step::Write { name, text } => {
                    let path = path(&name);
                    let mode =
                        fs::metadata(&path).map_or(0o644, |there| there.permissions().mode());
                    replace(&path, text.as_bytes(), mode & 0o7777)?;
                    format!("wrote {}", path.display())
                }
                Step::Rename { from, to } => {
                    let (from, to) = (path(&from), path(&to));
                    fs::rename(&from, &to).map_err(at("rename", &from))?;
                    format!("renamed {} to {}", from.display(), to.display())
                }
                Step::Remove { name } => {
                    let path = path(&name);
                    fs::remove_file(&path).map_err(at("remove", &path))?;
                    format!("removed {}", path.display())
                }
            });
        }
        Ok(())
    }
}

/// The files that a runtime would read, in its order.
fn configurations(folder: &Path) -> Result<Vec<Found>, InstallError> {
    read(folder, |name| plan::is_configuration(name).then_some(name))
}

/// The single configurations that were put aside, by the names that they had.
fn saved(folder: &Path) -> Result<Vec<Found>, InstallError> {
    read(folder, |name| name.strip_suffix(SAVED))
}

/// The files whose name has a meaning, by what it means.
fn read(folder: &Path, meaning: impl Fn(&str) -> Option<&str>) -> Result<Vec<Found>, InstallError> {
    let mut found = Vec::new();
    for name in names(folder)? {
        if let Some(meant) = meaning(&name) {
            let path = folder.join(&name);
            let bytes = match fs::read(&path) {
                // Somebody else removed it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                bytes => bytes.map_err(at("read", &path))?,
            };
            // What is not UTF-8 is no JSON, and is found to be broken as such.
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let name = meant.to_owned();
            found.push(Found { name, text });
        }
    }
    Ok(found)
}

fn names(folder: &Path) -> Result<Vec<String>, InstallError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(at("read", folder))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(at("read", folder))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// Writes a file so that nobody sees half of it, also after a power failure.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), InstallError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let write = || -> io::Result<()> {
        // The name has an ending that no runtime reads.
        let mut file = tempfile::Builder::new()
            .prefix(".redirect-")
            .suffix(".new")
            .tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file()
            .set_permissions(fs::Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        fs::File::open(folder)?.sync_all()
    };
    write().map_err(at("write", path))
}

fn at(call: &'static str, path: &Path) -> impl Fn(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::Io {
        call,
        path: path.clone(),
        source,
    }
}
