//! `redirect ca init` and `redirect ca issue`.

use std::{io::Write, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use clap::{Args, Subcommand};

use crate::{
    document::parse_duration,
    identity::{Clock, Identity, SystemClock, dev_ca::DevCa, files::leaf_paths, files::roots_path},
};

/// Make a development root, and certificates from it
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    Init(Init),
    Issue(Issue),
}

/// Make a development root (ECDSA P-256) in a new directory
///
/// Writes roots.pem, and root-key.pem with mode 0600. Whoever has the key can name itself any workload of the mesh. Never
/// overwrites a root.
#[derive(Debug, Args)]
pub struct Init {
    /// The directory, made with mode 0700 if it is missing
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The trust domain that the root is for
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    trust_domain: String,
}

/// Sign a certificate for one workload, in the layout of `identity.source: files`
///
/// Writes OUT/roots.pem and OUT/NAMESPACE/SERVICE_ACCOUNT/{cert,key}.pem; a certificate that is there already is replaced.
#[derive(Debug, Args)]
pub struct Issue {
    /// The directory that `redirect ca init` made
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Whom it is for
    #[arg(long, value_name = "NAMESPACE/SERVICE_ACCOUNT")]
    identity: String,
    /// Where to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How long it is valid, such as 24h
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_ttl)]
    ttl: Duration,
    /// The root's trust domain
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    trust_domain: String,
}

impl CaCommand {
    pub(super) fn execute(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        match self {
            Self::Init(init) => init.execute(out),
            Self::Issue(issue) => issue.execute(out),
        }
    }
}

impl Init {
    fn execute(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        DevCa::init(&self.dir, &self.trust_domain, SystemClock.now())?;
        writeln!(out, "wrote {}", roots_path(&self.dir).display())?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Issue {
    fn execute(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let (namespace, account) = self
            .identity
            .split_once('/')
            .context("--identity is NAMESPACE/SERVICE_ACCOUNT, such as default/client")?;
        let identity = Identity::new(&self.trust_domain, namespace, account)?;
        let ca = DevCa::open(
            &self.dir,
            &self.trust_domain,
            self.ttl,
            Arc::new(SystemClock),
        )?;
        ca.write_leaf(&identity, &self.out)?;
        writeln!(
            out,
            "wrote {}",
            leaf_paths(&self.out, &identity).0.display()
        )?;
        Ok(ExitCode::SUCCESS)
    }
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Some(ttl) if ttl >= Duration::from_secs(1) => Ok(ttl),
        Some(_) => Err("must be at least 1s".to_owned()),
        None => Err("not a duration such as 10m or 24h".to_owned()),
    }
}
