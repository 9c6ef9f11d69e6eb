//! What a pod's options change for connections that arrive.

use redirect::pod::{OnProxyFailure, PodOptions};
use redirect_tests::wait_until;

use crate::{
    fixture::{Fixture, PATIENCE},
    inbound::{both, connect, expect_app, expect_captured, expect_refused, greeter},
};

#[test]
fn bypass() {
    let mut fixture = Fixture::with(|_, _| PodOptions {
        bypass_inbound: true,
        ..PodOptions::default()
    });
    let _app = greeter(&fixture, 8080);
    for (target, _) in both(&fixture, 8080) {
        expect_app(&connect(&fixture.peer, target));
    }
    assert_eq!(fixture.count("bypassed"), 2);
    // Our own ports are no one else's all the same.
    expect_refused(&connect(&fixture.peer, fixture.client.at(15_006)));
    // No longer: the other program takes the place of this one.
    fixture.options.bypass_inbound = false;
    fixture.apply();
    for (target, source) in both(&fixture, 8080) {
        expect_captured(&connect(&fixture.peer, target), target, source);
    }
}

#[test]
fn excluded_ports_and_sources() {
    let mut fixture = Fixture::with(|_, _| PodOptions {
        exclude_inbound_ports: vec![8080],
        ..PodOptions::default()
    });
    let (_first, _second) = (greeter(&fixture, 8080), greeter(&fixture, 8081));
    for (target, _) in both(&fixture, 8080) {
        expect_app(&connect(&fixture.peer, target));
    }
    for (target, source) in both(&fixture, 8081) {
        expect_captured(&connect(&fixture.peer, target), target, source);
    }
    fixture.options.exclude_inbound_ports.clear();
    fixture.options.exclude_inbound_cidrs = vec![
        format!("{}/32", fixture.peer.ipv4()).parse().expect("one"),
        "fd00:9::/32".parse().expect("one"),
    ];
    fixture.apply();
    expect_app(&connect(&fixture.peer, fixture.client.at(8080)));
    let [_, (target6, source6)] = both(&fixture, 8080);
    expect_captured(&connect(&fixture.peer, target6), target6, source6);
    assert_eq!(
        (
            fixture.count("excluded_port"),
            fixture.count("excluded_net")
        ),
        (2, 1)
    );
}

#[test]
fn included_ports_and_sources() {
    let mut fixture = Fixture::with(|_, peer| PodOptions {
        include_inbound_ports: vec![8081],
        include_inbound_cidrs: vec![format!("{}/128", peer.ipv6()).parse().expect("one")],
        ..PodOptions::default()
    });
    let _apps = (greeter(&fixture, 8080), greeter(&fixture, 8081));
    let [(target4, source4), (target6, source6)] = both(&fixture, 8080);
    expect_app(&connect(&fixture.peer, target4));
    expect_captured(&connect(&fixture.peer, target6), target6, source6);
    for (target, source) in both(&fixture, 8081) {
        expect_captured(&connect(&fixture.peer, target), target, source);
    }
    assert_eq!(fixture.count("not_included"), 1);
    fixture.options.include_inbound_ports.clear();
    fixture.options.include_inbound_cidrs.clear();
    fixture.apply();
    expect_captured(&connect(&fixture.peer, target4), target4, source4);
}

#[test]
fn outbound_is_captured_where_it_is_included() {
    let mut fixture = Fixture::with(|_, _| PodOptions {
        include_outbound_ports: vec![443],
        include_outbound_cidrs: vec![
            "198.18.0.0/15".parse().expect("one"),
            "2001:db8::/32".parse().expect("one"),
        ],
        ..PodOptions::default()
    });
    for included in ["192.0.2.7:443", "198.18.0.1:9", "[2001:db8::7]:9"] {
        let target = included.parse().expect("an address");
        assert_eq!(fixture.connect(target, &[]).0.original, Some(target));
    }
    let server = fixture
        .peer
        .app(["serve", "--listen", "[::]:9000", "--mode", "greet"]);
    server.event("listening");
    for target in [fixture.peer.at(9000), fixture.peer.at6(9000)] {
        expect_app(&fixture.start(target, &[], &["recv-line"]));
    }
    assert_eq!(fixture.count("not_included"), 2);
    fixture.options.include_outbound_ports = vec![9000];
    fixture.apply();
    let target = fixture.peer.at(9000);
    assert_eq!(fixture.connect(target, &[]).0.original, Some(target));
}

#[test]
fn without_a_proxy_a_pod_may_go_on() {
    let mut fixture = Fixture::with(|_, _| PodOptions {
        on_proxy_failure: OnProxyFailure::Pass,
        ..PodOptions::default()
    });
    let _app = greeter(&fixture, 8080);
    let server = fixture
        .peer
        .app(["serve", "--listen", "[::]:9000", "--mode", "greet"]);
    server.event("listening");
    let outbound = [fixture.peer.at(9000), fixture.peer.at6(9000)];
    // With a proxy, everything is captured.
    for target in outbound {
        assert_eq!(fixture.connect(target, &[]).0.original, Some(target));
    }
    for (target, source) in both(&fixture, 8080) {
        expect_captured(&connect(&fixture.peer, target), target, source);
    }
    fixture.stop_listening();
    for target in outbound {
        expect_app(&fixture.start(target, &[], &["recv-line"]));
    }
    for (target, _) in both(&fixture, 8080) {
        expect_app(&connect(&fixture.peer, target));
    }
    assert!(wait_until(PATIENCE, || fixture.count("no_listener") == 4));
    // And back.
    fixture.listen();
    fixture.apply();
    let target = fixture.peer.at(9000);
    assert_eq!(fixture.connect(target, &[]).0.original, Some(target));
}
