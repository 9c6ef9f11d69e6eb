//! redirect on the cluster, as its users install it: the chart of this repository, by helm.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{
    cluster::Cluster,
    images,
    kubectl::{self, text},
    wait,
};
use crate::{ebpf, program::output};

/// Namespace, release and so the name of all objects.
pub const NAME: &str = "redirect";
const SECRET: &str = "redirect-dev-ca";
const LABELS: &str = "app.kubernetes.io/name=redirect";

pub struct Chart<'a> {
    pub cluster: &'a Cluster,
    helm: PathBuf,
    values: PathBuf,
}

impl<'a> Chart<'a> {
    pub fn new(cluster: &'a Cluster, helm: &Path) -> Result<Self> {
        let values = cluster.folder.join("values.json");
        let text = serde_json::to_string_pretty(&settings())?;
        fs::write(&values, text).with_context(|| format!("write {}", values.display()))?;
        Ok(Self {
            cluster,
            helm: helm.to_owned(),
            values,
        })
    }

    /// A root key that all nodes sign with, in the secret that the chart expects.
    pub fn secret(&self, redirect: &Path) -> Result<()> {
        let folder = self.cluster.folder.join("ca");
        output(Command::new(redirect).args(["ca", "init"]).arg(&folder))?;
        let read = |name: &str| {
            fs::read_to_string(folder.join(name)).with_context(|| format!("read the CA's {name}"))
        };
        let data =
            json!({ "roots.pem": read("roots.pem")?, "root-key.pem": read("root-key.pem")? });
        self.cluster.apply(&[
            kubectl::namespace(NAME, json!({})),
            json!({
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": { "name": SECRET, "namespace": NAME },
                "stringData": data,
            }),
        ])
    }

    pub fn install(&self) -> Result<()> {
        self.run(&["install", NAME]).map(|_| ())
    }

    pub fn upgrade(&self, more: &[&str]) -> Result<()> {
        self.run(&[&["upgrade", NAME], more].concat()).map(|_| ())
    }

    /// The objects as the chart gives them, without a cluster.
    pub fn rendered(&self) -> Result<String> {
        self.run(&["template", NAME])
    }

    pub fn uninstall(&self) -> Result<()> {
        let mut helm = self.cluster.client(&self.helm);
        helm.args(["uninstall", NAME, "--namespace", NAME, "--wait"]);
        output(&mut helm).map(|_| ())
    }

    fn run(&self, args: &[&str]) -> Result<String> {
        let mut helm = self.cluster.client(&self.helm);
        helm.args(args);
        helm.arg(ebpf::workspace().join("deploy/helm/redirect"));
        helm.args(["--namespace", NAME, "--values"])
            .arg(&self.values);
        // Kubernetes 1.20 has only the beginnings of what helm 4 would rather use.
        if args[0] != "template" {
            helm.arg("--server-side=false");
        }
        output(&mut helm)
    }

    /// Waits until each node's daemon is of this roll-out and ready.
    pub fn rolled_out(&self) -> Result<()> {
        self.rolled_out_as(NAME)
    }

    /// The same for a DaemonSet that is not the chart's own.
    pub fn rolled_out_as(&self, name: &str) -> Result<()> {
        let daemonset = format!("daemonset/{name}");
        let said = self.cluster.ask(&[
            "--namespace",
            NAME,
            "rollout",
            "status",
            &daemonset,
            "--timeout=180s",
        ]);
        match said {
            Ok(_) => Ok(()),
            Err(error) => {
                let pods = self.cluster.list(NAME, "pods", LABELS)?;
                let why = pods.iter().map(|pod| {
                    let name = text(&pod["metadata"]["name"]);
                    format!("{name}: {}\n", self.cluster.why(NAME, &name))
                });
                bail!("{error:#}\n{}", why.collect::<String>())
            }
        }
    }

    /// The daemon's pods, as the API server has them.
    pub fn pods(&self) -> Result<Vec<Value>> {
        self.cluster.list(NAME, "pods", LABELS)
    }

    /// The daemon's pod on a node; the newest of those that are not ending.
    pub fn pod_on(&self, node: &str) -> Result<String> {
        wait::some(&format!("{node} has a daemon"), 60, || {
            let pods = self.pods()?;
            let living = pods.iter().filter(|pod| {
                pod["spec"]["nodeName"] == node && pod["metadata"]["deletionTimestamp"].is_null()
            });
            let newest = living.max_by_key(|pod| text(&pod["metadata"]["creationTimestamp"]));
            Ok(newest.map(|pod| text(&pod["metadata"]["name"])))
        })
    }

    /// Runs a program in the daemon's container on a node.
    pub fn exec(&self, node: &str, args: &[&str]) -> Result<String> {
        let pod = self.pod_on(node)?;
        let mut all = vec![
            "--namespace",
            NAME,
            "exec",
            &pod,
            "--container=redirect",
            "--",
        ];
        all.extend(args);
        self.cluster.ask(&all)
    }

    /// What the daemon of a node logged, a JSON object per line.
    pub fn log(&self, node: &str) -> Result<Vec<Value>> {
        let pod = self.pod_on(node)?;
        let said =
            self.cluster
                .ask(&["--namespace", NAME, "logs", &pod, "--container=redirect"])?;
        let lines = said
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        Ok(lines.collect())
    }

    /// `redirect pod list` on a node: `NAMESPACE/NAME` of those that are captured, and why others are not.
    pub fn captured(&self, node: &str) -> Result<Vec<(String, Option<String>)>> {
        let said = self.exec(node, &["redirect", "pod", "list", "--json"])?;
        let pods: Vec<Value> = serde_json::from_str(&said).context("`redirect pod list --json`")?;
        let pods = pods.iter().map(|listed| {
            let pod = &listed["pod"];
            let name = format!("{}/{}", text(&pod["namespace"]), text(&pod["name"]));
            (name, listed["error"].as_str().map(str::to_owned))
        });
        Ok(pods.collect())
    }
}

fn settings() -> Value {
    json!({
        "image": {
            "repository": images::DAEMON_REPOSITORY,
            "tag": images::DAEMON_TAG,
            "pullPolicy": "Never",
        },
        "identity": { "source": "devCa", "secretName": SECRET },
        "log": "info",
        // Kubernetes 1.20 does not know `maxSurge` here.
        "updateStrategy": {
            "type": "RollingUpdate",
            "rollingUpdate": { "maxUnavailable": 1, "maxSurge": Value::Null },
        },
        "drainSeconds": 5,
    })
}
