use serde_json::{Value, json};

use super::{super::super::watch::Change, *};
use crate::workload::Workloads;

fn about() -> About {
    About {
        trust_domain: "td".to_owned(),
        cluster_id: "c1".to_owned(),
        network: "net".to_owned(),
        domain: "cluster.local".to_owned(),
    }
}

fn all<T: serde::de::DeserializeOwned>(list: Value) -> Change<T> {
    Change::All(serde_json::from_value(list).unwrap())
}

/// A shop of two pods on two nodes behind a service, a pod outside of the mesh, and the API server.
fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    assert!(!cluster.is_complete());
    cluster.namespaces.apply(all(json!([
        {"metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}}},
        {"metadata": {"name": "default"}},
    ])));
    cluster.pods.apply(all(json!([
        {"metadata": {"name": "web-5d-x", "namespace": "shop", "uid": "1", "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": "web", "version": "v2", "pod-template-hash": "5d"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "web-5d", "controller": true}]},
         "spec": {"nodeName": "n1", "serviceAccountName": "web"},
         "status": {"phase": "Running", "podIP": "10.1.0.1", "podIPs": [{"ip": "10.1.0.1"}, {"ip": "fd00::1"}]}},
        {"metadata": {"name": "web-5d-y", "namespace": "shop", "uid": "2", "creationTimestamp": "2026-01-02T00:00:00Z"},
         "spec": {"nodeName": "n2", "serviceAccountName": "web"},
         "status": {"phase": "Running", "podIP": "10.2.0.1"}},
        {"metadata": {"name": "old", "namespace": "default", "uid": "3"},
         "spec": {"nodeName": "n1"}, "status": {"phase": "Running", "podIP": "10.1.0.9"}},
        {"metadata": {"name": "proxy", "namespace": "shop", "uid": "4"},
         "spec": {"nodeName": "n1", "hostNetwork": true}, "status": {"phase": "Running", "podIP": "192.0.2.1"}},
        {"metadata": {"name": "done", "namespace": "shop", "uid": "5"},
         "spec": {"nodeName": "n1"}, "status": {"phase": "Succeeded", "podIP": "10.1.0.7"}},
        {"metadata": {"name": "starts", "namespace": "shop", "uid": "6"}, "spec": {"nodeName": "n1"}, "status": {"phase": "Pending"}},
    ])));
    cluster.services.apply(all(json!([
        {"metadata": {"name": "web", "namespace": "shop"}, "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00:96::1"],
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"},
                      {"name": "dns", "port": 53, "protocol": "UDP"}]}},
        {"metadata": {"name": "kubernetes", "namespace": "default"}, "spec": {"clusterIP": "10.96.0.2",
            "ports": [{"name": "https", "port": 443, "targetPort": 6443}]}},
        {"metadata": {"name": "headless", "namespace": "shop"}, "spec": {"clusterIP": "None", "ports": [{"port": 5432}]}},
        {"metadata": {"name": "elsewhere", "namespace": "shop"}, "spec": {"type": "ExternalName"}},
    ])));
    cluster.slices.apply(all(json!([
        {"metadata": {"name": "web-4", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
         "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}],
         "endpoints": [{"addresses": ["10.1.0.1"], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": "web-5d-x", "namespace": "shop"}},
                       {"addresses": ["10.2.0.1"], "conditions": {"ready": false}, "targetRef": {"kind": "Pod", "name": "web-5d-y", "namespace": "shop"}},
                       {"addresses": ["10.2.0.99"], "targetRef": {"kind": "Pod", "name": "web-5d-x", "namespace": "shop"}}]},
        {"metadata": {"name": "web-6", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv6",
         "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
         "endpoints": [{"addresses": ["fd00::1"], "conditions": {}, "targetRef": {"kind": "Pod", "name": "web-5d-x", "namespace": "shop"}}]},
        {"metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}}, "addressType": "IPv4",
         "ports": [{"name": "https", "port": 6443}], "endpoints": [{"addresses": ["192.0.2.1"], "conditions": {"ready": null}}]},
        {"metadata": {"name": "empty", "namespace": "shop", "labels": {"kubernetes.io/service-name": "headless"}}, "addressType": "IPv4",
         "ports": null, "endpoints": null},
    ])));
    assert!(cluster.is_complete());
    cluster
}

fn workload<'a>(workloads: &'a Workloads, name: &str) -> &'a Workload {
    let mut all = workloads.workloads().iter();
    all.find(|workload| *workload.name == *name).unwrap()
}

fn service<'a>(workloads: &'a Workloads, name: &str) -> &'a Service {
    let mut all = workloads.services().iter();
    all.find(|service| *service.name == *name).unwrap()
}

#[test]
fn pods_are_workloads_with_hbone_if_they_are_enrolled() {
    let workloads = build(&cluster(), &about());
    let mut names: Vec<_> = workloads.workloads().iter().map(|w| &*w.name).collect();
    names.sort_unstable();
    assert_eq!(names, ["192.0.2.1", "old", "proxy", "web-5d-x", "web-5d-y"]);
    let web = workload(&workloads, "web-5d-x");
    assert_eq!(&*web.uid, "c1//Pod/shop/web-5d-x");
    assert_eq!(web.identity.to_string(), "spiffe://td/ns/shop/sa/web");
    assert_eq!((web.protocol, web.ips.len()), (Protocol::Hbone, 2));
    assert_eq!(
        (&*web.workload_name, &*web.workload_type),
        ("web", "deployment")
    );
    assert_eq!(
        (&*web.canonical_name, &*web.canonical_revision),
        ("web", "v2")
    );
    assert_eq!((&*web.node, &*web.network), ("n1", "net"));
    assert_eq!(workload(&workloads, "old").protocol, Protocol::Tcp);
    let proxy = workload(&workloads, "proxy");
    assert_eq!(
        (proxy.protocol, proxy.network_mode),
        (Protocol::Tcp, NetworkMode::HostNetwork)
    );
    assert!(
        workloads
            .workload("net", "192.0.2.1".parse().unwrap())
            .is_none()
    );
    assert!(
        workloads
            .workload("net", "10.1.0.7".parse().unwrap())
            .is_none()
    );
}

#[test]
fn services_have_the_endpoints_of_their_slices() {
    let workloads = build(&cluster(), &about());
    let web = service(&workloads, "web");
    assert_eq!(&*web.hostname, "web.shop.svc.cluster.local");
    assert_eq!(web.vips.len(), 2);
    assert_eq!(web.ports, BTreeMap::from([(80, 0)]));
    let endpoints: Vec<_> = web
        .endpoints
        .iter()
        .map(|e| (&*e.workload.name, e.status, e.ports[&80]))
        .collect();
    assert_eq!(
        endpoints,
        [
            ("web-5d-x", Health::Healthy, 8080),
            ("web-5d-y", Health::Unhealthy, 8080)
        ]
    );
    let targets: Vec<_> = web.targets[&80][0]
        .iter()
        .map(|target| target.port)
        .collect();
    assert_eq!(targets, [8080]);
    let found = workloads.service("net", "fd00:96::1".parse().unwrap(), "default");
    assert_eq!(found.map(|found| &*found.name), Some("web"));
    let api = service(&workloads, "kubernetes");
    assert_eq!(api.endpoints[0].ports, BTreeMap::from([(443, 6443)]));
    assert_eq!(api.endpoints[0].workload.protocol, Protocol::Tcp);
    let headless = service(&workloads, "headless");
    assert_eq!((headless.vips.len(), headless.endpoints.len()), (0, 0));
    assert!(
        !workloads
            .services()
            .iter()
            .any(|service| *service.name == *"elsewhere")
    );
}

#[test]
fn an_address_that_two_pods_have_is_the_later_ones() {
    let mut cluster = cluster();
    cluster.pods.apply(Change::Put(serde_json::from_value(json!(
        {"metadata": {"name": "heir", "namespace": "shop", "uid": "9", "creationTimestamp": "2026-02-01T00:00:00Z"},
         "spec": {"nodeName": "n1"}, "status": {"phase": "Running", "podIP": "10.1.0.1"}}
    )).unwrap()));
    let workloads = build(&cluster, &about());
    let of_v4 = workloads
        .workload("net", "10.1.0.1".parse().unwrap())
        .unwrap();
    let of_v6 = workloads
        .workload("net", "fd00::1".parse().unwrap())
        .unwrap();
    assert_eq!((&*of_v4.name, &*of_v6.name), ("heir", "web-5d-x"));
}

#[test]
fn owners_are_named_as_operators_know_them() {
    let owned = |kind: &str, name: &str| {
        let pod = json!({"metadata": {"name": "p", "ownerReferences": [{"kind": kind, "name": name, "controller": true}]}});
        owner(&serde_json::from_value(pod).unwrap())
    };
    assert_eq!(owned("StatefulSet", "db"), ("db".to_owned(), "statefulset"));
    assert_eq!(owned("DaemonSet", "ds"), ("ds".to_owned(), "daemonset"));
    assert_eq!(owned("Job", "once"), ("once".to_owned(), "job"));
    assert_eq!(
        owned("Job", "nightly-29012345"),
        ("nightly".to_owned(), "cronjob")
    );
    assert_eq!(owned("ReplicaSet", "rs"), ("rs".to_owned(), "replicaset"));
    let bare = serde_json::from_value(json!({"metadata": {"name": "p"}})).unwrap();
    assert_eq!(owner(&bare), ("p".to_owned(), "pod"));
}
