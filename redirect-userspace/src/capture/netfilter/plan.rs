//! What netfilter has to do in a pod's network namespace, as data: pure, so that every form has a golden file.
//!
//! All rules are in the `nat` table, which sees the first packet of each connection only.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use redirect_common::ports;

/// Packets of a proxy that is exempt by mark, as `value/mask`.
pub const PROXY_MARK: (u32, u32) = (0x539, 0xfff);
/// Packets of the proxy's connections to apps, whose source is the client's address.
pub const CLIENT_MARK: (u32, u32) = (0x111, 0xfff);
/// The proxy's user in rules of the sidecar form.
pub const PROXY_UID: u32 = 1337;
/// Envoy's metrics, which dashboards made for the sidecar form ask for.
const SIDECAR_METRICS: u16 = 15090;

/// Rules of one address family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub family: Family,
    pub mode: Mode,
    pub chains: Vec<Chain>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    Ipv4,
    Ipv6,
}

/// Where the proxy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the node's daemon, with listeners inside the pod's namespace.
    Shared,
    /// In the pod. Chains have the names that operators know from sidecars.
    Dedicated,
}

/// A chain that all TCP packets of a hook go through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub hook: Hook,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets that processes in the namespace send.
    Output,
    /// Packets that arrive.
    Prerouting,
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
    Uid(u32),
    Cgroup(CgroupPath),
    Mark(u32, u32),
    Destination(IpNet),
    Tcp,
    /// The first packet of a connection's own: SYN without ACK, RST and FIN.
    TcpSyn,
    TcpPort(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Leave it alone.
    Return,
    /// To this port of the namespace itself.
    Redirect(u16),
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

/// What is asked of the rules of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    pub mode: Mode,
    pub exemption: Exemption,
    /// Further cgroups that are left alone.
    pub exempt_cgroups: Vec<CgroupPath>,
    pub exclude_outbound_ports: Vec<u16>,
    pub exclude_outbound_cidrs: Vec<IpNet>,
    pub capture_metadata_address: bool,
    /// Whether connections in plaintext from outside go to the inbound listener.
    pub capture_inbound: bool,
}

impl Needs {
    pub fn plan(&self, family: Family) -> Plan {
        let mut chains = vec![Chain {
            hook: Hook::Output,
            rules: self.outbound(family),
        }];
        if self.capture_inbound {
            chains.push(Chain {
                hook: Hook::Prerouting,
                rules: self.inbound(),
            });
        }
        Plan {
            family,
            mode: self.mode,
            chains,
        }
    }

    fn outbound(&self, family: Family) -> Vec<Rule> {
        // Loopback, and the pod's own addresses: the kernel delivers both over `lo`.
        let mut rules = vec![leave([Match::OutLoopback])];
        rules.extend(match &self.exemption {
            Exemption::Cgroup(cgroup) => vec![leave([Match::Cgroup(cgroup.clone())])],
            Exemption::Mark => [PROXY_MARK, CLIENT_MARK]
                .map(|(value, mask)| leave([Match::Mark(value, mask)]))
                .into(),
            Exemption::Uid(uid) => vec![leave([Match::Uid(*uid)])],
        });
        let exempt = self.exempt_cgroups.iter().cloned();
        rules.extend(exempt.map(|cgroup| leave([Match::Cgroup(cgroup)])));
        let untouched = self.untouched(family).into_iter();
        rules.extend(untouched.map(|network| leave([Match::Destination(network)])));
        let mut ports = self.exclude_outbound_ports.clone();
        ports.sort_unstable();
        ports.dedup();
        rules.extend(
            ports
                .into_iter()
                .map(|port| leave([Match::Tcp, Match::TcpPort(port)])),
        );
        rules.push(self.redirect(ports::OUTBOUND));
        rules
    }

    /// Destinations that are left alone.
    fn untouched(&self, family: Family) -> Vec<IpNet> {
        const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
        let mut networks: Vec<IpNet> = Vec::new();
        if self.mode == Mode::Dedicated {
            networks.push(match family {
                Family::Ipv4 => IpNet::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST)),
                Family::Ipv6 => IpNet::from(std::net::IpAddr::from(Ipv6Addr::LOCALHOST)),
            });
        }
        match family {
            Family::Ipv4 if !self.capture_metadata_address => {
                networks.push(Ipv4Net::from(METADATA).into());
            }
            Family::Ipv4 => {}
            // An original destination says no interface, without which these addresses mean nothing.
            Family::Ipv6 => networks.push(
                Ipv6Net::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)
                    .expect("10 is at most 128")
                    .into(),
            ),
        }
        let mut excluded: Vec<IpNet> = self
            .exclude_outbound_cidrs
            .iter()
            .map(IpNet::trunc)
            .filter(|network| family.has(network))
            .collect();
        excluded.sort();
        excluded.dedup();
        networks.extend(excluded);
        networks
    }

    fn inbound(&self) -> Vec<Rule> {
        let pass: &[u16] = match self.mode {
            Mode::Shared => &[ports::INBOUND_HBONE],
            // Where the proxy serves them itself.
            Mode::Dedicated => &[
                ports::INBOUND_HBONE,
                ports::METRICS,
                ports::READINESS,
                SIDECAR_METRICS,
            ],
        };
        let mut rules = Vec::new();
        if self.mode == Mode::Shared {
            rules.push(leave([Match::InLoopback]));
        }
        rules.extend(
            pass.iter()
                .map(|port| leave([Match::Tcp, Match::TcpPort(*port)])),
        );
        rules.push(self.redirect(ports::INBOUND_PLAINTEXT));
        rules
    }

    fn redirect(&self, port: u16) -> Rule {
        // Conntrack takes the next packet of a connection that is older than the rules for the first of a new one: in a
        // pod that runs already, only a SYN says that a connection begins. A dedicated proxy is there before its app.
        let first = match self.mode {
            Mode::Shared => Match::TcpSyn,
            Mode::Dedicated => Match::Tcp,
        };
        Rule {
            matches: vec![first],
            action: Action::Redirect(port),
        }
    }
}

impl Plan {
    /// How many rules there are, without the jumps to them.
    pub fn rules(&self) -> usize {
        self.chains.iter().map(|chain| chain.rules.len()).sum()
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

impl Family {
    pub const BOTH: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    fn has(self, network: &IpNet) -> bool {
        matches!(
            (self, network),
            (Self::Ipv4, IpNet::V4(_)) | (Self::Ipv6, IpNet::V6(_))
        )
    }
}

fn leave<const N: usize>(matches: [Match; N]) -> Rule {
    Rule {
        matches: matches.into(),
        action: Action::Return,
    }
}
