//! A plan as the input of `iptables-restore --noflush`.

use super::super::{
    listing::Listing,
    plan::{Action, Hook, Match, Mode, Plan, Rule},
};

/// Without rules; beside the chains of the sidecar form, whose names others use too, it says that they are ours.
pub const MARKER: &str = "REDIRECT_SIDECAR";
const SHARED: [&str; 2] = ["REDIRECT_OUTPUT", "REDIRECT_INBOUND"];
const SIDECAR: [&str; 2] = ["ISTIO_OUTPUT", "ISTIO_INBOUND"];

/// Our chain of this hook.
pub fn chain_name(mode: Mode, hook: Hook) -> &'static str {
    let [output, inbound] = match mode {
        Mode::Shared => SHARED,
        Mode::Dedicated => SIDECAR,
    };
    match hook {
        Hook::Output => output,
        Hook::Prerouting => inbound,
    }
}

/// The kernel's chain of this hook.
pub fn builtin(hook: Hook) -> &'static str {
    match hook {
        Hook::Output => "OUTPUT",
        Hook::Prerouting => "PREROUTING",
    }
}

/// Those chains in `found` that are ours, of whatever mode, in the order in which they can be removed.
pub fn ours(found: &Listing) -> Vec<&'static str> {
    let marked = found.has_chain(MARKER);
    let sidecar = SIDECAR.into_iter().filter(|_| marked);
    SHARED
        .into_iter()
        .chain(sidecar)
        .chain([MARKER])
        .filter(|chain| found.has_chain(chain))
        .collect()
}

/// A chain that has the name of one in `plan` and is somebody else's.
pub fn foreign(plan: &Plan, found: &Listing) -> Option<&'static str> {
    let taken = |chain: &&str| found.has_chain(chain) && !ours(found).contains(chain);
    names(plan).into_iter().find(taken)
}

/// Makes `plan` true in one step, whatever of ours is in `found`, and leaves alone what is not ours.
pub fn apply(plan: &Plan, found: &Listing) -> String {
    let names = names(plan);
    let mut lines = vec!["*nat".to_owned()];
    // With --noflush this makes a chain, or empties the one that is there.
    lines.extend(names.iter().map(|name| format!(":{name} - [0:0]")));
    let stale = found.jumps_to(&ours(found));
    lines.extend(stale.iter().map(|rule| rule.delete()));
    for chain in &plan.chains {
        let (builtin, name) = (builtin(chain.hook), chain_name(plan.mode, chain.hook));
        // Before all others, so that none of them can let a connection past it.
        let place = match found.foreign_rules(builtin, &stale) {
            0 => format!("-A {builtin}"),
            _ => format!("-I {builtin} 1"),
        };
        lines.push(format!("{place} -p tcp -j {name}"));
    }
    for chain in &plan.chains {
        let name = chain_name(plan.mode, chain.hook);
        lines.extend(
            chain
                .rules
                .iter()
                .map(|rule| format!("-A {name} {}", spec(rule))),
        );
    }
    let old = ours(found)
        .into_iter()
        .filter(|chain| !names.contains(chain));
    lines.extend(remove_chains(&old.collect::<Vec<_>>()));
    finish(lines)
}

/// Removes what is ours; `None` if nothing is.
pub fn clean(found: &Listing) -> Option<String> {
    let ours = ours(found);
    if ours.is_empty() {
        return None;
    }
    let mut lines = vec!["*nat".to_owned()];
    lines.extend(found.jumps_to(&ours).iter().map(|rule| rule.delete()));
    lines.extend(remove_chains(&ours));
    Some(finish(lines))
}

fn names(plan: &Plan) -> Vec<&'static str> {
    let chains = plan.chains.iter();
    let marker = (plan.mode == Mode::Dedicated).then_some(MARKER);
    chains
        .map(|chain| chain_name(plan.mode, chain.hook))
        .chain(marker)
        .collect()
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
    let matches = rule.matches.iter().map(|part| match part {
        Match::OutLoopback => "-o lo".to_owned(),
        Match::InLoopback => "-i lo".to_owned(),
        Match::Uid(uid) => format!("-m owner --uid-owner {uid}"),
        Match::Cgroup(path) => format!("-m cgroup --path {}", quoted(&path.in_hierarchy)),
        Match::Mark(value, mask) => format!("-m mark --mark {value:#x}/{mask:#x}"),
        Match::Destination(network) => format!("-d {network}"),
        Match::Tcp => "-p tcp".to_owned(),
        Match::TcpSyn => "-p tcp --syn".to_owned(),
        Match::TcpPort(port) => format!("--dport {port}"),
    });
    let action = match rule.action {
        Action::Return => "-j RETURN".to_owned(),
        Action::Redirect(port) => format!("-j REDIRECT --to-ports {port}"),
    };
    matches.chain([action]).collect::<Vec<_>>().join(" ")
}

/// As `iptables-restore` splits its lines: within double quotes a backslash takes the next character as it is.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
