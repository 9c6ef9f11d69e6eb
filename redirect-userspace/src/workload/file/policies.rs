//! The part `policies`.

use std::{collections::HashSet, sync::Arc};

use ipnet::IpNet;

use super::text;
use crate::{
    document::{Fields, Node},
    workload::{Action, Policy, PolicyMatch, Rule, Scope, ServiceAccountName, StringMatch},
};

pub(super) fn read(list: &Node<'_>) -> Vec<Arc<Policy>> {
    let mut seen = HashSet::new();
    list.each(|node| {
        let policy = read_policy(node)?;
        let key = format!("{}/{}", policy.namespace, policy.name);
        if !seen.insert(key.clone()) {
            return node.fail(format!("the policy {key} is in the file already"));
        }
        Some(Arc::new(policy))
    })
}

fn read_policy(node: &Node<'_>) -> Option<Policy> {
    let mut fields = node.fields()?;
    let f = &mut fields;
    let name = f.required("name").and_then(|node| node.text());
    let namespace = text(f, "namespace");
    let scopes = [
        ("Global", Scope::Global),
        ("Namespace", Scope::Namespace),
        ("WorkloadSelector", Scope::WorkloadSelector),
    ];
    let scope = f.required("scope").and_then(|node| node.choice(&scopes));
    let actions = [("Allow", Action::Allow), ("Deny", Action::Deny)];
    let action = f.required("action").and_then(|node| node.choice(&actions));
    let dry_run = f
        .optional("dryRun")
        .map_or(Some(false), |node| node.boolean());
    let rules = f.required("rules").map(|list| list.each(read_rule));
    if scope == Some(Scope::Namespace) && namespace.is_empty() {
        fields.fail("the scope is Namespace, but namespace is empty");
    }
    fields.end();
    Some(Policy {
        name: name?.into(),
        namespace,
        scope: scope?,
        action: action?,
        dry_run: dry_run?,
        rules: rules?,
    })
}

fn read_rule(node: &Node<'_>) -> Option<Rule> {
    Some(node.each(|clause| Some(clause.each(read_match))))
}

fn read_match(node: &Node<'_>) -> Option<PolicyMatch> {
    let mut fields = node.fields()?;
    let f = &mut fields;
    let read = PolicyMatch {
        namespaces: each(f, "namespaces", string_match),
        not_namespaces: each(f, "notNamespaces", string_match),
        service_accounts: each(f, "serviceAccounts", service_account),
        not_service_accounts: each(f, "notServiceAccounts", service_account),
        principals: each(f, "principals", string_match),
        not_principals: each(f, "notPrincipals", string_match),
        source_ips: each(f, "sourceIps", network),
        not_source_ips: each(f, "notSourceIps", network),
        destination_ips: each(f, "destinationIps", network),
        not_destination_ips: each(f, "notDestinationIps", network),
        destination_ports: each(f, "destinationPorts", |node| node.port()),
        not_destination_ports: each(f, "notDestinationPorts", |node| node.port()),
    };
    // ztunnel ignores fields that it does not know here. A misspelt condition would widen a policy: refused.
    fields.end();
    Some(read)
}

fn each<T>(
    fields: &mut Fields<'_>,
    name: &'static str,
    read: impl FnMut(&Node<'_>) -> Option<T>,
) -> Vec<T> {
    fields
        .optional(name)
        .map(|list| list.each(read))
        .unwrap_or_default()
}

/// `!Exact x` or `Exact: x`, likewise Prefix and Suffix; `!Presence` or `Presence: []`.
fn string_match(node: &Node<'_>) -> Option<StringMatch> {
    if node.is_text("Presence") {
        return Some(StringMatch::Presence);
    }
    if !node.is_map() {
        return node.fail("expected one of Exact, Prefix, Suffix or Presence, as in `Exact: NAME`");
    }
    let entries = node.entries();
    let [(kind, value)] = entries.as_slice() else {
        return node.fail("expected exactly one of Exact, Prefix, Suffix or Presence");
    };
    let text = || value.text().map(Arc::from);
    match *kind {
        "Exact" => text().map(StringMatch::Exact),
        "Prefix" => text().map(StringMatch::Prefix),
        "Suffix" => text().map(StringMatch::Suffix),
        "Presence" => Some(StringMatch::Presence),
        other => node.fail(format!(
            "{other:?} is not one of Exact, Prefix, Suffix or Presence"
        )),
    }
}

fn service_account(node: &Node<'_>) -> Option<ServiceAccountName> {
    let mut fields = node.fields()?;
    let namespace = fields.required("namespace").and_then(|node| node.text());
    let service_account = fields
        .required("serviceAccount")
        .and_then(|node| node.text());
    fields.end();
    Some(ServiceAccountName {
        namespace: namespace?.into(),
        service_account: service_account?.into(),
    })
}

fn network(node: &Node<'_>) -> Option<IpNet> {
    node.parsed("a network such as 10.0.0.0/8")
}
