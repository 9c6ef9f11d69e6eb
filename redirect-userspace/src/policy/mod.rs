//! Authorization on layer 4: who may connect to a workload here.
//!
//! Istio's semantics: a policy of action DENY that matches denies; where no ALLOW policy applies everything else is allowed,
//! and otherwise one of them must match.

#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc};

use ipnet::IpNet;

use crate::{
    identity::Identity,
    workload::{Action, Policy, PolicyMatch, Scope, ServiceAccountName, StringMatch, Workloads},
};

/// What is known of a connection when it is judged.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// `None` for a connection in plaintext: it has no identity, which only a `not_` field matches.
    pub source: Option<&'a Identity>,
    pub source_ip: std::net::IpAddr,
    /// The app's address, as the client asked for it.
    pub destination: SocketAddr,
}

/// The outcome, and the policies that it rests on.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// With the ALLOW policy that matched; `None` if none applies.
    Allow(Option<Arc<Policy>>),
    /// With the DENY policy that matched; `None` if ALLOW policies apply and none of them matched.
    Deny(Option<Arc<Policy>>),
}

/// A decision, and what policies on trial would have changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    pub decision: Decision,
    /// DENY policies in dry-run that matched.
    pub would_deny: Vec<Arc<Policy>>,
}

/// The workload that is connected to.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub namespace: &'a str,
    /// `NAMESPACE/NAME` of the policies whose selector matches it: whoever wrote the data evaluated the selectors.
    pub selected_by: &'a [Arc<str>],
}

/// Judges a connection to `target`.
pub fn evaluate(workloads: &Workloads, target: Target<'_>, subject: Subject<'_>) -> Judgement {
    let mut would_deny = Vec::new();
    let mut allow_applies = false;
    let mut allowed_by = None;
    for policy in workloads
        .policies()
        .iter()
        .filter(|policy| applies(policy, target))
    {
        let matched = matches(policy, subject);
        match (policy.action, policy.dry_run) {
            (Action::Deny, false) if matched => {
                return Judgement {
                    decision: Decision::Deny(Some(policy.clone())),
                    would_deny,
                };
            }
            (Action::Deny, true) if matched => would_deny.push(policy.clone()),
            (Action::Allow, false) => {
                allow_applies = true;
                if matched && allowed_by.is_none() {
                    allowed_by = Some(policy.clone());
                }
            }
            _ => {}
        }
    }
    let decision = match (allow_applies, &allowed_by) {
        (true, None) => Decision::Deny(None),
        _ => Decision::Allow(allowed_by),
    };
    Judgement {
        decision,
        would_deny,
    }
}

/// Whether the policy is one for this workload.
fn applies(policy: &Policy, target: Target<'_>) -> bool {
    match policy.scope {
        Scope::Global => true,
        Scope::Namespace => *policy.namespace == *target.namespace,
        Scope::WorkloadSelector => target.selected_by.iter().any(|key| {
            key.split_once('/').is_some_and(|(namespace, name)| {
                namespace == &*policy.namespace && name == &*policy.name
            })
        }),
    }
}

/// Rules OR, clauses AND, matches OR.
fn matches(policy: &Policy, subject: Subject<'_>) -> bool {
    policy.rules.iter().any(|rule| {
        rule.iter()
            .all(|clause| clause.is_empty() || clause.iter().any(|one| match_holds(one, subject)))
    })
}

/// Kinds AND; of the values of one kind OR. A match that asks for nothing holds for nobody, as in Istio: a condition that got
/// lost on the way must not turn a policy into one for everybody.
fn match_holds(one: &PolicyMatch, subject: Subject<'_>) -> bool {
    if *one == PolicyMatch::default() {
        return false;
    }
    let Subject {
        source,
        source_ip,
        destination,
    } = subject;
    let source_ip = source_ip.to_canonical();
    let destination_ip = destination.ip().to_canonical();
    let namespace = |value: &StringMatch| {
        source.is_some_and(|identity| string_matches(value, &identity.namespace))
    };
    let account = |value: &ServiceAccountName| {
        source.is_some_and(|identity| {
            value.namespace == identity.namespace
                && value.service_account == identity.service_account
        })
    };
    let principal = source.map(|identity| identity.to_string());
    let principal = principal
        .as_deref()
        .map(|uri| uri.trim_start_matches("spiffe://"));
    let principal = |value: &StringMatch| principal.is_some_and(|name| string_matches(value, name));
    let from = |net: &IpNet| net.contains(&source_ip);
    let to = |net: &IpNet| net.contains(&destination_ip);
    let port = |port: &u16| *port == destination.port();
    holds(&one.namespaces, &one.not_namespaces, namespace)
        && holds(&one.service_accounts, &one.not_service_accounts, account)
        && holds(&one.principals, &one.not_principals, principal)
        && holds(&one.source_ips, &one.not_source_ips, from)
        && holds(&one.destination_ips, &one.not_destination_ips, to)
        && holds(&one.destination_ports, &one.not_destination_ports, port)
}

/// One kind: a list that is empty asks for nothing.
fn holds<T>(wanted: &[T], unwanted: &[T], is: impl Fn(&T) -> bool) -> bool {
    (wanted.is_empty() || wanted.iter().any(&is)) && !unwanted.iter().any(&is)
}

fn string_matches(pattern: &StringMatch, value: &str) -> bool {
    match pattern {
        StringMatch::Exact(exact) => value == &**exact,
        StringMatch::Prefix(prefix) => value.starts_with(&**prefix),
        StringMatch::Suffix(suffix) => value.ends_with(&**suffix),
        StringMatch::Presence => !value.is_empty(),
    }
}
