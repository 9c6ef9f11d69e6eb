//! Plans as the input of `nft -f`: one transaction that replaces our table.

use std::fmt::Write;

use super::super::plan::{Action, Chain, Family, Hook, Match, Plan, Rule};

/// Our only table, of family `inet`.
pub const TABLE: &str = "redirect-nat";

/// Before the tables of others, which are at -100.
const PRIORITY: i32 = -110;

/// Why a plan cannot be said to `nft`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NftTextError {
    #[error(
        "nft looks for cgroups below /sys/fs/cgroup, where {0} is not; mount cgroup v2 there, or use the iptables backend"
    )]
    NotInSysfs(String),
    #[error("nft has no way to write the cgroup {0:?}; use the iptables backend")]
    Unwritable(String),
}

/// Replaces the table by what `plans` (one per family) say.
pub fn apply(plans: &[Plan]) -> Result<String, NftTextError> {
    let mut chains = String::new();
    for hook in [Hook::Output, Hook::Prerouting] {
        let with: Vec<&Plan> = plans
            .iter()
            .filter(|plan| plan.chains.iter().any(|chain| chain.hook == hook))
            .collect();
        if with.is_empty() {
            continue;
        }
        let name = name(hook);
        let mut base = String::new();
        for plan in with {
            for chain in plan.chains.iter().filter(|chain| chain.hook == hook) {
                chains += &family_chain(plan.family, chain)?;
            }
            let (protocol, of_family) = protocol(plan.family);
            let jump = format!("jump {name}-{of_family}");
            base += &format!("\t\tmeta nfproto {protocol} meta l4proto tcp counter {jump}\n");
        }
        let priority = format!("type nat hook {name} priority {PRIORITY}; policy accept;");
        chains += &format!("\tchain {name} {{\n\t\t{priority}\n{base}\t}}\n");
    }
    // A table must be there to be deleted, and what is deleted and made again in one transaction is never missing.
    Ok(format!(
        "add table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n{chains}}}\n"
    ))
}

fn name(hook: Hook) -> &'static str {
    match hook {
        Hook::Output => "output",
        Hook::Prerouting => "prerouting",
    }
}

/// In nft's words, and for the names of chains.
fn protocol(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::Ipv4 => ("ipv4", "v4"),
        Family::Ipv6 => ("ipv6", "v6"),
    }
}

fn family_chain(family: Family, chain: &Chain) -> Result<String, NftTextError> {
    let mut text = format!("\tchain {}-{} {{\n", name(chain.hook), protocol(family).1);
    for rule in &chain.rules {
        let _ = writeln!(text, "\t\t{}", statement(family, rule)?);
    }
    Ok(text + "\t}\n")
}

fn statement(family: Family, rule: &Rule) -> Result<String, NftTextError> {
    let mut words = Vec::new();
    for part in &rule.matches {
        words.push(match part {
            Match::OutLoopback => "oifname \"lo\"".to_owned(),
            Match::InLoopback => "iifname \"lo\"".to_owned(),
            Match::Uid(uid) => format!("meta skuid {uid}"),
            Match::Cgroup(path) => {
                let name = path
                    .in_sysfs
                    .as_deref()
                    .ok_or_else(|| NftTextError::NotInSysfs(path.in_hierarchy.clone()))?;
                // Within quotes nft takes every other character as it is.
                if name.contains(['"', '\n']) {
                    return Err(NftTextError::Unwritable(name.to_owned()));
                }
                format!("socket cgroupv2 level {} \"{name}\"", path.level())
            }
            Match::Mark(value, mask) => format!("meta mark & {mask:#x} == {value:#x}"),
            Match::Destination(network) => match family {
                Family::Ipv4 => format!("ip daddr {network}"),
                Family::Ipv6 => format!("ip6 daddr {network}"),
            },
            // The jump to the chain asks for it already, and a port implies it.
            Match::Tcp => continue,
            Match::TcpSyn => "tcp flags & (fin | syn | rst | ack) == syn".to_owned(),
            Match::TcpPort(port) => format!("tcp dport {port}"),
        });
    }
    words.push(match rule.action {
        Action::Return => "counter return".to_owned(),
        // `redirect` wants to see the protocol in its own rule.
        Action::Redirect(port) if rule.matches == [Match::Tcp] => {
            format!("meta l4proto tcp counter redirect to :{port}")
        }
        Action::Redirect(port) => format!("counter redirect to :{port}"),
    });
    Ok(words.join(" "))
}
