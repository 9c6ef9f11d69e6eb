//! The ways of capture that the contract covers: what carries it in, and where the proxy is.

use std::fmt;

use serde_json::{Value, json};

/// What brings connections to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Backend {
    Ebpf,
    IptablesNft,
    IptablesLegacy,
    Nftables,
}

impl Backend {
    pub const ALL: [Self; 4] = [
        Self::Ebpf,
        Self::IptablesNft,
        Self::IptablesLegacy,
        Self::Nftables,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
            Self::Nftables => "nftables",
        }
    }

    /// Whether conntrack knows where a connection wanted to go.
    pub fn is_netfilter(self) -> bool {
        self != Self::Ebpf
    }

    /// The daemon's configuration that asks for it.
    pub fn config(self) -> Value {
        match self {
            Self::Ebpf => json!({ "capture": { "backend": "ebpf" } }),
            Self::IptablesNft => json!({ "capture": { "backend": "iptables", "iptables": "nft" } }),
            Self::IptablesLegacy => {
                json!({ "capture": { "backend": "iptables", "iptables": "legacy" } })
            }
            Self::Nftables => json!({ "capture": { "backend": "nftables" } }),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Where the proxy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    Shared,
    Dedicated,
    Node,
}

impl Mode {
    pub const ALL: [Self; 3] = [Self::Shared, Self::Dedicated, Self::Node];

    pub fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Dedicated => "dedicated",
            Self::Node => "node",
        }
    }

    pub fn config(self) -> Value {
        json!({ "capture": { "mode": self.name() } })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
