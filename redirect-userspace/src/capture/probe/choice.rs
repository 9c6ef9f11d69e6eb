//! Which backend fits what was found: pure.

use super::finding::{Finding, Group, Way, Weight};
use crate::config::{Backend, Mode};

/// A backend, or none, and the reason in a few words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub backend: Option<Backend>,
    pub because: String,
    /// None was chosen, but one would do if its rules told the daemon's connections by a mark, which pods can forge.
    pub only_by_mark: bool,
}

/// How many missing features the reason names.
const NAMED: usize = 3;

/// eBPF if all that it needs is there; else nftables, else iptables, if the kernel lets it tell the daemon from others.
pub fn choose(findings: &[Finding], mode: Mode) -> Choice {
    let missing = |way, weights: &[Weight]| missing(findings, mode, way, weights);
    let without_ebpf = missing(Way::Ebpf, &[Weight::Required]);
    if without_ebpf.is_empty() {
        return Choice {
            backend: Some(Backend::Ebpf),
            because: "all that eBPF capture needs is there".to_owned(),
            only_by_mark: false,
        };
    }
    let no_ebpf = format!("no {}", enumerate(&without_ebpf));
    // Of what was not tried nothing is missing, either.
    let tried = |way: &Way| {
        let mut of_rules = findings.iter().filter(|f| f.group == Group::Netfilter);
        of_rules.any(|finding| finding.weight(*way, mode).is_some())
    };
    let ways: Vec<Way> = Way::NETFILTER.into_iter().filter(tried).collect();
    let exactly = [Weight::Required, Weight::Exact];
    let works = |way: &&Way| missing(**way, &exactly).is_empty();
    if let Some(way) = ways.iter().find(works) {
        return Choice {
            backend: Some(backend(*way)),
            because: no_ebpf,
            only_by_mark: false,
        };
    }
    let by_mark = |way: &Way| missing(*way, &[Weight::Required]).is_empty();
    let told = ways.iter().map(|way| {
        let missing = missing(*way, &exactly);
        format!("{}: no {}", way.name(), enumerate(&missing))
    });
    let told: Vec<String> = std::iter::once(format!("eBPF: {no_ebpf}"))
        .chain(told)
        .collect();
    Choice {
        backend: None,
        because: told.join("; "),
        only_by_mark: ways.iter().any(by_mark),
    }
}

fn backend(way: Way) -> Backend {
    match way {
        Way::Ebpf => Backend::Ebpf,
        Way::Nftables => Backend::Nftables,
        Way::IptablesNft | Way::IptablesLegacy => Backend::Iptables,
    }
}

/// What `way` lacks, by names without its own.
fn missing<'a>(findings: &'a [Finding], mode: Mode, way: Way, weights: &[Weight]) -> Vec<&'a str> {
    let counts = |finding: &&Finding| {
        let weight = finding.weight(way, mode);
        weight.is_some_and(|weight| weights.contains(&weight)) && !finding.is_found()
    };
    let names = findings.iter().filter(counts).map(|f| f.name.as_str());
    let own = format!("{}: ", way.name());
    names
        .map(|name| name.strip_prefix(&own).unwrap_or(name))
        .collect()
}

/// The first few, and how many more there are.
fn enumerate(names: &[&str]) -> String {
    let named = names.iter().take(NAMED).copied();
    let told = named.collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => told,
        more => format!("{told} and {more} more"),
    }
}
