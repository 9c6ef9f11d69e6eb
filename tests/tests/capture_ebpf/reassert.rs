//! What something else on the node takes away is put back, without a daemon's being started anew.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use redirect::capture::Capture;

use crate::{
    fixture::{Fixture, pins},
    lifecycle::place,
};

fn nowhere() -> SocketAddr {
    "192.0.2.7:80".parse().expect("an address")
}

fn bpftool(args: &[&str], path: &Path) {
    let mut command = Command::new("/usr/sbin/bpftool");
    let output = command.args(args).arg(path).output().expect("run bpftool");
    assert!(output.status.success(), "{output:?}");
}

/// What was found wrong with the place, each of which was put back.
#[track_caller]
fn repaired(fixture: &mut Fixture, place: &str) -> Vec<String> {
    let uid = fixture.uid();
    let repairs = fixture.capture().reassert(&[uid]);
    let mut found = Vec::new();
    for repair in repairs {
        let words = repair.result.expect("it can be put back");
        assert_eq!(repair.place, place, "{words:?}");
        found.extend(words);
    }
    found
}

const POD: &str = "default/client";

#[test]
fn nothing_is_done_where_nothing_is_wrong() {
    let mut fixture = Fixture::new();
    assert_eq!(repaired(&mut fixture, POD), [""; 0]);
    let uid = redirect::pod::PodUid::new("default/unknown");
    assert!(fixture.capture().reassert(&[uid]).is_empty());
}

#[test]
fn links_that_were_detached_or_unpinned() {
    let mut fixture = Fixture::new();
    for pin in ["connect4", "connect6", "sock_ops", "sk_lookup", "sendmsg4"] {
        bpftool(&["link", "detach", "pinned"], &place(&fixture).join(pin));
    }
    fs::remove_file(place(&fixture).join("bind4")).expect("unpin");
    let free = fixture.start(fixture.peer.at(9), &[], &[]);
    assert_eq!(free.event("error").str("name"), "ECONNREFUSED");
    let mut found = repaired(&mut fixture, POD);
    found.sort();
    let expected = [
        "bind4",
        "connect4",
        "connect6",
        "sendmsg4",
        "sk_lookup",
        "sock_ops",
    ];
    let expected = expected.map(|pin| format!("the program at {pin} was not attached"));
    assert_eq!(found, expected);
    assert_eq!(fixture.connect(nowhere(), &[]).0.original, Some(nowhere()));
    assert_eq!(repaired(&mut fixture, POD), [""; 0]);
}

#[test]
fn the_proxys_own_links() {
    let mut fixture = Fixture::new();
    let folder = pins(&fixture.bpffs).join("proxy");
    let folder = fs::read_dir(folder).expect("readable").flatten().next();
    let pin = folder.expect("a cgroup").path().join("sock_ops");
    bpftool(&["link", "detach", "pinned"], &pin);
    assert_eq!(fixture.connect(nowhere(), &[]).0.original, None);
    assert_eq!(
        repaired(&mut fixture, "node"),
        ["the program at sock_ops was not attached"]
    );
    assert_eq!(fixture.connect(nowhere(), &[]).0.original, Some(nowhere()));
}

/// As of a systemd unit that is started anew. While there is none, nothing is to be done.
#[test]
fn a_cgroup_that_was_made_anew() {
    let mut fixture = Fixture::new();
    let before = place(&fixture);
    for cgroup in [fixture.client.container("app"), fixture.client.cgroup()] {
        fs::remove_dir(cgroup).expect("remove the cgroup");
    }
    assert_eq!(repaired(&mut fixture, POD), [""; 0]);
    fs::create_dir_all(fixture.client.container("app")).expect("make the cgroup again");
    assert_eq!(repaired(&mut fixture, POD), ["its cgroup was made anew"]);
    assert!(!before.exists() && place(&fixture).exists());
    assert_eq!(fixture.connect(nowhere(), &[]).0.original, Some(nowhere()));
    assert_eq!(repaired(&mut fixture, POD), [""; 0]);
}

#[test]
fn routes_and_reserved_ports() {
    let mut fixture = Fixture::new();
    fixture.client.ip("route flush table local proto 114\n");
    fixture
        .client
        .sysctl("net.ipv4.ip_local_port_range", "15000 15010");
    assert_eq!(
        repaired(&mut fixture, POD),
        [
            "the local route to IPv4 targets was missing",
            "ports of ours were not reserved"
        ]
    );
    let (answer, connected) = fixture.connect(nowhere(), &[]);
    assert_eq!(answer.original, Some(nowhere()));
    assert_eq!(connected.addr("sockname").ip(), fixture.client.ipv4());
}
