//! One pod, as an entry of the configuration's `pods`: read from a document that came by another way, or written.

use serde_json::{Map, Value, json};

use super::{Mode, pods};
use crate::{
    document::{self, Format, Mistake, Mistakes, Node},
    pod::{OnProxyFailure, Pod, PodOptions},
};

#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    #[error(transparent)]
    Syntax(#[from] document::SyntaxError),
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Mistake>),
}

/// Reads an entry. `text` is YAML, of which JSON is a part.
pub fn read(text: &str, trust_domain: &str, mode: Mode) -> Result<Pod, EntryError> {
    let value = document::parse(text, Format::Yaml)?;
    let mistakes = Mistakes::default();
    let pod = pods::read_pod(&Node::root(&value, &mistakes), trust_domain, mode);
    match (pod, mistakes.into_vec()) {
        (Some(pod), mistakes) if mistakes.is_empty() => Ok(pod),
        (_, mistakes) => Err(EntryError::Invalid(mistakes)),
    }
}

/// Writes what [`read`] reads. The trust domain is not in it: that of an identity is the node's.
pub fn write(pod: &Pod) -> Value {
    let mut entry = Map::new();
    let mut set = |field: &str, value: Value| _ = entry.insert(field.to_owned(), value);
    set("uid", json!(pod.uid.as_str()));
    set("name", json!(pod.name));
    set("namespace", json!(pod.namespace));
    set("serviceAccount", json!(&*pod.identity.service_account));
    set("netns", json!(pod.netns));
    set("cgroup", json!(pod.cgroup));
    set("ips", json!(pod.ips));
    if let Some(only) = &pod.cgroup_only {
        set("cgroupOnly", json!({ "inbound": only.inbound }));
    }
    for (field, value) in options(&pod.options) {
        set(field, value);
    }
    Value::Object(entry)
}

/// Those that are not as they are by default.
fn options(options: &PodOptions) -> Vec<(&'static str, Value)> {
    let default = options_as_values(&PodOptions::default());
    let all = options_as_values(options).into_iter().zip(default);
    all.filter(|(own, default)| own != default)
        .map(|(own, _)| own)
        .collect()
}

fn options_as_values(options: &PodOptions) -> [(&'static str, Value); 19] {
    let on_proxy_failure = match options.on_proxy_failure {
        OnProxyFailure::Refuse => "refuse",
        OnProxyFailure::Pass => "pass",
    };
    [
        (
            "excludeOutboundPorts",
            json!(options.exclude_outbound_ports),
        ),
        (
            "excludeOutboundCidrs",
            texts(&options.exclude_outbound_cidrs),
        ),
        (
            "includeOutboundPorts",
            json!(options.include_outbound_ports),
        ),
        (
            "includeOutboundCidrs",
            texts(&options.include_outbound_cidrs),
        ),
        ("excludeInboundPorts", json!(options.exclude_inbound_ports)),
        ("excludeInboundCidrs", texts(&options.exclude_inbound_cidrs)),
        ("includeInboundPorts", json!(options.include_inbound_ports)),
        ("includeInboundCidrs", texts(&options.include_inbound_cidrs)),
        ("bypassInbound", json!(options.bypass_inbound)),
        ("captureDns", json!(options.capture_dns)),
        ("onProxyFailure", json!(on_proxy_failure)),
        ("probePorts", json!(options.probe_ports)),
        ("refuseUdp", json!(options.refuse_udp)),
        ("refuseSctp", json!(options.refuse_sctp)),
        ("allowForwarding", json!(options.allow_forwarding)),
        (
            "resetOlderConnections",
            json!(options.reset_older_connections),
        ),
        ("exemptCgroups", json!(options.exempt_cgroups)),
        (
            "captureMetadataAddress",
            json!(options.capture_metadata_address),
        ),
        ("preserveClientIp", json!(options.preserve_client_ip)),
    ]
}

fn texts<T: ToString>(values: &[T]) -> Value {
    json!(values.iter().map(ToString::to_string).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: &str = r#"{
        "uid": "b5c0", "name": "web-0", "namespace": "shop", "serviceAccount": "web", "netns": "/run/netns/web",
        "cgroup": "/sys/fs/cgroup/web", "ips": ["10.0.0.1", "fd00::1"],
        "excludeOutboundPorts": [25, 443], "excludeOutboundCidrs": ["10.9.0.0/16", "fd00::/8"],
        "includeOutboundPorts": [80], "includeOutboundCidrs": ["0.0.0.0/0"], "excludeInboundPorts": [22],
        "excludeInboundCidrs": ["10.8.0.0/16"], "includeInboundPorts": [8080], "includeInboundCidrs": ["::/0"],
        "bypassInbound": true, "captureDns": false, "onProxyFailure": "pass", "probePorts": [8081], "refuseUdp": true,
        "refuseSctp": true, "allowForwarding": true, "resetOlderConnections": true,
        "exemptCgroups": ["/sys/fs/cgroup/web/agent"], "captureMetadataAddress": true, "preserveClientIp": false
    }"#;

    fn read_here(text: &str) -> Result<Pod, String> {
        read(text, "td.example", Mode::Shared).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_is_read() {
        let shared = r#"{"name": "unit", "namespace": "host", "serviceAccount": "s", "cgroup": "/c", "ips": ["10.0.0.1"],
            "cgroupOnly": {"inbound": ["10.0.0.1:80"]}}"#;
        let least = r#"{"name": "a", "namespace": "b", "serviceAccount": "c", "netns": "/n", "cgroup": "/c", "ips": ["10.0.0.1"]}"#;
        for text in [MOST, least, shared] {
            let pod = read_here(text).unwrap();
            assert_eq!(read_here(&write(&pod).to_string()), Ok(pod));
        }
    }

    #[test]
    fn every_option_is_written() {
        let pod = read_here(MOST).unwrap();
        let written = write(&pod);
        let asked: Value = serde_json::from_str(MOST).unwrap();
        let missing = asked.as_object().unwrap().keys();
        let missing: Vec<_> = missing
            .filter(|field| written.get(field).is_none())
            .collect();
        assert_eq!(missing, Vec::<&String>::new());
    }

    #[test]
    fn mistakes_are_told_with_their_fields() {
        let error = read_here(r#"{"name": "a/b", "ips": [], "colour": 1}"#).unwrap_err();
        for part in ["name: ", "ips: a pod needs", "netns", "colour"] {
            assert!(error.contains(part), "{part} is not in {error}");
        }
        assert!(read_here("{").is_err());
        assert!(read_here("[]").is_err());
    }

    proptest! {
        #[test]
        fn no_text_is_a_panic(text in "\\PC{0,80}") {
            _ = read_here(&text);
        }
    }
}
