//! The ports of a pod that kubelet connects to, as the pod's spec declares them. Pure.

use std::collections::BTreeSet;

use super::objects::{Connect, Container, Pod, Port};

/// The ports in ascending order, and what the spec names that is none.
pub fn ports(pod: &Pod) -> (Vec<u16>, Vec<String>) {
    let ips = pod.ips();
    let mut ports = BTreeSet::new();
    let mut complaints = Vec::new();
    let spec = &pod.spec;
    for container in spec.init_containers.iter().chain(&spec.containers) {
        for connect in connects(container) {
            // Kubelet connects elsewhere.
            let elsewhere = !connect.host.is_empty()
                && !connect.host.parse().is_ok_and(|host| ips.contains(&host));
            if elsewhere {
                continue;
            }
            match number(container, &connect.port) {
                Some(port) => {
                    ports.insert(port);
                }
                None => complaints.push(format!(
                    "container {}: a probe is for the port {}, which it does not have",
                    container.name,
                    spelled(&connect.port)
                )),
            }
        }
    }
    (ports.into_iter().collect(), complaints)
}

fn connects(container: &Container) -> impl Iterator<Item = &Connect> {
    let probes = [
        &container.startup_probe,
        &container.readiness_probe,
        &container.liveness_probe,
    ];
    let hooks = container.lifecycle.iter();
    let hooks = hooks.flat_map(|lifecycle| [&lifecycle.post_start, &lifecycle.pre_stop]);
    let all = probes.into_iter().chain(hooks).flatten();
    all.flat_map(|probe| [&probe.http_get, &probe.tcp_socket, &probe.grpc])
        .flatten()
}

fn number(container: &Container, port: &Port) -> Option<u16> {
    let port = match port {
        Port::Number(number) => u16::try_from(*number).ok(),
        Port::Name(name) => {
            let named = container.ports.iter().find(|port| port.name == *name);
            // Some tools quote numbers.
            named
                .map(|port| port.container_port)
                .or_else(|| name.parse().ok())
        }
    };
    port.filter(|port| *port != 0)
}

fn spelled(port: &Port) -> String {
    match port {
        Port::Number(number) => number.to_string(),
        Port::Name(name) => format!("{name:?}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_way_of_probing_tells_its_port() {
        for (name, container, expected, complaints) in [
            (
                "http by number",
                json!({"readinessProbe": {"httpGet": {"port": 8080}}}),
                vec![8080],
                0,
            ),
            (
                "tcp and grpc",
                json!({"livenessProbe": {"tcpSocket": {"port": 1}}, "startupProbe": {"grpc": {"port": 2}}}),
                vec![1, 2],
                0,
            ),
            (
                "by name, and each once",
                json!({"ports": [{"name": "web", "containerPort": 80}],
                       "livenessProbe": {"httpGet": {"port": "web"}}, "readinessProbe": {"httpGet": {"port": 80}}}),
                vec![80],
                0,
            ),
            (
                "a number in quotes",
                json!({"livenessProbe": {"httpGet": {"port": "81"}}}),
                vec![81],
                0,
            ),
            (
                "hooks",
                json!({"lifecycle": {"postStart": {"httpGet": {"port": 3}}, "preStop": {"tcpSocket": {"port": 4}}}}),
                vec![3, 4],
                0,
            ),
            (
                "a command",
                json!({"livenessProbe": {"exec": {"command": ["true"]}}}),
                vec![],
                0,
            ),
            (
                "another host",
                json!({"livenessProbe": {"httpGet": {"port": 5, "host": "192.0.2.9"}}}),
                vec![],
                0,
            ),
            (
                "its own host",
                json!({"livenessProbe": {"httpGet": {"port": 6, "host": "10.0.0.1"}}}),
                vec![6],
                0,
            ),
            (
                "no such name",
                json!({"livenessProbe": {"httpGet": {"port": "x"}}}),
                vec![],
                1,
            ),
            (
                "no such number",
                json!({"livenessProbe": {"httpGet": {"port": 70000}}}),
                vec![],
                1,
            ),
        ] {
            for kind in ["containers", "initContainers"] {
                let pod = json!({"spec": {kind: [container]}, "status": {"podIP": "10.0.0.1"}});
                let (found, complained) = ports(&serde_json::from_value(pod).unwrap());
                assert_eq!(found, expected, "{name} in {kind}");
                assert_eq!(complained.len(), complaints, "{name} in {kind}");
            }
        }
    }
}
