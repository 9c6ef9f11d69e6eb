//! The cluster before redirect: nodes are ready, and pods of both talk in plaintext. Without this, nothing below would prove
//! anything.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::kubernetes::{
    cluster::Cluster,
    kubectl::{is_ready, namespace, pod, same, server, text},
    report::Report,
    wait,
};

/// A namespace whose pods stay out of the mesh.
pub const OUTSIDE: &str = "outside";

pub fn show(report: &mut Report, cluster: &Cluster) {
    report.step("both nodes are ready", || nodes(cluster));
    report.step("pods of both nodes talk, in plaintext", || talk(cluster));
}

fn nodes(cluster: &Cluster) -> Result<String> {
    let mut seen = String::new();
    for machine in &cluster.nodes {
        let name = &machine.name;
        let node = wait::some(&format!("{name} is ready"), 120, || {
            let node = cluster.get("default", "node", name)?;
            Ok(is_ready(&node).then_some(node))
        })?;
        let info = &node["status"]["nodeInfo"];
        seen += &format!(
            "{name}: kubelet {}, {}, Linux {}\n",
            text(&info["kubeletVersion"]),
            text(&info["containerRuntimeVersion"]),
            text(&info["kernelVersion"]),
        );
    }
    Ok(seen)
}

fn talk(cluster: &Cluster) -> Result<String> {
    cluster.apply(&[namespace(OUTSIDE, json!({}))])?;
    let [account, client] = pod(OUTSIDE, "client", "node-a", json!({}));
    let [server_account, server] = pod(OUTSIDE, "server", "node-b", server());
    cluster.apply(&[account, client, server_account, server])?;
    let client = cluster.ready(OUTSIDE, "client")?;
    let server = cluster.ready(OUTSIDE, "server")?;
    let called = call(cluster, OUTSIDE, "client", &format!("{server}:8080"))?;
    same("the client's address at the server", &called, &client)?;
    Ok(format!(
        "{client} on node-a called {server} on node-b, which saw {called}"
    ))
}

/// Connects from a pod to a greeting server, and gives the address that it was greeted by.
pub fn call(cluster: &Cluster, namespace: &str, pod: &str, to: &str) -> Result<String> {
    let args = ["connect", to, "names", "recv-line"];
    let line = cluster.event(namespace, pod, "received", &args)?;
    let line = text(&line["text"]);
    let greeted = line.strip_prefix("hello ").map(str::to_owned);
    ensure!(
        greeted.is_some(),
        "{namespace}/{pod} got `{line}` from {to}"
    );
    let peer = greeted.unwrap_or_default();
    Ok(peer
        .rsplit_once(':')
        .map_or(peer.clone(), |(ip, _)| ip.to_owned()))
}
