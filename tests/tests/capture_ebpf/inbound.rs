//! Connections that arrive in a captured pod: what comes to the proxy's listener for plaintext, and what does not.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
};

use redirect::{capture::Capture, pod::PodUid, proxy::client_ip};
use redirect_tests::{App, Pod, Process, app_binary, wait_until};

use crate::fixture::{Answer, Fixture, PATIENCE, apply, load};

/// An app in the captured pod that says `hello ` to who comes.
pub fn greeter(fixture: &Fixture, port: u16) -> App {
    let listen = format!("[::]:{port}");
    let app = fixture
        .client
        .app(["serve", "--listen", &listen, "--mode", "greet"]);
    app.event("listening");
    app
}

pub fn connect(from: &Pod, to: SocketAddr) -> App {
    from.app(["connect", &to.to_string(), "recv-line"])
}

/// The stand-in on 15006 has it, with `target` as its own address and the client's as the other.
#[track_caller]
pub fn expect_captured(app: &App, target: SocketAddr, source: IpAddr) {
    let answer = Answer::parse(app.event("received").text());
    assert_eq!((answer.local, answer.peer.ip()), (target, source));
    assert_eq!(answer.original, None);
}

#[track_caller]
pub fn expect_app(app: &App) {
    let received = app.event("received");
    assert!(received.text().starts_with("hello "), "{}", received.text());
}

#[track_caller]
pub fn expect_refused(app: &App) {
    assert_eq!(app.event("error").str("name"), "ECONNREFUSED");
}

/// Both of the pod's addresses, with who of the peer connects to them.
pub fn both(fixture: &Fixture, port: u16) -> [(SocketAddr, IpAddr); 2] {
    let (pod, peer) = (&fixture.client, &fixture.peer);
    [(pod.at(port), peer.ipv4()), (pod.at6(port), peer.ipv6())]
}

#[test]
fn ports_of_the_app_and_ports_that_nobody_listens_on() {
    let fixture = Fixture::new();
    let app = greeter(&fixture, 8080);
    for port in [8080, 9, 65_535, 15_000, 15_020, 15_021] {
        for (target, source) in both(&fixture, port) {
            expect_captured(&connect(&fixture.peer, target), target, source);
        }
    }
    assert!(app.events("accepted").is_empty());
    assert_eq!(fixture.count("captured"), 12);
    // What the peer sees of it is the address that it asked for.
    let target = fixture.client.at(8080);
    let connected = connect(&fixture.peer, target).event("connected");
    assert_eq!(connected.addr("peername"), target);
}

#[test]
fn hbone_comes_to_its_own_listener() {
    let fixture = Fixture::new();
    for (target, source) in both(&fixture, 15_008) {
        let app = connect(&fixture.peer, target);
        let answer = Answer::parse(app.event("received").text());
        assert_eq!((answer.local, answer.peer.ip()), (target, source));
    }
    assert_eq!((fixture.count("hbone"), fixture.count("captured")), (2, 0));
}

#[test]
fn our_ports_are_closed_to_the_outside() {
    let fixture = Fixture::new();
    for port in [15_001, 15_006, 15_053] {
        for (target, _) in both(&fixture, port) {
            expect_refused(&connect(&fixture.peer, target));
            // The node itself is outside, too.
            let node = fixture.client.node();
            let mut command = node.command(app_binary());
            command.args(["connect", &target.to_string(), "recv-line"]);
            let output = command.output().expect("start rdt-app");
            let output = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.contains("ECONNREFUSED"), "{output}");
        }
    }
    assert_eq!(fixture.count("own_port"), 12);
}

#[test]
fn the_app_reaches_itself() {
    let fixture = Fixture::new();
    fixture.client.ip("addr add 10.77.0.1/32 dev eth0");
    let mut fixture = fixture;
    // The new address is found when the pod is applied, without being declared.
    fixture.apply();
    let _app = greeter(&fixture, 8080);
    let further: SocketAddr = "10.77.0.1:8080".parse().expect("an address");
    for target in [fixture.client.at(8080), fixture.client.at6(8080)] {
        expect_app(&connect(&fixture.client, target));
    }
    for target in [fixture.client.at(8080), fixture.client.at6(8080), further] {
        // Also where the connect hooks do not look: uncaptured at both ends.
        expect_app(
            &fixture
                .client
                .app_outside(["connect", &target.to_string(), "recv-line"]),
        );
    }
    for loopback in ["127.0.0.1:8080", "[::1]:8080"] {
        expect_app(&connect(&fixture.client, loopback.parse().expect("one")));
    }
    assert_eq!(fixture.count("captured"), 0);
    // From outside it is the pod's like the others.
    fixture.peer.node().ip(&format!(
        "route add 10.77.0.1/32 via {}",
        fixture.client.ipv4()
    ));
    let source = fixture.peer.ipv4();
    expect_captured(&connect(&fixture.peer, further), further, source);
}

#[test]
fn an_address_that_nobody_said_is_the_pods() {
    let fixture = Fixture::new();
    let _app = greeter(&fixture, 8080);
    fixture.client.ip("addr add 10.77.0.2/32 dev eth0");
    fixture.peer.node().ip(&format!(
        "route add 10.77.0.2/32 via {}",
        fixture.client.ipv4()
    ));
    let later = "10.77.0.2:8080".parse().expect("an address");
    expect_refused(&connect(&fixture.peer, later));
    assert_eq!(fixture.count("unknown_address"), 1);
}

#[test]
fn two_pods_with_one_address() {
    let mut fixture = Fixture::new();
    fixture
        .peer
        .ip(&format!("addr add {}/32 dev lo", fixture.client.ipv4()));
    let mut peer = fixture.spec();
    peer.uid = PodUid::new("default/peer");
    peer.cgroup = fixture.peer.cgroup();
    peer.ips = vec![fixture.peer.ipv4()];
    let netns = fixture.peer.netns().clone();
    let error = apply(fixture.capture(), &peer, &netns).expect_err("one address");
    let text = error.to_string();
    for part in [
        "default/peer",
        "default/client",
        &fixture.client.ipv4().to_string(),
    ] {
        assert!(text.contains(part), "{text}");
    }
    // Nothing of it stays, and the other pod is as it was.
    assert_eq!(
        fixture.capture().inspect().expect("inspect"),
        [PodUid::new("default/client")]
    );
    let target = fixture.client.at(80);
    assert!(fixture.entries("rdr_inbound") == 2, "its addresses stay");
    fixture
        .peer
        .ip(&format!("addr del {}/32 dev lo", fixture.client.ipv4()));
    expect_captured(&connect(&fixture.peer, target), target, fixture.peer.ipv4());
}

/// The proxy's connection to the app, with the address of a client that is elsewhere.
#[test]
fn the_proxy_reaches_the_app() {
    let fixture = Fixture::new();
    let app = greeter(&fixture, 8080);
    client_ip::apply(fixture.client.netns()).expect("routes and sysctls");
    for (target, source) in both(&fixture, 8080) {
        let source = SocketAddr::new(source, 0).to_string();
        let from_client = ["--transparent", "--mark", "273", "--bind", &source];
        for options in [&from_client[..], &[]] {
            expect_app(&proxy_connect(&fixture, options, target));
        }
        assert_eq!(app.event("accepted").addr("peer").ip().to_string(), {
            let ip = source.parse::<SocketAddr>().expect("an address").ip();
            ip.to_string()
        });
        app.event("accepted");
    }
    assert_eq!(fixture.count("from_proxy"), 2);
    // A port that is closed is that for the proxy, too.
    let source = SocketAddr::new(fixture.peer.ipv4(), 0).to_string();
    let from_client = ["--transparent", "--mark", "273", "--bind", &source];
    expect_refused(&proxy_connect(&fixture, &from_client, fixture.client.at(9)));
    assert_eq!(fixture.count("captured"), 0);
    assert!(wait_until(PATIENCE, || fixture.entries("rdr_pass") == 0));
    client_ip::clean(fixture.client.netns()).expect("clean");
}

/// Only from inside the pod's own namespace: the proxy carries other pods' plaintext, too, which is captured here.
#[test]
fn the_proxy_of_another_pod_is_captured() {
    let fixture = Fixture::new();
    let app = greeter(&fixture, 8080);
    for (target, source) in both(&fixture, 8080) {
        let mut command = fixture.peer.command_at(&fixture.proxy_cgroup, app_binary());
        command.args(["connect", &target.to_string(), "recv-line"]);
        let from = App::new(Process::spawn("proxy", command));
        expect_captured(&from, target, source);
    }
    assert!(app.events("accepted").is_empty());
    assert_eq!(fixture.count("registered"), 0);
}

fn proxy_connect(fixture: &Fixture, options: &[&str], target: SocketAddr) -> App {
    let mut command = fixture
        .client
        .command_at(&fixture.proxy_cgroup, app_binary());
    command.arg("connect").args(options);
    command.args([&target.to_string(), "recv-line"]);
    App::new(Process::spawn("proxy", command))
}

#[test]
fn one_pod_cannot_take_all_places_of_the_proxy() {
    let fixture = Fixture::new();
    let app = greeter(&fixture, 8080);
    client_ip::apply(fixture.client.netns()).expect("routes and sysctls");
    // As if as many connections as may were under way already.
    let passing = crate::fixture::pins(&fixture.bpffs).join("maps/rdr_passing");
    let output = Command::new("/usr/sbin/bpftool")
        .args(["map", "update", "pinned"])
        .arg(passing)
        .args("key 0 0 0 0 value 0 16 0 0 0 0 0 0".split(' '))
        .output()
        .expect("run bpftool");
    assert!(output.status.success(), "{output:?}");
    let source = SocketAddr::new(fixture.peer.ipv4(), 0).to_string();
    let from_client = ["--transparent", "--mark", "273", "--bind", &source];
    let target = fixture.client.at(8080);
    // Refused, and not captured: it would come back to the proxy for ever.
    expect_refused(&proxy_connect(&fixture, &from_client, target));
    assert_eq!(
        (fixture.count("flow_limit"), fixture.count("captured")),
        (2, 0)
    );
    assert!(wait_until(PATIENCE, || fixture.entries("rdr_barred") == 0));
    assert!(app.events("accepted").is_empty());
    client_ip::clean(fixture.client.netns()).expect("clean");
}

/// A connection that nobody registered, from the node's own address and from a socket that looks like the proxy's.
#[test]
fn what_only_looks_like_the_proxy_is_captured() {
    let fixture = Fixture::new();
    let app = greeter(&fixture, 8080);
    for (target, source) in both(&fixture, 8080) {
        let source = SocketAddr::new(source, 0).to_string();
        let options = ["--transparent", "--mark", "273", "--bind", &source];
        let mut command = fixture.peer.command(app_binary());
        command.arg("connect").args(options);
        command.args([&target.to_string(), "recv-line"]);
        let from = App::new(Process::spawn("forger", command));
        expect_captured(
            &from,
            target,
            source.parse::<SocketAddr>().expect("one").ip(),
        );
    }
    assert!(app.events("accepted").is_empty());
}

#[test]
fn no_entry_of_conntrack_appears() {
    let fixture = Fixture::new();
    let target = fixture.client.at(8080);
    let app = connect(&fixture.peer, target);
    expect_captured(&app, target, fixture.peer.ipv4());
    let count = || Command::new("/usr/sbin/conntrack").arg("-C").output();
    let output = fixture
        .client
        .netns()
        .run(count)
        .expect("enter the pod")
        .expect("start conntrack");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "0");
}

#[test]
fn without_a_listener_connections_are_refused() {
    let mut fixture = Fixture::new();
    let app = greeter(&fixture, 8080);
    fixture.stop_listening();
    for (target, _) in both(&fixture, 8080) {
        expect_refused(&connect(&fixture.peer, target));
    }
    assert_eq!(fixture.count("no_listener"), 2);
    // Also when no daemon runs at all.
    fixture.capture = None;
    expect_refused(&connect(&fixture.peer, fixture.client.at(8080)));
    assert!(app.events("accepted").is_empty());
    // The next one takes over.
    fixture.capture = Some(load(&fixture.bpffs, &fixture.proxy_cgroup));
    fixture.listen();
    fixture.apply();
    let target = fixture.client.at6(8080);
    expect_captured(&connect(&fixture.peer, target), target, fixture.peer.ipv6());
}

#[test]
fn clean_lets_go_of_what_arrives() {
    let mut fixture = Fixture::new();
    let _app = greeter(&fixture, 8080);
    let uid = fixture.uid();
    fixture.capture().clean(&uid).expect("clean");
    for (target, _) in both(&fixture, 8080) {
        expect_app(&connect(&fixture.peer, target));
    }
    assert_eq!(fixture.entries("rdr_inbound"), 0);
}
