//! Authorization policies as they are written. They are checked when read, and evaluated elsewhere.

use std::sync::Arc;

use ipnet::IpNet;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub scope: Scope,
    pub action: Action,
    /// Logged only.
    pub dry_run: bool,
    /// One must match.
    pub rules: Vec<Rule>,
}

/// Clauses, which must all match; of the matches in a clause, one must.
pub type Rule = Vec<Vec<PolicyMatch>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Global,
    Namespace,
    WorkloadSelector,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Allow,
    Deny,
}

/// All kinds that are given must match; of the values of one kind, one must, and of a `not_` kind, none may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyMatch {
    pub namespaces: Vec<StringMatch>,
    pub not_namespaces: Vec<StringMatch>,
    pub service_accounts: Vec<ServiceAccountName>,
    pub not_service_accounts: Vec<ServiceAccountName>,
    /// Of the identity without `spiffe://`.
    pub principals: Vec<StringMatch>,
    pub not_principals: Vec<StringMatch>,
    pub source_ips: Vec<IpNet>,
    pub not_source_ips: Vec<IpNet>,
    pub destination_ips: Vec<IpNet>,
    pub not_destination_ips: Vec<IpNet>,
    pub destination_ports: Vec<u16>,
    pub not_destination_ports: Vec<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringMatch {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Suffix(Arc<str>),
    /// Anything but nothing.
    Presence,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccountName {
    pub namespace: Arc<str>,
    pub service_account: Arc<str>,
}
