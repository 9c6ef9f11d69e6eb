//! The program `nft`: applying, verifying and cleaning our tables.

use std::path::PathBuf;

use super::{
    NetfilterError,
    listing::differences,
    plan::Plan,
    render::nft::{self as text, TABLES},
    tool::{self, ToolError},
};
use crate::sys::netns;

const NAT: &str = "redirect-nat";

/// Chains by name, with the lines of each.
type Chains = Vec<(String, Vec<String>)>;
/// Tables by name, with the text of each.
pub type Listed = Vec<(&'static str, String)>;

pub struct Nft {
    program: PathBuf,
}

impl Nft {
    pub fn find() -> Option<Self> {
        tool::find("nft").map(|program| Self { program })
    }

    /// Applies `plans` in the calling thread's namespace: all of them, or nothing.
    pub fn apply(&self, plans: &[Plan]) -> Result<(), NetfilterError> {
        tool::run(&self.program, &["-f", "-"], &text::apply(plans)?)?;
        Ok(())
    }

    /// Our tables in the calling thread's namespace, as `nft` writes them without counts, by their names.
    pub fn list(&self) -> Result<Listed, ToolError> {
        let tables = tool::run(&self.program, &["list", "tables", "inet"], "")?;
        let mut listed = Vec::new();
        for (_, name) in TABLES {
            let wanted = format!("table inet {name}");
            if tables.lines().any(|line| line.trim() == wanted) {
                let list = ["--stateless", "-nn", "list", "table", "inet", name];
                listed.push((name, tool::run(&self.program, &list, "")?));
            }
        }
        Ok(listed)
    }

    /// Removes our tables from the calling thread's namespace; whether there was one.
    pub fn clean(&self) -> Result<bool, ToolError> {
        let listed = self.list()?;
        let names = listed.iter().map(|(name, _)| name);
        let deletions: String = names
            .map(|name| format!("delete table inet {name}\n"))
            .collect();
        if !listed.is_empty() {
            tool::run(&self.program, &["-f", "-"], &deletions)?;
        }
        Ok(!listed.is_empty())
    }

    /// What `list` says where `plans` are in force, from a namespace made for it. Fails where they cannot be applied.
    pub fn expect(&self, plans: &[Plan]) -> Result<Listed, NetfilterError> {
        netns::in_new(|| {
            self.apply(plans)?;
            Ok(self.list()?)
        })
        .map_err(NetfilterError::Namespace)?
    }
}

/// How the tables in `found` differ from `expected`.
pub fn compare(expected: &Listed, found: &Listed) -> Vec<String> {
    let mut told = Vec::new();
    for (name, table) in expected {
        match found.iter().find(|(found, _)| found == name) {
            None => told.push(format!("table inet {name} is missing")),
            Some((_, found)) => {
                told.extend(
                    compare_table(table, found)
                        .into_iter()
                        .map(|what| match *name {
                            NAT => what,
                            _ => format!("{name}: {what}"),
                        }),
                )
            }
        }
    }
    let extra = found
        .iter()
        .filter(|(name, _)| !expected.iter().any(|(expected, _)| expected == name));
    told.extend(extra.map(|(name, _)| format!("table inet {name} should not be there")));
    told
}

fn compare_table(expected: &str, found: &str) -> Vec<String> {
    let (expected, found) = (chains(expected), chains(found));
    let mut told = Vec::new();
    for (name, rules) in &expected {
        match found.iter().find(|(found, _)| found == name) {
            Some((_, found)) => told.extend(differences(name, rules, found)),
            None => told.push(format!("{name} is missing")),
        }
    }
    let extra = found
        .iter()
        .filter(|(name, _)| !expected.iter().any(|(expected, _)| expected == name));
    told.extend(extra.map(|(name, _)| format!("{name} should not be there")));
    told
}

/// The blocks of a table (chains, and whatever else somebody put there), and a block without name for what is in none.
fn chains(table: &str) -> Chains {
    let mut chains: Chains = vec![("table".to_owned(), Vec::new())];
    let mut inside = false;
    for line in table.lines().skip(1).map(str::trim) {
        if line == "}" {
            inside = false;
        } else if let Some(name) = line.strip_suffix(" {").filter(|_| !inside) {
            chains.push((name.to_owned(), Vec::new()));
            inside = true;
        } else if !line.is_empty() {
            let at = if inside { chains.len() - 1 } else { 0 };
            chains[at].1.push(line.to_owned());
        }
    }
    chains
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "table inet redirect-nat {\n\tchain output-v4 {\n\t\toifname \"lo\" counter return\n\t\tcounter redirect to :1\n\t}\n\n\tchain output {\n\t\ttype nat hook output priority -110; policy accept;\n\t}\n}\n";

    #[test]
    fn tampering_is_named() {
        let lo = "\t\toifname \"lo\" counter return\n";
        let cases = [
            (TABLE.to_owned(), &[][..]),
            (
                TABLE.replace(lo, ""),
                &["chain output-v4: rule 1 is missing: oifname \"lo\" counter return"],
            ),
            (
                TABLE.replace("policy accept", "policy drop"),
                &[
                    "chain output: rule 1 is missing: type nat hook output priority -110; policy accept;",
                    "chain output: rule 1 should not be there: type nat hook output priority -110; policy drop;",
                ],
            ),
            (
                TABLE.replace("\tchain output {", "\tchain x {\n\t}\n\tchain output {"),
                &["chain x should not be there"],
            ),
            (
                TABLE.replace("\tchain output {", "\tflags dormant\n\tchain output {"),
                &["table: rule 1 should not be there: flags dormant"],
            ),
        ];
        let listed = |text: &str| vec![("redirect-nat", text.to_owned())];
        for (found, told) in cases {
            assert_eq!(compare(&listed(TABLE), &listed(&found)), told, "{found}");
        }
        assert_eq!(
            compare(&listed(TABLE), &Vec::new()),
            ["table inet redirect-nat is missing"]
        );
        assert_eq!(
            compare(&Vec::new(), &listed(TABLE)),
            ["table inet redirect-nat should not be there"]
        );
    }
}
