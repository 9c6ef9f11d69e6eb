//! `redirect rules print|apply|verify|clean`.

use std::{io::Write, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::{
    capture::netfilter::{
        self, Tool,
        plan::{Exemption, Family, Mode, Needs, PROXY_UID, Plan},
    },
    sys::netns::Netns,
};

/// Netfilter rules of one network namespace, without a daemon
#[derive(Debug, Subcommand)]
pub enum RulesCommand {
    Print(Print),
    Apply(Apply),
    Verify(Verify),
    Clean(Clean),
}

/// Print the rules as the input of iptables-restore, or of nft
///
/// Changes nothing. The rules are those for a namespace in which there are none yet.
#[derive(Debug, Args)]
pub struct Print {
    #[command(flatten)]
    rules: RuleFlags,
}

/// Put the rules in force, in place of what was left of older ones
///
/// Rules of others stay. Verifies what it has done.
#[derive(Debug, Args)]
pub struct Apply {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    rules: RuleFlags,
}

/// Compare the rules that are in force with those that should be: content and order
///
/// Prints each difference. Exit status: 0 if there is none, 1 if there is one.
#[derive(Debug, Args)]
pub struct Verify {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    rules: RuleFlags,
}

/// Remove all rules of ours, whichever tool has made them
///
/// Rules of others stay. Does nothing the second time.
#[derive(Debug, Args)]
pub struct Clean {
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
struct Place {
    /// The network namespace, such as /run/netns/NAME or /proc/PID/ns/net
    #[arg(long, value_name = "FILE")]
    netns: PathBuf,
}

#[derive(Debug, Args)]
struct RuleFlags {
    /// What carries the rules in; `iptables` is the variant that is in use there already, or that works
    #[arg(long, value_enum, default_value = "iptables")]
    backend: BackendArg,
    #[arg(long, value_enum, default_value = "both")]
    family: FamilyArg,
    /// Where the proxy is: on the node, or in the pod (the form that is known from sidecars)
    #[arg(long, value_enum, default_value = "shared")]
    mode: ModeArg,
    /// Leave connections of this cgroup v2 alone, and of those below: the proxy's (the daemon gives its own)
    #[arg(long, value_name = "DIR", group = "exempt")]
    exempt_cgroup: Option<PathBuf>,
    /// Leave packets with the mark 0x539/0xfff alone; whoever has CAP_NET_ADMIN or CAP_NET_RAW can set it
    #[arg(long, group = "exempt")]
    exempt_mark: bool,
    /// Leave connections of this user alone [default with --mode dedicated: 1337]
    #[arg(long, value_name = "UID", group = "exempt")]
    exempt_uid: Option<u32>,
    /// Destination ports that are left alone
    #[arg(long, value_name = "PORT,..", value_delimiter = ',')]
    exclude_outbound_ports: Vec<u16>,
    /// Destination networks that are left alone
    #[arg(long, value_name = "NET,..", value_delimiter = ',')]
    exclude_outbound_cidrs: Vec<IpNet>,
    /// Capture connections to 169.254.169.254, too
    #[arg(long)]
    capture_metadata_address: bool,
    /// With --mode shared: capture connections in plaintext to the pod, too; something must listen on port 15006
    #[arg(long)]
    capture_inbound: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BackendArg {
    Iptables,
    IptablesNft,
    IptablesLegacy,
    Nftables,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FamilyArg {
    Ipv4,
    Ipv6,
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ModeArg {
    Shared,
    Dedicated,
}

impl RulesCommand {
    pub(super) fn execute(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        match self {
            Self::Print(print) => print.execute(out),
            Self::Apply(apply) => apply.execute(out),
            Self::Verify(verify) => verify.execute(out),
            Self::Clean(clean) => clean.execute(out),
        }
    }
}

impl Print {
    fn execute(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let plans = self.rules.plans(&self.rules.families(None)?)?;
        write!(
            out,
            "{}",
            netfilter::render::text(self.rules.tool(), &plans)?
        )?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Apply {
    fn execute(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let netns = self.place.open()?;
        let plans = self.rules.plans(&self.rules.families(Some(&netns))?)?;
        netfilter::apply(self.rules.tool(), &netns, &plans)?;
        let count: usize = plans.iter().map(Plan::rules).sum();
        writeln!(
            out,
            "applied {count} rules in {}",
            self.place.netns.display()
        )?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Verify {
    fn execute(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let netns = self.place.open()?;
        let plans = self.rules.plans(&self.rules.families(Some(&netns))?)?;
        let differences = netfilter::verify(self.rules.tool(), &netns, &plans)?;
        for difference in &differences {
            writeln!(out, "{difference}")?;
        }
        if differences.is_empty() {
            let count: usize = plans.iter().map(Plan::rules).sum();
            writeln!(out, "ok: {count} rules in {}", self.place.netns.display())?;
            return Ok(ExitCode::SUCCESS);
        }
        Ok(ExitCode::FAILURE)
    }
}

impl Clean {
    fn execute(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let what = match netfilter::clean(&self.place.open()?)? {
            true => "removed our rules from",
            false => "no rules of ours in",
        };
        writeln!(out, "{what} {}", self.place.netns.display())?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Place {
    fn open(&self) -> anyhow::Result<Netns> {
        Netns::open(&self.netns)
            .with_context(|| format!("open network namespace {}", self.netns.display()))
    }
}

impl RuleFlags {
    fn tool(&self) -> Tool {
        match self.backend {
            BackendArg::Iptables => Tool::Iptables,
            BackendArg::IptablesNft => Tool::IptablesNft,
            BackendArg::IptablesLegacy => Tool::IptablesLegacy,
            BackendArg::Nftables => Tool::Nftables,
        }
    }

    /// `both` is what the namespace has.
    fn families(&self, netns: Option<&Netns>) -> anyhow::Result<Vec<Family>> {
        Ok(match (self.family, netns) {
            (FamilyArg::Ipv4, _) => vec![Family::Ipv4],
            (FamilyArg::Ipv6, _) => vec![Family::Ipv6],
            (FamilyArg::Both, Some(netns)) => netfilter::families(netns)?,
            (FamilyArg::Both, None) => Family::BOTH.into(),
        })
    }

    fn plans(&self, families: &[Family]) -> anyhow::Result<Vec<Plan>> {
        let mode = match self.mode {
            ModeArg::Shared => Mode::Shared,
            ModeArg::Dedicated => Mode::Dedicated,
        };
        let needs = Needs {
            mode,
            exemption: self.exemption()?,
            exempt_cgroups: Vec::new(),
            exclude_outbound_ports: self.exclude_outbound_ports.clone(),
            exclude_outbound_cidrs: self.exclude_outbound_cidrs.clone(),
            capture_metadata_address: self.capture_metadata_address,
            capture_inbound: self.capture_inbound || mode == Mode::Dedicated,
        };
        Ok(families.iter().map(|family| needs.plan(*family)).collect())
    }

    /// Without one, the proxy's own connections would come back to it.
    fn exemption(&self) -> anyhow::Result<Exemption> {
        if let Some(path) = &self.exempt_cgroup {
            return Ok(Exemption::Cgroup(netfilter::cgroup_path(path)?));
        }
        if self.exempt_mark {
            return Ok(Exemption::Mark);
        }
        match (self.exempt_uid, self.mode) {
            (Some(uid), _) => Ok(Exemption::Uid(uid)),
            (None, ModeArg::Dedicated) => Ok(Exemption::Uid(PROXY_UID)),
            (None, ModeArg::Shared) => anyhow::bail!(
                "say which connections are the proxy's own: --exempt-cgroup DIR (the daemon's cgroup), --exempt-mark or \
                 --exempt-uid UID"
            ),
        }
    }
}
