//! How a proxy learns the original destination: ours behind somebody else's capture, and somebody else's behind ours.

use std::net::SocketAddr;

use redirect_tests::{
    Mesh,
    exchange::{greeted, greeter},
};

#[test]
fn netfilters_redirect_is_understood() {
    let mesh = Mesh::builder().by_netfilter().start();
    let server = greeter(&mesh.server, 8080);
    let mapped = format!("[::ffff:{}]:8080", mesh.server.ipv4())
        .parse()
        .expect("an address");
    for dst in [mesh.server.at(8080), mesh.server.at6(8080), mapped] {
        greeted(&mesh.client, dst, &[]);
        let accepted = server.event("accepted");
        let dst = SocketAddr::new(dst.ip().to_canonical(), dst.port());
        assert_eq!(accepted.addr("local"), dst);
    }
    assert_eq!(mesh.wall.leaked(), 0);
}

#[test]
fn conntracks_word_on_a_direct_connection_is_not_believed() {
    let mesh = Mesh::builder().by_netfilter().start();
    // Conntrack follows this connection too, and names the listener itself as its original destination.
    for (to, count) in [(mesh.client.at(15001), 1), (mesh.client.at6(15001), 2)] {
        let app = mesh
            .outsider
            .app(["connect", &to.to_string(), "send:hello", "recv-all"]);
        assert_eq!(app.event("error").str("name"), "ECONNRESET");
        mesh.daemon_a
            .wait_failed("outbound", "no_original_destination", count);
    }
}

#[test]
fn an_unmodified_proxy_behind_our_capture_asks_so_original_dst() {
    let mut mesh = Mesh::start();
    // The daemon is gone, its programs stay: another proxy takes its port, in its cgroup and the pod's namespace.
    mesh.daemon_a.sigkill();
    let cgroup = mesh.daemon_a.spec().cgroup();
    let mut command = mesh
        .client
        .command_at(&cgroup, redirect_tests::app_binary());
    command.args([
        "serve",
        "--mode",
        "original-destination",
        "--listen",
        "[::]:15001",
    ]);
    let proxy = redirect_tests::App::new(redirect_tests::Process::spawn("another proxy", command));
    proxy.event("listening");
    let mapped = format!("[::ffff:{}]:8080", mesh.server.ipv4());
    for (dst, expected) in [
        (mesh.server.at(8080).to_string(), mesh.server.at(8080)),
        (mesh.server.at6(8080).to_string(), mesh.server.at6(8080)),
        (mapped, mesh.server.at(8080)),
    ] {
        let app = mesh.client.app(["connect", &dst, "recv-line"]);
        assert_eq!(
            app.event("received").text(),
            format!("original destination {expected}"),
            "of {dst}"
        );
    }
    // A connection that nobody redirected has none, as the kernel would say.
    let app = mesh
        .client
        .app(["connect", &mesh.client.at(15001).to_string(), "recv-line"]);
    let answer = app.event("received").text().to_owned();
    assert!(
        ["ENOENT", "ENOPROTOOPT"]
            .iter()
            .any(|name| answer.contains(name)),
        "{answer}"
    );
}
