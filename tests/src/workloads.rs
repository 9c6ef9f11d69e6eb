//! The workload file that the daemons of a testbed share.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use crate::Pod;

/// Builds the workload file. JSON is YAML too.
#[derive(Clone, Debug)]
pub struct Workloads {
    path: PathBuf,
    workloads: Vec<Value>,
    services: Vec<Value>,
    policies: Vec<Value>,
}

impl Workloads {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            workloads: Vec::new(),
            services: Vec::new(),
            policies: Vec::new(),
        }
    }

    /// Adds `pod` as a workload that is reached over HBONE.
    #[must_use]
    pub fn hbone(self, pod: &Pod) -> Self {
        self.add(pod, json!({ "protocol": "HBONE" }))
    }

    /// Adds `pod` as a workload that is reached in plaintext.
    #[must_use]
    pub fn tcp(self, pod: &Pod) -> Self {
        self.add(pod, json!({ "protocol": "TCP" }))
    }

    /// Adds `pod` with further or other fields of a workload.
    #[must_use]
    pub fn add(mut self, pod: &Pod, fields: Value) -> Self {
        let mut workload = json!({
            "uid": format!("cluster1//v1/Pod/default/{}", pod.name()),
            "name": pod.name(),
            "namespace": pod.namespace(),
            "serviceAccount": pod.service_account(),
            "workloadIps": [pod.ipv4(), pod.ipv6()],
            "node": pod.node().name(),
        });
        merge(&mut workload, fields);
        self.workloads.push(workload);
        self
    }

    /// Adds a service `default/NAME.default.svc.cluster.local` with the given addresses and `port` → `target` on `pods`.
    #[must_use]
    pub fn service(
        mut self,
        name: &str,
        vips: &[&str],
        port: u16,
        pods: &[&Pod],
        target: u16,
    ) -> Self {
        let hostname = format!("{name}.default.svc.cluster.local");
        self.services.push(json!({
            "name": name,
            "namespace": "default",
            "hostname": hostname,
            "vips": vips.iter().map(|vip| format!("/{vip}")).collect::<Vec<_>>(),
            "ports": { port.to_string(): target },
        }));
        let key = format!("default/{hostname}");
        for pod in pods {
            let uid = format!("cluster1//v1/Pod/default/{}", pod.name());
            let workload = self
                .workloads
                .iter_mut()
                .find(|workload| workload["uid"] == uid.as_str());
            let workload =
                workload.unwrap_or_else(|| panic!("add {} before its service", pod.name()));
            merge(
                workload,
                json!({ "services": { &key: { port.to_string(): target } } }),
            );
        }
        self
    }

    /// Adds an authorization policy of the namespace `default`: `action` for what meets all of `conditions`.
    #[must_use]
    pub fn policy(self, name: &str, action: &str, conditions: Value) -> Self {
        self.policy_with(name, action, conditions, json!({}))
    }

    /// The same with further or other fields of a policy.
    #[must_use]
    pub fn policy_with(
        mut self,
        name: &str,
        action: &str,
        conditions: Value,
        fields: Value,
    ) -> Self {
        let mut policy = json!({
            "name": name, "namespace": "default", "scope": "Namespace", "action": action,
            "rules": [[[conditions]]],
        });
        merge(&mut policy, fields);
        self.policies.push(policy);
        self
    }

    /// Writes the file as a whole: a daemon sees the old or the new one.
    pub fn write(&self) {
        let text = json!({ "workloads": self.workloads, "services": self.services, "policies": self.policies });
        self.write_text(&serde_json::to_string_pretty(&text).expect("JSON"));
    }

    /// Writes `text` in place of the workloads.
    pub fn write_text(&self, text: &str) {
        let staged = self.path.with_extension("staged");
        fs::write(&staged, text).expect("write the workload file");
        fs::rename(&staged, &self.path).expect("put the workload file in its place");
    }

    pub fn path(&self) -> &PathBuf {
        &self.path
    }
}

/// Merges `more` into `base`: objects field by field, everything else replaced.
pub(crate) fn merge(base: &mut Value, more: Value) {
    match (base, more) {
        (Value::Object(base), Value::Object(more)) => {
            for (key, value) in more {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, more) => *base = more,
    }
}
