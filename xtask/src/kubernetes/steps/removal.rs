//! Uninstalling: the nodes are as before, and the pods that were captured go on in plaintext.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::{capture::MESH, plain::call};
use crate::kubernetes::{
    chart::Chart, cluster::Cluster, kubectl::same, report::Report, wire::Wire,
};

/// What of a node's redirect could leave behind, as text: networks, plugins, pins, programs, rules.
pub struct Before(BTreeMap<String, String>);

const LOOK: [(&str, &str); 7] = [
    (
        "the networks",
        "cd /etc/cni/net.d && for f in *; do echo \"$f\"; cat \"$f\"; done",
    ),
    ("the plugins", "ls /opt/cni/bin"),
    ("the pins", "ls -A /sys/fs/bpf"),
    (
        "files of the daemon",
        "ls -A /run/redirect 2>/dev/null || :",
    ),
    (
        "rules of the node",
        "ip rule; iptables-save | grep -v '^#' | sed 's/\\[.*//'; nft list ruleset 2>/dev/null | wc -l",
    ),
    (
        "links of the node",
        "ip -o link | grep -v veth | cut -d' ' -f2",
    ),
    (
        "cgroups of the daemon",
        "find /sys/fs/cgroup -type d -name '*redirect*'",
    ),
];

impl Before {
    pub fn look(cluster: &Cluster) -> Result<Self> {
        let mut seen = BTreeMap::new();
        for node in &cluster.nodes {
            for (what, lines) in LOOK {
                seen.insert(format!("{what} on {}", node.name), node.shell(lines)?);
            }
        }
        Ok(Self(seen))
    }
}

/// `captured`: whether there are pods that were.
pub fn show(report: &mut Report, chart: &Chart<'_>, before: &Before, captured: bool) {
    report.step("uninstalled, the nodes are as before", || {
        removed(chart, before)
    });
    let released_pods = "the pods go on, in plaintext";
    if captured {
        report.step(released_pods, || released(chart.cluster));
    } else {
        report.not_shown(released_pods);
    }
}

fn removed(chart: &Chart<'_>, before: &Before) -> Result<String> {
    chart.upgrade(&["--set", "uninstall=true"])?;
    chart.rolled_out()?;
    chart.uninstall()?;
    let after = Before::look(chart.cluster)?;
    let different = before
        .0
        .iter()
        .filter(|(what, text)| after.0.get(*what) != Some(text));
    let different: Vec<String> = different
        .map(|(what, text)| {
            let now = after.0.get(what).map_or("", String::as_str);
            format!("{what}: were `{}`, are `{}`", text.trim(), now.trim())
        })
        .collect();
    ensure!(different.is_empty(), "{}", different.join("\n"));
    let what = LOOK.map(|(what, _)| what);
    Ok(format!("the same: {}", what.join(", ")))
}

fn released(cluster: &Cluster) -> Result<String> {
    let client = cluster.ready(MESH, "client")?;
    let server = cluster.ready(MESH, "server")?;
    let wire = Wire::watch(cluster, "node-a")?;
    let called = call(cluster, MESH, "client", &format!("{server}:8080"));
    let seen = wire.stop()?;
    same("the client's address at the server", &called?, &client)?;
    ensure!(seen.has("hello "), "the call was not in plaintext");
    Ok("a call of the pods that were captured is plaintext now".to_owned())
}
