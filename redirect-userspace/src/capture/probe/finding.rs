//! What was asked of the kernel and its tools, what the answer was, and what follows from it: data.

use crate::config::Mode;

/// One thing that capture needs or can use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub group: Group,
    /// Such as `netns_cookie in sock_ops`.
    pub name: String,
    /// In words of the operator: which connections would be missed without it.
    pub needed_for: String,
    pub found: Found,
    pub uses: Vec<Use>,
    /// What is lost without it, where that is not the whole backend.
    pub without: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Yes,
    /// The errno, the verifier's words, or what is missing.
    No(String),
}

/// The heading under which it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    Node,
    Hooks,
    Helpers,
    Maps,
    Links,
    Netfilter,
}

/// A way of capture, and how much it depends on the feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    pub way: Way,
    pub weight: Weight,
    pub modes: &'static [Mode],
}

/// What can carry capture in. The two kinds of iptables are one backend that uses what works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    Ebpf,
    Nftables,
    IptablesNft,
    IptablesLegacy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Without it this way captures nothing.
    Required,
    /// Without it nothing but a mark, which others can forge, would tell the daemon's connections: it does not capture then.
    Exact,
    /// Something smaller is lost: see [`Finding::without`].
    Optional,
}

pub const ALL_MODES: &[Mode] = &[Mode::Shared, Mode::Dedicated, Mode::Node];

impl Finding {
    pub fn is_found(&self) -> bool {
        self.found == Found::Yes
    }

    /// How much `way` depends on it in `mode`.
    pub fn weight(&self, way: Way, mode: Mode) -> Option<Weight> {
        let of_mode = |usage: &&Use| usage.way == way && usage.modes.contains(&mode);
        self.uses.iter().find(of_mode).map(|usage| usage.weight)
    }

    /// What follows from its absence in `mode`; empty if it is there.
    pub fn consequence(&self, mode: Mode) -> String {
        if self.is_found() {
            return String::new();
        }
        let with = |weight| {
            let ways = Way::ALL.into_iter();
            let ways = ways.filter(move |way| self.weight(*way, mode) == Some(weight));
            ways.map(Way::name).collect::<Vec<_>>()
        };
        let (required, exact) = (with(Weight::Required), with(Weight::Exact));
        let mut told = Vec::new();
        if required.len() == Way::ALL.len() {
            told.push("no capture at all".to_owned());
        } else if !required.is_empty() {
            told.push(format!("no capture by {}", required.join(", ")));
        }
        if !exact.is_empty() {
            told.push(format!(
                "no capture by {}: rules could tell the daemon by a mark only, which pods can forge",
                exact.join(", ")
            ));
        }
        if !self.without.is_empty() {
            told.push(self.without.to_owned());
        }
        match told.is_empty() {
            true => "none in this mode".to_owned(),
            false => told.join("; "),
        }
    }
}

impl Way {
    pub const ALL: [Self; 4] = [
        Self::Ebpf,
        Self::Nftables,
        Self::IptablesNft,
        Self::IptablesLegacy,
    ];
    pub const NETFILTER: [Self; 3] = [Self::Nftables, Self::IptablesNft, Self::IptablesLegacy];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ebpf => "eBPF",
            Self::Nftables => "nftables",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
        }
    }

    pub const fn needs(self, weight: Weight) -> Use {
        self.needs_in(weight, ALL_MODES)
    }

    pub const fn needs_in(self, weight: Weight, modes: &'static [Mode]) -> Use {
        Use {
            way: self,
            weight,
            modes,
        }
    }
}

impl Group {
    pub fn title(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Hooks => "eBPF programs",
            Self::Helpers => "eBPF helpers",
            Self::Maps => "eBPF maps",
            Self::Links => "eBPF attaching",
            Self::Netfilter => "netfilter",
        }
    }
}
