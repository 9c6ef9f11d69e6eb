//! What `iptables-save` says of a namespace, and how that differs from what should be: pure.

use std::collections::BTreeMap;

use super::plan::Table;

/// The chains of all tables, with their rules in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    tables: BTreeMap<String, BTreeMap<String, Chain>>,
    /// Tables in which `iptables-nft` found what it has no words for.
    pub incompatible: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Chain {
    policy: String,
    /// Without `-A CHAIN `.
    rules: Vec<String>,
}

/// One rule as `iptables-save` writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRule {
    pub chain: String,
    pub spec: String,
}

impl ListedRule {
    /// The line of `iptables-restore` that deletes it.
    pub fn delete(&self) -> String {
        format!("-D {} {}", self.chain, self.spec)
    }
}

impl Listing {
    pub fn parse(save: &str) -> Self {
        let mut listing = Self::default();
        let mut table = String::new();
        for line in save.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name.to_owned();
                listing.tables.entry(table.clone()).or_default();
            } else if let Some(chain) = line.strip_prefix(':') {
                let (name, rest) = chain.split_once(' ').unwrap_or((chain, ""));
                let policy = rest.split(' ').next().unwrap_or_default();
                listing.chain(&table, name).policy = policy.to_owned();
            } else if let Some(rule) = line.strip_prefix("-A ") {
                // A rule of nft's own can be one of which iptables has nothing to say but its chain.
                let (name, spec) = rule.split_once(' ').unwrap_or((rule, ""));
                listing.chain(&table, name).rules.push(spec.to_owned());
            } else if line.starts_with("# Table") && line.contains("incompatible") {
                let name = line.split(['`', '\'']).nth(1).unwrap_or(line);
                listing.incompatible.push(name.to_owned());
            }
        }
        listing
    }

    fn chain(&mut self, table: &str, chain: &str) -> &mut Chain {
        let table = self.tables.entry(table.to_owned()).or_default();
        table.entry(chain.to_owned()).or_default()
    }

    fn chains(&self, table: Table) -> impl Iterator<Item = (&String, &Chain)> {
        self.tables.get(table.name()).into_iter().flatten()
    }

    pub fn has_chain(&self, table: Table, chain: &str) -> bool {
        self.chains(table).any(|(name, _)| name == chain)
    }

    pub fn rules(&self, table: Table, chain: &str) -> &[String] {
        self.chains(table)
            .find(|(name, _)| *name == chain)
            .map_or(&[], |(_, chain)| &chain.rules)
    }

    /// Rules of other chains of the table that lead to one of `chains`.
    pub fn jumps_to(&self, table: Table, chains: &[&str]) -> Vec<ListedRule> {
        let others = self
            .chains(table)
            .filter(|(name, _)| !chains.contains(&name.as_str()));
        others
            .flat_map(|(name, chain)| chain.rules.iter().map(move |spec| (name, spec)))
            .filter(|(_, spec)| jump(spec).is_some_and(|to| chains.contains(&to)))
            .map(|(chain, spec)| ListedRule {
                chain: chain.clone(),
                spec: spec.clone(),
            })
            .collect()
    }

    /// How many rules `chain` has besides `known`.
    pub fn foreign_rules(&self, table: Table, chain: &str, known: &[ListedRule]) -> usize {
        let known = known.iter().filter(|rule| rule.chain == chain).count();
        self.rules(table, chain).len() - known
    }

    /// Whether anything is set up that is in none of the chains that `ours` names and leads to none of them.
    pub fn has_foreign(&self, ours: impl Fn(Table) -> Vec<&'static str>) -> bool {
        let in_other_tables = self.tables.iter().any(|(name, chains)| {
            let is_known = Table::ALL.iter().any(|table| table.name() == name);
            !is_known && chains.values().any(Chain::does_something)
        });
        let in_our_tables = Table::ALL.into_iter().any(|table| {
            let ours = ours(table);
            let jumps = self.jumps_to(table, &ours);
            self.chains(table).any(|(name, chain)| {
                let known = jumps.iter().filter(|rule| rule.chain == *name).count();
                !ours.contains(&name.as_str())
                    && (chain.policy != "ACCEPT" || chain.rules.len() > known)
            })
        });
        !self.incompatible.is_empty() || in_other_tables || in_our_tables
    }

    /// Whether a chain of the kernel does nothing.
    pub fn is_idle(&self, table: Table, chain: &str) -> bool {
        self.incompatible.is_empty()
            && self
                .chains(table)
                .any(|(name, found)| name == chain && !found.does_something())
    }
}

impl Chain {
    fn does_something(&self) -> bool {
        self.policy != "ACCEPT" || !self.rules.is_empty()
    }
}

/// The chain that a rule leads to.
fn jump(spec: &str) -> Option<&str> {
    // Every other piece is inside of quotes: a comment, which may say anything.
    spec.split('"').step_by(2).find_map(|piece| {
        let mut words = piece.split_ascii_whitespace();
        words.find(|word| matches!(*word, "-j" | "-g"))?;
        words.next()
    })
}

/// In which way the rules of `chain` are not the expected ones, in words; nothing if they are.
pub fn differences(chain: &str, expected: &[String], found: &[String]) -> Vec<String> {
    let without = |from: &[String], others: &[String]| {
        let mut others = others.to_vec();
        let mut rest = Vec::new();
        for (index, rule) in from.iter().enumerate() {
            match others.iter().position(|other| other == rule) {
                Some(at) => _ = others.swap_remove(at),
                None => rest.push((index + 1, rule.clone())),
            }
        }
        rest
    };
    let missing = without(expected, found);
    let extra = without(found, expected);
    let mut told: Vec<String> = Vec::new();
    for (number, rule) in &missing {
        told.push(format!("{chain}: rule {number} is missing: {rule}"));
    }
    for (number, rule) in &extra {
        told.push(format!(
            "{chain}: rule {number} should not be there: {rule}"
        ));
    }
    if told.is_empty()
        && let Some(at) = (0..expected.len()).find(|&at| expected[at] != found[at])
    {
        told.push(format!(
            "{chain}: the order is wrong: rule {} is `{}` and should be `{}`",
            at + 1,
            found[at],
            expected[at]
        ));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAT: Table = Table::Nat;
    const SAVE: &str = "# Generated by iptables-save v1.8.9\n*filter\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [1:2]\nCOMMIT\n\
        *nat\n:OUTPUT ACCEPT [0:0]\n:OURS - [0:0]\n:THEIRS - [0:0]\n-A OUTPUT -d 10.0.0.1/32 -j THEIRS\n\
        -A OUTPUT -p tcp -j OURS\n-A OURS -o lo -j RETURN\n-A THEIRS -m comment --comment \"not -j OURS\" -j RETURN\nCOMMIT\n";

    #[test]
    fn chains_rules_and_jumps_are_found() {
        let listing = Listing::parse(SAVE);
        assert!(listing.has_chain(NAT, "OURS") && !listing.has_chain(NAT, "INPUT"));
        assert_eq!(listing.rules(NAT, "OURS"), ["-o lo -j RETURN"]);
        let jumps = listing.jumps_to(NAT, &["OURS"]);
        assert_eq!(jumps.len(), 1);
        assert_eq!(jumps[0].delete(), "-D OUTPUT -p tcp -j OURS");
        assert_eq!(listing.foreign_rules(NAT, "OUTPUT", &jumps), 1);
        assert_eq!(listing.foreign_rules(NAT, "PREROUTING", &jumps), 0);
        let unsayable = Listing::parse("*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT\nCOMMIT");
        assert_eq!(unsayable.foreign_rules(NAT, "OUTPUT", &[]), 1);
        assert!(!unsayable.is_idle(NAT, "OUTPUT") && !listing.is_idle(NAT, "OUTPUT"));
    }

    fn ours(table: Table) -> Vec<&'static str> {
        match table {
            NAT => vec!["OURS"],
            _ => Vec::new(),
        }
    }

    #[test]
    fn foreign_is_what_is_not_ours() {
        let cases = [
            ("", false),
            ("*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT", false),
            ("*nat\n:OUTPUT DROP [0:0]\nCOMMIT", true),
            (
                "*nat\n:OUTPUT ACCEPT [0:0]\n:OURS - [0:0]\n-A OUTPUT -j OURS\n-A OURS -j RETURN\nCOMMIT",
                false,
            ),
            ("*nat\n:THEIRS - [0:0]\nCOMMIT", true),
            (
                "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j DROP\nCOMMIT",
                true,
            ),
            ("# Table `nat' is incompatible, use 'nft' tool.", true),
            (
                "# Table `nat' contains incompatible base-chains, use 'nft' tool to list them.",
                true,
            ),
        ];
        for (save, foreign) in cases {
            assert_eq!(Listing::parse(save).has_foreign(ours), foreign, "{save}");
        }
        assert!(Listing::parse(SAVE).has_foreign(ours));
    }

    #[test]
    fn differences_name_what_is_missing_extra_or_misplaced() {
        let rules = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let cases = [
            ("a b c", "a b c", &[][..]),
            ("a b c", "a c", &["X: rule 2 is missing: b"]),
            ("a b", "a x b", &["X: rule 2 should not be there: x"]),
            (
                "a b",
                "b a",
                &["X: the order is wrong: rule 1 is `b` and should be `a`"],
            ),
            ("a b", "a b b", &["X: rule 3 should not be there: b"]),
            (
                "a b",
                "a c",
                &[
                    "X: rule 2 is missing: b",
                    "X: rule 2 should not be there: c",
                ],
            ),
        ];
        for (expected, found, told) in cases {
            assert_eq!(differences("X", &rules(expected), &rules(found)), told);
        }
    }
}
