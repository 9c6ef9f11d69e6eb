//! `redirect rules`: apply, verify, tamper, repair, clean.

use std::{
    fs::File,
    process::{Command, Output},
    time::{Duration, Instant},
};

use redirect::sys::netns::Netns;
use redirect_tests::{Node, Pod, Testbed, redirect_binary};

use crate::state;

const IPTABLES: [&str; 2] = ["iptables-nft", "iptables-legacy"];
const TOOLS: [&str; 3] = ["iptables-nft", "iptables-legacy", "nftables"];

/// A namespace to put rules in.
struct Place {
    pod: Pod,
    _node: Node,
    _bed: Testbed,
}

impl Place {
    fn new() -> Self {
        let bed = Testbed::new();
        let node = bed.node("a");
        let pod = node.pod("p");
        Self {
            pod,
            _node: node,
            _bed: bed,
        }
    }

    fn netns(&self) -> &Netns {
        self.pod.netns()
    }

    fn run(&self, command: &str) -> String {
        state::run(self.netns(), command)
    }

    fn command(&self, what: &str, tool: &str, flags: &str) -> Command {
        let mut command = Command::new(redirect_binary());
        command
            .args(["rules", what, "--netns"])
            .arg(self.netns().path());
        if what != "clean" {
            command.args(["--backend", tool]);
            if !flags.contains("dedicated") {
                command.arg("--exempt-cgroup").arg(self.pod.cgroup());
            }
            command.args(flags.split_whitespace());
        }
        command
    }

    #[track_caller]
    fn rules(&self, what: &str, tool: &str, flags: &str) -> (bool, String) {
        told(
            self.command(what, tool, flags)
                .output()
                .expect("start redirect"),
        )
    }

    #[track_caller]
    fn succeed(&self, what: &str, tool: &str, flags: &str) {
        let (success, told) = self.rules(what, tool, flags);
        assert!(success, "{what} {tool} {flags}: {told}");
    }

    /// The differences that `verify` names.
    #[track_caller]
    fn differences(&self, tool: &str, flags: &str) -> String {
        let (success, told) = self.rules("verify", tool, flags);
        assert!(!success, "{tool} {flags}: nothing is different: {told}");
        assert!(!told.contains("error:"), "{told}");
        told
    }
}

fn told(output: Output) -> (bool, String) {
    let told = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&told).into_owned(),
    )
}

/// Rules of somebody else, made with the tool.
fn foreign(place: &Place, tool: &str) {
    if tool == "nftables" {
        place.run(
            "nft 'table inet theirs { chain output { type nat hook output priority -100; tcp dport 1 counter accept; }; }'",
        );
        return;
    }
    for program in [tool.to_owned(), tool.replace("ip", "ip6")] {
        place.run(&format!(
            "{program}-restore <<'R'
*nat
:THEIRS - [0:0]
-A OUTPUT -p tcp -m tcp --dport 1 -j THEIRS
-A THEIRS -m comment --comment \"not -j REDIRECT_OUTPUT\" -j ACCEPT
COMMIT
*filter
-A INPUT -p udp -j ACCEPT
COMMIT
R"
        ));
    }
}

const OPTIONS: &str =
    "--exclude-outbound-ports 22,9022 --exclude-outbound-cidrs 10.9.0.0/16,fd00:9::/32";

#[test]
fn applied_verified_and_cleaned_without_a_trace() {
    for tool in TOOLS {
        for flags in [
            "",
            OPTIONS,
            "--capture-inbound --capture-metadata-address",
            "--mode dedicated",
            "--capture-inbound --capture-dns --probe-ports 8080,8081 --refuse-udp --refuse-sctp --include-outbound-ports 80 --include-inbound-cidrs 10.0.0.0/8",
            "--mode dedicated --capture-dns --probes --refuse-udp",
            "--family ipv4",
            "--family ipv6 --mode dedicated",
        ] {
            // Alone in the namespace once, and beside others in every form.
            let beside: &[bool] = if flags.is_empty() {
                &[false, true]
            } else {
                &[true]
            };
            for &with_others in beside {
                let place = Place::new();
                if with_others {
                    foreign(&place, tool);
                }
                let before = state::all(place.netns());
                place.differences(tool, flags);
                // Twice: the second time is no different.
                for _ in 0..2 {
                    place.succeed("apply", tool, flags);
                    place.succeed("verify", tool, flags);
                }
                assert_eq!(state::tools_in_use(place.netns()), [tool], "{flags}");
                assert_ne!(state::all(place.netns()), before);
                for _ in 0..2 {
                    place.succeed("clean", tool, flags);
                    assert_eq!(state::all(place.netns()), before, "{tool} {flags}");
                }
            }
        }
    }
}

#[test]
fn tampering_with_iptables_is_named_and_repaired() {
    // The last: whether what was done is somebody else's rule, which stays.
    let cases = [
        (
            "-D REDIRECT_OUTPUT -o lo -j RETURN",
            "REDIRECT_OUTPUT: rule 1 is missing: -o lo -j RETURN",
            false,
        ),
        (
            "-I REDIRECT_OUTPUT 1 -p tcp -j RETURN",
            "REDIRECT_OUTPUT: rule 1 should not be there: -p tcp -j RETURN",
            false,
        ),
        (
            "-D REDIRECT_OUTPUT 1; PROGRAM -t nat -A REDIRECT_OUTPUT -o lo -j RETURN",
            "REDIRECT_OUTPUT: the order is wrong: rule 1 is",
            false,
        ),
        (
            "-F REDIRECT_OUTPUT",
            "REDIRECT_OUTPUT: rule 1 is missing",
            false,
        ),
        (
            "-D OUTPUT -p tcp -j REDIRECT_OUTPUT",
            "OUTPUT: the jump to REDIRECT_OUTPUT is missing",
            false,
        ),
        (
            "-D OUTPUT 1; PROGRAM -t nat -F REDIRECT_OUTPUT; PROGRAM -t nat -X REDIRECT_OUTPUT",
            "REDIRECT_OUTPUT: the chain is missing",
            false,
        ),
        (
            "-A OUTPUT -j REDIRECT_OUTPUT",
            "OUTPUT: a rule leads to our chain that should not be there: -j REDIRECT_OUTPUT",
            false,
        ),
        (
            "-N REDIRECT_INBOUND",
            "REDIRECT_INBOUND: the chain should not be there",
            false,
        ),
        (
            "-I OUTPUT 1 -p tcp -j ACCEPT",
            "OUTPUT: the order is wrong: the jump to REDIRECT_OUTPUT is rule 2 and not the first",
            true,
        ),
    ];
    for tool in IPTABLES {
        for (family, program) in [
            ("ipv4", tool.to_owned()),
            ("ipv6", tool.replace("ip", "ip6")),
        ] {
            let place = Place::new();
            foreign(&place, tool);
            let before = state::all(place.netns());
            place.succeed("apply", tool, OPTIONS);
            let applied = state::all(place.netns());
            for (tampering, expected, stays) in cases {
                let tampering = format!("{program} -t nat {tampering}");
                place.run(&tampering.replace("PROGRAM", &program));
                let differences = place.differences(tool, OPTIONS);
                let expected = format!("{family} {expected}");
                assert!(
                    differences.lines().any(|line| line.starts_with(&expected)),
                    "{tampering}: {differences}"
                );
                place.succeed("apply", tool, OPTIONS);
                place.succeed("verify", tool, OPTIONS);
                if stays {
                    place.run(&format!("{program} -t nat -D OUTPUT -p tcp -j ACCEPT"));
                }
                assert_eq!(state::all(place.netns()), applied, "{tampering}");
            }
            place.succeed("clean", tool, OPTIONS);
            assert_eq!(state::all(place.netns()), before);
        }
    }
}

#[test]
fn tampering_with_nftables_is_named_and_repaired() {
    let place = Place::new();
    foreign(&place, "nftables");
    let before = state::all(place.netns());
    place.succeed("apply", "nftables", OPTIONS);
    let applied = state::all(place.netns());
    for (tampering, expected) in [
        (
            "insert rule inet redirect-nat output-v4 counter return",
            "chain output-v4: rule 1 should not be there: counter return",
        ),
        (
            "flush chain inet redirect-nat output-v6",
            "chain output-v6: rule 1 is missing: oifname \"lo\" counter return",
        ),
        (
            "flush chain inet redirect-nat output
             add rule inet redirect-nat output meta nfproto ipv6 meta l4proto tcp counter jump output-v6
             add rule inet redirect-nat output meta nfproto ipv4 meta l4proto tcp counter jump output-v4",
            "chain output: the order is wrong: rule 2 is",
        ),
        (
            "add chain inet redirect-nat theirs",
            "chain theirs should not be there",
        ),
        (
            "delete table inet redirect-nat",
            "table inet redirect-nat is missing",
        ),
        (
            "table inet redirect-nat { flags dormant; }",
            "table: rule 1 should not be there: flags dormant",
        ),
    ] {
        place.run(&format!("nft '{tampering}'"));
        let differences = place.differences("nftables", OPTIONS);
        assert!(
            differences.lines().any(|line| line.starts_with(expected)),
            "{tampering}: {differences}"
        );
        place.succeed("apply", "nftables", OPTIONS);
        place.succeed("verify", "nftables", OPTIONS);
        assert_eq!(state::all(place.netns()), applied, "{tampering}");
    }
    place.succeed("clean", "nftables", "");
    assert_eq!(state::all(place.netns()), before);
}

#[test]
fn another_tool_or_mode_takes_over() {
    let place = Place::new();
    let before = state::all(place.netns());
    for (tool, flags) in [
        ("iptables-legacy", "--mode dedicated"),
        ("iptables-legacy", "--capture-inbound"),
        ("iptables-nft", "--capture-inbound"),
        ("iptables-nft", "--mode dedicated"),
        ("nftables", "--mode dedicated"),
        ("iptables-nft", ""),
    ] {
        place.succeed("apply", tool, flags);
        place.succeed("verify", tool, flags);
        assert_eq!(state::tools_in_use(place.netns()), [tool], "{flags}");
    }
    place.run("nft 'add table inet redirect-nat'");
    assert!(
        place
            .differences("iptables-nft", "")
            .contains("nftables has rules of ours, too")
    );
    place.succeed("clean", "", "");
    assert_eq!(state::all(place.netns()), before);
}

#[test]
fn iptables_is_the_variant_that_is_in_use() {
    for (others, expected) in [
        (&[][..], "iptables-nft"),
        (&["iptables-nft"], "iptables-nft"),
        (&["iptables-legacy"], "iptables-legacy"),
        (&["iptables-legacy", "iptables-nft"], "iptables-legacy"),
    ] {
        let place = Place::new();
        others.iter().for_each(|tool| foreign(&place, tool));
        let before = state::all(place.netns());
        place.succeed("apply", "iptables", "");
        place.succeed("verify", "iptables", "");
        assert_eq!(state::tools_in_use(place.netns()), [expected], "{others:?}");
        place.succeed("clean", "iptables", "");
        assert_eq!(state::all(place.netns()), before);
    }
}

#[test]
fn a_busy_lock_is_waited_for_and_then_named() {
    let place = Place::new();
    let path = place._bed.directory().join("xtables.lock");
    let lock = File::create(&path).expect("make the lock file");
    let before = state::all(place.netns());
    lock.lock().expect("nobody else has it");
    let mut apply = place.command("apply", "iptables-legacy", "");
    apply.env("XTABLES_LOCKFILE", &path);
    let started = Instant::now();
    let (success, text) = told(apply.output().expect("start redirect"));
    assert!(!success, "{text}");
    assert!(
        text.contains("another program holds") && text.contains("xtables.lock"),
        "{text}"
    );
    let took = started.elapsed();
    assert!((4..30).contains(&took.as_secs()), "it waited for {took:?}");
    assert_eq!(state::all(place.netns()), before);
    // It is waited for, too.
    let mut child = apply
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("start redirect");
    assert!(!redirect_tests::wait_until(
        Duration::from_millis(500),
        || { child.try_wait().expect("our own child").is_some() }
    ));
    lock.unlock().expect("it is ours");
    assert!(child.wait().expect("our own child").success());
    place.succeed("verify", "iptables-legacy", "");
}

#[test]
fn chains_and_tables_of_others_are_not_taken() {
    for tool in IPTABLES {
        let place = Place::new();
        place.run(&format!(
            "{tool} -t nat -N ISTIO_OUTPUT; {tool} -t nat -A ISTIO_OUTPUT -p tcp -j REDIRECT --to-ports 9"
        ));
        let before = state::all(place.netns());
        let (success, told) = place.rules("apply", tool, "--mode dedicated");
        assert!(
            !success && told.contains("a chain ISTIO_OUTPUT is there that is not ours"),
            "{told}"
        );
        assert_eq!(state::all(place.netns()), before);
        place.succeed("clean", "", "");
        assert_eq!(state::all(place.netns()), before);
        // Under its own names the shared form has no quarrel with it.
        place.succeed("apply", tool, "");
        place.succeed("clean", "", "");
        assert_eq!(state::all(place.netns()), before);
    }
}

#[test]
fn a_failure_in_one_family_leaves_nothing_in_the_other() {
    for tool in IPTABLES {
        let place = Place::new();
        let program = tool.replace("ip", "ip6");
        place.run(&format!(
            "{program} -t nat -N ISTIO_INBOUND; {program} -t nat -A ISTIO_INBOUND -j RETURN"
        ));
        let before = state::all(place.netns());
        let (success, told) = place.rules("apply", tool, "--mode dedicated");
        assert!(!success && told.contains("ISTIO_INBOUND"), "{told}");
        assert_eq!(state::all(place.netns()), before, "{tool}");
    }
}

#[test]
fn what_cannot_be_done_is_told() {
    let place = Place::new();
    let missing = |netns: &str, flags: &[&str]| {
        let mut command = Command::new(redirect_binary());
        command
            .args(["rules", "apply", "--netns", netns])
            .args(flags);
        let (success, told) = told(command.output().expect("start redirect"));
        assert!(!success, "{told}");
        told
    };
    let netns = place.netns().path().to_string_lossy().into_owned();
    for (netns, flags, expected) in [
        ("/nonexistent", &["--exempt-mark"][..], "/nonexistent"),
        (netns.as_str(), &[], "--exempt-cgroup"),
        (&netns, &["--exempt-cgroup", "/nonexistent"], "/nonexistent"),
        (
            &netns,
            &[
                "--exempt-cgroup",
                &redirect_tests::cgroup::mount_point().to_string_lossy(),
            ],
            "root of its hierarchy",
        ),
    ] {
        let told = missing(netns, flags);
        assert!(told.contains(expected), "{flags:?}: {told}");
    }
}
