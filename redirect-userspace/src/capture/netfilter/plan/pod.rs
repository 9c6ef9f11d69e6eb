//! The plan of a captured pod's network namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use redirect_common::ports;

use super::{
    Action, CLIENT_MARK, CgroupPath, Chain, Exemption, Family, Form, Hook, Match, Mode, PROXY_MARK,
    Plan, Role, Rule, Table, chain, host, rule,
};
use crate::pod::PodOptions;

/// Envoy's metrics, which dashboards made for the sidecar form ask for.
const SIDECAR_METRICS: u16 = 15090;
const DNS: u16 = 53;
/// The proxy's own DNS in conntrack.
const DNS_ZONE: u16 = 1;
/// Only the pod itself may reach them.
const FOR_POD_ONLY: [u16; 3] = [ports::OUTBOUND, ports::INBOUND_PLAINTEXT, ports::DNS];

/// What is asked of the rules of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    pub mode: Mode,
    pub exemption: Exemption,
    /// Further cgroups that are left alone.
    pub exempt_cgroups: Vec<CgroupPath>,
    pub outbound: Selection,
    /// Its networks are those of clients.
    pub inbound: Selection,
    pub capture_metadata_address: bool,
    /// Whether connections in plaintext from outside go to the inbound listener.
    pub capture_inbound: bool,
    pub capture_dns: bool,
    pub probes: Probed,
    pub refuse_udp: bool,
    pub refuse_sctp: bool,
}

/// Which connections of one direction are captured: what is included, or all if nothing is, without what is excluded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    pub exclude_ports: Vec<u16>,
    pub exclude_cidrs: Vec<IpNet>,
    pub include_ports: Vec<u16>,
    pub include_cidrs: Vec<IpNet>,
}

/// Whether a prober of the node reaches the app without the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probed {
    Never,
    /// The ports are not known.
    AnyPort,
    Ports(Vec<u16>),
}

impl Needs {
    /// Those of a pod with these options; `exempt_cgroups` are the options' own, looked up. `probes` says whether the node has
    /// rules for a prober.
    pub fn new(
        mode: Mode,
        exemption: Exemption,
        exempt_cgroups: Vec<CgroupPath>,
        options: &PodOptions,
        probes: bool,
    ) -> Self {
        Self {
            mode,
            exemption,
            exempt_cgroups,
            outbound: Selection::outbound(options),
            inbound: Selection::inbound(options),
            capture_metadata_address: options.capture_metadata_address,
            capture_inbound: !options.bypass_inbound,
            capture_dns: options.capture_dns,
            probes: match probes {
                true => Probed::of(options),
                false => Probed::Never,
            },
            refuse_udp: options.refuse_udp,
            refuse_sctp: options.refuse_sctp,
        }
    }

    pub fn plan(&self, family: Family) -> Plan {
        let chains = [
            self.raw_output(),
            self.raw_prerouting(),
            self.mangle_output(),
            self.mangle_prerouting(),
            self.nat_output(family),
            self.nat_prerouting(family),
        ];
        Plan {
            family,
            form: Form::Pod(self.mode),
            chains: chains.into_iter().flatten().collect(),
        }
    }

    fn nat_output(&self, family: Family) -> Option<Chain> {
        // Loopback, and the pod's own addresses: the kernel delivers both over `lo`.
        let mut rules = vec![rule([Match::OutLoopback], Action::Return)];
        rules.extend(self.exempt());
        if self.mode == Mode::Dedicated {
            let loopback: IpAddr = match family {
                Family::Ipv4 => Ipv4Addr::LOCALHOST.into(),
                Family::Ipv6 => Ipv6Addr::LOCALHOST.into(),
            };
            rules.push(rule([Match::Destination(loopback.into())], Action::Return));
        }
        let untouched = untouched(family, self.capture_metadata_address);
        rules.extend(untouched.map(|network| rule([Match::Destination(network)], Action::Return)));
        rules.extend(self.outbound.left_alone(family, &[], Match::Destination));
        let mut entries = vec![vec![Match::Tcp]];
        if self.redirects_dns() {
            entries.push(vec![Match::Udp, Match::Port(DNS)]);
            for protocol in [Match::Udp, self.first()] {
                rules.push(rule(
                    [protocol, Match::Port(DNS)],
                    Action::Redirect(ports::DNS),
                ));
            }
        }
        let captured = Action::Redirect(ports::OUTBOUND);
        rules.extend(
            self.outbound
                .captured(family, &[self.first()], Match::Destination, captured),
        );
        chain(Table::Nat, Hook::Output, Role::Outbound, entries, rules)
    }

    fn nat_prerouting(&self, family: Family) -> Option<Chain> {
        if !self.capture_inbound {
            return None;
        }
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
            rules.push(rule([Match::InLoopback], Action::Return));
        }
        if self.exemption == Exemption::Mark {
            let (value, mask) = PROXY_MARK;
            rules.push(rule([Match::Mark(value, mask)], Action::Return));
        }
        rules.extend(
            pass.iter()
                .map(|port| rule([Match::Tcp, Match::Port(*port)], Action::Return)),
        );
        let prober = Match::Source(host::probe_source(family).into());
        rules.extend(match &self.probes {
            Probed::Never => Vec::new(),
            Probed::AnyPort => vec![rule([prober, Match::Tcp], Action::Return)],
            Probed::Ports(ports) => sorted(ports)
                .into_iter()
                .map(|port| {
                    rule(
                        [prober.clone(), Match::Tcp, Match::Port(port)],
                        Action::Return,
                    )
                })
                .collect(),
        });
        rules.extend(self.inbound.left_alone(family, &[], Match::Source));
        let captured = Action::Redirect(ports::INBOUND_PLAINTEXT);
        rules.extend(
            self.inbound
                .captured(family, &[self.first()], Match::Source, captured),
        );
        let entries = vec![vec![Match::Tcp]];
        chain(Table::Nat, Hook::Prerouting, Role::Inbound, entries, rules)
    }

    /// What is not captured and may not leave, and how the answers of an app find a proxy that marks its connections.
    fn mangle_output(&self) -> Option<Chain> {
        let (mut entries, mut rules) = (Vec::new(), Vec::new());
        if self.exemption == Exemption::Mark {
            let (value, mask) = CLIENT_MARK;
            entries.push(vec![Match::ConnMark(value, mask)]);
            let set = Action::SetMark(value, mask);
            rules.push(rule([Match::ConnMark(value, mask)], set));
        }
        let refused = self.refused();
        if !refused.is_empty() {
            entries.extend(refused.iter().map(|protocol| vec![protocol.clone()]));
            rules.push(rule([Match::OutLoopback], Action::Return));
            rules.extend(self.exempt());
        }
        if self.refuse_udp {
            rules.push(rule([Match::Udp, Match::Port(DNS)], Action::Return));
        }
        rules.extend(refused.into_iter().map(|p| rule([p], Action::Drop)));
        chain(Table::Mangle, Hook::Output, Role::Outbound, entries, rules)
    }

    /// After `nat`, a connection to a listener could not be told from one that was redirected there.
    fn mangle_prerouting(&self) -> Option<Chain> {
        let mut entries = vec![
            vec![Match::TcpSyn],
            vec![Match::Udp, Match::Port(ports::DNS)],
        ];
        let mut rules = Vec::new();
        if self.exemption == Exemption::Mark {
            let ((value, mask), (client, client_mask)) = (PROXY_MARK, CLIENT_MARK);
            entries.push(vec![Match::Mark(value, mask)]);
            let set = Action::SetConnMark(client, client_mask);
            rules.push(rule([Match::Mark(value, mask)], set));
        }
        rules.push(rule([Match::InLoopback], Action::Return));
        let closed = FOR_POD_ONLY.map(|port| vec![Match::TcpSyn, Match::Port(port)]);
        rules.extend(closed.map(|matches| rule(matches, Action::Drop)));
        rules.push(rule([Match::Udp, Match::Port(ports::DNS)], Action::Drop));
        if self.refuse_sctp {
            entries.push(vec![Match::Sctp]);
            rules.push(rule([Match::Sctp], Action::Drop));
        }
        chain(
            Table::Mangle,
            Hook::Prerouting,
            Role::Inbound,
            entries,
            rules,
        )
    }

    fn raw_output(&self) -> Option<Chain> {
        let (mut entries, mut rules) = (Vec::new(), Vec::new());
        // The proxy's connection to the app has the client's address: without conntrack it is never taken for the client's
        // own, which was redirected. Where conntrack's mark leads the answers back, it must be followed.
        if self.exemption != Exemption::Mark {
            let (value, mask) = CLIENT_MARK;
            let matches = [Match::OutLoopback, Match::Mark(value, mask)];
            entries.push(matches.to_vec());
            rules.push(rule(matches, Action::Untracked));
        }
        if self.redirects_dns() {
            let query = [Match::Udp, Match::Port(DNS)];
            entries.push(query.to_vec());
            rules.extend(self.own().into_iter().map(|own| {
                let matches = [&[own][..], &query].concat();
                rule(matches, Action::Zone(DNS_ZONE))
            }));
        }
        chain(Table::Raw, Hook::Output, Role::Outbound, entries, rules)
    }

    fn raw_prerouting(&self) -> Option<Chain> {
        let answer = [Match::Udp, Match::SourcePort(DNS)];
        let rules = match self.redirects_dns() {
            // An answer that comes over `lo` is one to the app.
            true => vec![
                rule([Match::InLoopback], Action::Return),
                rule(answer.clone(), Action::Zone(DNS_ZONE)),
            ],
            false => Vec::new(),
        };
        let entries = vec![answer.into()];
        chain(Table::Raw, Hook::Prerouting, Role::Inbound, entries, rules)
    }

    /// What the proxy's own packets are like.
    fn own(&self) -> Vec<Match> {
        match &self.exemption {
            Exemption::Cgroup(cgroup) => vec![Match::Cgroup(cgroup.clone())],
            Exemption::Mark => vec![Match::Mark(PROXY_MARK.0, PROXY_MARK.1)],
            Exemption::Uid(uid) => vec![Match::Uid(*uid)],
        }
    }

    /// The proxy's own, and whatever else is left alone because of who sends it.
    fn exempt(&self) -> Vec<Rule> {
        let mut senders = self.own();
        if self.exemption == Exemption::Mark {
            senders.push(Match::Mark(CLIENT_MARK.0, CLIENT_MARK.1));
        }
        senders.extend(self.exempt_cgroups.iter().cloned().map(Match::Cgroup));
        let rules = senders.into_iter();
        rules.map(|sender| rule([sender], Action::Return)).collect()
    }

    fn refused(&self) -> Vec<Match> {
        let udp = self.refuse_udp.then_some(Match::Udp);
        let sctp = self.refuse_sctp.then_some(Match::Sctp);
        udp.into_iter().chain(sctp).collect()
    }

    fn redirects_dns(&self) -> bool {
        self.capture_dns && !self.outbound.exclude_ports.contains(&DNS)
    }

    /// Conntrack takes the next packet of a connection that is older than the rules for the first of a new one: in a pod that
    /// runs already, only a SYN says that a connection begins. A dedicated proxy is there before its app.
    fn first(&self) -> Match {
        match self.mode {
            Mode::Shared => Match::TcpSyn,
            Mode::Dedicated => Match::Tcp,
        }
    }
}

impl Selection {
    pub fn outbound(options: &PodOptions) -> Self {
        Self {
            exclude_ports: options.exclude_outbound_ports.clone(),
            exclude_cidrs: options.exclude_outbound_cidrs.clone(),
            include_ports: options.include_outbound_ports.clone(),
            include_cidrs: options.include_outbound_cidrs.clone(),
        }
    }

    pub fn inbound(options: &PodOptions) -> Self {
        Self {
            exclude_ports: options.exclude_inbound_ports.clone(),
            exclude_cidrs: options.exclude_inbound_cidrs.clone(),
            include_ports: options.include_inbound_ports.clone(),
            include_cidrs: options.include_inbound_cidrs.clone(),
        }
    }

    /// Rules for what is excluded, of packets that are like `all`. `network` says whether networks are sources or destinations.
    pub(super) fn left_alone(
        &self,
        family: Family,
        all: &[Match],
        network: fn(IpNet) -> Match,
    ) -> Vec<Rule> {
        let cidrs = networks(family, &self.exclude_cidrs).into_iter();
        let cidrs = cidrs.map(|cidr| vec![network(cidr)]);
        let ports = sorted(&self.exclude_ports).into_iter();
        let ports = ports.map(|port| vec![Match::Tcp, Match::Port(port)]);
        cidrs
            .chain(ports)
            .map(|of| rule([all, &of[..]].concat(), Action::Return))
            .collect()
    }

    /// Rules for what is captured: `all` ends with the protocol.
    pub(super) fn captured(
        &self,
        family: Family,
        all: &[Match],
        network: fn(IpNet) -> Match,
        action: Action,
    ) -> Vec<Rule> {
        if self.include_ports.is_empty() && self.include_cidrs.is_empty() {
            return vec![rule(all, action)];
        }
        let ports = sorted(&self.include_ports).into_iter();
        let ports = ports.map(|port| rule([all, &[Match::Port(port)]].concat(), action));
        let cidrs = networks(family, &self.include_cidrs).into_iter();
        let cidrs = cidrs.map(|cidr| rule([&[network(cidr)], all].concat(), action));
        ports.chain(cidrs).collect()
    }
}

impl Probed {
    pub fn of(options: &PodOptions) -> Self {
        match &options.probe_ports {
            None => Self::AnyPort,
            Some(ports) => Self::Ports(ports.clone()),
        }
    }
}

/// Destinations that are never captured.
pub(super) fn untouched(family: Family, metadata_too: bool) -> impl Iterator<Item = IpNet> {
    const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
    let network: Option<IpNet> = match family {
        Family::Ipv4 if metadata_too => None,
        Family::Ipv4 => Some(Ipv4Net::from(METADATA).into()),
        // An original destination says no interface, without which these addresses mean nothing.
        Family::Ipv6 => Some(
            Ipv6Net::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)
                .expect("10 is at most 128")
                .into(),
        ),
    };
    network.into_iter()
}

fn networks(family: Family, cidrs: &[IpNet]) -> Vec<IpNet> {
    let mut networks: Vec<IpNet> = cidrs
        .iter()
        .map(IpNet::trunc)
        .filter(|network| family.has(network))
        .collect();
    networks.sort();
    networks.dedup();
    networks
}

fn sorted(ports: &[u16]) -> Vec<u16> {
    let mut ports = ports.to_vec();
    ports.sort_unstable();
    ports.dedup();
    ports
}
