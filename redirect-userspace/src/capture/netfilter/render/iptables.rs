//! A plan as the input of `iptables-restore --noflush`.

use super::super::{
    listing::{ListedRule, Listing},
    plan::{Action, Chain, Form, Hook, Match, Mode, Plan, Role, Rule, Table},
};

/// Without rules; beside the chains of the sidecar form, whose names others use too, it says that they are ours.
pub const MARKER: &str = "REDIRECT_SIDECAR";
const SIDECAR: [&str; 2] = ["ISTIO_OUTPUT", "ISTIO_INBOUND"];
/// Nobody else uses these, in any table.
const OWN: [&str; 7] = [
    "REDIRECT_OUTPUT",
    "REDIRECT_INBOUND",
    "REDIRECT_PROBES",
    "REDIRECT_PROBE_GUARD",
    "REDIRECT_NODE_GUARD",
    "REDIRECT_NODE_OUTBOUND",
    "REDIRECT_NODE_INBOUND",
];

/// What our chain is called.
pub fn chain_name(form: Form, chain: &Chain) -> &'static str {
    let is_sidecar = form == Form::Pod(Mode::Dedicated) && chain.table == Table::Nat;
    match chain.role {
        Role::Outbound if is_sidecar => SIDECAR[0],
        Role::Inbound if is_sidecar => SIDECAR[1],
        Role::Outbound => OWN[0],
        Role::Inbound => OWN[1],
        Role::Probes => OWN[2],
        Role::ProbeGuard => OWN[3],
        Role::NodeGuard => OWN[4],
        Role::NodeOutbound => OWN[5],
        Role::NodeInbound => OWN[6],
    }
}

/// The kernel's chain of this hook.
pub fn builtin(hook: Hook) -> &'static str {
    match hook {
        Hook::Output => "OUTPUT",
        Hook::Prerouting => "PREROUTING",
        Hook::Postrouting => "POSTROUTING",
    }
}

/// Those chains of a table in `found` that are ours, of whatever form, in the order in which they can be removed.
pub fn ours(found: &Listing, table: Table) -> Vec<&'static str> {
    let marked = table == Table::Nat && found.has_chain(table, MARKER);
    let sidecar = SIDECAR.into_iter().chain([MARKER]).filter(|_| marked);
    OWN.into_iter()
        .chain(sidecar)
        .filter(|chain| found.has_chain(table, chain))
        .collect()
}

/// Whether anything of ours is there.
pub fn is_used(found: &Listing) -> bool {
    Table::ALL
        .iter()
        .any(|table| !ours(found, *table).is_empty())
}

/// A chain that has the name of one in `plan` and is somebody else's.
pub fn foreign(plan: &Plan, found: &Listing) -> Option<&'static str> {
    let taken = |chain: &&str| {
        found.has_chain(Table::Nat, chain) && !ours(found, Table::Nat).contains(chain)
    };
    names(plan, Table::Nat).into_iter().find(taken)
}

/// Makes `plan` true, whatever of ours is in `found`, and leaves alone what is not ours. Each table is one step; `nat`, which
/// captures, is the last.
pub fn apply(plan: &Plan, found: &Listing) -> String {
    let tables = Table::ALL.iter();
    tables
        .filter_map(|table| apply_table(plan, *table, found))
        .collect()
}

fn apply_table(plan: &Plan, table: Table, found: &Listing) -> Option<String> {
    let (names, ours) = (names(plan, table), ours(found, table));
    if names.is_empty() && ours.is_empty() {
        return None;
    }
    let mut lines = vec![format!("*{}", table.name())];
    // With --noflush this makes a chain, or empties the one that is there.
    lines.extend(names.iter().map(|name| format!(":{name} - [0:0]")));
    let stale = found.jumps_to(table, &ours);
    lines.extend(stale.iter().map(ListedRule::delete));
    for hook in Hook::ALL {
        lines.extend(jumps(plan, table, hook, found, &stale));
    }
    for chain in plan.chains_of(table) {
        let name = chain_name(plan.form, chain);
        lines.extend(
            chain
                .rules
                .iter()
                .map(|rule| format!("-A {name} {}", spec(rule))),
        );
    }
    let old = ours.into_iter().filter(|chain| !names.contains(chain));
    lines.extend(remove_chains(&old.collect::<Vec<_>>()));
    Some(finish(lines))
}

/// Before all others, so that none of them can let a connection past ours.
fn jumps(
    plan: &Plan,
    table: Table,
    hook: Hook,
    found: &Listing,
    stale: &[ListedRule],
) -> Vec<String> {
    let builtin = builtin(hook);
    let alone = found.foreign_rules(table, builtin, stale) == 0;
    let chains = plan.chains_of(table).filter(|chain| chain.hook == hook);
    let jumps = chains.flat_map(|chain| {
        let name = chain_name(plan.form, chain);
        let entries = chain.entries.iter();
        entries.map(move |entry| format!("{}-j {name}", matches(entry)))
    });
    jumps
        .enumerate()
        .map(|(index, jump)| match alone {
            true => format!("-A {builtin} {jump}"),
            false => format!("-I {builtin} {} {jump}", index + 1),
        })
        .collect()
}

/// Removes what is ours; `None` if nothing is.
pub fn clean(found: &Listing) -> Option<String> {
    let used = Table::ALL.into_iter().rev();
    let used = used.filter(|table| !ours(found, *table).is_empty());
    let texts: Vec<String> = used
        .map(|table| {
            let ours = ours(found, table);
            let mut lines = vec![format!("*{}", table.name())];
            lines.extend(found.jumps_to(table, &ours).iter().map(ListedRule::delete));
            lines.extend(remove_chains(&ours));
            finish(lines)
        })
        .collect();
    (!texts.is_empty()).then(|| texts.concat())
}

/// The chains of a table, each once.
pub fn names(plan: &Plan, table: Table) -> Vec<&'static str> {
    let chains = plan.chains_of(table);
    let is_sidecar = plan.form == Form::Pod(Mode::Dedicated) && table == Table::Nat;
    let mut names: Vec<&str> = Vec::new();
    for name in chains.map(|chain| chain_name(plan.form, chain)) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.extend(is_sidecar.then_some(MARKER));
    names
}

fn remove_chains(chains: &[&str]) -> Vec<String> {
    let flush = chains.iter().map(|chain| format!("-F {chain}"));
    let remove = chains.iter().map(|chain| format!("-X {chain}"));
    flush.chain(remove).collect()
}

fn finish(mut lines: Vec<String>) -> String {
    lines.push("COMMIT\n".to_owned());
    lines.join("\n")
}

fn spec(rule: &Rule) -> String {
    let action = match rule.action {
        Action::Return => "-j RETURN".to_owned(),
        Action::Redirect(port) => format!("-j REDIRECT --to-ports {port}"),
        Action::Deliver(to) => format!("-j DNAT --to-destination {to}"),
        Action::From(address) => format!("-j SNAT --to-source {address}"),
        Action::Drop => "-j DROP".to_owned(),
        Action::SetMark(value, mask) => format!("-j MARK --set-xmark {value:#x}/{mask:#x}"),
        Action::SetConnMark(value, mask) => {
            format!("-j CONNMARK --set-xmark {value:#x}/{mask:#x}")
        }
        Action::Zone(zone) => format!("-j CT --zone {zone}"),
        Action::Untracked => "-j CT --notrack".to_owned(),
    };
    matches(&rule.matches) + &action
}

/// Each with a blank after it.
fn matches(matches: &[Match]) -> String {
    let words = matches.iter().map(|part| match part {
        Match::OutLoopback => "-o lo ".to_owned(),
        Match::InLoopback => "-i lo ".to_owned(),
        Match::In(interface) => format!("-i {interface} "),
        Match::Uid(uid) => format!("-m owner --uid-owner {uid} "),
        Match::Cgroup(path) => format!("-m cgroup --path {} ", quoted(&path.in_hierarchy)),
        Match::Mark(value, mask) => format!("-m mark --mark {value:#x}/{mask:#x} "),
        Match::ConnMark(value, mask) => format!("-m connmark --mark {value:#x}/{mask:#x} "),
        Match::Source(network) => format!("-s {network} "),
        Match::Destination(network) => format!("-d {network} "),
        Match::ToLocal => "-m addrtype --dst-type LOCAL ".to_owned(),
        Match::Tcp => "-p tcp ".to_owned(),
        Match::TcpSyn => "-p tcp --syn ".to_owned(),
        Match::Udp => "-p udp ".to_owned(),
        Match::Sctp => "-p sctp ".to_owned(),
        Match::Port(port) => format!("--dport {port} "),
        Match::SourcePort(port) => format!("--sport {port} "),
    });
    words.collect()
}

/// As `iptables-restore` splits its lines: within double quotes a backslash takes the next character as it is.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
