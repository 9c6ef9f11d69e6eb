//! Pins: capture outlives the daemon, is adopted by the next one, and goes when it is told to.

use std::{fs, net::SocketAddr};

use redirect::capture::{Applied, Capture, CaptureError, uninstall};

use crate::fixture::{Fixture, apply, load, pins};

fn nowhere() -> SocketAddr {
    "192.0.2.7:80".parse().expect("an address")
}

#[test]
fn a_dead_daemon_leaves_capture_in_place() {
    let mut fixture = Fixture::new();
    let server = fixture.peer.app(["serve", "--listen", "0.0.0.0:9000"]);
    server.event("listening");
    fixture.stop_listening();
    fixture.capture = None;
    let app = fixture.start(fixture.peer.at(9000), &[], &[]);
    assert_eq!(app.event("error").str("name"), "ECONNREFUSED");
    assert!(server.events("accepted").is_empty());
}

#[test]
fn the_next_daemon_adopts_what_it_finds() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.apply(), Applied::Adopted);
    let links = links(&fixture);
    fixture.stop_listening();
    fixture.capture = None;
    fixture.proxy_cgroup = fixture.proxy_cgroup.with_file_name("proxy-2");
    fs::create_dir(&fixture.proxy_cgroup).expect("make a cgroup");
    fixture.capture = Some(load(&fixture.bpffs, &fixture.proxy_cgroup));
    assert_eq!(
        fixture.capture().inspect().expect("inspect"),
        [fixture.uid()]
    );
    fixture.listen();
    assert_eq!(fixture.apply(), Applied::Adopted);
    assert_eq!(self::links(&fixture), links, "the links were made anew");
    assert_eq!(fixture.connect(nowhere(), &[]).0.original, Some(nowhere()));
    fixture.capture().settle().expect("no other daemon runs");
    let proxies = fs::read_dir(pins(&fixture.bpffs).join("proxy")).expect("readable");
    assert_eq!(proxies.count(), 1, "the old proxy's links stay");
}

#[test]
fn a_lost_link_is_put_back() {
    let mut fixture = Fixture::new();
    let lost = place(&fixture).join("connect4");
    fs::remove_file(&lost).expect("unpin");
    assert_eq!(fixture.apply(), Applied::Attached);
    assert!(lost.exists());
    assert_eq!(fixture.connect(nowhere(), &[]).0.original, Some(nowhere()));
}

/// As when a pod is captured and so is a cgroup above it, or while one version of the programs takes over from another.
#[test]
fn two_programs_on_one_connect_agree() {
    let mut fixture = Fixture::new();
    let mut above = fixture.spec();
    above.uid = redirect::pod::PodUid::new("default/above");
    above.cgroup = fixture
        .client
        .cgroup()
        .parent()
        .expect("a parent")
        .to_owned();
    let netns = fixture.client.netns().clone();
    apply(fixture.capture(), &above, &netns).expect("capture the cgroup above");
    for options in [&[][..], &["--device", "eth0"]] {
        assert_eq!(
            fixture.connect(nowhere(), options).0.original,
            Some(nowhere())
        );
    }
}

/// What a daemon leaves that is killed while it attaches.
#[test]
fn half_made_links_go() {
    let mut fixture = Fixture::new();
    let whole = place(&fixture);
    let name = whole.file_name().expect("a name").to_string_lossy();
    let half = whole.with_file_name(format!("new-{name}"));
    fs::create_dir(&half).expect("make a folder");
    fs::rename(whole.join("connect4"), half.join("connect4")).expect("move a link");
    assert_eq!(fixture.apply(), Applied::Attached);
    assert!(!half.exists());
    let (answer, _) = fixture.connect(nowhere(), &[]);
    assert_eq!(answer.original, Some(nowhere()));
}

#[test]
fn a_pod_without_ipv6() {
    let mut fixture = Fixture::new();
    let uid = fixture.uid();
    fixture.capture().clean(&uid).expect("clean");
    for interface in ["all", "lo", "eth0"] {
        fixture
            .client
            .sysctl(&format!("net.ipv6.conf.{interface}.disable_ipv6"), "1");
    }
    assert_eq!(fixture.apply(), Applied::Attached);
    assert_eq!(fixture.connect(nowhere(), &[]).0.original, Some(nowhere()));
    fixture.capture().clean(&uid).expect("clean again");
}

#[test]
fn a_cgroup_that_was_made_anew_is_captured_anew() {
    let mut fixture = Fixture::new();
    let before = place(&fixture);
    for cgroup in [fixture.client.container("app"), fixture.client.cgroup()] {
        fs::remove_dir(cgroup).expect("remove the cgroup");
    }
    fs::create_dir_all(fixture.client.container("app")).expect("make the cgroup again");
    assert_eq!(fixture.apply(), Applied::Attached);
    assert!(!before.exists() && place(&fixture).exists());
    assert_eq!(fixture.connect(nowhere(), &[]).0.original, Some(nowhere()));
}

#[test]
fn clean_lets_go_and_can_be_repeated() {
    let mut fixture = Fixture::new();
    let server = fixture
        .peer
        .app(["serve", "--listen", "[::]:9000", "--mode", "greet"]);
    server.event("listening");
    let uid = fixture.uid();
    fixture.capture().clean(&uid).expect("clean");
    fixture.capture().clean(&uid).expect("clean again");
    assert!(fixture.capture().inspect().expect("inspect").is_empty());
    for target in [fixture.peer.at(9000), fixture.peer.at6(9000)] {
        let app = fixture.start(target, &[], &["recv-line"]);
        assert!(app.event("received").text().starts_with("hello "));
    }
    assert_eq!(local_routes(&fixture), "");
    assert_eq!(fixture.apply(), Applied::Attached);
    let routes = local_routes(&fixture);
    let (ipv4, ipv6) = (fixture.client.ipv4(), fixture.client.ipv6());
    for (prefix, ip) in [("127.128.0.0/10", ipv4), ("fd72:6472:6374::/64", ipv6)] {
        let found = routes
            .lines()
            .find(|route| route.starts_with(&format!("local {prefix} dev lo ")));
        let route = found.unwrap_or_else(|| panic!("no {prefix}: {routes}"));
        assert!(route.contains(&format!("src {ip} ")), "{route}");
    }
    assert_eq!(routes.lines().count(), 2, "{routes}");
    // Neither doubled nor lost when the pod is applied again.
    fixture.apply();
    assert_eq!(local_routes(&fixture), routes);
}

#[test]
fn uninstall_needs_no_daemon_and_can_be_repeated() {
    let mut fixture = Fixture::new();
    let server = fixture
        .peer
        .app(["serve", "--listen", "0.0.0.0:9000", "--mode", "greet"]);
    server.event("listening");
    fixture.stop_listening();
    fixture.capture = None;
    // 24 maps, 13 links of the pod, 2 of the proxy.
    assert_eq!(uninstall(&fixture.bpffs).expect("uninstall"), 39);
    assert_eq!(uninstall(&fixture.bpffs).expect("uninstall again"), 0);
    assert!(!fixture.bpffs.join("redirect").exists());
    let app = fixture.start(fixture.peer.at(9000), &[], &["recv-line"]);
    assert!(app.event("received").text().starts_with("hello "));
}

#[test]
fn a_pod_that_cannot_be_captured_leaves_nothing() {
    let mut fixture = Fixture::new();
    let netns = fixture.peer.netns().clone();
    let mut pod = fixture.spec();
    pod.uid = redirect::pod::PodUid::new("default/other");
    pod.cgroup = "/proc/self".into();
    let error = apply(fixture.capture(), &pod, &netns).expect_err("no cgroup");
    assert!(matches!(error, CaptureError::Cgroup(_)), "{error}");
    assert_eq!(error.to_string(), "/proc/self is not a cgroup v2 directory");
    pod.cgroup = fixture.peer.cgroup();
    pod.uid = redirect::pod::PodUid::new("x".repeat(256));
    let error = apply(fixture.capture(), &pod, &netns).expect_err("a name too long");
    assert!(
        error.to_string().contains("give the pod a shorter uid"),
        "{error}"
    );
    assert_eq!(
        fixture.capture().inspect().expect("inspect"),
        [fixture.uid()]
    );
}

/// The folder of the pod's links.
pub fn place(fixture: &Fixture) -> std::path::PathBuf {
    let pod = pins(&fixture.bpffs).join("pods/default=2fclient");
    let mut places: Vec<_> = fs::read_dir(pod)
        .expect("readable")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    assert_eq!(places.len(), 1, "{places:?}");
    places.remove(0)
}

/// Inodes of the pinned links: new ones for links that were made anew.
fn links(fixture: &Fixture) -> Vec<(String, u64)> {
    use std::os::unix::fs::DirEntryExt;
    let entries = fs::read_dir(place(fixture))
        .expect("readable")
        .map(|entry| entry.expect("an entry"));
    let mut links: Vec<_> = entries
        .map(|entry| {
            (
                entry.file_name().to_string_lossy().into_owned(),
                entry.ino(),
            )
        })
        .collect();
    links.sort();
    assert_eq!(links.len(), 13);
    links
}

/// Our routes in the pod's table of local ones.
fn local_routes(fixture: &Fixture) -> String {
    let show = |family: &str| {
        let mut command = std::process::Command::new("ip");
        command.args([family, "route", "show", "table", "local", "proto", "114"]);
        let output = fixture
            .client
            .netns()
            .run(|| command.output())
            .expect("enter the pod")
            .expect("run ip");
        String::from_utf8(output.stdout).expect("text")
    };
    show("-4") + &show("-6")
}
