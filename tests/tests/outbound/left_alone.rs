//! What capture leaves alone.

use std::net::SocketAddr;

use redirect_tests::{
    Mesh,
    exchange::{greeted, greeter},
};
use serde_json::json;

use super::{is_direct, mapped};

#[test]
fn loopback_and_the_pods_own_addresses_are_left_alone() {
    let mesh = Mesh::start();
    let server = greeter(&mesh.client, 8080);
    let (own4, own6) = (mesh.client.at(8080), mesh.client.at6(8080));
    let local = |text: &str| text.parse::<SocketAddr>().expect("an address");
    for dst in [
        local("127.0.0.1:8080"),
        local("127.1.2.3:8080"),
        local("[::1]:8080"),
        local("[::ffff:127.0.0.1]:8080"),
        own4,
        own6,
        mapped(own4),
    ] {
        let connected = greeted(&mesh.client, dst, &[]);
        assert!(
            is_direct(&server, &connected),
            "{dst} went through the proxy"
        );
        assert_eq!(connected.addr("peername"), dst);
    }
    for dst in ["0.0.0.0:8080", "[::]:8080"] {
        assert!(
            is_direct(&server, &greeted(&mesh.client, local(dst), &[])),
            "{dst}"
        );
    }
}

#[test]
fn excluded_ports_and_networks_are_left_alone() {
    let mesh = Mesh::builder()
        .client(json!({
            "excludeOutboundPorts": [2222],
            "excludeOutboundCidrs": ["10.99.0.0/16", "fd00:99::/32"],
        }))
        .start();
    mesh.outsider
        .ip("addr add 10.99.1.1/32 dev eth0\naddr add fd00:99::1/128 dev eth0 nodad\n");
    mesh.client
        .ip("route add 10.99.0.0/16 dev eth0\nroute add fd00:99::/32 dev eth0\n");
    let server = greeter(&mesh.outsider, 8080);
    let excluded = greeter(&mesh.outsider, 2222);
    for dst in [mesh.outsider.at(2222), mesh.outsider.at6(2222)] {
        assert!(
            is_direct(&excluded, &greeted(&mesh.client, dst, &[])),
            "excluded port of {dst}"
        );
    }
    for dst in [
        "10.99.1.1:8080",
        "[fd00:99::1]:8080",
        "[::ffff:10.99.1.1]:8080",
    ] {
        let dst = dst.parse().expect("an address");
        assert!(
            is_direct(&server, &greeted(&mesh.client, dst, &[])),
            "excluded network of {dst}"
        );
    }
    // And what is not excluded is not.
    for dst in [mesh.outsider.at(8080), mesh.outsider.at6(8080)] {
        assert!(
            !is_direct(&server, &greeted(&mesh.client, dst, &[])),
            "{dst} missed the proxy"
        );
    }
}

#[test]
fn exempt_cgroups_are_left_alone() {
    let mesh = Mesh::builder().client_of(|client| {
        let cgroup = client.container("exempt");
        std::fs::create_dir_all(cgroup.join("inner")).expect("make the exempt cgroup");
        json!({ "exemptCgroups": [cgroup] })
    });
    let mesh = mesh.start();
    let server = greeter(&mesh.outsider, 8080);
    let dst = mesh.outsider.at(8080).to_string();
    for (container, direct) in [("exempt", true), ("exempt/inner", true), ("app", false)] {
        let app = mesh
            .client
            .app_in(container, ["connect", &dst, "recv-line"]);
        let connected = app.event("connected");
        app.event("received");
        assert_eq!(
            is_direct(&server, &connected),
            direct,
            "container {container}"
        );
    }
}

#[test]
fn the_metadata_address_is_left_alone_unless_asked_for() {
    for captured in [false, true] {
        let mesh = Mesh::builder()
            .client(json!({ "captureMetadataAddress": captured }))
            .start();
        mesh.outsider.ip("addr add 169.254.169.254/32 dev eth0\n");
        mesh.client.ip("route add 169.254.169.254/32 dev eth0\n");
        let server = greeter(&mesh.outsider, 80);
        let connected = greeted(
            &mesh.client,
            "169.254.169.254:80".parse().expect("an address"),
            &[],
        );
        assert_eq!(
            is_direct(&server, &connected),
            !captured,
            "captureMetadataAddress: {captured}"
        );
    }
}

#[test]
fn a_process_outside_the_pods_cgroup_is_not_captured() {
    let without_guard = json!({ "capture": { "leakGuard": false } });
    let mesh = Mesh::builder().config_a(without_guard).start();
    let server = greeter(&mesh.outsider, 8080);
    let app =
        mesh.client
            .app_outside(["connect", &mesh.outsider.at(8080).to_string(), "recv-line"]);
    let connected = app.event("connected");
    assert!(is_direct(&server, &connected));
}
