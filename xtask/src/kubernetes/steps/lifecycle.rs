//! Pods come and go, daemons too: containers restart, pods end without a trace, a dead agent lets nothing through and nobody in,
//! and a new one takes over without a failed request.

use std::process::{Child, Stdio};

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
        let script =
            format!("rm -f /end; while [ ! -e /end ]; do rdt-app connect {to} recv-line; done");
        let mut command = cluster.kubectl();
        command.args(["--namespace", MESH, "exec", "client", "--"]);
        command.args(["sh", "-c", &script]);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("run kubectl exec")?;
        Ok(Self(child))
    }

    /// How many calls were answered, and what became of the others.
    fn stop(self, cluster: &Cluster) -> Result<(usize, Vec<String>)> {
        cluster.exec(MESH, "client", &["sh", "-c", ": > /end"])?;
        let said = self.0.wait_with_output()?;
        let said = String::from_utf8_lossy(&said.stdout);
        let lines = said.lines();
        let events = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let (mut good, mut bad) = (0, Vec::new());
        for event in events {
            match event["event"].as_str() {
                Some("received") => good += 1,
                Some("error" | "eof") => bad.push(event.to_string()),
                _ => {}
            }
        }
        Ok((good, bad))
    }
}

/// DaemonSets of Kubernetes 1.20 end the old daemon before they start the new one. What `maxSurge` does in newer ones is done here
/// by hand: a second DaemonSet of the same pods, told to take over, then the first goes; and the same back.
fn rolled(chart: &Chart<'_>) -> Result<String> {
    let cluster = chart.cluster;
    let server = cluster.ready(MESH, "server")?;
    let original = cluster.get(NAME, "daemonset", NAME)?;
    let next = format!("{NAME}-next");
    let load = Load::start(cluster, &format!("{server}:8080"))?;
    let rolled = take_over(chart, &original, NAME, &next)
        .and_then(|()| take_over(chart, &original, &next, NAME));
    let (good, bad) = load.stop(cluster)?;
    rolled?;
    ensure!(good > 50, "only {good} calls were made: this shows nothing");
    let calls = good + bad.len();
    ensure!(
        bad.is_empty(),
        "{} of {calls} calls failed, first: {}",
        bad.len(),
        bad[0]
    );
    Ok(format!(
        "two hand-overs on both nodes, {good} calls, none failed"
    ))
}

fn take_over(chart: &Chart<'_>, original: &Value, old: &str, new: &str) -> Result<()> {
    let cluster = chart.cluster;
    let mut spec = original["spec"].clone();
    let instance = "app.kubernetes.io/instance";
    spec["selector"]["matchLabels"][instance] = new.into();
    spec["template"]["metadata"]["labels"][instance] = new.into();
    let args = &mut spec["template"]["spec"]["containers"][0]["args"];
    let args = args.as_array_mut().context("the daemon has arguments")?;
    args.push("--take-over".into());
    // As helm made it, so that helm goes on with it.
    let metadata = json!({
        "name": new,
        "namespace": NAME,
        "labels": original["metadata"]["labels"],
        "annotations": original["metadata"]["annotations"],
    });
    cluster.apply(&[json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata, "spec": spec,
    })])?;
    chart.rolled_out_as(new)?;
    let daemonset = format!("daemonset/{old}");
    cluster.ask(&[
        "--namespace",
        NAME,
        "delete",
        &daemonset,
        "--cascade=foreground",
    ])?;
    wait::some("the old daemons are gone", 60, || {
        let pods = chart.pods()?;
        let label = &json!(new);
        let of_new = |pod: &Value| &pod["metadata"]["labels"][instance] == label;
        Ok(pods.iter().all(of_new).then_some(()))
    })
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
