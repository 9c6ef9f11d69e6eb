//! The choice for each thing that a kernel may lack, and how it is told.

use insta::assert_snapshot;

use super::{
    finding::{ALL_MODES, Finding, Found, Group, Way, Weight},
    *,
};
use crate::config::Backend;

const SHARED: &[Mode] = &[Mode::Shared];

/// A node where everything is found: the hooks, helpers and maps of the embedded programs in short, and all of netfilter.
fn complete() -> Vec<Finding> {
    let ebpf = |group, name: &str, needed_for: &str| Finding {
        group,
        name: name.to_owned(),
        needed_for: needed_for.to_owned(),
        found: Found::Yes,
        uses: vec![Way::Ebpf.needs(Weight::Required)],
        without: "",
    };
    let mut all = vec![
        Finding {
            uses: Way::ALL.map(|way| way.needs(Weight::Required)).to_vec(),
            ..ebpf(
                Group::Node,
                "cgroup v2",
                "telling pods and the daemon apart",
            )
        },
        Finding {
            uses: Way::ALL.map(|way| way.needs(Weight::Required)).to_vec(),
            ..ebpf(Group::Node, "CAP_SYS_ADMIN", "entering pods' namespaces")
        },
        ebpf(Group::Node, "CAP_BPF or CAP_SYS_ADMIN", "loading programs"),
        ebpf(
            Group::Node,
            "BPF file system",
            "capture that outlives the daemon",
        ),
        ebpf(Group::Hooks, "connect4", "outbound, IPv4"),
        ebpf(Group::Hooks, "sk_lookup", "inbound"),
        ebpf(
            Group::Helpers,
            "netns_cookie in sock_addr",
            "which pod a socket is in",
        ),
        ebpf(
            Group::Helpers,
            "netns_cookie in sock_ops",
            "which pod a socket is in",
        ),
        ebpf(
            Group::Helpers,
            "sk_storage_get in sock_ops",
            "original destinations",
        ),
        Finding {
            uses: vec![Way::Ebpf.needs(Weight::Optional)],
            without: "some failures get another errno than the kernel's own",
            ..ebpf(
                Group::Helpers,
                "set_retval in sockopt",
                "the kernel's own errno",
            )
        },
        ebpf(Group::Maps, "ringbuf map", "events"),
        ebpf(
            Group::Links,
            "SO_NETNS_COOKIE",
            "which namespace is a pod's",
        ),
        ebpf(
            Group::Links,
            "links to cgroups",
            "capture that outlives the daemon",
        ),
        Finding {
            uses: vec![Way::Ebpf.needs(Weight::Optional)],
            without: "clsact is used in its place, which other programs can remove",
            ..ebpf(Group::Links, "tcx links", "leak guard, node mode")
        },
        ebpf(Group::Links, "verifier's consent", "all programs together"),
    ];
    for way in Way::NETFILTER {
        let row = |what: &str, needed_for: &str, weight, modes: &'static [Mode]| Finding {
            group: Group::Netfilter,
            name: format!("{}: {what}", way.name()),
            needed_for: needed_for.to_owned(),
            found: Found::Yes,
            uses: vec![way.needs_in(weight, modes)],
            without: match weight {
                Weight::Optional => "DNS is not captured",
                _ => "",
            },
        };
        all.extend([
            row(
                "REDIRECT, IPv4",
                "original destinations",
                Weight::Required,
                ALL_MODES,
            ),
            row(
                "REDIRECT, IPv6",
                "original destinations",
                Weight::Required,
                ALL_MODES,
            ),
            row(
                "match by cgroup",
                "telling the daemon from pods",
                Weight::Exact,
                SHARED,
            ),
            row("zones of conntrack", "DNS", Weight::Optional, ALL_MODES),
        ]);
    }
    all
}

/// The complete node without what is `named`.
fn without(named: &[&str]) -> Vec<Finding> {
    let mut findings = complete();
    for name in named {
        let mut absent = 0;
        for finding in findings.iter_mut().filter(|f| f.name.starts_with(name)) {
            finding.found = Found::No("unknown to the kernel".to_owned());
            absent += 1;
        }
        assert!(absent > 0, "no finding {name}");
    }
    findings
}

/// The choice as `BACKEND: REASON`, with `~` before a nothing that marks would make something.
fn chosen(findings: &[Finding], mode: Mode) -> String {
    let choice = choose(findings, mode);
    let backend = choice.backend.map_or("nothing", Backend::name);
    let mark = if choice.only_by_mark { "~" } else { "" };
    format!("{mark}{backend}: {}", choice.because)
}

#[test]
fn the_choice_for_kernels_and_nodes_that_are_common() {
    let nft = "nftables: REDIRECT, IPv4";
    let nft_cgroup = "nftables: match by cgroup";
    for (what, absent, expected) in [
        (
            "all there",
            &[][..],
            "ebpf: all that eBPF capture needs is there",
        ),
        (
            "5.15: no set_retval, no tcx",
            &["set_retval", "tcx"],
            "ebpf: all that eBPF capture needs is there",
        ),
        (
            "5.14: no netns cookie in sock_ops",
            &[
                "netns_cookie in sock_ops",
                "verifier's consent",
                "set_retval",
                "tcx",
            ],
            "nftables: no netns_cookie in sock_ops, verifier's consent",
        ),
        (
            "5.10: nor by SO_NETNS_COOKIE, nor nft's cgroups",
            &[
                "netns_cookie in sock_ops",
                "SO_NETNS_COOKIE",
                "verifier's consent",
                "set_retval",
                nft_cgroup,
            ],
            "iptables: no netns_cookie in sock_ops, SO_NETNS_COOKIE, verifier's consent",
        ),
        (
            "no sk_lookup (before 5.9)",
            &[
                "sk_lookup",
                "verifier's consent",
                "netns_cookie",
                "ringbuf",
                "links",
            ],
            "nftables: no sk_lookup, netns_cookie in sock_addr, netns_cookie in sock_ops and 3 more",
        ),
        (
            "the verifier refuses",
            &["verifier's consent"],
            "nftables: no verifier's consent",
        ),
        (
            "no CAP_BPF",
            &["CAP_BPF"],
            "nftables: no CAP_BPF or CAP_SYS_ADMIN",
        ),
        (
            "no iptables, no eBPF",
            &["connect4", "iptables"],
            "nftables: no connect4",
        ),
        (
            "no nft, no eBPF",
            &["connect4", nft],
            "iptables: no connect4",
        ),
        (
            "legacy only",
            &["connect4", nft, "iptables-nft: REDIRECT, IPv6"],
            "iptables: no connect4",
        ),
        (
            "marks only",
            &[
                "connect4",
                nft_cgroup,
                "iptables-nft: match",
                "iptables-legacy: match",
            ],
            "~nothing: eBPF: no connect4; nftables: no match by cgroup; iptables-nft: no match by cgroup; iptables-legacy: no \
             match by cgroup",
        ),
        (
            "nothing",
            &[
                "connect4",
                "nftables",
                "iptables-nft",
                "iptables-legacy: REDIRECT, IPv6",
            ],
            "nothing: eBPF: no connect4; nftables: no REDIRECT, IPv4, REDIRECT, IPv6, match by cgroup; iptables-nft: no REDIRECT, \
             IPv4, REDIRECT, IPv6, match by cgroup; iptables-legacy: no REDIRECT, IPv6",
        ),
    ] {
        assert_eq!(chosen(&without(absent), Mode::Shared), expected, "{what}");
    }
}

/// With each feature absent: what needs it is not chosen, and everything else is as before.
#[test]
fn each_feature_that_is_absent() {
    for (absent, mode) in complete()
        .into_iter()
        .flat_map(|f| Mode::ALL.map(|mode| (f.clone(), mode)))
    {
        let case = format!("{} in {mode:?}", absent.name);
        let needed = |way| absent.weight(way, mode) == Some(Weight::Required);
        let choice = choose(&without(&[&absent.name]), mode);
        let expected = match (needed(Way::Ebpf), needed(Way::Nftables)) {
            (false, _) => Some(Backend::Ebpf),
            (true, false) => Some(Backend::Nftables),
            (true, true) => None,
        };
        assert_eq!(choice.backend, expected, "{case}");
        let named = choice.because.contains(&absent.name);
        assert_eq!(named, needed(Way::Ebpf), "{case}: {}", choice.because);

        // On a node without eBPF.
        let choice = choose(&without(&["connect4", &absent.name]), mode);
        let expected = match absent.weight(Way::Nftables, mode) {
            Some(Weight::Required) if needed(Way::IptablesNft) => None,
            Some(Weight::Required | Weight::Exact) => Some(Backend::Iptables),
            _ => Some(Backend::Nftables),
        };
        assert_eq!(choice.backend, expected, "{case}, without eBPF");
    }
}

#[test]
fn a_feature_counts_in_the_modes_that_use_it() {
    let findings = without(&["connect4", "nftables: match by cgroup"]);
    assert_eq!(chosen(&findings, Mode::Shared), "iptables: no connect4");
    assert_eq!(chosen(&findings, Mode::Dedicated), "nftables: no connect4");
    let gone = findings
        .iter()
        .find(|f| f.name == "nftables: match by cgroup")
        .unwrap();
    assert_eq!(gone.consequence(Mode::Dedicated), "none in this mode");
}

#[test]
fn what_was_not_tried_is_not_chosen() {
    let mut findings = without(&["connect4", "nftables"]);
    findings.retain(|finding| !finding.name.starts_with("iptables-nft"));
    assert_eq!(chosen(&findings, Mode::Shared), "iptables: no connect4");
    findings.retain(|finding| !finding.name.starts_with("iptables-legacy"));
    assert!(chosen(&findings, Mode::Shared).starts_with("nothing: "));
}

fn told(findings: Vec<Finding>, warnings: &[&str]) -> Report {
    Report {
        mode: Mode::Shared,
        choice: choose(&findings, Mode::Shared),
        findings,
        warnings: warnings.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn tables() {
    assert_snapshot!("complete", told(complete(), &[]).table());
    let old = [
        "netns_cookie in sock_ops",
        "SO_NETNS_COOKIE",
        "verifier's consent",
        "set_retval",
        "tcx",
        "nftables: match",
    ];
    assert_snapshot!(
        "old_kernel",
        told(without(&old), &["at most 1024 open files"]).table()
    );
    let bare = [
        "cgroup v2",
        "CAP_",
        "BPF file",
        "connect4",
        "nftables",
        "iptables",
    ];
    assert_snapshot!("nothing_works", told(without(&bare), &[]).table());
}

#[test]
fn json() {
    let findings: Vec<Finding> = without(&["set_retval", "connect4"])
        .into_iter()
        .filter(|f| ["connect4", "set_retval in sockopt", "ringbuf map"].contains(&f.name.as_str()))
        .collect();
    assert_snapshot!(format!("{:#}", told(findings, &["look here"]).json()));
}

/// What no table here knows would be told as a number, and probed without a purpose.
#[test]
fn all_that_the_embedded_programs_need_has_a_name() {
    let Some(object) = ebpf::embedded() else {
        return;
    };
    let needs = ebpf::needs::of(object).unwrap();
    assert!(!needs.hooks.is_empty() && !needs.maps.is_empty());
    for (kind, helpers) in &needs.hooks {
        let (name, purpose) = names::hook(*kind);
        assert_ne!(
            purpose, "capture",
            "{kind:?} is not in HOOKS of names.rs: {name}"
        );
        for helper in helpers {
            let (name, _) = names::helper(*helper);
            assert!(
                !name.starts_with("helper "),
                "{name} is not in HELPERS of names.rs"
            );
        }
    }
    for map in &needs.maps {
        assert!(
            names::map(*map).is_some(),
            "map type {map} is not in MAPS of names.rs"
        );
    }
}

#[test]
fn the_verifiers_words_are_cut_short() {
    for (long, short) in [
        ("one", "one"),
        (
            "load x: EINVAL\n; let x\n0: (85) call helper\nunknown func\nprocessed 1 insns\n; a hint",
            "load x: EINVAL … unknown func",
        ),
        ("", ""),
    ] {
        assert_eq!(one_line(long), short);
    }
}
