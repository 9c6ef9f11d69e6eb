//! Golden: the text per backend, family, mode and option. `INSTA_UPDATE=always cargo test` writes the files anew.

use insta::assert_snapshot;

use ipnet::IpNet;

use super::{super::plan::*, *};
use crate::capture::netfilter::listing::Listing;

fn cgroup(path: &str) -> CgroupPath {
    CgroupPath {
        in_hierarchy: path.to_owned(),
        in_sysfs: Some(format!("unified/{path}")),
    }
}

fn of_pod() -> Needs {
    Needs {
        mode: Mode::Shared,
        exemption: Exemption::Cgroup(cgroup("system.slice/redirect.service")),
        exempt_cgroups: Vec::new(),
        outbound: Selection::default(),
        inbound: Selection::default(),
        capture_metadata_address: false,
        capture_inbound: true,
        capture_dns: false,
        probes: Probed::Never,
        refuse_udp: false,
        refuse_sctp: false,
    }
}

fn sidecar() -> Needs {
    Needs {
        mode: Mode::Dedicated,
        exemption: Exemption::Uid(PROXY_UID),
        ..of_pod()
    }
}

fn marked() -> Needs {
    Needs {
        exemption: Exemption::Mark,
        ..of_pod()
    }
}

fn networks(texts: &[&str]) -> Vec<IpNet> {
    let networks = texts.iter().map(|text| text.parse());
    networks.collect::<Result<_, _>>().expect("networks")
}

fn excluding(needs: Needs) -> Needs {
    Needs {
        outbound: Selection {
            exclude_ports: vec![9022, 22, 22],
            exclude_cidrs: networks(&["10.9.1.2/16", "fd00:9::/32", "192.0.2.7/32"]),
            ..Selection::default()
        },
        inbound: Selection {
            exclude_ports: vec![9000],
            exclude_cidrs: networks(&["10.8.0.0/16", "fd00:8::/32"]),
            ..Selection::default()
        },
        ..needs
    }
}

fn including(needs: Needs) -> Needs {
    let only = |port, cidrs: &[&str]| Selection {
        include_ports: vec![port],
        include_cidrs: networks(cidrs),
        exclude_ports: vec![22],
        ..Selection::default()
    };
    Needs {
        outbound: only(80, &["10.9.0.0/16", "fd00:9::/32"]),
        inbound: only(8080, &["10.8.0.0/16", "fd00:8::/32"]),
        ..needs
    }
}

fn with_dns(needs: Needs) -> Needs {
    Needs {
        capture_dns: true,
        ..needs
    }
}

fn all_options(needs: Needs) -> Needs {
    Needs {
        exempt_cgroups: vec![cgroup("kubepods/pod1\\x2da/own")],
        capture_metadata_address: true,
        capture_dns: true,
        probes: Probed::Ports(vec![8081, 8080]),
        refuse_udp: true,
        refuse_sctp: true,
        ..excluding(needs)
    }
}

fn node_pod(interface: &str, number: u8) -> host::NodePod {
    let ips = [format!("10.0.0.{number}"), format!("fd00::{number}")];
    host::NodePod {
        interface: interface.to_owned(),
        alone: true,
        ips: ips.map(|ip| ip.parse().expect("an address")).into(),
        node_ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        outbound: Selection::default(),
        inbound: Selection::default(),
        capture_inbound: true,
        capture_dns: false,
        capture_metadata_address: false,
    }
}

fn golden(needs: &Needs) -> String {
    golden_of(|family| needs.plan(family))
}

fn golden_of(plan: impl Fn(Family) -> Plan) -> String {
    let mut text = String::new();
    for family in Family::BOTH {
        let rules = iptables::apply(&plan(family), &Listing::default());
        text += &format!("# {family:?}: iptables\n{rules}\n");
    }
    for families in [&Family::BOTH[..], &[Family::Ipv4], &[Family::Ipv6]] {
        let plans: Vec<Plan> = families.iter().map(|family| plan(*family)).collect();
        let rules = nft::apply(&plans).unwrap_or_else(|error| format!("error: {error}\n"));
        text += &format!("# {families:?}: nft\n{rules}\n");
    }
    text
}

/// Each form with each option alone, and with all of them.
#[test]
fn shared() {
    let bypassing = Needs {
        capture_inbound: false,
        ..of_pod()
    };
    let probed = Needs {
        probes: Probed::AnyPort,
        ..of_pod()
    };
    let refusing_udp = Needs {
        refuse_udp: true,
        ..of_pod()
    };
    assert_snapshot!("shared", golden(&of_pod()));
    assert_snapshot!("shared_excluding", golden(&excluding(of_pod())));
    assert_snapshot!("shared_including", golden(&including(of_pod())));
    assert_snapshot!("shared_bypassing_inbound", golden(&bypassing));
    assert_snapshot!("shared_with_dns", golden(&with_dns(of_pod())));
    assert_snapshot!("shared_with_probes", golden(&probed));
    assert_snapshot!("shared_refusing_udp", golden(&refusing_udp));
    assert_snapshot!("shared_with_all_options", golden(&all_options(of_pod())));
}

#[test]
fn shared_by_mark() {
    assert_snapshot!("marked", golden(&marked()));
    assert_snapshot!("marked_with_all_options", golden(&all_options(marked())));
}

#[test]
fn dedicated_in_the_sidecar_form() {
    let by_cgroup = Needs {
        mode: Mode::Dedicated,
        ..of_pod()
    };
    assert_snapshot!("dedicated", golden(&sidecar()));
    assert_snapshot!("dedicated_by_cgroup", golden(&by_cgroup));
    assert_snapshot!("dedicated_excluding", golden(&excluding(sidecar())));
    assert_snapshot!("dedicated_including", golden(&including(sidecar())));
    assert_snapshot!("dedicated_with_dns", golden(&with_dns(sidecar())));
    let all = Needs {
        exempt_cgroups: Vec::new(),
        ..all_options(sidecar())
    };
    assert_snapshot!("dedicated_with_all_options", golden(&all));
}

#[test]
fn node() {
    let plain = host::Node {
        pods: vec![node_pod("veth1", 2), node_pod("veth2", 3)],
    };
    assert_snapshot!("node", golden_of(|family| plain.plan(family)));
    let mut bridged = node_pod("br0", 2);
    bridged.alone = false;
    bridged.outbound = excluding(of_pod()).outbound;
    bridged.inbound = excluding(of_pod()).inbound;
    bridged.capture_dns = true;
    let mut including_some = node_pod("veth2", 3);
    including_some.outbound = including(of_pod()).outbound;
    including_some.inbound = including(of_pod()).inbound;
    including_some.capture_metadata_address = true;
    let mut bypassing = node_pod("veth3", 4);
    bypassing.capture_inbound = false;
    let node = host::Node {
        pods: vec![bridged, including_some, bypassing],
    };
    assert_snapshot!(
        "node_with_all_options",
        golden_of(|family| node.plan(family))
    );
    assert!(host::Node::default().plan(Family::Ipv4).chains.is_empty());
}

#[test]
fn probes() {
    let ips = |texts: &[&str]| {
        texts
            .iter()
            .map(|ip| ip.parse().expect("an address"))
            .collect()
    };
    let probes = host::Probes {
        probers: vec![cgroup("system.slice/kubelet.service"), cgroup("k3s")],
        pods: vec![
            (
                ips(&["10.0.0.2", "fd00::2"]),
                Probed::Ports(vec![8080, 8081]),
            ),
            (ips(&["10.0.0.3"]), Probed::AnyPort),
            (ips(&["10.0.0.4"]), Probed::Ports(Vec::new())),
        ],
    };
    assert_snapshot!("probes", golden_of(|family| probes.plan(family)));
    for (probers, pods) in [
        (Vec::new(), probes.pods.clone()),
        (probes.probers.clone(), Vec::new()),
    ] {
        let nothing = host::Probes { probers, pods };
        assert!(nothing.plan(Family::Ipv4).chains.is_empty());
    }
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
    let plan = of_pod().plan(Family::Ipv4);
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
    let mut needs = of_pod();
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
