//! `redirect cni install|uninstall|watch`.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::{Args, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::cni::{
    conflist::{Entry, PLUGIN},
    install::{self, Installation, Report},
    protocol,
};

/// The CNI plugin on this node
#[derive(Debug, Subcommand)]
pub enum CniCommand {
    Install(Install),
    Uninstall(Uninstall),
    Watch(Watch),
}

/// Copy the plugin, and make it the last of the primary network configuration
///
/// The primary configuration is the first valid one in the order of the files' names. A single configuration (.conf) becomes a
/// list; the file is kept beside it. What other plugins say stays as it is. Does nothing the second time. Exit status: 1 if
/// there is no configuration to be chained to, or one that cannot be edited.
#[derive(Debug, Args)]
pub struct Install {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    entry: EntryFlags,
}

/// Take out of the node's network configurations all that `install` put there, and remove the plugin
///
/// A configuration that cannot be edited is left alone and named, and the plugin stays then.
#[derive(Debug, Args)]
pub struct Uninstall {
    #[command(flatten)]
    place: Place,
}

/// Install, and make it right again after each change, until SIGTERM or SIGINT
///
/// What is installed stays then: after a reboot no pod is to start without it.
#[derive(Debug, Args)]
pub struct Watch {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    entry: EntryFlags,
}

#[derive(Debug, Args)]
struct Place {
    /// Where the container runtime looks for plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,
    /// Where it looks for network configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    net_dir: PathBuf,
}

#[derive(Debug, Args)]
struct EntryFlags {
    /// The plugin's binary [default: redirect-cni beside this program]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Rather than an entry in the primary configuration, write a list of our own by this name; it has to come first
    #[arg(long, value_name = "NAME.conflist", value_parser = conflist_name)]
    own_conflist: Option<String>,
    /// The node agent's socket, as a path on the node
    #[arg(long, value_name = "FILE", default_value = protocol::SOCKET)]
    socket: PathBuf,
    /// Kubernetes namespaces whose pods start without the agent: its own, and what it needs
    #[arg(
        long,
        value_name = "NAME,..",
        value_delimiter = ',',
        default_value = "kube-system,redirect-system"
    )]
    exclude_namespaces: Vec<String>,
    /// How long the agent may take for one pod, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
    timeout: u64,
}

impl CniCommand {
    pub(super) fn execute(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        match self {
            Self::Install(install) => {
                let installation = install.entry.installation(install.place)?;
                let report = installation.install()?;
                tell(&report, out)?;
                if report.primary.is_none() {
                    let net_dir = installation.net_dir.display();
                    anyhow::bail!("no network configuration in {net_dir} to be chained to");
                }
                Ok(exit(&report))
            }
            Self::Uninstall(uninstall) => {
                // Neither binary nor entry matter for what is taken away.
                let entry = EntryFlags {
                    binary: Some(PathBuf::new()),
                    own_conflist: None,
                    socket: PathBuf::new(),
                    exclude_namespaces: Vec::new(),
                    timeout: 1,
                };
                let report = entry.installation(uninstall.place)?.uninstall()?;
                tell(&report, out)?;
                Ok(exit(&report))
            }
            Self::Watch(watch) => {
                let installation = watch.entry.installation(watch.place)?;
                run_watch(&installation, out)?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

impl EntryFlags {
    fn installation(self, place: Place) -> anyhow::Result<Installation> {
        let binary = match self.binary {
            Some(binary) => binary,
            None => std::env::current_exe()
                .context("find the program's own path")?
                .with_file_name(PLUGIN),
        };
        let timeout = Duration::from_secs(self.timeout);
        Ok(Installation {
            binary,
            bin_dir: place.bin_dir,
            net_dir: place.net_dir,
            own_conflist: self.own_conflist,
            entry: Entry::new(self.socket, self.exclude_namespaces, timeout),
        })
    }
}

fn run_watch(installation: &Installation, out: &mut dyn Write) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let watching = install::watch(installation, |result| {
            // Nobody may be reading what we print; watching goes on.
            let _ = match result {
                Ok(report) => tell(&report, out),
                Err(error) => writeln!(out, "{error}"),
            };
        });
        tokio::select! {
            never = watching => match never {},
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    })
}

fn tell(report: &Report, out: &mut dyn Write) -> std::io::Result<()> {
    for done in &report.done {
        writeln!(out, "{done}")?;
    }
    for problem in &report.problems {
        writeln!(out, "left alone: {problem}")?;
    }
    if let Some(primary) = &report.primary {
        writeln!(out, "pods start through {}", primary.display())?;
    }
    out.flush()
}

fn exit(report: &Report) -> ExitCode {
    match report.problems.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn conflist_name(text: &str) -> Result<String, String> {
    let plain = Path::new(text).file_name().is_some_and(|name| name == text);
    match plain && text.ends_with(".conflist") {
        true => Ok(text.to_owned()),
        false => Err("a file name that ends in .conflist".to_owned()),
    }
}
