//! What the test asks of the cluster, in the words of kubectl.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{cluster::Cluster, images, wait};
use crate::program::output;

/// How long a pod may take from its creation until it is ready, in seconds. The machine may be busy with other things.
const PATIENCE: u64 = 120;

impl Cluster {
    pub fn ask(&self, args: &[&str]) -> Result<String> {
        output(self.kubectl().args(args))
    }

    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        let mut command = self.kubectl();
        command.args(["apply", "--filename=-"]);
        feed(command, &list.to_string())
    }

    /// The object as the API server has it.
    pub fn get(&self, namespace: &str, kind: &str, name: &str) -> Result<Value> {
        let text = self.ask(&["--namespace", namespace, "get", kind, name, "--output=json"])?;
        serde_json::from_str(&text).context("kubectl's JSON")
    }

    /// All objects of a kind in a namespace that have these labels (`a=b,c=d`).
    pub fn list(&self, namespace: &str, kind: &str, labels: &str) -> Result<Vec<Value>> {
        let labels = format!("--selector={labels}");
        let args = [
            "--namespace",
            namespace,
            "get",
            kind,
            &labels,
            "--output=json",
        ];
        let list: Value = serde_json::from_str(&self.ask(&args)?).context("kubectl's JSON")?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Runs a program in a pod's first container.
    pub fn exec(&self, namespace: &str, pod: &str, args: &[&str]) -> Result<String> {
        let mut all = vec!["--namespace", namespace, "exec", pod, "--"];
        all.extend(args);
        self.ask(&all)
    }

    /// Waits until the pod is ready, and gives its address.
    pub fn ready(&self, namespace: &str, pod: &str) -> Result<String> {
        let what = format!("pod {namespace}/{pod} is ready");
        wait::some(&what, PATIENCE, || {
            let pod = self.get(namespace, "pod", pod)?;
            Ok(is_ready(&pod).then(|| text(&pod["status"]["podIP"])))
        })
        .with_context(|| self.why(namespace, pod))
    }

    /// What is known about a pod that does not become ready.
    pub fn why(&self, namespace: &str, pod: &str) -> String {
        let described = self.ask(&["--namespace", namespace, "describe", "pod", pod]);
        let described = described.unwrap_or_default();
        let events = described
            .find("\nEvents:")
            .map_or("", |at| &described[at..]);
        let logs = self.ask(&[
            "--namespace",
            namespace,
            "logs",
            pod,
            "--all-containers",
            "--tail=15",
        ]);
        format!("{}\n{}", events.trim(), logs.unwrap_or_default().trim())
    }

    /// Removes a pod and waits until kubelet has, too.
    pub fn delete(&self, namespace: &str, pod: &str) -> Result<()> {
        self.ask(&[
            "--namespace",
            namespace,
            "delete",
            "pod",
            pod,
            "--timeout=60s",
        ])
        .map(|_| ())
    }

    /// What `rdt-app` said there, one JSON object per line, with `event`.
    pub fn event(&self, namespace: &str, pod: &str, event: &str, args: &[&str]) -> Result<Value> {
        let mut all = vec!["rdt-app"];
        all.extend(args);
        let said = self.exec(namespace, pod, &all)?;
        find_event(&said, event).with_context(|| format!("no `{event}` in {}", said.trim()))
    }
}

/// The last event of this name.
pub fn find_event(said: &str, event: &str) -> Option<Value> {
    let mut events = said
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    events.rfind(|value: &Value| value["event"] == event)
}

pub fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// A string of an object; empty if there is none.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

pub fn namespace(name: &str, labels: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

/// A service account of the pod's name, and the pod: on `node`, with one container of the apps' image.
pub fn pod(namespace: &str, name: &str, node: &str, container: Value) -> [Value; 2] {
    let metadata = json!({ "name": name, "namespace": namespace, "labels": { "app": name } });
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata });
    let mut app = json!({ "name": "app", "image": images::APP, "imagePullPolicy": "Never" });
    for (key, value) in container.as_object().into_iter().flatten() {
        app[key] = value.clone();
    }
    let spec = json!({
        "nodeName": node,
        "serviceAccountName": name,
        "terminationGracePeriodSeconds": 1,
        "containers": [app],
    });
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec });
    [account, pod]
}

/// A server on port 8080 that greets who connects, and says who it was; on 8081 it answers HTTP, for kubelet's probe.
pub fn server() -> Value {
    let script = "mkdir -p /www && echo fine > /www/index.html && httpd -p 8081 -h /www && \
                  exec rdt-app serve --listen 0.0.0.0:8080 --mode greet";
    json!({
        "command": ["sh", "-c", script],
        "readinessProbe": { "httpGet": { "port": 8081, "path": "/" }, "periodSeconds": 1 },
    })
}

fn feed(mut command: Command, input: &str) -> Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {command:?}"))?;
    let mut stdin = child.stdin.take().context("kubectl's input")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{command:?}: {}", errors.trim());
    }
    Ok(())
}

/// That two texts are the same, and what they are if not.
pub fn same(what: &str, found: &str, expected: &str) -> Result<()> {
    ensure!(found == expected, "{what} is `{found}`, not `{expected}`");
    Ok(())
}
