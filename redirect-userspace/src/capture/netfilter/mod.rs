//! Capture by netfilter: rules in the pod's network namespace redirect its connections to the proxy's listener there, and
//! conntrack knows the original destination (`SO_ORIGINAL_DST`). For kernels that lack what eBPF capture needs.
//!
//! `plan` says what is needed, `render` says it to a tool, `iptables` and `nft` run the tools. The rules stay in the namespace
//! whatever becomes of the daemon: where nobody listens, a redirected connection is refused.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use self::{
    iptables::{Programs, Seen, Variant},
    listing::Listing,
    nft::Nft,
    plan::{CgroupPath, Exemption, Family, Mode, Needs, Plan},
    tool::ToolError,
};
use super::{Applied, Capture, CaptureError, Sockets, none::NoResolver};
use crate::{
    config::IptablesVariant,
    orig_dst::OrigDstResolver,
    pod::{Pod, PodUid},
    sys::{
        cgroup::{self, Cgroup, CgroupError},
        netns::{self, Netns},
    },
};

mod iptables;
mod listing;
mod nft;
pub mod plan;
pub mod render;
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
        "the table nat has rules of nft's own, which iptables-nft cannot read; use the nftables backend"
    )]
    Incompatible,
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
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Text(#[from] render::nft::NftTextError),
}

/// Captures pods in shared mode.
pub struct NetfilterCapture {
    tool: Tool,
    daemon: CgroupPath,
    pods: HashMap<PodUid, (Netns, Vec<Plan>)>,
}

impl NetfilterCapture {
    /// `cgroup` is the daemon's own, whose connections are not captured.
    pub fn new(tool: Tool, cgroup: &Path) -> Result<Self, NetfilterError> {
        Ok(Self {
            tool,
            daemon: cgroup_path(cgroup)?,
            pods: HashMap::new(),
        })
    }

    fn plans(&self, pod: &Pod, netns: &Netns) -> Result<Vec<Plan>, NetfilterError> {
        let options = &pod.options;
        let exempt = options.exempt_cgroups.iter();
        let needs = Needs {
            mode: Mode::Shared,
            exemption: Exemption::Cgroup(self.daemon.clone()),
            exempt_cgroups: exempt
                .map(|path| cgroup_path(path))
                .collect::<Result<_, _>>()?,
            exclude_outbound_ports: options.exclude_outbound_ports.clone(),
            exclude_outbound_cidrs: options.exclude_outbound_cidrs.clone(),
            capture_metadata_address: options.capture_metadata_address,
            // The proxy has no listener for it.
            capture_inbound: false,
        };
        let families = families(netns)?;
        Ok(families.into_iter().map(|f| needs.plan(f)).collect())
    }
}

impl Capture for NetfilterCapture {
    fn apply(
        &mut self,
        pod: &Pod,
        netns: &Netns,
        _sockets: &Sockets<'_>,
    ) -> Result<Applied, CaptureError> {
        let plans = self.plans(pod, netns)?;
        let applied = apply(self.tool, netns, &plans)?;
        self.pods.insert(pod.uid.clone(), (netns.clone(), plans));
        Ok(applied)
    }

    fn clean(&mut self, uid: &PodUid) -> Result<(), CaptureError> {
        match self.pods.remove(uid) {
            Some((netns, _)) => clean(&netns).map(drop),
            None => Ok(()),
        }
    }

    fn inspect(&self) -> Result<Vec<PodUid>, CaptureError> {
        let mut captured = Vec::new();
        for (uid, (netns, plans)) in &self.pods {
            if verify(self.tool, netns, plans)?.is_empty() {
                captured.push(uid.clone());
            }
        }
        Ok(captured)
    }

    fn resolver(&self) -> Arc<dyn OrigDstResolver> {
        // Conntrack is asked by the next of the chain.
        Arc::new(NoResolver)
    }

    fn name(&self) -> &'static str {
        match self.tool {
            Tool::Nftables => "nftables",
            Tool::Iptables | Tool::IptablesNft | Tool::IptablesLegacy => "iptables",
        }
    }
}

/// The families that the namespace has.
pub fn families(netns: &Netns) -> Result<Vec<Family>, NetfilterError> {
    let ipv6 = netns
        .run(|| Path::new("/proc/sys/net/ipv6").exists())
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
    let rules = Rules::choose(tool, netns, plans)?;
    netns
        .run(|| rules.apply(plans))
        .map_err(NetfilterError::Namespace)?
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

/// A tool that was seen to take the plans, and what it says of a namespace where they are in force.
enum Rules {
    Iptables(Variant, Vec<(Programs, Listing)>),
    Nft(Nft, String),
}

impl Rules {
    fn choose(tool: Tool, netns: &Netns, plans: &[Plan]) -> Result<Self, NetfilterError> {
        let wanted: &[Variant] = match tool {
            Tool::Nftables => {
                let missing = || NetfilterError::Missing("nft".to_owned(), "nftables");
                let nft = Nft::find().ok_or_else(missing)?;
                let expected = nft.expect(plans)?;
                return Ok(Self::Nft(nft, expected));
            }
            Tool::Iptables => &[Variant::Nft, Variant::Legacy],
            Tool::IptablesNft => &[Variant::Nft],
            Tool::IptablesLegacy => &[Variant::Legacy],
        };
        let seen = netns
            .run(|| see(wanted, plans))
            .map_err(NetfilterError::Namespace)?;
        let mut failed = Vec::new();
        let order = iptables::preference(&seen);
        if order.is_empty() {
            let names: Vec<_> = wanted.iter().map(Variant::to_string).collect();
            return Err(NetfilterError::Missing(names.join(" or "), "iptables"));
        }
        for variant in order {
            let each = plans.iter().map(|plan| {
                let programs = Programs::find(variant, plan.family);
                let programs = programs.ok_or_else(|| {
                    NetfilterError::Missing(format!("{variant} for {}", plan.family), "iptables")
                })?;
                let expected = programs.expect(plan)?;
                Ok((programs, expected))
            });
            match each.collect::<Result<Vec<_>, NetfilterError>>() {
                Ok(each) => return Ok(Self::Iptables(variant, each)),
                Err(error) => failed.push(format!("{variant}: {error}")),
            }
        }
        Err(NetfilterError::NoVariant(failed))
    }

    /// In the calling thread's namespace, as all below.
    fn apply(&self, plans: &[Plan]) -> Result<Applied, NetfilterError> {
        let adopted = self.differences(plans)?.is_empty();
        // Also if all seems right: a rule may name a cgroup that is gone and came again under the same name.
        match self {
            Self::Nft(nft, _) => nft.apply(plans)?,
            Self::Iptables(_, each) => apply_each(each, plans)?,
        }
        // The new rules are in force before those of another tool go.
        for other in self.other_tools() {
            other.clean()?;
        }
        let differences = self.differences(plans)?;
        match (differences.is_empty(), adopted) {
            (false, _) => Err(NetfilterError::NotInForce(differences)),
            (true, true) => Ok(Applied::Adopted),
            (true, false) => Ok(Applied::Attached),
        }
    }

    fn differences(&self, plans: &[Plan]) -> Result<Vec<String>, NetfilterError> {
        match self {
            Self::Nft(nft, expected) => Ok(nft::compare(expected, nft.list()?.as_deref())),
            Self::Iptables(_, each) => {
                let mut told = Vec::new();
                for (plan, (programs, expected)) in plans.iter().zip(each) {
                    told.extend(iptables::compare(plan, expected, &programs.list()?));
                }
                Ok(told)
            }
        }
    }

    /// Rules of ours that another tool made: they would be in force, too.
    fn others(&self) -> Result<Vec<String>, NetfilterError> {
        let mut told = Vec::new();
        for other in self.other_tools() {
            if other.is_in_use()? {
                told.push(format!("{} has rules of ours, too", other.name()));
            }
        }
        Ok(told)
    }

    fn other_tools(&self) -> Vec<Installed> {
        let mut all = Installed::all();
        all.retain(|installed| match (installed, self) {
            (Installed::Nft(_), Self::Nft(..)) => false,
            (Installed::Iptables(programs, _), Self::Iptables(variant, _)) => {
                programs.variant != *variant
            }
            _ => true,
        });
        all
    }
}

/// Family by family, since there is no transaction over both; after a failure nothing of ours stays where nothing was.
fn apply_each(each: &[(Programs, Listing)], plans: &[Plan]) -> Result<(), NetfilterError> {
    let mut fresh: Vec<&Programs> = Vec::new();
    for (plan, (programs, _)) in plans.iter().zip(each) {
        if render::iptables::ours(&programs.list()?).is_empty() {
            fresh.push(programs);
        }
        if let Err(error) = programs.apply(plan) {
            for programs in fresh {
                // The error that is returned is the one to know of.
                let _ = programs.clean();
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Which of the wanted variants are there, and who uses them in the calling thread's namespace.
fn see(wanted: &[Variant], plans: &[Plan]) -> Vec<Seen> {
    let mut seen = Vec::new();
    for &variant in wanted {
        let mut foreign = None;
        for plan in plans {
            if let Some(programs) = Programs::find(variant, plan.family) {
                // One that does not work will say so when the plans are tried.
                let found = programs.list().unwrap_or_default();
                let others = found.has_foreign(&render::iptables::ours(&found));
                foreign = Some(foreign.unwrap_or(false) || others);
            }
        }
        seen.extend(foreign.map(|foreign| Seen { variant, foreign }));
    }
    seen
}

/// A tool on this node.
enum Installed {
    Iptables(Programs, Family),
    Nft(Nft),
}

impl Installed {
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for variant in [Variant::Nft, Variant::Legacy] {
            for family in Family::BOTH {
                let programs = Programs::find(variant, family);
                all.extend(programs.map(|programs| Self::Iptables(programs, family)));
            }
        }
        all.extend(Nft::find().map(Self::Nft));
        all
    }

    fn clean(&self) -> Result<bool, ToolError> {
        Ok(self.is_in_use()?
            && match self {
                Self::Iptables(programs, _) => programs.clean()?,
                Self::Nft(nft) => nft.clean()?,
            })
    }

    fn is_in_use(&self) -> Result<bool, ToolError> {
        self.has_ours().or_else(|error| {
            // A program that can list nothing in an empty namespace either has never made rules on this kernel.
            match netns::in_new(|| self.has_ours()) {
                Ok(Err(_)) => Ok(false),
                _ => Err(error),
            }
        })
    }

    fn has_ours(&self) -> Result<bool, ToolError> {
        match self {
            Self::Iptables(programs, _) => {
                Ok(!render::iptables::ours(&programs.list()?).is_empty())
            }
            Self::Nft(nft) => Ok(nft.list()?.is_some()),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Iptables(programs, family) => format!("{} ({family})", programs.variant),
            Self::Nft(_) => "nftables".to_owned(),
        }
    }
}
