//! Golden: the text per backend, family, mode and option. `INSTA_UPDATE=always cargo test` writes the files anew.

use insta::assert_snapshot;

use super::{super::plan::*, *};
use crate::capture::netfilter::listing::Listing;

fn cgroup(path: &str) -> CgroupPath {
    CgroupPath {
        in_hierarchy: path.to_owned(),
        in_sysfs: Some(format!("unified/{path}")),
    }
}

fn shared() -> Needs {
    Needs {
        mode: Mode::Shared,
        exemption: Exemption::Cgroup(cgroup("system.slice/redirect.service")),
        exempt_cgroups: Vec::new(),
        exclude_outbound_ports: Vec::new(),
        exclude_outbound_cidrs: Vec::new(),
        capture_metadata_address: false,
        capture_inbound: false,
    }
}

fn sidecar() -> Needs {
    Needs {
        mode: Mode::Dedicated,
        exemption: Exemption::Uid(PROXY_UID),
        capture_inbound: true,
        ..shared()
    }
}

fn all_options(needs: Needs) -> Needs {
    Needs {
        exempt_cgroups: vec![cgroup("kubepods/pod1\\x2da/own")],
        exclude_outbound_ports: vec![9022, 22, 22],
        exclude_outbound_cidrs: ["10.9.1.2/16", "fd00:9::/32", "192.0.2.7/32"]
            .map(|network| network.parse().expect("a network"))
            .into(),
        capture_metadata_address: true,
        capture_inbound: true,
        ..needs
    }
}

fn marked() -> Needs {
    Needs {
        exemption: Exemption::Mark,
        capture_inbound: true,
        ..shared()
    }
}

fn golden(needs: &Needs) -> String {
    let mut text = String::new();
    for family in Family::BOTH {
        let rules = iptables::apply(&needs.plan(family), &Listing::default());
        text += &format!("# {family:?}: iptables\n{rules}\n");
    }
    for families in [&Family::BOTH[..], &[Family::Ipv4], &[Family::Ipv6]] {
        let plans: Vec<Plan> = families.iter().map(|family| needs.plan(*family)).collect();
        let rules = nft::apply(&plans).unwrap_or_else(|error| format!("error: {error}\n"));
        text += &format!("# {families:?}: nft\n{rules}\n");
    }
    text
}

#[test]
fn shared_by_cgroup() {
    assert_snapshot!(golden(&shared()));
}

#[test]
fn shared_with_all_options() {
    assert_snapshot!(golden(&all_options(shared())));
}

#[test]
fn shared_by_mark_with_inbound() {
    assert_snapshot!(golden(&marked()));
}

#[test]
fn dedicated_in_the_sidecar_form() {
    assert_snapshot!(golden(&sidecar()));
}

#[test]
fn dedicated_with_all_options() {
    let mut needs = all_options(sidecar());
    needs.exempt_cgroups.clear();
    assert_snapshot!(golden(&needs));
}

#[test]
fn the_sidecar_form_has_the_rules_that_operators_know_in_their_order() {
    let text = iptables::apply(&sidecar().plan(Family::Ipv4), &Listing::default());
    let expected = [
        "-A OUTPUT -p tcp -j ISTIO_OUTPUT",
        "-A PREROUTING -p tcp -j ISTIO_INBOUND",
        "-A ISTIO_OUTPUT -o lo -j RETURN",
        "-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN",
        "-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN",
        "-A ISTIO_OUTPUT -p tcp -j REDIRECT --to-ports 15001",
        "-A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN",
        "-A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN",
        "-A ISTIO_INBOUND -p tcp -j REDIRECT --to-ports 15006",
    ];
    let found: Vec<&str> = text
        .lines()
        .filter(|line| expected.contains(line))
        .collect();
    assert_eq!(found, expected);
}

/// A namespace with rules of somebody else, our jump in the wrong place, and chains of the other mode.
const CROWDED: &str = "*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:ISTIO_OUTPUT - [0:0]
:REDIRECT_OUTPUT - [0:0]
:REDIRECT_SIDECAR - [0:0]
:THEIRS - [0:0]
-A PREROUTING -p tcp -j THEIRS
-A OUTPUT -d 192.0.2.1/32 -j ACCEPT
-A OUTPUT -p tcp -j REDIRECT_OUTPUT
-A OUTPUT -p tcp -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -j RETURN
-A THEIRS -j REDIRECT_OUTPUT
COMMIT
";

#[test]
fn what_is_there_is_replaced_and_what_is_foreign_stays() {
    let found = Listing::parse(CROWDED);
    let plan = shared().plan(Family::Ipv4);
    assert_snapshot!(iptables::apply(&plan, &found));
    assert_snapshot!(iptables::clean(&found).expect("there is something to clean"));
    assert_eq!(iptables::clean(&Listing::default()), None);
}

#[test]
fn chains_of_the_sidecar_form_are_ours_only_beside_the_marker() {
    let theirs = Listing::parse(&CROWDED.replace(":REDIRECT_SIDECAR - [0:0]\n", ""));
    let plan = sidecar().plan(Family::Ipv4);
    assert_eq!(iptables::foreign(&plan, &theirs), Some("ISTIO_OUTPUT"));
    assert_eq!(iptables::foreign(&plan, &Listing::parse(CROWDED)), None);
    let text = iptables::clean(&theirs).expect("our own chain is there");
    assert!(!text.contains("ISTIO_OUTPUT"), "{text}");
}

#[test]
fn a_cgroup_that_nft_cannot_find_is_an_error() {
    let mut needs = shared();
    needs.exemption = Exemption::Cgroup(CgroupPath {
        in_hierarchy: "redirect".to_owned(),
        in_sysfs: None,
    });
    let error = nft::apply(&[needs.plan(Family::Ipv4)]).expect_err("no such path");
    assert!(error.to_string().contains("iptables backend"), "{error}");
    needs.exemption = Exemption::Cgroup(cgroup("a\"b"));
    let error = nft::apply(&[needs.plan(Family::Ipv4)]).expect_err("not to be quoted");
    assert!(error.to_string().contains("iptables backend"), "{error}");
}
