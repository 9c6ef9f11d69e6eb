//! Plans as the input of `nft -f`: one transaction that replaces our tables.

use std::fmt::Write;

use super::super::plan::{Action, Chain, Family, Hook, Match, Plan, Role, Rule, Table};

/// Our only tables, of family `inet`.
pub const TABLES: [(Table, &str); 3] = [
    (Table::Raw, "redirect-raw"),
    (Table::Mangle, "redirect-mangle"),
    (Table::Nat, "redirect-nat"),
];

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

/// Replaces the tables by what `plans` (one per family) say.
pub fn apply(plans: &[Plan]) -> Result<String, NftTextError> {
    let mut text = String::new();
    // A table must be there to be deleted, and what is deleted and made again in one transaction is never missing.
    for (_, name) in TABLES {
        let _ = writeln!(text, "add table inet {name}\ndelete table inet {name}");
    }
    for (table, name) in TABLES {
        let chains = chains(plans, table)?;
        if !chains.is_empty() {
            let _ = write!(text, "table inet {name} {{\n{chains}}}\n");
        }
    }
    Ok(text)
}

fn chains(plans: &[Plan], table: Table) -> Result<String, NftTextError> {
    let mut chains = String::new();
    for hook in Hook::ALL {
        let mut base = String::new();
        for plan in plans {
            let of_hook = plan.chains_of(table).filter(|chain| chain.hook == hook);
            for chain in of_hook {
                let (protocol, of_family) = protocol(plan.family);
                let name = format!("{}-{of_family}", name(chain));
                let _ = writeln!(chains, "\tchain {name} {{");
                for rule in &chain.rules {
                    let _ = writeln!(chains, "\t\t{}", statement(plan.family, rule)?);
                }
                chains += "\t}\n";
                for entry in &chain.entries {
                    let words = matches(plan.family, entry)?.join(" ");
                    let jump = format!("counter jump {name}");
                    let _ = writeln!(base, "\t\tmeta nfproto {protocol} {words} {jump}");
                }
            }
        }
        if !base.is_empty() {
            let (kind, hook_name, priority) = place(table, hook);
            let place = format!("type {kind} hook {hook_name} priority {priority}; policy accept;");
            let _ = write!(chains, "\tchain {hook_name} {{\n\t\t{place}\n{base}\t}}\n");
        }
    }
    Ok(chains)
}

/// Kind, hook and priority of a base chain: before those of others, which are at -300, -150, -100 and 100.
fn place(table: Table, hook: Hook) -> (&'static str, &'static str, i32) {
    let name = match hook {
        Hook::Output => "output",
        Hook::Prerouting => "prerouting",
        Hook::Postrouting => "postrouting",
    };
    match (table, hook) {
        (Table::Raw, _) => ("filter", name, -310),
        // A mark that is set there must count for the route.
        (Table::Mangle, Hook::Output) => ("route", name, -160),
        (Table::Mangle, _) => ("filter", name, -160),
        (Table::Nat, Hook::Postrouting) => ("nat", name, 90),
        (Table::Nat, _) => ("nat", name, -110),
    }
}

fn name(chain: &Chain) -> &'static str {
    match chain.role {
        Role::Outbound | Role::Inbound => place(chain.table, chain.hook).1,
        Role::Probes => "probes",
        Role::ProbeGuard => "probe-guard",
        Role::NodeGuard => "node-guard",
        Role::NodeOutbound => "node-outbound",
        Role::NodeInbound => "node-inbound",
    }
}

/// In nft's words, and for the names of chains.
fn protocol(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::Ipv4 => ("ipv4", "v4"),
        Family::Ipv6 => ("ipv6", "v6"),
    }
}

fn statement(family: Family, rule: &Rule) -> Result<String, NftTextError> {
    let ip = ip(family);
    let mut words = matches(family, &rule.matches)?;
    let not = |mask: u32| !mask;
    words.push(match rule.action {
        Action::Return => "counter return".to_owned(),
        Action::Redirect(port) => format!("counter redirect to :{port}"),
        Action::Deliver(to) => format!("counter dnat {ip} to {to}"),
        Action::From(address) => format!("counter snat {ip} to {address}"),
        Action::Drop => "counter drop".to_owned(),
        Action::SetMark(value, mask) => {
            format!(
                "counter meta mark set meta mark & {:#x} | {value:#x}",
                not(mask)
            )
        }
        Action::SetConnMark(value, mask) => {
            format!(
                "counter ct mark set ct mark & {:#x} | {value:#x}",
                not(mask)
            )
        }
        Action::Zone(zone) => format!("counter ct zone set {zone}"),
        Action::Untracked => "counter notrack".to_owned(),
    });
    Ok(words.join(" "))
}

fn matches(family: Family, matches: &[Match]) -> Result<Vec<String>, NftTextError> {
    let ip = ip(family);
    let has_port = matches
        .iter()
        .any(|part| matches!(part, Match::Port(_) | Match::SourcePort(_)));
    let protocol = match matches.contains(&Match::Udp) {
        true => "udp",
        false => "tcp",
    };
    let mut words = Vec::new();
    for part in matches {
        words.push(match part {
            Match::OutLoopback => "oifname \"lo\"".to_owned(),
            Match::InLoopback => "iifname \"lo\"".to_owned(),
            Match::In(interface) => format!("iifname \"{interface}\""),
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
            Match::ConnMark(value, mask) => format!("ct mark & {mask:#x} == {value:#x}"),
            Match::Source(network) => format!("{ip} saddr {network}"),
            Match::Destination(network) => format!("{ip} daddr {network}"),
            Match::ToLocal => "fib daddr type local".to_owned(),
            // A port implies it.
            Match::Tcp | Match::Udp if has_port => continue,
            Match::Tcp => "meta l4proto tcp".to_owned(),
            Match::Udp => "meta l4proto udp".to_owned(),
            Match::Sctp => "meta l4proto sctp".to_owned(),
            Match::TcpSyn => "tcp flags & (fin | syn | rst | ack) == syn".to_owned(),
            Match::Port(port) => format!("{protocol} dport {port}"),
            Match::SourcePort(port) => format!("{protocol} sport {port}"),
        });
    }
    Ok(words)
}

fn ip(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "ip",
        Family::Ipv6 => "ip6",
    }
}
