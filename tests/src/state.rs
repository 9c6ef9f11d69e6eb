//! What there is in the kernel of a network namespace and of cgroups, as text that can be compared: what capture may change,
//! and has to put back.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use redirect::sys::netns::Netns;

/// Lines by where they were seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State(BTreeMap<String, BTreeSet<String>>);

/// Each lists something that rules, routes, programs or listeners of ours would appear in.
const LISTINGS: &[(&str, &str)] = &[
    ("rules", "ip -4 rule; ip -6 rule"),
    // Link-local addresses come when their interface has been up for a while.
    (
        "routes",
        "ip -4 route show table all; ip -6 route show table all | grep -v fe80:",
    ),
    ("addresses", "ip -o address | grep -v fe80:"),
    ("links", "ip -o link"),
    (
        "tc",
        "tc qdisc show; for i in $(ls /proc/sys/net/ipv4/conf); do \
         tc filter show dev $i ingress; tc filter show dev $i egress; done 2>/dev/null; true",
    ),
    ("programs on interfaces", "bpftool net show"),
    ("nft", "nft --stateless list ruleset"),
    (
        // Its tables, once used, stay in the namespace without rules.
        "iptables-legacy",
        "iptables-legacy-save | grep -e '^-A' -e ' - \\['; ip6tables-legacy-save | grep -e '^-A' -e ' - \\['; true",
    ),
    (
        // Those of apps come and go; all of ours are between these.
        "listeners",
        "ss -Hlntu 'sport >= :15000 and sport <= :15100' | awk '{print $1, $5}'",
    ),
];

impl State {
    /// Of a namespace, and of the cgroups whose processes are in it.
    pub fn of(netns: &Netns, cgroups: &[PathBuf]) -> Self {
        let mut state = Self::default();
        for (what, command) in LISTINGS {
            state.add(what, &listing(netns, command));
        }
        state.0.insert("sysctls".to_owned(), sysctls(netns));
        state.add("links of the namespace", &namespace_links(netns.inode()));
        for cgroup in cgroups {
            let shown = Command::new("bpftool")
                .args(["cgroup", "show"])
                .arg(cgroup)
                .output()
                .expect("bpftool is installed (`cargo xtask setup`)");
            let what = format!("programs on {}", cgroup.display());
            state.add(&what, &String::from_utf8_lossy(&shown.stdout));
        }
        state
    }

    /// What is in one and not in the other, one line each; nothing if they are equal.
    pub fn differences(&self, after: &Self) -> Vec<String> {
        let mut told = Vec::new();
        let empty = BTreeSet::new();
        let places: BTreeSet<_> = self.0.keys().chain(after.0.keys()).collect();
        for place in places {
            let lines = |state: &Self| state.0.get(place).unwrap_or(&empty).clone();
            let (before, after) = (lines(self), lines(after));
            let gone = before.difference(&after);
            told.extend(gone.map(|line| format!("{place}: gone: {line}")));
            let left = after.difference(&before);
            told.extend(left.map(|line| format!("{place}: left: {line}")));
        }
        told
    }

    fn add(&mut self, what: &str, text: &str) {
        let lines = text.lines().map(|line| line.trim_end().to_owned());
        let lines = lines.filter(|line| !line.is_empty());
        self.0.entry(what.to_owned()).or_default().extend(lines);
    }
}

fn listing(netns: &Netns, command: &str) -> String {
    let run = || Command::new("sh").args(["-c", command]).output();
    let output = netns
        .run(run)
        .expect("the namespace can be entered")
        .expect("start sh");
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `KEY = VALUE` of all below net, without what counts or cannot be read.
fn sysctls(netns: &Netns) -> BTreeSet<String> {
    let read = || {
        let mut found = BTreeSet::new();
        read_all(Path::new("/proc/sys/net"), &mut found);
        found
    };
    netns.run(read).expect("the namespace can be entered")
}

fn read_all(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_all(&path, found);
        } else if let Ok(value) = fs::read_to_string(&path) {
            let counts = path.ends_with("nf_conntrack_count");
            if !counts {
                found.insert(format!("{} = {}", path.display(), value.trim_end()));
            }
        }
    }
}

/// Links of programs that are attached to the namespace itself, such as socket lookup.
fn namespace_links(inode: u64) -> String {
    let output = Command::new("bpftool")
        .args(["-j", "link", "show"])
        .output();
    let output = output.expect("bpftool is installed (`cargo xtask setup`)");
    let links: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let here = links
        .iter()
        .filter(|link| link["netns_ino"].as_u64() == Some(inode));
    here.map(|link| format!("{} {}\n", link["type"], link["attach_type"]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_and_what_is_left_is_told() {
        let (mut before, mut after) = (State::default(), State::default());
        before.add("rules", "a\nb\n");
        after.add("rules", "b\nc\n");
        after.add("routes", "r\n");
        assert_eq!(
            before.differences(&after),
            ["routes: left: r", "rules: gone: a", "rules: left: c"]
        );
        assert_eq!(after.differences(&after), Vec::<String>::new());
    }
}
