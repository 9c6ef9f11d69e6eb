//! Pods of the mesh: captured from their first moment, HBONE on the wire, identity and client address right, probes answered;
//! and pods beside the mesh are left alone.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::plain::{OUTSIDE, call};
use crate::kubernetes::{
    chart::Chart,
    cluster::Cluster,
    kubectl::{namespace, pod, same, server, text},
    report::Report,
    wait,
    wire::Wire,
};

/// The namespace of the mesh.
pub const MESH: &str = "shop";
const ENROLLED: (&str, &str) = ("istio.io/dataplane-mode", "ambient");
const HBONE: u16 = 15008;

/// Whether pods were captured, so that more can be shown of them.
pub fn show(report: &mut Report, chart: &Chart<'_>) -> bool {
    let cluster = chart.cluster;
    let captured = report.step(
        "pods of an enrolled namespace start, and kubelet's probe reaches the server",
        || start(cluster),
    ) && report.step(
        "they are captured: the node agents list them, and their annotation says so",
        || listed(chart),
    );
    if !captured {
        report.not_shown("HBONE on the wire, identities, pods beside the mesh, policies");
        return false;
    }
    report.step(
        "a call to the other node is HBONE on the wire, and the server sees the client's address",
        || hbone(cluster),
    );
    report.step("both daemons know who called", || identities(chart));
    report.step("a pod beside the mesh is left alone", || outsider(chart));
    report.step(
        "policies hold, and kubelet's probes pass none the less",
        || policy(chart),
    );
    true
}

fn start(cluster: &Cluster) -> Result<String> {
    let (label, mode) = ENROLLED;
    cluster.apply(&[namespace(MESH, json!({ label: mode }))])?;
    let [account, client] = pod(MESH, "client", "node-a", json!({}));
    let [server_account, server] = pod(MESH, "server", "node-b", server());
    cluster.apply(&[account, client, server_account, server])?;
    let client = cluster.ready(MESH, "client")?;
    let server = cluster.ready(MESH, "server")?;
    Ok(format!(
        "client {client} on node-a, server {server} on node-b"
    ))
}

fn listed(chart: &Chart<'_>) -> Result<String> {
    let mut seen = String::new();
    for (node, name) in [("node-a", "client"), ("node-b", "server")] {
        captured(chart, node, name)?;
        let pod = chart.cluster.get(MESH, "pod", name)?;
        let annotation = &pod["metadata"]["annotations"]["ambient.istio.io/redirection"];
        same("the annotation", &text(annotation), "enabled")?;
        seen += &format!("{node} has {MESH}/{name}\n");
    }
    Ok(seen)
}

/// Waits until the node's agent says that it has captured the pod.
pub fn captured(chart: &Chart<'_>, node: &str, name: &str) -> Result<()> {
    let wanted = format!("{MESH}/{name}");
    wait::some(&format!("{node} has captured {wanted}"), 30, || {
        let pods = chart.captured(node)?;
        let found = pods.iter().find(|(pod, _)| *pod == wanted);
        match found {
            Some((_, None)) => Ok(Some(())),
            Some((_, Some(why))) => Err(anyhow::anyhow!("{wanted}: {why}")),
            None => Ok(None),
        }
    })
}

fn hbone(cluster: &Cluster) -> Result<String> {
    let client = cluster.ready(MESH, "client")?;
    let server = cluster.ready(MESH, "server")?;
    let wire = Wire::watch(cluster, "node-a")?;
    let called = call(cluster, MESH, "client", &format!("{server}:8080"));
    let seen = wire.stop()?;
    same("the client's address at the server", &called?, &client)?;
    let strange = seen.not_of_port(HBONE);
    ensure!(strange.is_empty(), "on the wire: {strange:?}");
    ensure!(!seen.lines.is_empty(), "no packet was seen");
    ensure!(
        !seen.has("hello "),
        "the greeting was on the wire in plaintext"
    );
    Ok(format!(
        "{} packets, all of port {HBONE}, no plaintext; the server saw {client}",
        seen.lines.len()
    ))
}

fn identities(chart: &Chart<'_>) -> Result<String> {
    let identity = |name: &str| format!("spiffe://cluster.local/ns/{MESH}/sa/{name}");
    let mut seen = String::new();
    for (node, direction, field, expected) in [
        ("node-a", "outbound", "src.identity", identity("client")),
        ("node-b", "inbound", "src.identity", identity("client")),
        ("node-b", "inbound", "dst.identity", identity("server")),
    ] {
        wait::some(&format!("{node} has logged {field}={expected}"), 15, || {
            let log = chart.log(node)?;
            let found = log.iter().any(|line| {
                // Fields are on the line itself, or below `fields`.
                let has =
                    |key: &str, value: &str| line[key] == value || line["fields"][key] == value;
                has("direction", direction) && has(field, &expected)
            });
            Ok(found.then_some(()))
        })?;
        seen += &format!("{node} {direction} {field}={expected}\n");
    }
    Ok(seen)
}

fn outsider(chart: &Chart<'_>) -> Result<String> {
    let cluster = chart.cluster;
    let client = cluster.ready(OUTSIDE, "client")?;
    let server = cluster.ready(OUTSIDE, "server")?;
    let wire = Wire::watch(cluster, "node-a")?;
    let called = call(cluster, OUTSIDE, "client", &format!("{server}:8080"));
    let seen = wire.stop()?;
    same("the client's address at the server", &called?, &client)?;
    ensure!(
        seen.has("hello "),
        "its greeting is not on the wire in plaintext"
    );
    for node in ["node-a", "node-b"] {
        let pods = chart.captured(node)?;
        let ours = pods.iter().filter(|(pod, _)| pod.starts_with(OUTSIDE));
        ensure!(ours.count() == 0, "{node} lists pods of {OUTSIDE}");
    }
    let pod = cluster.get(OUTSIDE, "pod", "client")?;
    let annotation = &pod["metadata"]["annotations"]["ambient.istio.io/redirection"];
    ensure!(annotation.is_null(), "its annotation says {annotation}");
    Ok("plaintext as before, in no list, without annotation".to_owned())
}

/// Policies are in the file of workloads, which the chart can give to the daemons instead of the API's: only pods of the mesh may
/// connect to the server.
fn policy(chart: &Chart<'_>) -> Result<String> {
    let cluster = chart.cluster;
    let server = cluster.ready(MESH, "server")?;
    let workloads = [("client", "node-a"), ("server", "node-b")].map(|(name, node)| {
        let address = cluster.ready(MESH, name)?;
        Ok(json!({
            "uid": format!("Kubernetes//v1/Pod/{MESH}/{name}"),
            "name": name,
            "namespace": MESH,
            "serviceAccount": name,
            "workloadIps": [address],
            "protocol": "HBONE",
            "node": node,
        }))
    });
    let workloads: Vec<Value> = workloads.into_iter().collect::<Result<_>>()?;
    let policy = json!({
        "name": "mesh-only",
        "namespace": MESH,
        "scope": "Namespace",
        "action": "Allow",
        "rules": [[[{ "namespaces": [{ "Exact": MESH }] }]]],
    });
    let file = json!({ "workloads": workloads, "policies": [policy] }).to_string();
    for node in &cluster.nodes {
        let (here, there) = node.shared("workloads.yaml");
        std::fs::write(here, &file)?;
        node.shell(&format!(
            "mkdir -p /etc/redirect && cp {} /etc/redirect/",
            there.display()
        ))?;
    }
    chart.upgrade(&["--set", "workloadsFromKubernetes=false"])?;
    let judged = chart
        .rolled_out()
        .and_then(|()| judged(cluster, &format!("{server}:8080")));
    chart.upgrade(&[])?;
    chart.rolled_out()?;
    judged
}

fn judged(cluster: &Cluster, to: &str) -> Result<String> {
    call(cluster, MESH, "client", to)?;
    let refused = call(cluster, OUTSIDE, "client", to);
    ensure!(
        refused.is_err(),
        "{OUTSIDE}/client connected, which has no identity"
    );
    // A probe per second: it would fail three times in this time.
    let conditions = || -> Result<String> {
        let pod = cluster.get(MESH, "pod", "server")?;
        Ok(pod["status"]["conditions"].to_string())
    };
    let before = conditions()?;
    let started = std::time::Instant::now();
    wait::until("five probes", 30, || started.elapsed().as_secs() >= 5)?;
    same("the server's conditions", &conditions()?, &before)?;
    Ok(
        "the client may, a pod without identity may not, and the server stayed ready by its probe"
            .to_owned(),
    )
}
