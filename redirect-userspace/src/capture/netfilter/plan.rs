//! What netfilter has to do in a network namespace, as data: pure, so that every form has a golden file.
//!
//! [`pod`] makes the plan of a captured pod's namespace, [`host`] those of the node's: for probes, and for `mode: node`.

use std::{fmt, net::IpAddr, net::SocketAddr};

use ipnet::IpNet;

pub mod host;
pub mod pod;

pub use pod::{Needs, Probed, Selection};

/// Packets of a proxy that is exempt by mark, as `value/mask`.
pub const PROXY_MARK: (u32, u32) = (0x539, 0xfff);
/// Packets of the proxy's connections to apps, whose source is the client's address.
pub const CLIENT_MARK: (u32, u32) = (0x111, 0xfff);
/// Connections of a prober that leave the node's namespace for a captured pod. In conntrack only: no packet carries it.
pub const PROBE_MARK: (u32, u32) = (0x112, 0xfff);
/// The proxy's user in rules of the sidecar form.
pub const PROXY_UID: u32 = 1337;

/// Rules of one address family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub family: Family,
    pub form: Form,
    pub chains: Vec<Chain>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    Ipv4,
    Ipv6,
}

/// Where the proxy is that a pod's rules lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the node's daemon, with listeners inside the pod's namespace.
    Shared,
    /// In the pod. Chains have the names that operators know from sidecars.
    Dedicated,
}

/// What a set of rules is for. A namespace has rules of one form at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// In a pod, for a proxy that is [there or not](Mode).
    Pod(Mode),
    /// On the node: its prober's connections to captured pods leave from the address of probes.
    Probes,
    /// On the node: captured pods are sent to the listeners there.
    Node,
}

/// Rules that packets go through which are like one of `entries`, in every respect of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub table: Table,
    pub hook: Hook,
    pub role: Role,
    pub entries: Vec<Vec<Match>>,
    pub rules: Vec<Rule>,
}

/// In the order in which a packet meets them at a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Before conntrack.
    Raw,
    /// Each packet.
    Mangle,
    /// The first packet of each connection.
    Nat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Packets that processes in the namespace send.
    Output,
    /// Packets that arrive.
    Prerouting,
    /// Packets that leave, those that are passed on included.
    Postrouting,
}

/// What a chain does, which its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Outbound,
    Inbound,
    Probes,
    ProbeGuard,
    NodeGuard,
    NodeOutbound,
    NodeInbound,
}

/// What a packet must be like, in every respect, and what becomes of it then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub matches: Vec<Match>,
    pub action: Action,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    OutLoopback,
    InLoopback,
    /// Arrived on this interface.
    In(String),
    Uid(u32),
    Cgroup(CgroupPath),
    /// The packet's, as value and mask.
    Mark(u32, u32),
    /// That of its connection.
    ConnMark(u32, u32),
    Source(IpNet),
    Destination(IpNet),
    /// The destination is an address of this namespace.
    ToLocal,
    Tcp,
    /// The first packet of a connection's own: SYN without ACK, RST and FIN.
    TcpSyn,
    Udp,
    Sctp,
    /// Destination port; beside one of the protocols.
    Port(u16),
    SourcePort(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Leave it alone.
    Return,
    /// To this port of the namespace itself.
    Redirect(u16),
    /// To this address of the namespace itself.
    Deliver(SocketAddr),
    /// From this address.
    From(IpAddr),
    /// A process that sends it is told so at once.
    Drop,
    SetMark(u32, u32),
    SetConnMark(u32, u32),
    /// Conntrack of its own: the same addresses and ports elsewhere are another connection.
    Zone(u16),
    /// No conntrack, and so no rule of `nat`.
    Untracked,
}

/// A cgroup v2 under the names that netfilter's tools want.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupPath {
    /// Below the root of the hierarchy, without a leading slash: what `iptables -m cgroup --path` takes.
    pub in_hierarchy: String,
    /// Below /sys/fs/cgroup, where `nft` looks; `None` if the hierarchy is mounted elsewhere.
    pub in_sysfs: Option<String>,
}

impl CgroupPath {
    /// How many levels below the root of the hierarchy it is.
    pub fn level(&self) -> usize {
        self.in_hierarchy.split('/').count()
    }
}

/// Whose connections are not captured: those of the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exemption {
    /// The proxy's cgroup and those below: exact, nobody else can enter it.
    Cgroup(CgroupPath),
    /// [`PROXY_MARK`], which whoever has CAP_NET_ADMIN or CAP_NET_RAW can set.
    Mark,
    /// A user id, which whoever has CAP_SETUID can take.
    Uid(u32),
}

impl Plan {
    /// How many rules there are, without the jumps to them.
    pub fn rules(&self) -> usize {
        self.chains.iter().map(|chain| chain.rules.len()).sum()
    }

    pub fn chains_of(&self, table: Table) -> impl Iterator<Item = &Chain> {
        self.chains.iter().filter(move |chain| chain.table == table)
    }
}

impl Table {
    pub const ALL: [Self; 3] = [Self::Raw, Self::Mangle, Self::Nat];

    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Mangle => "mangle",
            Self::Nat => "nat",
        }
    }
}

impl Hook {
    pub const ALL: [Self; 3] = [Self::Output, Self::Prerouting, Self::Postrouting];
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    pub fn has(self, network: &IpNet) -> bool {
        matches!(
            (self, network),
            (Self::Ipv4, IpNet::V4(_)) | (Self::Ipv6, IpNet::V6(_))
        )
    }

    /// Those of `addresses` that are of this family.
    pub fn of(self, addresses: &[IpAddr]) -> Vec<IpAddr> {
        let canonical = addresses.iter().map(IpAddr::to_canonical);
        canonical
            .filter(|address| address.is_ipv4() == (self == Self::Ipv4))
            .collect()
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        })
    }
}

/// A rule, unless there is nothing that it could match.
fn rule(matches: impl Into<Vec<Match>>, action: Action) -> Rule {
    Rule {
        matches: matches.into(),
        action,
    }
}

/// Only chains that have rules are made.
fn chain(
    table: Table,
    hook: Hook,
    role: Role,
    entries: Vec<Vec<Match>>,
    rules: Vec<Rule>,
) -> Option<Chain> {
    (!rules.is_empty()).then_some(Chain {
        table,
        hook,
        role,
        entries,
        rules,
    })
}
