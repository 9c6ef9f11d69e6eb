//! The program `nft`: applying, verifying and cleaning our table.

use std::path::PathBuf;

use super::{
    NetfilterError,
    listing::differences,
    plan::Plan,
    render::nft::{self as text, TABLE},
    tool::{self, ToolError},
};
use crate::sys::netns;

/// Chains by name, with the lines of each.
type Chains = Vec<(String, Vec<String>)>;

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

    /// Our table in the calling thread's namespace, as `nft` writes it without counts; `None` if there is none.
    pub fn list(&self) -> Result<Option<String>, ToolError> {
        let tables = tool::run(&self.program, &["list", "tables", "inet"], "")?;
        let name = format!("table inet {TABLE}");
        if !tables.lines().any(|line| line.trim() == name) {
            return Ok(None);
        }
        let list = ["--stateless", "-nn", "list", "table", "inet", TABLE];
        tool::run(&self.program, &list, "").map(Some)
    }

    /// Removes our table from the calling thread's namespace; whether there was one.
    pub fn clean(&self) -> Result<bool, ToolError> {
        if self.list()?.is_none() {
            return Ok(false);
        }
        tool::run(&self.program, &["delete", "table", "inet", TABLE], "")?;
        Ok(true)
    }

    /// What `list` says where `plans` are in force, from a namespace made for it. Fails where they cannot be applied.
    pub fn expect(&self, plans: &[Plan]) -> Result<String, NetfilterError> {
        netns::in_new(|| {
            self.apply(plans)?;
            Ok(self.list()?.unwrap_or_default())
        })
        .map_err(NetfilterError::Namespace)?
    }
}

/// How the table `found` differs from `expected`.
pub fn compare(expected: &str, found: Option<&str>) -> Vec<String> {
    let Some(found) = found else {
        return vec![format!("table inet {TABLE} is missing")];
    };
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
        for (found, told) in cases {
            assert_eq!(compare(TABLE, Some(&found)), told, "{found}");
        }
        assert_eq!(compare(TABLE, None), ["table inet redirect-nat is missing"]);
    }
}
