//! What `iptables-save` says of a namespace, and how that differs from what should be: pure.

use std::collections::BTreeMap;

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

    fn nat(&self) -> impl Iterator<Item = (&String, &Chain)> {
        self.tables.get("nat").into_iter().flatten()
    }

    pub fn has_chain(&self, chain: &str) -> bool {
        self.nat().any(|(name, _)| name == chain)
    }

    /// The rules of a chain of the table `nat`.
    pub fn rules(&self, chain: &str) -> &[String] {
        self.nat()
            .find(|(name, _)| *name == chain)
            .map_or(&[], |(_, chain)| &chain.rules)
    }

    /// Rules of other chains that lead to one of `chains`.
    pub fn jumps_to(&self, chains: &[&str]) -> Vec<ListedRule> {
        let others = self
            .nat()
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

    /// How many rules `chain` of `nat` has besides `known`.
    pub fn foreign_rules(&self, chain: &str, known: &[ListedRule]) -> usize {
        let known = known.iter().filter(|rule| rule.chain == chain).count();
        self.rules(chain).len() - known
    }

    /// Whether anything is set up that is in none of `ours` and leads to none of them.
    pub fn has_foreign(&self, ours: &[&str]) -> bool {
        let jumps = self.jumps_to(ours);
        !self.incompatible.is_empty()
            || self.tables.iter().any(|(table, chains)| {
                chains.iter().any(|(name, chain)| {
                    let mine = table == "nat" && ours.contains(&name.as_str());
                    let known = jumps.iter().filter(|_| table == "nat");
                    let known = known.filter(|rule| rule.chain == *name).count();
                    !mine && (chain.policy != "ACCEPT" || chain.rules.len() > known)
                })
            })
    }

    /// Whether a chain of the kernel does nothing.
    pub fn is_idle(&self, chain: &str) -> bool {
        self.incompatible.is_empty()
            && self.nat().any(|(name, found)| {
                name == chain && found.policy == "ACCEPT" && found.rules.is_empty()
            })
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

    const SAVE: &str = "# Generated by iptables-save v1.8.9\n*filter\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [1:2]\nCOMMIT\n\
        *nat\n:OUTPUT ACCEPT [0:0]\n:OURS - [0:0]\n:THEIRS - [0:0]\n-A OUTPUT -d 10.0.0.1/32 -j THEIRS\n\
        -A OUTPUT -p tcp -j OURS\n-A OURS -o lo -j RETURN\n-A THEIRS -m comment --comment \"not -j OURS\" -j RETURN\nCOMMIT\n";

    #[test]
    fn chains_rules_and_jumps_are_found() {
        let listing = Listing::parse(SAVE);
        assert!(listing.has_chain("OURS") && !listing.has_chain("INPUT"));
        assert_eq!(listing.rules("OURS"), ["-o lo -j RETURN"]);
        let jumps = listing.jumps_to(&["OURS"]);
        assert_eq!(jumps.len(), 1);
        assert_eq!(jumps[0].delete(), "-D OUTPUT -p tcp -j OURS");
        assert_eq!(listing.foreign_rules("OUTPUT", &jumps), 1);
        assert_eq!(listing.foreign_rules("PREROUTING", &jumps), 0);
        let unsayable = Listing::parse("*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT\nCOMMIT");
        assert_eq!(unsayable.foreign_rules("OUTPUT", &[]), 1);
        assert!(!unsayable.is_idle("OUTPUT") && !listing.is_idle("OUTPUT"));
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
            assert_eq!(
                Listing::parse(save).has_foreign(&["OURS"]),
                foreign,
                "{save}"
            );
        }
        assert!(Listing::parse(SAVE).has_foreign(&["OURS"]));
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
