//! Dedicated mode: the proxy is in the pod that it captures, as one of its containers.

use std::net::SocketAddr;

use redirect_tests::{
    Mesh, Pod, Testbed,
    exchange::{greeted, greeter, refused},
    get,
    way::{Backend, Mode},
};
use serde_json::json;

fn mesh() -> Mesh {
    Mesh::builder().way(Backend::Ebpf, Mode::Dedicated).start()
}

fn addresses(pod: &Pod, port: u16) -> [SocketAddr; 2] {
    [pod.at(port), pod.at6(port)]
}

#[test]
fn both_pods_capture_themselves_and_nothing_leaks() {
    let mesh = mesh();
    let server = greeter(&mesh.server, 8080);
    for (dst, client) in addresses(&mesh.server, 8080)
        .into_iter()
        .zip([mesh.client.ipv4(), mesh.client.ipv6()])
    {
        let connected = greeted(&mesh.client, dst, &[]);
        assert_eq!(connected.addr("peername"), dst);
        assert_eq!(connected.addr("sockname").ip(), client);
        assert_eq!(server.event("accepted").addr("peer").ip(), client);
    }
    // Outside the mesh, too: the proxy's own connection is not captured again.
    let outside = greeter(&mesh.outsider, 8080);
    for dst in addresses(&mesh.outsider, 8080) {
        let connected = greeted(&mesh.client, dst, &[]);
        let seen = outside.event("accepted").addr("peer");
        assert_ne!(seen.port(), connected.addr("sockname").port());
    }
    assert_eq!(mesh.wall.leaked(), 0);
    let exempt = [("verdict", "pass"), ("reason", "exempt_cgroup")];
    let metrics = mesh.daemon_a.metrics();
    assert!(metrics.sum("redirect_capture_verdicts_total", &exempt) >= 4.0);
}

#[test]
fn only_the_proxys_own_cgroup_is_exempt() {
    let mesh = mesh();
    let server = greeter(&mesh.outsider, 8080);
    // Another container, though it is root there as the proxy is.
    let dst = mesh.outsider.at(8080).to_string();
    let app = mesh
        .client
        .app_in("neighbour", ["connect", &dst, "recv-line"]);
    let port = app.event("connected").addr("sockname").port();
    app.event("received");
    assert_ne!(server.event("accepted").addr("peer").port(), port);
}

#[test]
fn probes_and_metrics_are_answered_at_the_pods_addresses() {
    let mesh = mesh();
    for at in addresses(&mesh.client, 15021) {
        let response = get(mesh.outsider.netns(), at, "/healthz/ready").expect("reachable");
        assert_eq!(response.status, 200, "{at}");
    }
    for at in addresses(&mesh.client, 15020) {
        let response = get(mesh.outsider.netns(), at, "/metrics").expect("reachable");
        assert!(
            response.body.contains("redirect_pods_captured{"),
            "{}",
            response.body
        );
    }
}

#[test]
fn without_the_proxy_connections_are_refused_until_the_next_one() {
    let mut mesh = mesh();
    let _server = greeter(&mesh.server, 8080);
    greeted(&mesh.client, mesh.server.at(8080), &[]);
    mesh.daemon_a.sigkill();
    for dst in addresses(&mesh.server, 8080) {
        refused(&mesh.client, dst);
    }
    let next = mesh.daemon_a.spec().start();
    for dst in addresses(&mesh.server, 8080) {
        greeted(&mesh.client, dst, &[]);
    }
    assert_eq!(mesh.wall.leaked(), 0);
    drop(next);
}

#[test]
fn what_a_dedicated_proxy_cannot_be_is_said() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let (pod, other) = (node.pod("client"), node.pod("other"));
    bed.workloads().hbone(&pod).write();
    let dedicated = json!({ "capture": { "mode": "dedicated" } });
    for (spec, fields, complaint) in [
        (
            pod.daemon(),
            json!({ "cgroup": pod.container("redirect") }),
            "the daemon's cgroup",
        ),
        (
            pod.daemon(),
            json!({ "netns": other.netns().path() }),
            "is not the daemon's own; in dedicated mode",
        ),
        (
            node.daemon(),
            json!({}),
            "is not the daemon's own; in dedicated mode",
        ),
    ] {
        let spec = spec.config(dedicated.clone()).capture_with(&pod, fields);
        let mut daemon = spec.start();
        daemon.wait_log("line of the failure", |line| {
            line.contains("cannot capture pod") && line.contains(complaint)
        });
        assert!(daemon.stop().success());
    }
}

#[test]
fn the_pods_namespace_is_the_daemons_own_unless_it_is_named() {
    let bed = Testbed::new();
    let (a, b) = (bed.node("a"), bed.node("b"));
    let (client, server) = (a.pod("client"), b.pod("server"));
    bed.workloads().tcp(&server).write();
    let entry = json!({
        "name": "client", "namespace": "default", "serviceAccount": "client",
        "cgroup": client.cgroup(), "ips": [client.ipv4(), client.ipv6()],
    });
    let spec = client.daemon().raw_pod(entry);
    let _daemon = spec
        .config(json!({ "capture": { "mode": "dedicated" } }))
        .start();
    let app = greeter(&server, 8080);
    let connected = greeted(&client, server.at(8080), &[]);
    let seen = app.event("accepted").addr("peer");
    assert_ne!(seen.port(), connected.addr("sockname").port());
}

#[test]
fn a_proxy_that_starts_anew_in_another_cgroup_takes_its_ports_again() {
    let mut mesh = mesh();
    let server = greeter(&mesh.server, 8080);
    greeted(&mesh.client, mesh.server.at(8080), &[]);
    server.event("accepted");
    mesh.daemon_a.sigkill();
    // Still captured: the programs refuse these ports to all but the pod's own proxy, which they know by its old cgroup.
    let cgroup = mesh.client.cgroup().join("proxy-again");
    std::fs::create_dir(&cgroup).expect("make a cgroup");
    let spec = mesh.daemon_a.spec().clone();
    mesh.daemon_a = spec
        .config(json!({ "capture": { "cgroup": cgroup } }))
        .start();
    greeted(&mesh.client, mesh.server.at(8080), &[]);
    server.event("accepted");
}
