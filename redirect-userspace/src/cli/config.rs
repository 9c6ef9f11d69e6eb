//! `redirect config check`.

use std::{
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand};

use super::run::RunFlags;
use crate::{
    config::{Backend, Config, Flags, Host, IdentityConfig},
    pod::OnProxyFailure,
    workload::{Defaults, Workloads},
};

/// Work with configuration files
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    Check(Check),
}

/// Check a configuration file, and the workload file that it names
///
/// Prints every mistake with the name of its field, or `ok` with a summary. What can still appear before the daemon starts (a
/// pod's namespace or cgroup, for example) is a warning. Exit status: 0 if the file can be used, 1 if not.
#[derive(Debug, Args)]
pub struct Check {
    /// The configuration file: TOML if it ends in .toml, else YAML
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    flags: RunFlags,
}

impl ConfigCommand {
    pub(super) fn execute(self, host: &Host, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        match self {
            Self::Check(check) => check.execute(host, out),
        }
    }
}

impl Check {
    fn execute(self, host: &Host, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let flags = self.flags.resolve();
        let config = match Config::load(
            &self.file,
            host,
            &Flags {
                dev_ca: true,
                ..flags.clone()
            },
        ) {
            Ok(config) => config,
            Err(error) => {
                writeln!(out, "{error}")?;
                return Ok(ExitCode::FAILURE);
            }
        };
        let mut warnings = warnings(&config, &flags);
        let defaults = Defaults {
            trust_domain: config.trust_domain.clone(),
        };
        let workloads = match config.workloads.as_deref() {
            Some(path) if exists(path) => match Workloads::load(path, &defaults) {
                Ok(workloads) => Some((path, workloads)),
                Err(error) => {
                    writeln!(out, "{error}")?;
                    return Ok(ExitCode::FAILURE);
                }
            },
            Some(path) => {
                warnings.push(format!(
                    "workloads: {} does not exist (yet)",
                    path.display()
                ));
                None
            }
            None => None,
        };
        if let Some((path, workloads)) = &workloads {
            let name = path.display();
            warnings.extend(
                workloads
                    .warnings()
                    .iter()
                    .map(|warning| format!("{name}: {warning}")),
            );
        }
        writeln!(out, "ok")?;
        let workloads = workloads.as_ref().map(|(_, workloads)| workloads);
        summarise(out, &config, workloads)?;
        for warning in warnings {
            writeln!(out, "warning: {warning}")?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn summarise(
    out: &mut dyn Write,
    config: &Config,
    workloads: Option<&Workloads>,
) -> std::io::Result<()> {
    let mut row = |name: &str, value: String| writeln!(out, "  {name:<13} {value}");
    row("node", config.node.clone())?;
    row("trust domain", config.trust_domain.clone())?;
    row("workers", config.workers.to_string())?;
    let backend = config.capture.backend.name();
    row(
        "capture",
        format!("{backend}, bpffs at {}", config.capture.bpffs.display()),
    )?;
    let identity = match &config.identity {
        IdentityConfig::DevCa { dir, .. } => format!("development authority in {}", dir.display()),
        IdentityConfig::Files { dir } => format!("files in {}", dir.display()),
    };
    row("identity", identity)?;
    if let Some(workloads) = workloads {
        let (services, policies) = (workloads.services().len(), workloads.policies().len());
        let count = workloads.workloads().len();
        row(
            "workloads",
            format!("{count} (services: {services}, policies: {policies})"),
        )?;
    }
    row("pods", config.pods.len().to_string())?;
    for pod in &config.pods {
        let ips: Vec<_> = pod.ips.iter().map(ToString::to_string).collect();
        writeln!(out, "    {}  {}  {}", pod.uid, ips.join(" "), pod.identity)?;
    }
    Ok(())
}

/// What is missing now, but may be there when it is needed.
fn warnings(config: &Config, flags: &Flags) -> Vec<String> {
    let mut warnings = Vec::new();
    let dir = match &config.identity {
        IdentityConfig::DevCa { dir, .. } => {
            if !flags.dev_ca {
                warnings.push("identity.source: devCa needs `redirect run --dev-ca`".to_owned());
            }
            dir
        }
        IdentityConfig::Files { dir } => dir,
    };
    let mut missing = |field: String, path: &Path| {
        if !exists(path) {
            warnings.push(format!("{field}: {} does not exist (yet)", path.display()));
        }
    };
    missing("identity.dir".to_owned(), dir);
    let by_rules = matches!(
        config.capture.backend,
        Backend::Iptables | Backend::Nftables
    );
    for (index, pod) in config.pods.iter().enumerate() {
        missing(format!("pods[{index}].netns"), &pod.netns);
        missing(format!("pods[{index}].cgroup"), &pod.cgroup);
    }
    let passing = config.pods.iter().enumerate();
    let passing = passing.filter(|(_, pod)| pod.options.on_proxy_failure == OnProxyFailure::Pass);
    warnings.extend(passing.filter(|_| by_rules).map(|(index, _)| {
        format!(
            "pods[{index}].onProxyFailure: pass holds with backend {} only when the daemon ends in order; if it is killed, the pod's connections are refused until it runs again",
            config.capture.backend.name()
        )
    }));
    warnings
}

/// A path that cannot be looked at may well exist.
fn exists(path: &Path) -> bool {
    !matches!(path.metadata(), Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory))
}
