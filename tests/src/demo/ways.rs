//! Steps about the other ways in: netfilter in place of eBPF, and plaintext from outside the mesh.

use std::process::Command;

use serde_json::json;

use super::{
    Lines,
    stage::{PORT, Stage, field, line},
};
use crate::{
    Pod,
    exchange::{greeted, refused},
    way::{Backend, Mode},
};

/// One call twice: from a pod that eBPF captures, and from one that nftables captures.
pub fn by_netfilter(stage: &mut Stage) -> Lines {
    let node = stage.bed.node("c");
    let pod = node.pod("by-rules");
    let spec = node.daemon().config(Backend::Nftables.config());
    let spec = spec.config(Mode::Shared.config());
    let daemon = spec.capture(&pod).start();
    let asked = stage.web.at(PORT);
    let mut lines = Vec::new();
    for (name, pod, daemon) in [
        ("eBPF", &stage.client, &stage.daemon_a),
        ("nftables", &pod, &daemon),
    ] {
        let connected = greeted(pod, asked, &[]);
        assert_eq!(connected.addr("peername"), asked, "getpeername");
        let own = connected.addr("sockname");
        let access = daemon.wait_log("line of the access log", |line| {
            line.contains("connection closed") && line.contains(&format!(" src.addr={own} "))
        });
        assert_eq!(field(&access, "dst.addr"), asked.to_string());
        let tunnel = field(&access, "dst.hbone_addr");
        let (rules, entries) = (rules(pod), conntrack_entries(pod));
        assert_eq!(
            (rules > 0, entries > 0),
            (name == "nftables", name == "nftables")
        );
        lines.push(line(
            &format!("{name}: {own}"),
            format!("asked for {asked}, by HBONE to {tunnel}"),
        ));
        let programs = programs(pod);
        assert_eq!(programs > 0, name == "eBPF");
        lines.push(line(
            "in its pod",
            format!("{programs} programs on its cgroup, {rules} rules of netfilter, {entries} entries of conntrack"),
        ));
    }
    lines
}

/// A client without an identity: let in while no policy says otherwise, reset when one does.
pub fn plaintext_denied(stage: &mut Stage) -> Lines {
    let stranger = stage.b.pod("stranger");
    let asked = stage.web.at(PORT);
    let before = greeted(&stranger, asked, &[]).addr("sockname");
    let access = stage.daemon_b.wait_log("line of the access log", |line| {
        line.contains("connection closed") && line.contains(&format!(" src.addr={before} "))
    });
    assert!(!access.contains(" src.identity="), "{access}");
    let from = stage.daemon_b.process().line_count();
    let anybody = json!({ "notPrincipals": ["Presence"] });
    let policed = stage.workloads.clone();
    policed.policy("only-the-mesh", "Deny", anybody).write();
    wait_for_policies(stage, from, 1);
    let error = refused(&stranger, asked);
    let denied = stage
        .daemon_b
        .wait_log_from(from, "denial in the log", |line| {
            line.contains("only-the-mesh") && line.contains(&stranger.ipv4().to_string())
        });
    // Who has an identity still comes in.
    greeted(&stage.client, asked, &[]);
    let from = stage.daemon_b.process().line_count();
    stage.workloads.write();
    wait_for_policies(stage, from, 0);
    vec![
        line("a client in no mesh", stranger.ipv4().to_string()),
        line(
            "without a policy",
            "it reached the app, and the log has no identity",
        ),
        line("with a policy", format!("it gets {}", error.str("name"))),
        line(
            "the log says",
            format!("{}: {}", field(&denied, "reason"), policy(&denied)),
        ),
        line("a client of the mesh", "still reaches the app"),
    ]
}

fn wait_for_policies(stage: &Stage, from: usize, count: usize) {
    stage
        .daemon_b
        .wait_log_from(from, "line of the reloaded file", |line| {
            line.contains("workload file loaded") && line.contains(&format!("policies={count}"))
        });
}

/// The part of a denial that names the policy.
fn policy(denied: &str) -> &str {
    let start = denied.find("policy default/").unwrap_or(0);
    let end = denied[start..]
        .find(['"', '\n'])
        .map_or(denied.len(), |end| start + end);
    &denied[start..end]
}

fn said(pod: &Pod, program: &str, args: &[&str]) -> String {
    let run = || Command::new(program).args(args).output();
    let output = pod.netns().run(run).expect("the namespace can be entered");
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn rules(pod: &Pod) -> usize {
    let ruleset = said(pod, "nft", &["list", "ruleset"]);
    ruleset
        .lines()
        .filter(|line| line.contains("counter packets"))
        .count()
}

fn conntrack_entries(pod: &Pod) -> usize {
    let count = said(pod, "conntrack", &["-C"]);
    count.trim().parse().expect("a number")
}

fn programs(pod: &Pod) -> usize {
    let cgroup = pod.cgroup();
    let shown = Command::new("bpftool")
        .args(["-j", "cgroup", "show"])
        .arg(&cgroup)
        .output();
    let shown = shown.expect("bpftool is installed (`cargo xtask setup`)");
    let programs: Vec<serde_json::Value> =
        serde_json::from_slice(&shown.stdout).unwrap_or_default();
    programs.len()
}
