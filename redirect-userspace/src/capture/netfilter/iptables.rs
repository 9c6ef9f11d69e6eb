//! The iptables programs: which of the two kinds a namespace uses, and applying, verifying and cleaning with it.

use std::{fmt, path::PathBuf};

use super::{
    NetfilterError,
    listing::{Listing, differences},
    plan::{Family, Hook, Plan, Table},
    render::iptables::{self as text, builtin},
    tool::{self, ToolError},
};
use crate::sys::netns;

/// How long to wait for others that change rules, in seconds.
const LOCK_PATIENCE: &str = "5";

/// iptables over nf_tables, or over its own tables in the kernel. Rules of both are in force side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Nft,
    Legacy,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nft => "iptables-nft",
            Self::Legacy => "iptables-legacy",
        })
    }
}

/// The programs of one variant for one family.
#[derive(Clone, Debug)]
pub struct Programs {
    pub variant: Variant,
    save: PathBuf,
    restore: PathBuf,
}

impl Programs {
    pub fn find(variant: Variant, family: Family) -> Option<Self> {
        let of_family = match family {
            Family::Ipv4 => "iptables",
            Family::Ipv6 => "ip6tables",
        };
        let of_variant = match variant {
            Variant::Nft => "nft",
            Variant::Legacy => "legacy",
        };
        let named = |what: &str| tool::find(&format!("{of_family}-{of_variant}-{what}"));
        if let (Some(save), Some(restore)) = (named("save"), named("restore")) {
            return Some(Self {
                variant,
                save,
                restore,
            });
        }
        // Where there is one variant only, its programs may have no longer names.
        let save = tool::find(&format!("{of_family}-save"))?;
        let restore = tool::find(&format!("{of_family}-restore"))?;
        let version = tool::run(&save, &["--version"], "").unwrap_or_default();
        let is = match version.contains("nf_tables") {
            true => Variant::Nft,
            false => Variant::Legacy,
        };
        (is == variant).then_some(Self {
            variant,
            save,
            restore,
        })
    }

    /// The rules of the calling thread's namespace. Unlike `iptables -S` this makes no table that was not there.
    pub fn list(&self) -> Result<Listing, ToolError> {
        Ok(Listing::parse(&tool::run(&self.save, &[], "")?))
    }

    /// One transaction per table: all of it, or nothing.
    fn restore(&self, rules: &str) -> Result<(), ToolError> {
        let wait = ["--noflush", "--wait", LOCK_PATIENCE];
        tool::run(&self.restore, &wait, rules).map(drop)
    }

    /// Applies `plan` in the calling thread's namespace.
    pub fn apply(&self, plan: &Plan) -> Result<(), NetfilterError> {
        let found = self.list()?;
        check(plan, &found)?;
        if let Err(first) = self.restore(&text::apply(plan, &found)) {
            // What was found may have changed meanwhile; if not, nothing is tried twice.
            let now = self.list()?;
            if now == found {
                return Err(first.into());
            }
            self.restore(&text::apply(plan, &now))?;
        }
        Ok(())
    }

    /// Removes what is ours from the calling thread's namespace; whether there was anything.
    pub fn clean(&self) -> Result<bool, ToolError> {
        let Some(rules) = text::clean(&self.list()?) else {
            return Ok(false);
        };
        self.restore(&rules)?;
        if self.variant == Variant::Nft {
            self.remove_idle_chains(&self.list()?);
        }
        Ok(true)
    }

    /// Takes the empty chains back that iptables-nft made for our rules, and the table when nothing is left in it: while they
    /// are there, conntrack follows every connection. A failure leaves only that.
    fn remove_idle_chains(&self, found: &Listing) {
        let program = self.save.to_string_lossy().replace("-save", "");
        for table in Table::ALL {
            for chain in Hook::ALL.map(builtin) {
                if found.is_idle(table, chain) {
                    let _ = tool::run(program.as_ref(), &["-t", table.name(), "-X", chain], "");
                }
            }
        }
        let Some(nft) = tool::find("nft") else {
            return;
        };
        let family = match program.contains("ip6tables") {
            true => "ip6",
            false => "ip",
        };
        for name in Table::ALL.map(Table::name) {
            let table = tool::run(&nft, &["list", "table", family, name], "");
            if table.is_ok_and(|table| table.lines().count() == 2) {
                let _ = tool::run(&nft, &["delete", "table", family, name], "");
            }
        }
    }

    /// What `list` says where `plan` is in force and nothing else: asked of the kernel and the programs themselves, in a
    /// namespace made for it, since each version writes rules in its own way. Fails where they cannot be applied.
    pub fn expect(&self, plan: &Plan) -> Result<Listing, NetfilterError> {
        netns::in_new(|| {
            self.apply(plan)?;
            Ok(self.list()?)
        })
        .map_err(NetfilterError::Namespace)?
    }
}

/// Whether somebody else is where the rules of `plan` belong.
pub fn check(plan: &Plan, found: &Listing) -> Result<(), NetfilterError> {
    let used = |table: &&String| plan.chains.iter().any(|c| c.table.name() == **table);
    if let Some(table) = found.incompatible.iter().find(used) {
        return Err(NetfilterError::Incompatible(table.clone()));
    }
    match text::foreign(plan, found) {
        Some(chain) => Err(NetfilterError::ForeignChain(chain)),
        None => Ok(()),
    }
}

/// How `found` differs from `expected`, in the chains of `plan`.
pub fn compare(plan: &Plan, expected: &Listing, found: &Listing) -> Vec<String> {
    let mut told = Vec::new();
    for table in Table::ALL {
        let of_table = compare_table(plan, table, expected, found).into_iter();
        told.extend(of_table.map(|what| match table {
            Table::Nat => format!("{} {what}", plan.family),
            _ => format!("{} {} {what}", plan.family, table.name()),
        }));
    }
    told
}

fn compare_table(plan: &Plan, table: Table, expected: &Listing, found: &Listing) -> Vec<String> {
    let mut told = Vec::new();
    let ours = text::ours(found, table);
    for builtin in Hook::ALL.map(builtin) {
        let rules = found.rules(table, builtin);
        // Where only the plan is in force, all rules of the kernel's own chains are jumps to ours.
        for (index, jump) in expected.rules(table, builtin).iter().enumerate() {
            let name = jump.rsplit(' ').next().unwrap_or_default();
            match rules.iter().position(|rule| rule == jump) {
                None => told.push(format!("{builtin}: the jump to {name} is missing: {jump}")),
                Some(at) if at == index => {}
                Some(at) => told.push(format!(
                    "{builtin}: the order is wrong: the jump to {name} is rule {} and not the {}, which is: {}",
                    at + 1,
                    ["first", "second", "third"].get(index).unwrap_or(&"next"),
                    rules[index]
                )),
            }
        }
    }
    for name in text::names(plan, table) {
        if !ours.contains(&name) {
            told.push(format!("{name}: the chain is missing"));
            continue;
        }
        let (expected, found) = (expected.rules(table, name), found.rules(table, name));
        told.extend(differences(name, expected, found));
    }
    let expected_chains = text::ours(expected, table);
    let mut left = expected.jumps_to(table, &expected_chains);
    for jump in found.jumps_to(table, &ours) {
        match left.iter().position(|expected| *expected == jump) {
            Some(at) => _ = left.swap_remove(at),
            None => told.push(format!(
                "{}: a rule leads to our chain that should not be there: {}",
                jump.chain, jump.spec
            )),
        }
    }
    let extra = ours.iter().filter(|chain| !expected_chains.contains(chain));
    told.extend(extra.map(|chain| format!("{chain}: the chain should not be there")));
    told
}

/// What is known of one variant in a namespace.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub variant: Variant,
    /// Whether somebody else has rules of this variant there.
    pub foreign: bool,
}

/// The installed variants in the order in which to try them: that whose rules are in use already, so that `iptables -S`
/// shows all of them; legacy first of these, since nf_tables' rules may be no iptables' at all.
pub fn preference(installed: &[Seen]) -> Vec<Variant> {
    let mut order = installed.to_vec();
    order.sort_by_key(|seen| match (seen.variant, seen.foreign) {
        (Variant::Legacy, true) => 0,
        (Variant::Nft, _) => 1,
        (Variant::Legacy, false) => 2,
    });
    order.into_iter().map(|seen| seen.variant).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variant_in_use_is_preferred() {
        use Variant::{Legacy, Nft};
        type Case<'a> = (&'a [(Variant, bool)], &'a [Variant]);
        let cases: [Case<'_>; 6] = [
            (&[], &[]),
            (&[(Legacy, false)], &[Legacy]),
            (&[(Nft, false), (Legacy, false)], &[Nft, Legacy]),
            (&[(Nft, false), (Legacy, true)], &[Legacy, Nft]),
            (&[(Nft, true), (Legacy, true)], &[Legacy, Nft]),
            (&[(Legacy, false), (Nft, true)], &[Nft, Legacy]),
        ];
        for (installed, expected) in cases {
            let seen = |&(variant, foreign)| Seen { variant, foreign };
            let installed: Vec<Seen> = installed.iter().map(seen).collect();
            assert_eq!(preference(&installed), expected, "{installed:?}");
        }
    }
}
