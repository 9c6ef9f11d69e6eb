//! The rules of a network namespace, as the tools themselves list them.

use std::process::Command;

use redirect::sys::netns::Netns;

/// Runs a program in the namespace; panics if it fails.
#[track_caller]
pub fn run(netns: &Netns, command: &str) -> String {
    let run = || {
        Command::new("sh")
            .args(["-c", command])
            .output()
            .expect("start sh")
    };
    let output = netns.run(run).expect("the namespace can be entered");
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// All that nft shows, and all rules and chains that users made with iptables-legacy: its tables, once used, stay in the
/// namespace without rules.
pub fn all(netns: &Netns) -> String {
    let mut state = run(netns, "nft --stateless list ruleset");
    for program in ["iptables-legacy-save", "ip6tables-legacy-save"] {
        let save = run(netns, program);
        let lines = save
            .lines()
            .filter(|line| line.starts_with("-A") || line.contains(" - ["));
        state.extend(lines.map(|line| format!("{program} {line}\n")));
    }
    state
}

/// Which of the tools have rules of ours.
pub fn tools_in_use(netns: &Netns) -> Vec<&'static str> {
    let uses = |command: &str| {
        let text = run(netns, command);
        [":REDIRECT_", ":ISTIO_OUTPUT", "inet redirect-nat"]
            .iter()
            .any(|name| text.contains(name))
    };
    [
        ("iptables-nft", "iptables-nft-save; ip6tables-nft-save"),
        (
            "iptables-legacy",
            "iptables-legacy-save; ip6tables-legacy-save",
        ),
        ("nftables", "nft list tables inet"),
    ]
    .into_iter()
    .filter(|(_, command)| uses(command))
    .map(|(tool, _)| tool)
    .collect()
}

/// How many packets met a rule that has all of `words`, of both families, as `tool` lists it (in lower case).
pub fn counted(netns: &Netns, tool: &str, words: &[&str]) -> u64 {
    let listing = match tool {
        "nftables" => run(netns, "nft -nn list ruleset"),
        _ => run(
            netns,
            &format!("{tool}-save -c; {}-save -c", tool.replace("ip", "ip6")),
        ),
    };
    let of_rule = |line: &str| {
        let text = match tool {
            "nftables" => line.split("packets ").nth(1)?.split(' ').next()?,
            _ => line.strip_prefix('[')?.split(':').next()?,
        };
        text.parse::<u64>().ok()
    };
    let lines = listing.lines().filter(|line| {
        let line = format!("{} ", line.to_lowercase());
        words.iter().all(|word| line.contains(word))
    });
    lines.filter_map(of_rule).sum()
}
