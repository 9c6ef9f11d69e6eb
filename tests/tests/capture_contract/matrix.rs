//! The cells of the contract, which of them cannot be, and what the suite prints of them.

use std::{collections::BTreeMap, fmt, net::SocketAddr};

use redirect_tests::{
    Pod,
    way::{Backend, Mode},
};

/// What is captured by what: one testbed serves all families of a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    pub mode: Mode,
    pub backend: Backend,
}

impl Way {
    pub fn all() -> impl Iterator<Item = Self> {
        let each = |mode| Backend::ALL.map(|backend| Self { mode, backend });
        Mode::ALL.into_iter().flat_map(each)
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.backend, self.mode)
    }
}

/// What the app's socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    Ipv4,
    Ipv6,
    /// IPv4 by a socket for IPv6, as Java and Go have it.
    Mapped,
}

impl Family {
    pub const ALL: [Self; 3] = [Self::Ipv4, Self::Ipv6, Self::Mapped];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Mapped => "v4-mapped",
        }
    }

    /// What is different for each family, such as a port or an address.
    pub fn pick<T>(self, ipv4: T, ipv6: T, mapped: T) -> T {
        match self {
            Self::Ipv4 => ipv4,
            Self::Ipv6 => ipv6,
            Self::Mapped => mapped,
        }
    }

    /// `pod`'s address as an app of this family names it.
    pub fn at(self, pod: &Pod, port: u16) -> SocketAddr {
        self.spell(self.on_wire(pod, port))
    }

    /// `pod`'s address as it is in packets.
    pub fn on_wire(self, pod: &Pod, port: u16) -> SocketAddr {
        self.pick(pod.at(port), pod.at6(port), pod.at(port))
    }

    /// `addr`, one of those in packets, as an app of this family names it.
    pub fn spell(self, addr: SocketAddr) -> SocketAddr {
        match (self, addr) {
            (Self::Mapped, SocketAddr::V4(v4)) => {
                SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())
            }
            _ => addr,
        }
    }
}

/// What became of a check in a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed,
    /// It cannot be there, for this reason.
    Not(&'static str),
}

/// A set of cells and checks that are not there, and why. An empty list stands for all.
struct Except {
    checks: &'static [&'static str],
    modes: &'static [Mode],
    backends: &'static [Backend],
    families: &'static [Family],
    why: &'static str,
}

const NETFILTER: &[Backend] = &[
    Backend::IptablesNft,
    Backend::IptablesLegacy,
    Backend::Nftables,
];

/// All that this suite does not check, and why.
const EXCEPTIONS: &[Except] = &[
    Except {
        checks: &[
            "DNS: a service",
            "DNS: another name",
            "DNS over TCP",
            "dead: DNS unanswered",
            "cleaned: DNS is direct",
        ],
        modes: &[Mode::Node],
        backends: &[],
        families: &[],
        why: "not built: DNS is not captured in mode node",
    },
    Except {
        checks: &[
            "client's address kept",
            "inbound captured",
            "next daemon, inbound",
        ],
        modes: &[Mode::Node],
        backends: NETFILTER,
        families: &[],
        why: "the app sees the node's address: its answers to the client's would not pass the node's proxy",
    },
    Except {
        checks: &["probe of another port", "probe by somebody else"],
        modes: &[Mode::Node],
        backends: NETFILTER,
        families: &[],
        why: "what the node itself sends does not pass PREROUTING: all of its processes reach the pods",
    },
    Except {
        checks: &["probe"],
        modes: &[Mode::Dedicated],
        backends: &[],
        families: &[],
        why: "a proxy in the pod has no part on the node, where probes come from: such a port is excluded, or answered by the proxy (15021)",
    },
    Except {
        checks: &["metadata address"],
        modes: &[],
        backends: &[],
        families: &[Family::Ipv6],
        why: "169.254.169.254 has no equal in IPv6",
    },
    Except {
        checks: &["no conntrack"],
        modes: &[],
        backends: NETFILTER,
        families: &[],
        why: "REDIRECT is address translation, and conntrack is what remembers the original destination",
    },
];

/// Why `check` is not made in this cell; `None` if it is.
pub fn exception(way: Way, family: Family, check: &str) -> Option<&'static str> {
    fn among<T: PartialEq>(list: &[T], one: &T) -> bool {
        list.is_empty() || list.contains(one)
    }
    let fits = |except: &&Except| {
        among(except.checks, &check)
            && among(except.modes, &way.mode)
            && among(except.backends, &way.backend)
            && among(except.families, &family)
    };
    EXCEPTIONS.iter().find(fits).map(|except| except.why)
}

/// Whether `check` is made for any family of this way.
pub fn is_made(way: Way, check: &str) -> bool {
    let mut families = Family::ALL.into_iter();
    families.any(|family| exception(way, family, check).is_none())
}

/// The outcomes, as a table per mode: a line per check, a column per backend, a mark per family.
#[derive(Default)]
pub struct Table(BTreeMap<(Way, usize, Family), Outcome>);

impl Table {
    pub fn insert(&mut self, way: Way, check: usize, family: Family, outcome: Outcome) {
        self.0.insert((way, check, family), outcome);
    }

    pub fn count(&self, wanted: impl Fn(&Outcome) -> bool) -> usize {
        self.0.values().filter(|outcome| wanted(outcome)).count()
    }

    pub fn render(&self, checks: &[&str]) -> String {
        let mut reasons: Vec<&'static str> = Vec::new();
        let mut text = String::new();
        let width = checks.iter().map(|name| name.len()).max().unwrap_or(0);
        let there = |mode: &Mode| self.0.keys().any(|(way, ..)| way.mode == *mode);
        for mode in Mode::ALL.into_iter().filter(there) {
            text += &format!("\n{:width$}", mode.name());
            for backend in Backend::ALL {
                text += &format!("  {:<15}", backend.name());
            }
            text += "\n";
            for (number, check) in checks.iter().enumerate() {
                text += &format!("{check:width$}");
                for backend in Backend::ALL {
                    let way = Way { mode, backend };
                    let marks =
                        Family::ALL.map(|family| match self.0.get(&(way, number, family)) {
                            None => ' ',
                            Some(Outcome::Passed) => '✓',
                            Some(Outcome::Failed) => '✗',
                            Some(Outcome::Not(why)) => letter(&mut reasons, why),
                        });
                    text += &format!("  {} {} {}{:10}", marks[0], marks[1], marks[2], "");
                }
                text = text.trim_end().to_owned() + "\n";
            }
        }
        text += "\nthe marks stand for IPv4, IPv6 and v4-mapped; ✓ holds, ✗ does not\n";
        for (number, why) in reasons.iter().enumerate() {
            text += &format!("{} {why}\n", mark(number));
        }
        text
    }
}

fn letter(reasons: &mut Vec<&'static str>, why: &'static str) -> char {
    let known = reasons.iter().position(|reason| *reason == why);
    mark(known.unwrap_or_else(|| {
        reasons.push(why);
        reasons.len() - 1
    }))
}

fn mark(number: usize) -> char {
    char::from(b'a' + u8::try_from(number.min(25)).expect("at most 25"))
}
