//! Capture by netfilter: rules in the pod's network namespace redirect its connections to the proxy's listener there, and
//! conntrack knows the original destination (`SO_ORIGINAL_DST`). For kernels that lack what eBPF capture needs.
//!
//! `plan` says what is needed, `render` says it to a tool, `iptables` and `nft` run the tools. The rules stay in the namespace
//! whatever becomes of the daemon: where nobody listens, a redirected connection is refused.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

pub use self::pods::{NetfilterCapture, Setting};
use self::{
    plan::{CgroupPath, Family, Plan},
    rules::{Installed, Rules},
    tool::ToolError,
};
use super::{Applied, CaptureError};
use crate::{
    config::IptablesVariant,
    sys::{
        cgroup::{self, Cgroup, CgroupError},
        netns::Netns,
        sysctl,
    },
};

mod iptables;
mod listing;
mod nft;
mod node;
pub mod plan;
mod pods;
pub mod render;
mod rules;
pub mod tool;

/// Which programs carry the rules in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// iptables of the variant that the namespace uses already, or that is there and works.
    Iptables,
    IptablesNft,
    IptablesLegacy,
    Nftables,
}

impl Tool {
    /// The tool for the iptables that the configuration asks for.
    pub fn of(variant: IptablesVariant) -> Self {
        match variant {
            IptablesVariant::Auto => Self::Iptables,
            IptablesVariant::Nft => Self::IptablesNft,
            IptablesVariant::Legacy => Self::IptablesLegacy,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum NetfilterError {
    #[error("enter a network namespace: {0}")]
    Namespace(#[source] io::Error),
    #[error("no {0} on this node; install Debian's package `{1}`, or choose another backend")]
    Missing(String, &'static str),
    #[error("no variant of iptables works here: {}", .0.join("; "))]
    NoVariant(Vec<String>),
    #[error(
        "the table {0} has rules of nft's own, which iptables-nft cannot read; use the nftables backend"
    )]
    Incompatible(String),
    #[error(
        "a chain {0} is there that is not ours: another agent captures this pod; remove its rules first"
    )]
    ForeignChain(&'static str),
    #[error("the rules are not as they were applied; does something else change them? {}", .0.join("; "))]
    NotInForce(Vec<String>),
    #[error("cgroup {} is the root of its hierarchy: all of the node would be exempt; start the daemon in a cgroup of its own", .0.display())]
    RootCgroup(PathBuf),
    #[error("cgroup {0:?}: netfilter takes at most 511 bytes, and no line ends")]
    CgroupName(String),
    #[error("find where {ip} is on this node: {source}; mode `node` needs a route to each pod")]
    NoWay { ip: IpAddr, source: io::Error },
    #[error(
        "{ip} is on a bridge, and what pods there send to each other would pass uncaptured; load br_netfilter and set \
         {sysctl} to 1, or use another mode or backend"
    )]
    Bridge { ip: IpAddr, sysctl: &'static str },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Text(#[from] render::nft::NftTextError),
}

/// The families that the namespace has.
pub fn families(netns: &Netns) -> Result<Vec<Family>, NetfilterError> {
    let ipv6 = netns
        .run(sysctl::has_ipv6)
        .map_err(NetfilterError::Namespace)?;
    let families = Family::BOTH.into_iter();
    Ok(families
        .filter(|family| *family == Family::Ipv4 || ipv6)
        .collect())
}

/// How netfilter's tools call the cgroup whose directory is `path`.
pub fn cgroup_path(path: &Path) -> Result<CgroupPath, NetfilterError> {
    let cgroup = Cgroup::open(path)?;
    let in_hierarchy = cgroup::in_hierarchy(&cgroup.path)?;
    let in_hierarchy = in_hierarchy.trim_matches('/').to_owned();
    if in_hierarchy.is_empty() {
        return Err(NetfilterError::RootCgroup(path.to_owned()));
    }
    // PATH_MAX of xt_cgroup is 512.
    if in_hierarchy.len() > 511 || in_hierarchy.contains(['\n', '\0']) {
        return Err(NetfilterError::CgroupName(in_hierarchy));
    }
    let in_sysfs = cgroup.path.strip_prefix("/sys/fs/cgroup").ok();
    Ok(CgroupPath {
        in_hierarchy,
        in_sysfs: in_sysfs.map(|path| path.to_string_lossy().into_owned()),
    })
}

/// Puts `plans` (one per family) in force in `netns`, whatever of ours was there before, and makes sure of it.
///
/// They are tried in a namespace of their own first: what a kernel or a program does not take changes nothing.
pub fn apply(tool: Tool, netns: &Netns, plans: &[Plan]) -> Result<Applied, NetfilterError> {
    Rules::choose(tool, netns, plans)?.apply_in(netns, plans)
}

/// How the rules in `netns` differ from `plans`, in words; nothing if they do not.
pub fn verify(tool: Tool, netns: &Netns, plans: &[Plan]) -> Result<Vec<String>, NetfilterError> {
    let rules = Rules::choose(tool, netns, plans)?;
    netns
        .run(|| {
            let mut told = rules.differences(plans)?;
            told.extend(rules.others()?);
            Ok(told)
        })
        .map_err(NetfilterError::Namespace)?
}

/// Removes all rules of ours from `netns`, of every tool; whether there were any. Goes on after a failure.
pub fn clean(netns: &Netns) -> Result<bool, CaptureError> {
    let cleaned = netns.run(|| {
        let all = Installed::all().into_iter();
        all.map(|installed| installed.clean()).collect::<Vec<_>>()
    });
    let mut errors = Vec::new();
    let mut any = false;
    for result in cleaned.map_err(NetfilterError::Namespace)? {
        match result {
            Ok(there) => any |= there,
            Err(error) => errors.push(CaptureError::from(NetfilterError::from(error))),
        }
    }
    CaptureError::collect(errors).map(|()| any)
}
