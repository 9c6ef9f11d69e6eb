//! `redirect run`.

use std::{num::NonZeroUsize, path::PathBuf, process::ExitCode};

use clap::{Args, ValueEnum};

use crate::{
    app,
    config::{Config, Flags, Host, LogFormat},
};

/// Run the node daemon
///
/// Captures the pods that the configuration lists and carries their connections, until SIGTERM or SIGINT. Capture stays in
/// place then, so that nothing leaks in plaintext, unless --detach-on-exit is given.
///
/// Flags win over environment variables (REDIRECT_NODE, REDIRECT_TRUST_DOMAIN, REDIRECT_CLUSTER_ID, REDIRECT_NETWORK,
/// REDIRECT_WORKERS, REDIRECT_STATE_DIR, REDIRECT_WORKLOADS, REDIRECT_LOG, REDIRECT_LOG_FORMAT), and these over the file.
///
/// A supervisor that names a socket in NOTIFY_SOCKET (systemd: `Type=notify`) is told when the daemon is ready and when it drains.
#[derive(Debug, Args)]
pub struct Run {
    /// The configuration file: TOML if it ends in .toml, else YAML
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Take over from the daemon that runs with the same state directory, if one does
    ///
    /// New connections come to this one from then on; the other finishes those that it has, until its drain limit, and ends. If
    /// this one does not become ready, the other goes on.
    #[arg(long)]
    take_over: bool,
    #[command(flatten)]
    pub(super) flags: RunFlags,
}

#[derive(Debug, Args)]
pub struct RunFlags {
    /// Permit `identity.source: devCa`: this process then holds the root key of the whole mesh
    #[arg(long)]
    dev_ca: bool,
    /// Let go of the pods at the end: their connections are then neither carried nor refused
    #[arg(long)]
    detach_on_exit: bool,
    /// Threads that carry connections [default: half of the cores]
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroUsize>,
    /// The node's name [default: the host name]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// What to log, such as `info` or `redirect::identity=debug,info` [default: info]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// How to log [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormatArg>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormatArg {
    Text,
    Json,
}

impl RunFlags {
    pub fn resolve(&self) -> Flags {
        Flags {
            node: self.node.clone(),
            workers: self.workers,
            log: self.log.clone(),
            log_format: self.log_format.map(|format| match format {
                LogFormatArg::Text => LogFormat::Text,
                LogFormatArg::Json => LogFormat::Json,
            }),
            dev_ca: self.dev_ca,
            detach_on_exit: self.detach_on_exit,
        }
    }
}

impl Run {
    pub(super) fn execute(self, host: &Host) -> anyhow::Result<ExitCode> {
        let config = Config::load(&self.config, host, &self.flags.resolve())?;
        let supervisor = app::Supervisor {
            socket: std::env::var_os("NOTIFY_SOCKET"),
        };
        let take_over = self.take_over;
        app::run(
            config,
            app::Start {
                take_over,
                supervisor,
            },
        )?;
        Ok(ExitCode::SUCCESS)
    }
}
