//! Pods come and go, daemons too: containers restart, pods end without a trace, a dead agent lets nothing through and nobody in,
//! and a new one takes over without a failed request.

use std::{
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    capture::{MESH, captured},
    plain::call,
};
use crate::kubernetes::{
    chart::{Chart, NAME},
    cluster::Cluster,
    kubectl::{find_event, pod, text},
    report::Report,
    wait,
    wire::Wire,
};

pub fn show(report: &mut Report, chart: &Chart<'_>) {
    report.step("a restarted container is captured as before", || {
        restart(chart)
    });
    report.step("a deleted pod leaves nothing behind", || deleted(chart));
    report.step(
        "daemons are rolled under load, and no request fails",
        || rolled(chart),
    );
    report.step(
        "without its agent a node holds new pods, and running ones fail closed",
        || dead(chart),
    );
    report.step(
        "when the agent is back, the held pod starts captured",
        || back(chart),
    );
}

fn restart(chart: &Chart<'_>) -> Result<String> {
    let cluster = chart.cluster;
    let restarts = |cluster: &Cluster| -> Result<Value> {
        let pod = cluster.get(MESH, "pod", "client")?;
        Ok(pod["status"]["containerStatuses"][0]["restartCount"].clone())
    };
    let before = restarts(cluster)?;
    // Its shell traps the signal and exits.
    cluster.exec(MESH, "client", &["sh", "-c", "kill -TERM 1"])?;
    wait::some("kubelet restarts the container", 60, || {
        Ok((restarts(cluster)? != before).then_some(()))
    })?;
    cluster.ready(MESH, "client")?;
    encrypted(cluster)?;
    Ok("the new container's call is HBONE".to_owned())
}

/// The client reaches the server, and not in plaintext.
fn encrypted(cluster: &Cluster) -> Result<()> {
    let server = cluster.ready(MESH, "server")?;
    let wire = Wire::watch(cluster, "node-a")?;
    let called = call(cluster, MESH, "client", &format!("{server}:8080"));
    let seen = wire.stop()?;
    called?;
    let strange = seen.not_of_port(15008);
    ensure!(strange.is_empty(), "on the wire: {strange:?}");
    Ok(())
}

/// What the daemon keeps for pods of a node in its bpffs, by their uids.
fn pins(chart: &Chart<'_>, node: &str) -> Result<String> {
    let node = chart.cluster.node(node);
    node.shell("find /sys/fs/bpf /run/redirect -mindepth 1 2>/dev/null || :")
}

fn deleted(chart: &Chart<'_>) -> Result<String> {
    let cluster = chart.cluster;
    let [account, guest] = pod(MESH, "guest", "node-a", json!({}));
    cluster.apply(&[account, guest])?;
    cluster.ready(MESH, "guest")?;
    captured(chart, "node-a", "guest")?;
    let uid = text(&cluster.get(MESH, "pod", "guest")?["metadata"]["uid"]);
    let kept = pins(chart, "node-a")?;
    let kept = kept.lines().filter(|line| line.contains(&uid)).count();
    ensure!(
        kept > 0,
        "no pin names the pod while it runs: this would show nothing"
    );
    cluster.delete(MESH, "guest")?;
    wait::some("the agent forgets the pod", 30, || {
        let pods = chart.captured("node-a")?;
        let gone = pods.iter().all(|(pod, _)| !pod.ends_with("/guest"));
        Ok((gone && !pins(chart, "node-a")?.contains(&uid)).then_some(()))
    })?;
    let networks = cluster
        .node("node-a")
        .shell("ls /run/netns 2>/dev/null | wc -l")?;
    Ok(format!(
        "{kept} pins and records were there and are gone; network namespaces: {}",
        networks.trim()
    ))
}

/// Calls one after the other until it is ended; each is a connection of its own.
struct Load(Child);

impl Load {
    fn start(cluster: &Cluster, to: &str) -> Result<Self> {
        let script = format!(
            "trap 'exit 0' TERM; while :; do rdt-app connect {to} recv-line | grep -v listening; done"
        );
        let mut command = cluster.kubectl();
        command.args([
            "--namespace",
            MESH,
            "exec",
            "client",
            "--",
            "sh",
            "-c",
            &script,
        ]);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("run kubectl exec")?;
        Ok(Self(child))
    }

    /// Good and failed calls, and what failed.
    fn stop(mut self, cluster: &Cluster) -> Result<(usize, Vec<String>)> {
        let end = "for p in /proc/[0-9]*; do \
                   grep -q 'connect' $p/cmdline 2>/dev/null && kill ${p#/proc/} 2>/dev/null; done; true";
        cluster.exec(MESH, "client", &["sh", "-c", end])?;
        _ = self.0.kill();
        let said = self.0.wait_with_output()?;
        let said = String::from_utf8_lossy(&said.stdout);
        let events = said
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        let (mut good, mut bad) = (0, Vec::new());
        for event in events {
            let event: Value = event;
            match event["event"].as_str() {
                Some("received") => good += 1,
                Some("error" | "eof") => bad.push(event.to_string()),
                _ => {}
            }
        }
        Ok((good, bad))
    }
}

/// DaemonSets of Kubernetes 1.20 end the old daemon before they start the new one. So that the new one can take over, as it does
/// with `maxSurge`, another release of the same chart is put beside it.
fn rolled(chart: &Chart<'_>) -> Result<String> {
    let cluster = chart.cluster;
    let server = cluster.ready(MESH, "server")?;
    let load = Load::start(cluster, &format!("{server}:8080"))?;
    let daemonset = format!("daemonset/{NAME}");
    let rolled = cluster
        .ask(&["--namespace", NAME, "rollout", "restart", &daemonset])
        .and_then(|_| chart.rolled_out());
    // Some calls of the new daemons.
    thread::sleep(Duration::from_secs(2));
    let (good, bad) = load.stop(cluster)?;
    rolled?;
    ensure!(good > 50, "only {good} calls were made: this shows nothing");
    ensure!(
        bad.is_empty(),
        "{} of {} calls failed, the first: {}",
        bad.len(),
        good + bad.len(),
        bad[0]
    );
    Ok(format!("{good} calls, none failed"))
}

/// Where daemons run, by a label that only some nodes have.
fn only_on(chart: &Chart<'_>, node: Option<&str>) -> Result<()> {
    let selector = match node {
        Some(node) => json!({ "kubernetes.io/hostname": node }),
        None => json!({ "kubernetes.io/hostname": Value::Null }),
    };
    let patch = json!({ "spec": { "template": { "spec": { "nodeSelector": selector } } } });
    chart
        .cluster
        .ask(&[
            "--namespace",
            NAME,
            "patch",
            "daemonset",
            NAME,
            "--patch",
            &patch.to_string(),
        ])
        .map(|_| ())
}

fn dead(chart: &Chart<'_>) -> Result<String> {
    let cluster = chart.cluster;
    let server = cluster.ready(MESH, "server")?;
    only_on(chart, Some("node-b"))?;
    wait::some("the daemon of node-a is gone", 60, || {
        let pods = chart.pods()?;
        Ok(pods
            .iter()
            .all(|pod| pod["spec"]["nodeName"] != "node-a")
            .then_some(()))
    })?;
    let [account, held] = pod(MESH, "held", "node-a", json!({}));
    cluster.apply(&[account, held])?;
    let why = wait::some("the plugin holds the new pod", 60, || {
        let events = cluster.ask(&[
            "--namespace",
            MESH,
            "get",
            "events",
            "--output=json",
            "--field-selector=involvedObject.name=held,reason=FailedCreatePodSandBox",
        ])?;
        let events: Value = serde_json::from_str(&events)?;
        Ok(events["items"][0]["message"].as_str().map(str::to_owned))
    })?;
    let wire = Wire::watch(cluster, "node-a")?;
    let called = cluster.exec(
        MESH,
        "client",
        &[
            "rdt-app",
            "connect",
            "--timeout=3",
            &format!("{server}:8080"),
            "recv-line",
        ],
    );
    let seen = wire.stop()?;
    let called = called?;
    ensure!(
        find_event(&called, "received").is_none(),
        "the call went through: {called}"
    );
    let strange = seen.not_of_port(15008);
    ensure!(strange.is_empty(), "on the wire: {strange:?}");
    Ok(format!(
        "held: {why}\nthe running pod's call: {}",
        called.trim()
    ))
}

fn back(chart: &Chart<'_>) -> Result<String> {
    let cluster = chart.cluster;
    only_on(chart, None)?;
    chart.rolled_out()?;
    cluster.ready(MESH, "held")?;
    captured(chart, "node-a", "held")?;
    encrypted(cluster)?;
    cluster.delete(MESH, "held")?;
    Ok("the held pod runs and is listed; the client's calls are HBONE again".to_owned())
}
