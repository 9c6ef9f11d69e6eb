//! Half-applied rules, killed programs, and what a tool or the kernel does not take: an earlier state stays, or is repaired.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use redirect_tests::{Node, Pod, Testbed, redirect_binary, wait_until};

use crate::{
    stage::{TOOLS, apply},
    state,
};

const MARKED: [&str; 2] = ["--exempt-mark", "--capture-inbound"];

fn place() -> (Testbed, Node, Pod) {
    let bed = Testbed::new();
    let node = bed.node("a");
    let pod = node.pod("p");
    (bed, node, pod)
}

fn rules(what: &str, tool: &str, pod: &Pod, flags: &[&str]) -> Command {
    let mut command = Command::new(redirect_binary());
    command.args(["rules", what]);
    if what != "print" {
        command.arg("--netns").arg(pod.netns().path());
    }
    if what != "clean" {
        command.args(["--backend", tool]).args(flags);
    }
    command
}

#[track_caller]
fn told(mut command: Command) -> (bool, String) {
    let output = command.output().expect("start redirect");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    (output.status.success(), text)
}

#[test]
fn a_half_of_the_rules_is_named_completed_and_cleaned() {
    for tool in ["iptables-nft", "iptables-legacy"] {
        let (_bed, _node, pod) = place();
        let before = state::all(pod.netns());
        let (_, text) = told(rules("print", tool, &pod, &MARKED));
        let (ipv4, _) = text
            .split_once("# ip6tables-restore")
            .expect("two families");
        // As far as a killed program came: the first family only, or its first table only.
        let first_table = ipv4.split_inclusive("COMMIT\n").next().expect("a table");
        for half in [ipv4, first_table] {
            state::run(
                pod.netns(),
                &format!("{tool}-restore --noflush <<'R'\n{half}R"),
            );
            let (success, differences) = told(rules("verify", tool, &pod, &MARKED));
            assert!(
                !success && differences.contains("is missing"),
                "{differences}"
            );
            apply(pod.netns(), tool, &MARKED);
            let (success, text) = told(rules("verify", tool, &pod, &MARKED));
            assert!(success, "{text}");
            let (success, text) = told(rules("clean", tool, &pod, &[]));
            assert!(success, "{text}");
            assert_eq!(state::all(pod.netns()), before, "{tool}");
            state::run(
                pod.netns(),
                &format!("{tool}-restore --noflush <<'R'\n{half}R"),
            );
            let (success, text) = told(rules("clean", tool, &pod, &[]));
            assert!(success, "{text}");
            assert_eq!(state::all(pod.netns()), before, "{tool}");
        }
    }
}

#[test]
fn whenever_it_is_killed_the_next_one_makes_it_right() {
    for tool in TOOLS {
        let (_bed, _node, pod) = place();
        let before = state::all(pod.netns());
        for after in [2, 10, 20, 35, 50, 80] {
            let mut command = rules("apply", tool, &pod, &MARKED);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().expect("start redirect");
            let _ = wait_until(Duration::from_millis(after), || {
                child.try_wait().expect("our own child").is_some()
            });
            child.kill().expect("our own child");
            child.wait().expect("our own child");
            apply(pod.netns(), tool, &MARKED);
            let (success, text) = told(rules("verify", tool, &pod, &MARKED));
            assert!(success, "{tool} after {after} ms: {text}");
            let (success, text) = told(rules("clean", tool, &pod, &[]));
            assert!(success, "{text}");
            assert_eq!(state::all(pod.netns()), before, "{tool} after {after} ms");
        }
    }
}

#[test]
fn rules_that_are_not_taken_leave_the_earlier_ones() {
    for tool in TOOLS {
        let (_bed, _node, pod) = place();
        apply(pod.netns(), tool, &MARKED);
        let earlier = state::all(pod.netns());
        // iptables takes no id that means nobody; nft no name with quotes in it.
        let unsayable = pod.container("a\"b");
        std::fs::create_dir_all(&unsayable).expect("make a cgroup");
        let unsayable = unsayable.to_string_lossy();
        let refused: [&str; 2] = match tool {
            "nftables" => ["--exempt-cgroup", &unsayable],
            _ => ["--exempt-uid", "4294967295"],
        };
        let (success, text) = told(rules("apply", tool, &pod, &refused));
        assert!(!success && text.contains("error: "), "{tool}: {text}");
        assert_eq!(state::all(pod.netns()), earlier, "{tool}");
    }
}

#[test]
fn tools_that_are_missing_or_do_not_work_are_named() {
    // In a mount namespace of its own, where this is all that there is of programs for administrators.
    let with = |programs: &str, command: &Command| {
        let script = format!("mount -t tmpfs none /usr/sbin && {programs} && exec \"$@\"");
        let mut inside = Command::new("unshare");
        inside.args(["--mount", "sh", "-c", &script, "sh"]);
        inside.arg(command.get_program()).args(command.get_args());
        told(inside)
    };
    let broken = |name: &str, says: &str| {
        format!(
            "printf '#!/bin/sh\\necho \"{says}\" >&2\\nexit 1\\n' >/usr/sbin/{name} && chmod +x /usr/sbin/{name}"
        )
    };
    let nft = broken(
        "nft",
        "Error: Could not process rule: Operation not supported",
    );
    let save = broken(
        "iptables-nft-save",
        "Could not fetch rule set generation id",
    );
    let save = save.clone() + " && " + &save.replace("nft-save", "nft-restore");
    let (_bed, _node, pod) = place();
    let before = state::all(pod.netns());
    for (tool, programs, expected) in [
        (
            "iptables",
            "true",
            "no iptables-nft or iptables-legacy on this node",
        ),
        ("iptables-legacy", "true", "Debian's package `iptables`"),
        ("nftables", "true", "no nft on this node"),
        ("nftables", &nft, "the kernel may lack a module"),
        ("iptables-legacy", &save, "no iptables-legacy on this node"),
        ("iptables", &save, "generation id"),
    ] {
        let flags = [&MARKED[..], &["--family", "ipv4"]].concat();
        let (success, text) = with(programs, &rules("apply", tool, &pod, &flags));
        assert!(!success && text.contains(expected), "{tool}: {text}");
        assert_eq!(state::all(pod.netns()), before, "{tool}");
    }
}

#[test]
fn bad_flags_are_named() {
    let (_bed, _node, pod) = place();
    for (flags, expected) in [
        (&["--mode", "probes"][..], "--prober"),
        (&["--mode", "node", "--pod", "veth1=10.0.0.2"], "--node-ips"),
        (
            &[
                "--mode",
                "node",
                "--node-ips",
                "10.0.0.1",
                "--pod",
                "10.0.0.2",
            ],
            "interface",
        ),
        (
            &["--mode", "probes", "--pod", "10.0.0"],
            "not an IP address",
        ),
        (
            &["--mode", "node", "--pod", "a b=10.0.0.2"],
            "name of an interface",
        ),
        (&["--exempt-mark", "--probe-ports", "70000"], "70000"),
        (
            &["--exempt-mark", "--include-inbound-cidrs", "10.0.0.0/33"],
            "10.0.0.0/33",
        ),
    ] {
        let (success, text) = told(rules("apply", "nftables", &pod, flags));
        assert!(!success && text.contains(expected), "{flags:?}: {text}");
    }
}
