//! Keeps connection tracking off what is delivered to the proxy.
//!
//! Where the node translates addresses (kube-proxy), it would translate those of captured packets once more when they arrive
//! at our interface: a service's address would become that of an endpoint before the proxy has seen it, and a connection that
//! came by a NodePort would meet itself in the table and be given another source port. Nothing in eBPF can say "do not
//! track", so this is one rule; a node that has no netfilter has nothing to translate either.

use redirect_common::node::mark;

use super::host::DEVICE;
use crate::capture::netfilter::tool::{self, ToolError};

const TABLE: &str = "redirect-node";

/// Makes the rules by nft, or by iptables where there is no nft. `false`: there is neither.
pub fn apply() -> Result<bool, ToolError> {
    if let Some(nft) = tool::find("nft") {
        tool::run(&nft, &["-f", "-"], &nft_rules())?;
        return Ok(true);
    }
    let mut found = false;
    for name in ["iptables", "ip6tables"] {
        if let Some(iptables) = tool::find(name) {
            found = true;
            for rule in iptables_rules() {
                let run = |verb| tool::run(&iptables, &arguments(verb, &rule), "");
                if run("-C").is_err() {
                    run("-I")?;
                }
            }
        }
    }
    Ok(found)
}

/// Whether one of them is not there. Where there is neither tool, none is.
pub fn is_missing() -> bool {
    if let Some(nft) = tool::find("nft") {
        // Also where the whole table is gone.
        let listed = tool::run(&nft, &["list", "table", "inet", TABLE], "");
        return listed.map_or(true, |text| text.matches("notrack").count() < 2);
    }
    let mut missing = false;
    for name in ["iptables", "ip6tables"] {
        if let Some(iptables) = tool::find(name) {
            for rule in iptables_rules() {
                missing |= tool::run(&iptables, &arguments("-C", &rule), "").is_err();
            }
        }
    }
    missing
}

fn arguments<'a>(verb: &'a str, rule: &'a [String]) -> Vec<&'a str> {
    let rule = rule.iter().map(String::as_str);
    ["-w", "5", "-t", "raw", verb]
        .into_iter()
        .chain(rule)
        .collect()
}

/// Removes them. What is not there is no error.
pub fn clean() -> Result<(), ToolError> {
    if let Some(nft) = tool::find("nft") {
        // Made first, for only what exists can be deleted.
        let text = format!("table inet {TABLE}\ndelete table inet {TABLE}\n");
        return tool::run(&nft, &["-f", "-"], &text).map(drop);
    }
    for name in ["iptables", "ip6tables"] {
        if let Some(iptables) = tool::find(name) {
            for rule in iptables_rules() {
                // Fails where there is no such rule.
                _ = tool::run(&iptables, &arguments("-D", &rule), "");
            }
        }
    }
    Ok(())
}

/// One transaction. The priority is that of the table `raw`: before connection tracking.
fn nft_rules() -> String {
    let (mask, to_pod) = (mark::MASK, mark::TO_POD);
    format!(
        "table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n \
         chain delivered {{\n  type filter hook prerouting priority -300;\n  \
         iifname \"{DEVICE}\" counter notrack\n }}\n \
         chain to_pods {{\n  type filter hook output priority -300;\n  \
         meta mark & {mask:#x} == {to_pod:#x} counter notrack\n }}\n}}\n"
    )
}

fn iptables_rules() -> [Vec<String>; 2] {
    let marked = format!("{:#x}/{:#x}", mark::TO_POD, mark::MASK);
    let words = |rule: String| rule.split(' ').map(ToOwned::to_owned).collect();
    [
        words(format!("PREROUTING -i {DEVICE} -j NOTRACK")),
        words(format!("OUTPUT -m mark --mark {marked} -j NOTRACK")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_as_text() {
        assert_eq!(
            nft_rules(),
            "table inet redirect-node\n\
             delete table inet redirect-node\n\
             table inet redirect-node {\n \
             chain delivered {\n  type filter hook prerouting priority -300;\n  \
             iifname \"redirect0\" counter notrack\n }\n \
             chain to_pods {\n  type filter hook output priority -300;\n  \
             meta mark & 0xfff == 0x111 counter notrack\n }\n}\n"
        );
        assert_eq!(
            iptables_rules().map(|rule| rule.join(" ")),
            [
                "PREROUTING -i redirect0 -j NOTRACK",
                "OUTPUT -m mark --mark 0x111/0xfff -j NOTRACK"
            ]
        );
    }
}
