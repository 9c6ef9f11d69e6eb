use serde_json::{Value, json};

use super::*;

fn pod(json: Value) -> Pod {
    serde_json::from_value(json).unwrap()
}

fn namespace(label: Option<&str>) -> Meta {
    let mut meta = Meta::default();
    if let Some(label) = label {
        meta.labels.insert(MODE_LABEL.to_owned(), label.to_owned());
    }
    meta
}

#[test]
fn who_is_enrolled() {
    let ambient = || json!({MODE_LABEL: "ambient"});
    let with = |label: &str| json!({"metadata": {"labels": {MODE_LABEL: label}}});
    let sidecar = json!({"metadata": {"annotations": {SIDECAR: ""}, "labels": ambient()}});
    let host = json!({"spec": {"hostNetwork": true}, "metadata": {"labels": ambient()}});
    let (yes, no, unknown) = (Some(true), Some(false), None);
    for (name, of_pod, of_namespace, expected) in [
        ("nobody says", json!({}), Some(None), no),
        ("the namespace says", json!({}), Some(Some("ambient")), yes),
        ("the pod says", with("ambient"), Some(None), yes),
        ("both say", with("ambient"), Some(Some("ambient")), yes),
        ("the pod says no", with("none"), Some(Some("ambient")), no),
        (
            "the namespace says no",
            with("ambient"),
            Some(Some("none")),
            yes,
        ),
        (
            "no such mode in the pod",
            with("Ambient"),
            Some(Some("ambient")),
            yes,
        ),
        (
            "no such mode in the namespace",
            json!({}),
            Some(Some("sidecar")),
            no,
        ),
        (
            "it has a sidecar",
            sidecar.clone(),
            Some(Some("ambient")),
            no,
        ),
        (
            "it is in the host's network",
            host.clone(),
            Some(Some("ambient")),
            no,
        ),
        (
            "nothing is known of the namespace",
            json!({}),
            None,
            unknown,
        ),
        (
            "the pod decides without the namespace",
            with("ambient"),
            None,
            yes,
        ),
        (
            "the pod declines without the namespace",
            with("none"),
            None,
            no,
        ),
        ("a sidecar decides without the namespace", sidecar, None, no),
        ("host network decides without the namespace", host, None, no),
    ] {
        let of_namespace = of_namespace.map(namespace);
        let judged = judge(&pod(of_pod), of_namespace.as_ref());
        let judged = judged.map(|judgement| judgement == Judgement::Enrolled);
        assert_eq!(judged, expected, "{name}");
    }
}

fn common() -> Common {
    Common {
        trust_domain: "td".to_owned(),
        dns: true,
    }
}

#[test]
fn a_pod_is_described_by_its_spec() {
    let described = describe(
        &pod(json!({
            "metadata": {"name": "web-0", "namespace": "shop", "uid": "u-1",
                         "annotations": {"kubernetes.io/config.mirror": "abc", "ambient.istio.io/bypass-inbound-capture": "true"}},
            "spec": {"serviceAccountName": "web", "containers": [{"name": "c", "livenessProbe": {"tcpSocket": {"port": 80}}}]},
        })),
        &common(),
    );
    let Described {
        description,
        complaints,
    } = described.unwrap();
    assert_eq!(complaints, [] as [String; 0]);
    assert_eq!(description.uid.as_str(), "u-1");
    assert_eq!(
        description.identity.to_string(),
        "spiffe://td/ns/shop/sa/web"
    );
    assert_eq!(description.config_hash.as_deref(), Some("abc"));
    assert!(description.options.bypass_inbound);
    assert!(description.options.capture_dns);
    assert_eq!(description.options.probe_ports, Some(vec![80]));
}

#[test]
fn what_is_left_out_has_its_default() {
    let bare = pod(json!({"metadata": {"name": "a", "namespace": "b", "uid": "c"}}));
    let without_dns = Common {
        dns: false,
        ..common()
    };
    let described = describe(&bare, &without_dns).unwrap().description;
    assert_eq!(
        described.identity.to_string(),
        "spiffe://td/ns/b/sa/default"
    );
    assert_eq!(described.options.probe_ports, Some(vec![]));
    assert!(!described.options.capture_dns);
    assert_eq!(described.config_hash, None);
}

#[test]
fn complaints_of_annotations_and_probes_come_together() {
    let odd = pod(json!({
        "metadata": {"name": "a", "namespace": "b", "uid": "c", "annotations": {"redirect.dev/capture-dns": "maybe"}},
        "spec": {"containers": [{"name": "d", "livenessProbe": {"httpGet": {"port": "e"}}}]},
    }));
    let described = describe(&odd, &common()).unwrap();
    assert_eq!(described.complaints.len(), 2, "{:?}", described.complaints);
    assert!(described.description.options.capture_dns);
}

#[test]
fn names_that_cannot_be_are_refused() {
    for metadata in [
        json!({"name": "../a", "namespace": "b", "uid": "c"}),
        json!({"name": "a", "namespace": "", "uid": "c"}),
        json!({"name": "a", "namespace": "b", "uid": "c/d"}),
        json!({"name": "a", "namespace": "b"}),
    ] {
        let named = metadata.to_string();
        assert!(
            describe(&pod(json!({"metadata": metadata})), &common()).is_err(),
            "{named}"
        );
    }
}

/// As API servers of several ages write them.
#[test]
fn nulls_and_fields_of_other_versions_are_read() {
    let read = pod(json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": "a", "labels": null, "annotations": null, "managedFields": [{"manager": "x"}], "ownerReferences": null},
        "spec": {"containers": null, "nodeName": "n", "ephemeralContainers": []},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "conditions": []},
    }));
    assert_eq!(read.ips().len(), 2);
    let old = pod(json!({"status": {"podIP": "10.0.0.1"}}));
    assert_eq!(old.ips().len(), 1);
}
