//! The real daemon with the API as its source: a pod that runs already, of which no CNI plugin has told.

use redirect_tests::{
    App, Pod, Testbed,
    exchange::{greeted, greeter},
    kubernetes::FakeApi,
};
use serde_json::{Value, json};

const ANNOTATION: &str = "ambient.istio.io/redirection";

fn is_annotated(pod: &Value) -> bool {
    pod["metadata"]["annotations"][ANNOTATION] == "enabled"
}

/// The pod as the API has it.
fn object(pod: &Pod) -> Value {
    let cgroup = pod.cgroup();
    let name = cgroup.file_name().and_then(|name| name.to_str());
    let uid = name.and_then(|name| name.strip_prefix("pod"));
    json!({
        "metadata": {"name": pod.name(), "namespace": pod.namespace(), "uid": uid.expect("a pod's cgroup")},
        "spec": {"nodeName": pod.node().name(), "serviceAccountName": pod.service_account()},
        "status": {"phase": "Running", "podIP": pod.ipv4(), "podIPs": [{"ip": pod.ipv4()}, {"ip": pod.ipv6()}]},
    })
}

/// Whether what the server sees is not the app's own socket.
#[track_caller]
fn is_captured(client: &Pod, server: &App, outside: &Pod) -> bool {
    let connected = greeted(client, outside.at(8080), &[]);
    let peer = server.event("accepted").addr("peer");
    peer.port() != connected.addr("sockname").port()
}

#[test]
fn a_running_pod_is_found_captured_and_let_go_as_its_labels_say() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let (client, outside) = (node.pod("client"), node.pod("outside"));
    bed.workloads().hbone(&client).write();
    let api = FakeApi::start_in(node.netns());
    let enrolled = json!({"istio.io/dataplane-mode": "ambient"});
    api.put(
        "namespaces",
        json!({"metadata": {"name": "default", "labels": enrolled}}),
    );
    api.put("pods", object(&client));
    // By its process it is found.
    let _resident = greeter(&client, 9000);
    let server = greeter(&outside, 8080);
    assert!(!is_captured(&client, &server, &outside));

    let kubeconfig = api.kubeconfig(&node.directory());
    let agent = json!({"kubernetes": {"kubeconfig": kubeconfig}});
    let capture = json!({"backend": "nftables"});
    let config = json!({"agent": agent, "capture": capture});
    let _daemon = node.daemon().config(config).start();
    let (namespace, name) = (client.namespace(), client.name());
    api.wait_object("pods", namespace, name, is_annotated);
    assert!(is_captured(&client, &server, &outside));

    let none = json!({"metadata": {"labels": {"istio.io/dataplane-mode": "none"}}});
    api.patch("pods", namespace, name, &none);
    api.wait_object("pods", namespace, name, |pod| !is_annotated(pod));
    assert!(!is_captured(&client, &server, &outside));
}
