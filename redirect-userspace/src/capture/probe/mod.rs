//! What this node can do for capture, found by trying and never by version numbers, and the backend that fits it.
//!
//! `kernel`, `netfilter` and `node` try; a [`Finding`] says what was found and what depends on it; [`choose`] decides from
//! findings alone, and [`Report`] tells. What the programs need is read from the embedded object (`ebpf::needs`).

mod choice;
mod finding;
mod kernel;
mod names;
mod netfilter;
mod node;
mod report;

#[cfg(test)]
mod tests;

use std::path::Path;

pub use self::{
    choice::{Choice, choose},
    finding::{Finding, Found, Group, Use, Way, Weight},
    report::Report,
};
use super::{ebpf, netfilter::cgroup_path};
use crate::{
    config::{IptablesVariant, Mode},
    sys::{
        cgroup::{self, Scratch},
        sysctl,
    },
};

/// What a daemon is configured to, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub mode: Mode,
    /// Where it would pin.
    pub bpffs: &'a Path,
    pub iptables: IptablesVariant,
}

/// Tries everything. Changes nothing that stays: what is made is in namespaces and a cgroup of our own, and gone afterwards.
pub fn probe(asked: Asked<'_>) -> Report {
    let mut findings = ebpf(asked);
    findings.extend(rules(asked));
    report(asked, findings)
}

/// Tries as much as a choice needs: netfilter only if eBPF does not do.
pub fn probe_for_choice(asked: Asked<'_>) -> Report {
    let mut findings = ebpf(asked);
    if choose(&findings, asked.mode).backend.is_none() {
        findings.extend(rules(asked));
    }
    report(asked, findings)
}

fn ebpf(asked: Asked<'_>) -> Vec<Finding> {
    let mut findings = node::probe(asked.bpffs);
    findings.extend(kernel::probe(ebpf::embedded(), || {
        ebpf::try_load().map_err(|error| one_line(&error.to_string()))
    }));
    findings
}

fn rules(asked: Asked<'_>) -> Vec<Finding> {
    // No rule can name the root cgroup: from there we go to one of our own until all is tried.
    let named = |path: &Path| cgroup_path(path).ok();
    let own = cgroup::current().ok();
    let own = own.as_deref().and_then(named);
    let inside = match own {
        Some(_) => None,
        None => Scratch::create().and_then(Scratch::enter).ok(),
    };
    let cgroup = own.or_else(|| named(inside.as_ref()?.path()));
    let ipv6 = sysctl::has_ipv6();
    netfilter::probe(asked.iptables, cgroup.as_ref(), ipv6)
}

fn report(asked: Asked<'_>, mut findings: Vec<Finding>) -> Report {
    findings.sort_by_key(|finding| finding.group);
    let choice = choose(&findings, asked.mode);
    Report {
        mode: asked.mode,
        warnings: warnings(asked.bpffs, &choice),
        findings,
        choice,
    }
}

fn warnings(bpffs: &Path, choice: &Choice) -> Vec<String> {
    let mut told = node::warnings(bpffs);
    if choice.only_by_mark {
        told.push(
            "only a mark would tell the daemon's connections from the pods': a container with CAP_NET_RAW or CAP_NET_ADMIN can \
             set it and go around capture; `redirect rules apply --exempt-mark` does so by hand"
                .to_owned(),
        );
    }
    told
}

/// The verifier says the reason last, before its counts; lines of source begin with a semicolon.
fn one_line(error: &str) -> String {
    let told = error.lines().map(str::trim).filter(|line| !line.is_empty());
    let told = told.filter(|line| !line.starts_with("processed ") && !line.starts_with(';'));
    let lines: Vec<&str> = told.collect();
    match lines.as_slice() {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first, .., last] => format!("{first} … {last}"),
    }
}
