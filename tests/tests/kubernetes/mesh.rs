//! The cluster as the mesh.

use std::sync::Arc;

use redirect::workload::{Protocol, WorkloadStore, Workloads};
use redirect_tests::{
    eventually,
    kubernetes::{FakeApi, Faults},
};
use serde_json::{Value, json};

use super::stage::{Background, Directory, PATIENCE, feed, pod};

fn slice(name: &str, ready: bool) -> Value {
    json!({
        "metadata": {"name": format!("{name}-1"), "namespace": "shop", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": ready},
                       "targetRef": {"kind": "Pod", "name": "web", "namespace": "shop"}}],
    })
}

/// A service with one pod.
fn fill(api: &FakeApi) {
    let labels = json!({"istio.io/dataplane-mode": "ambient"});
    api.put(
        "namespaces",
        json!({"metadata": {"name": "shop", "labels": labels}}),
    );
    api.put("pods", pod("shop", "web", json!({})));
    let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80, "targetPort": 8080}]});
    api.put(
        "services",
        json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec}),
    );
    api.put("endpointslices", slice("web", true));
}

#[track_caller]
fn wait(
    store: &Arc<WorkloadStore>,
    what: &str,
    is_so: impl Fn(&Workloads) -> bool,
) -> Arc<Workloads> {
    eventually(what, PATIENCE, || match store.snapshot() {
        Some(workloads) if is_so(&workloads) => Ok(workloads),
        other => Err(format!("{other:#?}")),
    })
}

fn endpoints(workloads: &Workloads) -> usize {
    let services = workloads.services().iter();
    services.map(|service| service.ready().count()).sum()
}

#[test]
fn nothing_is_routed_before_all_of_the_cluster_is_known() {
    let (api, dir, runtime) = (FakeApi::start(), Directory::new(), Background::start());
    fill(&api);
    for kind in ["pods", "namespaces", "services", "endpointslices"] {
        api.fail(Faults {
            down: true,
            only: kind.to_owned(),
            ..Faults::default()
        });
        let from = api.requests().len();
        let store = feed(&runtime, &api, &dir);
        // The others have been listed and are watched.
        for other in ["pods", "namespaces", "services", "endpointslices"] {
            api.wait_request(from, other, |request| {
                request.contains(&format!("/{other}?"))
                    && (other == kind || request.contains("watch"))
            });
        }
        assert!(store.snapshot().is_none(), "{kind}");
        api.heal();
        let workloads = wait(&store, "the cluster", |workloads| endpoints(workloads) == 1);
        assert_eq!(store.stats().loads, 1, "{kind}");
        let web = workloads.workload("", "10.0.0.1".parse().unwrap()).unwrap();
        assert_eq!(web.protocol, Protocol::Hbone);
        assert_eq!(
            web.identity.to_string(),
            "spiffe://cluster.local/ns/shop/sa/web"
        );
    }
}

#[test]
fn changes_of_the_cluster_arrive_and_others_cost_nothing() {
    let (api, dir, runtime) = (FakeApi::start(), Directory::new(), Background::start());
    fill(&api);
    let store = feed(&runtime, &api, &dir);
    wait(&store, "the cluster", |workloads| endpoints(workloads) == 1);
    let loads = store.stats().loads;
    // What is nothing to the mesh, before what is.
    api.patch(
        "pods",
        "shop",
        "web",
        &json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
    );
    api.put("endpointslices", slice("web", false));
    let workloads = wait(&store, "not ready", |workloads| endpoints(workloads) == 0);
    assert_eq!(workloads.services()[0].endpoints.len(), 1);
    assert_eq!(store.stats().loads, loads + 1);
    api.put("endpointslices", slice("web", true));
    wait(&store, "ready again", |workloads| endpoints(workloads) == 1);
    api.delete("pods", "shop", "web");
    wait(&store, "without the pod", |workloads| {
        workloads.workloads().is_empty()
    });
    // While the API is away, all is as it was.
    api.fail(Faults {
        down: true,
        ..Faults::default()
    });
    let from = api.requests().len();
    api.wait_request(from, "an attempt", |request| request.contains("/services?"));
    assert_eq!(store.snapshot().unwrap().services().len(), 1);
}

#[test]
fn a_cluster_of_before_1_21_has_the_same_mesh() {
    let (api, dir, runtime) = (FakeApi::start(), Directory::new(), Background::start());
    fill(&api);
    api.fail(Faults {
        old: true,
        page: Some(1),
        ..Faults::default()
    });
    let store = feed(&runtime, &api, &dir);
    wait(&store, "the cluster", |workloads| endpoints(workloads) == 1);
    let requests = api.requests();
    assert!(
        requests
            .iter()
            .any(|r| r.starts_with("GET /apis/discovery.k8s.io/v1beta1/endpointslices?"))
    );
}
