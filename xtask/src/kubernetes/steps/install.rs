//! Installing: the chart is rolled out with exactly the rights that it asks for, and the plugin is in both nodes' networks.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::kubernetes::{
    chart::Chart,
    cluster::Cluster,
    images,
    kubectl::{same, text},
    machine::Machine,
    report::Report,
};

/// Names of capabilities by their numbers, as <linux/capability.h> has them.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

pub fn show(report: &mut Report, chart: &Chart<'_>, image: &Path, redirect: &Path) -> bool {
    let rolled_out = report.step("the chart is rolled out", || {
        for node in &chart.cluster.nodes {
            images::import(node, image)?;
        }
        chart.secret(redirect)?;
        chart.install()?;
        chart.rolled_out()?;
        Ok(format!("{} daemons are ready", chart.pods()?.len()))
    });
    report.step(
        "the daemons have the rights that the chart asks for, and no others",
        || rights(chart),
    );
    report.step("the plugin is the last of both nodes' networks", || {
        plugin(chart.cluster)
    });
    rolled_out
}

/// Of all containers, what the API server has; and of the daemon's process, what the kernel says.
fn rights(chart: &Chart<'_>) -> Result<String> {
    let rendered = chart.rendered()?;
    let daemonset = rendered
        .split("\n---")
        .find(|object| object.contains("kind: DaemonSet"))
        .context("the chart has no DaemonSet")?;
    // The API server reads YAML, so that we need not; nothing is changed.
    let path = chart.cluster.folder.join("daemonset.yaml");
    std::fs::write(&path, daemonset)?;
    let read = chart.cluster.ask(&[
        "create",
        "--dry-run=client",
        "--output=json",
        "--filename",
        &path.display().to_string(),
    ])?;
    let asked: Value = serde_json::from_str(&read).context("kubectl's JSON")?;
    let asked = &asked["spec"]["template"]["spec"];
    let mut names = Vec::new();
    for pod in chart.pods()? {
        for field in ["hostNetwork", "hostPID"] {
            let (found, expected) = (&pod["spec"][field], &asked[field]);
            ensure!(found == expected, "{field} is {found}, not {expected}");
        }
        let (found, expected) = (&pod["spec"]["containers"], &asked["containers"]);
        let containers = expected.as_array().into_iter().flatten();
        for (index, container) in containers.enumerate() {
            let (found, expected) = (
                &found[index]["securityContext"],
                &container["securityContext"],
            );
            ensure!(
                found == expected,
                "{}: {found}, not {expected}",
                container["name"]
            );
            ensure!(
                found["privileged"] == false,
                "{} is privileged",
                container["name"]
            );
        }
        let added = &asked["containers"][0]["securityContext"]["capabilities"]["add"];
        names = added.as_array().into_iter().flatten().map(text).collect();
    }
    names.sort();
    for node in &chart.cluster.nodes {
        let status = chart.exec(&node.name, &["cat", "/proc/self/status"])?;
        let mut effective = capabilities(&status)?;
        effective.sort_unstable();
        same(
            "what the process may",
            &effective.join(" "),
            &names.join(" "),
        )?;
    }
    Ok(format!("not privileged; {}", names.join(", ")))
}

/// The names in `CapEff` of a `/proc/PID/status`.
fn capabilities(status: &str) -> Result<Vec<&'static str>> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = u64::from_str_radix(mask.context("no CapEff")?.trim(), 16)?;
    let set = (0..CAPABILITIES.len()).filter(|bit| mask >> bit & 1 == 1);
    Ok(set.map(|bit| CAPABILITIES[bit]).collect())
}

fn plugin(cluster: &Cluster) -> Result<String> {
    let mut seen = String::new();
    for node in &cluster.nodes {
        let (conflist, plugins) = network(node)?;
        let last = plugins.last().cloned().unwrap_or_default();
        same(
            &format!("the last plugin of {}", node.name),
            &last,
            "redirect-cni",
        )?;
        node.shell("test -x /opt/cni/bin/redirect-cni")?;
        seen += &format!("{}: {conflist}: {}\n", node.name, plugins.join(", "));
    }
    Ok(seen)
}

/// The network configuration that containerd takes, and its plugins.
pub fn network(node: &Machine) -> Result<(String, Vec<String>)> {
    let names = node.shell("cd /etc/cni/net.d && ls *.conflist")?;
    let name = names.lines().next().context("no conflist")?.to_owned();
    let list: Value = serde_json::from_str(&node.shell(&format!("cat /etc/cni/net.d/{name}"))?)?;
    let plugins = list["plugins"].as_array().into_iter().flatten();
    Ok((name, plugins.map(|plugin| text(&plugin["type"])).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read() {
        let status = "Name:\tcat\nCapEff:\t000000c000003002\n";
        let expected = ["DAC_OVERRIDE", "NET_ADMIN", "NET_RAW", "PERFMON", "BPF"];
        assert_eq!(capabilities(status).unwrap(), expected);
        assert!(capabilities("Name:\tcat\n").is_err());
    }
}
