//! The semantics as tables, over policies as an operator writes them.

use super::*;
use crate::{document::Format, workload::Defaults};

fn load(policies: &str) -> Workloads {
    let text = format!("workloads: []\npolicies:\n{policies}");
    Workloads::parse(
        "test",
        &text,
        Format::Yaml,
        &Defaults {
            trust_domain: "cluster.local".into(),
        },
    )
    .unwrap()
}

/// A connection from `ns/sa` (or nobody) at `ip` to 10.0.0.9:8080 in namespace `shop`, selected by `shop/selected`.
fn judge(workloads: &Workloads, source: &str, ip: &str) -> Judgement {
    let identity = source
        .split_once('/')
        .map(|(ns, sa)| Identity::new("cluster.local", ns, sa).unwrap());
    let selected = ["shop/selected".into()];
    evaluate(
        workloads,
        Target {
            namespace: "shop",
            selected_by: &selected,
        },
        Subject {
            source: identity.as_ref(),
            source_ip: ip.parse().unwrap(),
            destination: "10.0.0.9:8080".parse().unwrap(),
        },
    )
}

fn allowed(policies: &str, source: &str) -> bool {
    matches!(
        judge(&load(policies), source, "10.0.0.1").decision,
        Decision::Allow(_)
    )
}

const NOBODY: &str = "";

#[test]
fn without_policies_everything_is_allowed() {
    let none = Workloads::parse(
        "t",
        "workloads: []",
        Format::Yaml,
        &Defaults {
            trust_domain: "cluster.local".into(),
        },
    )
    .unwrap();
    assert_eq!(
        judge(&none, NOBODY, "10.0.0.1").decision,
        Decision::Allow(None)
    );
}

#[test]
fn deny_wins_over_allow_and_allow_excludes_the_rest() {
    let allow = "- {name: a, namespace: shop, scope: Namespace, action: Allow, rules: [[[{namespaces: [{Exact: web}]}]]]}\n";
    let deny = "- {name: d, namespace: shop, scope: Namespace, action: Deny, rules: [[[{principals: [{Suffix: /sa/bad}]}]]]}\n";
    for (policies, source, expected) in [
        (allow.to_owned(), "web/app", true),
        (allow.to_owned(), "other/app", false),
        (allow.to_owned(), NOBODY, false),
        (deny.to_owned(), "web/app", true),
        (deny.to_owned(), "web/bad", false),
        (deny.to_owned(), NOBODY, true),
        (format!("{allow}{deny}"), "web/bad", false),
        (format!("{deny}{allow}"), "web/bad", false),
        (format!("{allow}{deny}"), "web/app", true),
    ] {
        assert_eq!(
            allowed(&policies, source),
            expected,
            "{source:?} under\n{policies}"
        );
    }
}

#[test]
fn scopes_choose_the_workloads_that_a_policy_is_for() {
    for (policy, applies) in [
        ("name: p, namespace: root, scope: Global", true),
        ("name: p, namespace: shop, scope: Namespace", true),
        ("name: p, namespace: other, scope: Namespace", false),
        (
            "name: selected, namespace: shop, scope: WorkloadSelector",
            true,
        ),
        (
            "name: selected, namespace: other, scope: WorkloadSelector",
            false,
        ),
        (
            "name: unselected, namespace: shop, scope: WorkloadSelector",
            false,
        ),
    ] {
        let text =
            format!("- {{{policy}, action: Deny, rules: [[[{{destinationPorts: [8080]}}]]]}}\n");
        assert_eq!(!allowed(&text, "web/app"), applies, "{policy}");
    }
}

#[test]
fn every_field_and_its_opposite() {
    for (matching, other) in [
        ("namespaces: [{Exact: web}]", "namespaces: [{Exact: we}]"),
        ("namespaces: [{Prefix: w}]", "namespaces: [{Prefix: x}]"),
        (
            "serviceAccounts: [{namespace: web, serviceAccount: app}]",
            "serviceAccounts: [{namespace: web, serviceAccount: other}]",
        ),
        (
            "principals: [{Exact: cluster.local/ns/web/sa/app}]",
            "principals: [{Exact: spiffe://cluster.local/ns/web/sa/app}]",
        ),
        ("principals: [Presence]", "principals: [{Suffix: /x}]"),
        ("sourceIps: [10.0.0.0/24]", "sourceIps: [10.0.1.0/24]"),
        (
            "destinationIps: [10.0.0.9/32]",
            "destinationIps: [10.0.0.8/32]",
        ),
        ("destinationPorts: [80, 8080]", "destinationPorts: [80]"),
    ] {
        let deny = |fields: &str| {
            format!(
                "- {{name: p, namespace: shop, scope: Global, action: Deny, rules: [[[{{{fields}}}]]]}}\n"
            )
        };
        let negated = |fields: &str| {
            let (first, rest) = fields.split_at(1);
            deny(&format!("not{}{rest}", first.to_uppercase()))
        };
        assert!(!allowed(&deny(matching), "web/app"), "{matching} denies");
        assert!(allowed(&deny(other), "web/app"), "{other} does not");
        assert!(
            allowed(&negated(matching), "web/app"),
            "not {matching} does not deny"
        );
        assert!(!allowed(&negated(other), "web/app"), "not {other} denies");
    }
}

#[test]
fn rules_or_clauses_and_matches_or_kinds_and() {
    let deny = |rules: &str| {
        format!("- {{name: p, namespace: shop, scope: Global, action: Deny, rules: {rules}}}\n")
    };
    let (yes, no) = ("{destinationPorts: [8080]}", "{destinationPorts: [1]}");
    for (rules, denies) in [
        (format!("[[[{no}]], [[{yes}]]]"), true),
        (format!("[[[{no}]], [[{no}]]]"), false),
        (format!("[[[{yes}], [{no}]]]"), false),
        (format!("[[[{yes}], [{yes}]]]"), true),
        (format!("[[[{no}, {yes}]]]"), true),
        (
            "[[[{destinationPorts: [8080], sourceIps: [10.9.0.0/16]}]]]".to_owned(),
            false,
        ),
        (
            "[[[{destinationPorts: [8080], sourceIps: [10.0.0.0/16]}]]]".to_owned(),
            true,
        ),
        ("[]".to_owned(), false),
        ("[[[{}]]]".to_owned(), false),
        (format!("[[[{yes}], []]]"), true),
    ] {
        assert_eq!(!allowed(&deny(&rules), "web/app"), denies, "{rules}");
    }
}

#[test]
fn a_policy_in_dry_run_only_tells() {
    let deny = "- {name: trial, namespace: shop, scope: Global, action: Deny, dryRun: true, rules: [[[{destinationPorts: [8080]}]]]}\n";
    let judgement = judge(&load(deny), "web/app", "10.0.0.1");
    assert_eq!(judgement.decision, Decision::Allow(None));
    assert_eq!(&*judgement.would_deny[0].name, "trial");
    let allow = "- {name: trial, namespace: shop, scope: Global, action: Allow, dryRun: true, rules: [[[{destinationPorts: [1]}]]]}\n";
    assert!(
        allowed(allow, "web/app"),
        "an ALLOW on trial does not close the door to the rest"
    );
}

#[test]
fn the_decision_names_its_policy() {
    let deny = "- {name: d, namespace: shop, scope: Global, action: Deny, rules: [[[{sourceIps: [\"::ffff:10.0.0.1/128\", 10.0.0.1/32]}]]]}\n";
    match judge(&load(deny), "web/app", "::ffff:10.0.0.1").decision {
        Decision::Deny(Some(policy)) => assert_eq!(&*policy.name, "d"),
        other => panic!("{other:?}"),
    }
}
