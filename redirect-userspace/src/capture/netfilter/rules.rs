//! The rules of one namespace by one tool: which tool takes them, applying, comparing, and what other tools left there.

use super::{
    Applied, NetfilterError, Tool,
    iptables::{self, Programs, Seen, Variant},
    listing::Listing,
    nft::{self, Nft},
    plan::{Family, Plan},
    render,
    tool::ToolError,
};
use crate::sys::netns::{self, Netns};

/// A tool that was seen to take the plans, and what it says of a namespace where they are in force.
pub enum Rules {
    Iptables(Variant, Vec<(Programs, Listing)>),
    Nft(Nft, nft::Listed),
}

impl Rules {
    pub fn choose(tool: Tool, netns: &Netns, plans: &[Plan]) -> Result<Self, NetfilterError> {
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

    /// Puts `plans` in force in `netns`, and makes sure of it.
    pub fn apply_in(&self, netns: &Netns, plans: &[Plan]) -> Result<Applied, NetfilterError> {
        netns
            .run(|| self.apply(plans))
            .map_err(NetfilterError::Namespace)?
    }

    /// How the rules in `netns` differ from `plans`; nothing if they do not.
    pub fn differences_in(
        &self,
        netns: &Netns,
        plans: &[Plan],
    ) -> Result<Vec<String>, NetfilterError> {
        netns
            .run(|| self.differences(plans))
            .map_err(NetfilterError::Namespace)?
    }

    /// In the calling thread's namespace, as all below.
    pub fn apply(&self, plans: &[Plan]) -> Result<Applied, NetfilterError> {
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

    pub fn differences(&self, plans: &[Plan]) -> Result<Vec<String>, NetfilterError> {
        match self {
            Self::Nft(nft, expected) => Ok(nft::compare(expected, &nft.list()?)),
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
    pub fn others(&self) -> Result<Vec<String>, NetfilterError> {
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
    let mut found = Vec::new();
    for (plan, (programs, _)) in plans.iter().zip(each) {
        found.push(programs.list()?);
        iptables::check(plan, &found[found.len() - 1])?;
    }
    let mut fresh: Vec<&Programs> = Vec::new();
    for ((plan, (programs, _)), found) in plans.iter().zip(each).zip(&found) {
        if !render::iptables::is_used(found) {
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
                let others = found.has_foreign(|table| render::iptables::ours(&found, table));
                foreign = Some(foreign.unwrap_or(false) || others);
            }
        }
        seen.extend(foreign.map(|foreign| Seen { variant, foreign }));
    }
    seen
}

/// A tool on this node.
pub enum Installed {
    Iptables(Programs, Family),
    Nft(Nft),
}

impl Installed {
    pub fn all() -> Vec<Self> {
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

    pub fn clean(&self) -> Result<bool, ToolError> {
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
            Self::Iptables(programs, _) => Ok(render::iptables::is_used(&programs.list()?)),
            Self::Nft(nft) => Ok(!nft.list()?.is_empty()),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Iptables(programs, family) => format!("{} ({family})", programs.variant),
            Self::Nft(_) => "nftables".to_owned(),
        }
    }
}
