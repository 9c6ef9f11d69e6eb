//! Connects that capture leaves alone.

use std::net::SocketAddr;

use redirect::pod::PodOptions;
use redirect_tests::App;

use crate::fixture::Fixture;

/// Connects to a `greet` server and expects to talk to it, not to the stand-in for the proxy.
#[track_caller]
fn expect_direct(app: &App, target: SocketAddr) {
    assert_eq!(app.event("connected").addr("peername"), target);
    assert!(app.event("received").text().starts_with("hello "));
}

#[test]
fn loopback_and_own_addresses() {
    let fixture = Fixture::new();
    let server = fixture
        .client
        .app(["serve", "--listen", "[::]:9000", "--mode", "greet"]);
    server.event("listening");
    for target in [
        "127.0.0.1:9000",
        "127.0.0.53:9000",
        "[::1]:9000",
        "[::ffff:127.0.0.1]:9000",
    ] {
        let target = target.parse().expect("an address");
        expect_direct(&fixture.start(target, &[], &["recv-line"]), target);
    }
    assert_eq!(fixture.count_at("connect", "loopback"), 4);
    for target in [fixture.client.at(9000), fixture.client.at6(9000)] {
        expect_direct(&fixture.start(target, &[], &["recv-line"]), target);
    }
    assert_eq!(fixture.count_at("connect", "own_address"), 2);
    for (target, peername) in [
        ("0.0.0.0:9000", "127.0.0.1:9000"),
        ("[::]:9000", "[::1]:9000"),
    ] {
        let app = fixture.start(target.parse().expect("an address"), &[], &["recv-line"]);
        assert_eq!(app.event("connected").str("peername"), peername);
        assert!(app.event("received").text().starts_with("hello "));
    }
    assert_eq!(
        (
            fixture.count_at("connect", "unspecified"),
            fixture.count_at("connect", "captured")
        ),
        (2, 0)
    );
}

#[test]
fn further_own_addresses() {
    let mut fixture = Fixture::new();
    fixture.client.ip("addr add 10.77.0.1/32 dev eth0");
    let server = fixture
        .client
        .app(["serve", "--listen", "0.0.0.0:9000", "--mode", "greet"]);
    server.event("listening");
    let mut pod = fixture.spec();
    pod.ips.push("10.77.0.1".parse().expect("an address"));
    let netns = fixture.client.netns().clone();
    crate::fixture::apply(fixture.capture(), &pod, &netns).expect("apply");
    let target = "10.77.0.1:9000".parse().expect("an address");
    expect_direct(&fixture.start(target, &[], &["recv-line"]), target);
}

#[test]
fn excluded_ports_and_networks() {
    let fixture = Fixture::with(|_, peer| PodOptions {
        exclude_outbound_ports: vec![9022],
        exclude_outbound_cidrs: vec![
            format!("{}/32", peer.ipv4()).parse().expect("a network"),
            format!("{}/128", peer.ipv6()).parse().expect("a network"),
            "198.18.0.0/15".parse().expect("a network"),
        ],
        ..PodOptions::default()
    });
    let server = fixture
        .peer
        .app(["serve", "--listen", "[::]:9000", "--mode", "greet"]);
    server.event("listening");
    for target in [fixture.peer.at(9000), fixture.peer.at6(9000)] {
        expect_direct(&fixture.start(target, &[], &["recv-line"]), target);
    }
    assert_eq!(fixture.count("excluded_net"), 2);
    let refused = fixture.start(
        "192.0.2.7:9022".parse().expect("an address"),
        &["--nonblocking"],
        &[],
    );
    assert_ne!(refused.event("error").str("name"), "EPERM");
    assert_eq!(fixture.count("excluded_port"), 1);
    // Just outside of the excluded network.
    let (answer, _) = fixture.connect("198.20.0.1:9000".parse().expect("an address"), &[]);
    assert!(answer.original.is_some());
}

#[test]
fn exclusions_follow_the_options() {
    let mut fixture = Fixture::with(|_, _| PodOptions {
        exclude_outbound_ports: vec![9000],
        ..PodOptions::default()
    });
    let target = fixture.peer.at(9000);
    let server = fixture
        .peer
        .app(["serve", "--listen", "0.0.0.0:9000", "--mode", "greet"]);
    server.event("listening");
    expect_direct(&fixture.start(target, &[], &["recv-line"]), target);
    fixture.options.exclude_outbound_ports = vec![9001];
    fixture.apply();
    assert_eq!(fixture.connect(target, &[]).0.original, Some(target));
    fixture.options.exclude_outbound_ports.clear();
    fixture.options.exclude_outbound_cidrs =
        vec![format!("{}/32", target.ip()).parse().expect("a network")];
    fixture.apply();
    expect_direct(&fixture.start(target, &[], &["recv-line"]), target);
    fixture.options.exclude_outbound_cidrs.clear();
    fixture.apply();
    assert_eq!(fixture.connect(target, &[]).0.original, Some(target));
}

#[test]
fn exempt_cgroups_and_what_is_below_them() {
    let fixture = Fixture::with(|client, _| {
        let exempt = client.container("exempt");
        std::fs::create_dir_all(exempt.join("below")).expect("make cgroups");
        PodOptions {
            exempt_cgroups: vec![exempt],
            ..PodOptions::default()
        }
    });
    let target = fixture.peer.at(9000);
    let server = fixture
        .peer
        .app(["serve", "--listen", "0.0.0.0:9000", "--mode", "greet"]);
    server.event("listening");
    for container in ["exempt", "exempt/below"] {
        let app = fixture
            .client
            .app_in(container, ["connect", &target.to_string(), "recv-line"]);
        expect_direct(&app, target);
    }
    assert_eq!(fixture.count("exempt_cgroup"), 2);
    assert_eq!(fixture.connect(target, &[]).0.original, Some(target));
}

#[test]
fn the_metadata_address() {
    let mut fixture = Fixture::new();
    let target = "169.254.169.254:80".parse().expect("an address");
    fixture
        .start(target, &["--nonblocking"], &[])
        .event("error");
    assert_eq!(fixture.count("metadata"), 1);
    fixture.options.capture_metadata_address = true;
    fixture.apply();
    assert_eq!(fixture.connect(target, &[]).0.original, Some(target));
}

#[test]
fn a_process_outside_of_the_pods_cgroup_and_another_namespace() {
    let fixture = Fixture::new();
    let target = fixture.peer.at(9000);
    let server = fixture
        .peer
        .app(["serve", "--listen", "0.0.0.0:9000", "--mode", "greet"]);
    server.event("listening");
    let outside = fixture
        .client
        .app_outside(["connect", &target.to_string(), "recv-line"]);
    expect_direct(&outside, target);
    // In the pod's cgroup, but in a namespace where nobody listens for it: as in docker-in-docker.
    let elsewhere = fixture.peer.netns().path();
    let mut command = std::process::Command::new(redirect_tests::app_binary());
    command
        .arg("enter")
        .arg(fixture.client.container("app"))
        .arg(elsewhere)
        .arg(redirect_tests::app_binary());
    command.args(["connect", &target.to_string(), "recv-line"]);
    let app = App::new(redirect_tests::Process::spawn("nested", command));
    expect_direct(&app, target);
    assert_eq!(
        (fixture.count("foreign_netns"), fixture.count("captured")),
        (1, 0)
    );
}
