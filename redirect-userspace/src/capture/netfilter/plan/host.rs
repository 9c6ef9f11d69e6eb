//! Plans of the node's own network namespace: [`Probes`] for pods whose proxy listens in the pod, [`Node`] for `mode: node`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use redirect_common::ports;

use super::{
    Action, CgroupPath, Family, Form, Hook, Match, PROBE_MARK, Plan, Probed, Role, Rule, Selection,
    Table, chain, pod::untouched, rule,
};

/// Where a prober's connections come from, for captured pods. The ecosystem's own addresses: network policies know them.
pub fn probe_source(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::new(169, 254, 7, 127).into(),
        Family::Ipv6 => Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, !0, !0, !0, !0).into(),
    }
}

/// Makes connections of a prober known to the pods that it probes: they leave from [`probe_source`], and nothing else does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    /// Whose connections are probes.
    pub probers: Vec<CgroupPath>,
    /// The captured pods: their addresses, and the ports on which they are probed.
    pub pods: Vec<(Vec<IpAddr>, Probed)>,
}

impl Probes {
    /// Without chains if nothing can be probed.
    pub fn plan(&self, family: Family) -> Plan {
        let source = probe_source(family);
        let targets = self.targets(family);
        let is_used = !targets.is_empty() && !self.probers.is_empty();
        let chains = is_used.then(|| {
            let probers = self.probers.iter().cloned();
            let probers = probers.map(|prober| vec![Match::Tcp, Match::Cgroup(prober)]);
            let (value, mask) = PROBE_MARK;
            let marked = vec![Match::Tcp, Match::ConnMark(value, mask)];
            let spoofed = vec![Match::Source(source.into())];
            [
                // Conntrack's mark, since nft cannot ask for a cgroup where sources are changed.
                chain(
                    Table::Mangle,
                    Hook::Output,
                    Role::Probes,
                    probers.collect(),
                    targets
                        .into_iter()
                        .map(|target| rule(target, Action::SetConnMark(value, mask)))
                        .collect(),
                ),
                // Nobody but this node's prober has the address, and that one's packets do not arrive.
                chain(
                    Table::Mangle,
                    Hook::Prerouting,
                    Role::ProbeGuard,
                    vec![spoofed.clone()],
                    vec![rule(spoofed, Action::Drop)],
                ),
                chain(
                    Table::Nat,
                    Hook::Postrouting,
                    Role::Probes,
                    vec![marked.clone()],
                    vec![rule(marked, Action::From(source))],
                ),
            ]
        });
        Plan {
            family,
            form: Form::Probes,
            chains: chains.into_iter().flatten().flatten().collect(),
        }
    }

    fn targets(&self, family: Family) -> Vec<Vec<Match>> {
        let mut targets = Vec::new();
        for (ips, probed) in &self.pods {
            for ip in family.of(ips) {
                let to = Match::Destination(ip.into());
                match probed {
                    Probed::Never => {}
                    Probed::AnyPort => targets.push(vec![to, Match::Tcp]),
                    Probed::Ports(ports) => targets.extend(
                        ports
                            .iter()
                            .map(|port| vec![to.clone(), Match::Tcp, Match::Port(*port)]),
                    ),
                }
            }
        }
        targets
    }
}

/// Captured pods of a node whose proxy listens in the node's namespace.
///
/// Pods are known by their interface and their addresses. Whoever is on the same interface (a bridge) can take a pod's address
/// there; on an interface of its own a pod has no address but its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub pods: Vec<NodePod>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePod {
    /// On which the node's IP stack sees the pod's packets arrive: the host side of its veth, or a bridge.
    pub interface: String,
    /// Nobody else is on that interface: what arrives there from another address is dropped.
    pub alone: bool,
    pub ips: Vec<IpAddr>,
    /// Addresses of the node's, at most one per family is used: where the listeners are reached.
    pub node_ips: Vec<IpAddr>,
    pub outbound: Selection,
    pub inbound: Selection,
    pub capture_inbound: bool,
    pub capture_dns: bool,
    pub capture_metadata_address: bool,
}

impl Node {
    /// Original destinations stay what they are: conntrack in the node's namespace knows them.
    pub fn plan(&self, family: Family) -> Plan {
        let pods: Vec<(&NodePod, IpAddr)> = self
            .pods
            .iter()
            .filter_map(|pod| Some((pod, *family.of(&pod.node_ips).first()?)))
            .filter(|(pod, _)| !family.of(&pod.ips).is_empty())
            .collect();
        let dns = pods.iter().any(|(pod, _)| pod.capture_dns);
        let outbound = pods
            .iter()
            .flat_map(|(pod, node)| pod.outbound_rules(family, *node));
        let inbound = pods
            .iter()
            .flat_map(|(pod, node)| pod.inbound_rules(family, *node));
        let mut outbound_entries = vec![vec![Match::TcpSyn]];
        outbound_entries.extend(dns.then(|| vec![Match::Udp, Match::Port(53)]));
        let chains = [
            chain(
                Table::Mangle,
                Hook::Prerouting,
                Role::NodeGuard,
                vec![
                    vec![Match::TcpSyn],
                    vec![Match::Udp, Match::Port(ports::DNS)],
                ],
                guard(family, &pods),
            ),
            chain(
                Table::Nat,
                Hook::Prerouting,
                Role::NodeOutbound,
                outbound_entries,
                outbound.collect(),
            ),
            chain(
                Table::Nat,
                Hook::Prerouting,
                Role::NodeInbound,
                vec![vec![Match::TcpSyn]],
                inbound.collect(),
            ),
        ];
        Plan {
            family,
            form: Form::Node,
            chains: chains.into_iter().flatten().collect(),
        }
    }
}

impl NodePod {
    fn outbound_rules(&self, family: Family, node: IpAddr) -> Vec<Rule> {
        let mut rules = Vec::new();
        for ip in family.of(&self.ips) {
            let from = [Match::In(self.interface.clone()), Match::Source(ip.into())];
            let to = |network: IpNet| {
                rule(
                    [&from[..], &[Match::Destination(network)]].concat(),
                    Action::Return,
                )
            };
            rules.extend(untouched(family, self.capture_metadata_address).map(to));
            rules.extend(self.outbound.left_alone(family, &from, Match::Destination));
            if self.capture_dns && !self.outbound.exclude_ports.contains(&53) {
                let server = Action::Deliver(SocketAddr::new(node, ports::DNS));
                for protocol in [Match::Udp, Match::TcpSyn] {
                    let query = [protocol, Match::Port(53)];
                    rules.push(rule([&from[..], &query].concat(), server));
                }
            }
            rules.extend(self.outbound.captured(
                family,
                &[&from[..], &[Match::TcpSyn]].concat(),
                Match::Destination,
                Action::Deliver(SocketAddr::new(node, ports::OUTBOUND)),
            ));
        }
        rules
    }

    fn inbound_rules(&self, family: Family, node: IpAddr) -> Vec<Rule> {
        let mut rules = Vec::new();
        for ip in family.of(&self.ips) {
            let to = [Match::Destination(ip.into())];
            let hbone = [Match::TcpSyn, Match::Port(ports::INBOUND_HBONE)];
            let deliver = |port| Action::Deliver(SocketAddr::new(node, port));
            rules.push(rule(
                [&to[..], &hbone].concat(),
                deliver(ports::INBOUND_HBONE),
            ));
            if self.capture_inbound {
                rules.extend(self.inbound.left_alone(family, &to, Match::Source));
                rules.extend(self.inbound.captured(
                    family,
                    &[&to[..], &[Match::TcpSyn]].concat(),
                    Match::Source,
                    deliver(ports::INBOUND_PLAINTEXT),
                ));
            }
        }
        rules
    }
}

/// Before `nat`: nobody connects to the listeners directly, and no pod has another's address.
fn guard(family: Family, pods: &[(&NodePod, IpAddr)]) -> Vec<Rule> {
    if pods.is_empty() {
        return Vec::new();
    }
    let mut rules = vec![rule([Match::InLoopback], Action::Return)];
    for (protocol, port) in [
        (Match::TcpSyn, ports::OUTBOUND),
        (Match::TcpSyn, ports::INBOUND_PLAINTEXT),
        (Match::TcpSyn, ports::DNS),
        (Match::Udp, ports::DNS),
    ] {
        let direct = [Match::ToLocal, protocol, Match::Port(port)];
        rules.push(rule(direct, Action::Drop));
    }
    for (pod, _) in pods.iter().filter(|(pod, _)| pod.alone) {
        let there = Match::In(pod.interface.clone());
        for ip in family.of(&pod.ips) {
            let own = [there.clone(), Match::Source(ip.into())];
            rules.push(rule(own, Action::Return));
        }
        rules.push(rule([there], Action::Drop));
    }
    rules
}
