//! Which backend fits what was found: pure.

use super::finding::{Finding, Group, Way, Weight};
use crate::config::{Backend, Mode};

/// A backend, or none, and the reason in a few words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub backend: Option<Backend>,
    pub because: String,
    /// False if the daemon's own connections can only be told by a mark.
    pub is_exact: bool,
}

/// How many missing features the reason names.
const NAMED: usize = 3;

/// eBPF if all that it needs is there; else the tool that can tell the daemon from others exactly, nftables before iptables;
/// else any that works.
pub fn choose(findings: &[Finding], mode: Mode) -> Choice {
    let missing = |way, weight| missing(findings, mode, way, weight);
    let without_ebpf = missing(Way::Ebpf, Weight::Required);
    if without_ebpf.is_empty() {
        return Choice {
            backend: Some(Backend::Ebpf),
            because: "all that eBPF capture needs is there".to_owned(),
            is_exact: true,
        };
    }
    let no_ebpf = format!("no {}", enumerate(&without_ebpf));
    // Of what was not tried nothing is missing, either.
    let tried = |way: Way| {
        findings
            .iter()
            .any(|f| f.group == Group::Netfilter && f.weight(way, mode).is_some())
    };
    let works = |way: &Way| tried(*way) && missing(*way, Weight::Required).is_empty();
    let is_exact = |way: &Way| missing(*way, Weight::Exact).is_empty();
    let working: Vec<Way> = Way::NETFILTER.into_iter().filter(works).collect();
    let exact = working.iter().copied().find(is_exact);
    match exact.or(working.first().copied()) {
        Some(way) => Choice {
            backend: Some(backend(way)),
            because: match exact {
                Some(_) => no_ebpf,
                None => format!(
                    "{no_ebpf}; by mark: no {}",
                    enumerate(&missing(way, Weight::Exact))
                ),
            },
            is_exact: exact.is_some(),
        },
        None => {
            let ways = Way::NETFILTER.into_iter().filter(|way| tried(*way));
            let told = ways.map(|way| {
                let missing = missing(way, Weight::Required);
                format!("{}: no {}", way.name(), enumerate(&missing))
            });
            let told: Vec<String> = told.collect();
            Choice {
                backend: None,
                because: format!("eBPF: {no_ebpf}; {}", told.join("; ")),
                is_exact: false,
            }
        }
    }
}

fn backend(way: Way) -> Backend {
    match way {
        Way::Ebpf => Backend::Ebpf,
        Way::Nftables => Backend::Nftables,
        Way::IptablesNft | Way::IptablesLegacy => Backend::Iptables,
    }
}

fn missing(findings: &[Finding], mode: Mode, way: Way, weight: Weight) -> Vec<&str> {
    let of_way = |finding: &&Finding| finding.weight(way, mode) == Some(weight);
    let absent = findings.iter().filter(of_way).filter(|f| !f.is_found());
    absent.map(|finding| finding.name.as_str()).collect()
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
