//! Rules in the node's own namespace: for probes of captured pods, or (mode `node`) for all that captured pods do.

use std::{collections::BTreeMap, fs, io, net::IpAddr};

use rtnetlink::{
    RouteMessageBuilder,
    packet_core::NLM_F_ACK,
    packet_route::{
        RouteNetlinkMessage,
        link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
        route::{RouteAddress, RouteAttribute},
    },
};

use super::{
    NetfilterError, Tool, clean, families,
    plan::{
        CgroupPath, Plan, Probed, Selection,
        host::{Node, NodePod, Probes},
    },
    pods::repair,
    rules::Rules,
};
use crate::{
    capture::{CaptureError, ebpf::netlink::request},
    pod::Pod,
    sys::netns::Netns,
};

pub struct NodeRules {
    tool: Tool,
    netns: Netns,
    purpose: Purpose,
    /// What is in force, once that is known.
    in_force: Option<(Vec<Plan>, Option<Rules>)>,
}

pub enum Purpose {
    /// For these probers, if any.
    Probes(Vec<CgroupPath>),
    /// The proxy listens on the node.
    Proxy {
        /// Whether it serves DNS.
        dns: bool,
    },
}

impl NodeRules {
    /// For the calling thread's namespace, which is the node's.
    pub fn open(tool: Tool, purpose: Purpose) -> Result<Self, NetfilterError> {
        Ok(Self {
            tool,
            netns: Netns::current().map_err(NetfilterError::Namespace)?,
            purpose,
            in_force: None,
        })
    }

    pub fn has_probers(&self) -> bool {
        matches!(&self.purpose, Purpose::Probes(probers) if !probers.is_empty())
    }

    /// Makes the rules those of `pods`, in one step.
    pub fn apply<'a>(&mut self, pods: impl Iterator<Item = &'a Pod>) -> Result<(), CaptureError> {
        let families = families(&self.netns)?.into_iter();
        let plans: Vec<Plan> = match &self.purpose {
            Purpose::Probes(probers) => {
                let probes = Probes {
                    probers: probers.clone(),
                    pods: pods
                        .map(|pod| (pod.ips.clone(), Probed::of(&pod.options)))
                        .collect(),
                };
                families.map(|family| probes.plan(family)).collect()
            }
            Purpose::Proxy { dns } => {
                let mut node = Node::default();
                for pod in pods {
                    node.pods.extend(self.located(pod, *dns)?);
                }
                families.map(|family| node.plan(family)).collect()
            }
        };
        if matches!(&self.in_force, Some((in_force, _)) if *in_force == plans) {
            return Ok(());
        }
        let rules = match plans.iter().all(|plan| plan.chains.is_empty()) {
            // Those of an earlier daemon, too.
            true => clean(&self.netns).map(|_| None)?,
            false => {
                let rules = Rules::choose(self.tool, &self.netns, &plans)?;
                rules.apply_in(&self.netns, &plans)?;
                Some(rules)
            }
        };
        self.in_force = Some((plans, rules));
        Ok(())
    }

    /// Makes them true again; tells in words what was not.
    pub fn reassert(&self) -> Result<Vec<String>, CaptureError> {
        match &self.in_force {
            Some((plans, Some(rules))) => repair(rules, &self.netns, plans),
            _ => Ok(Vec::new()),
        }
    }

    /// The pod on each interface that it has on the node.
    fn located(&self, pod: &Pod, dns: bool) -> Result<Vec<NodePod>, NetfilterError> {
        let mut found: BTreeMap<String, NodePod> = BTreeMap::new();
        for ip in pod.ips.iter().map(IpAddr::to_canonical) {
            let way = self
                .netns
                .run(|| Way::to(ip))
                .and_then(|way| way)
                .map_err(|source| NetfilterError::NoWay { ip, source })?;
            if way.on_bridge {
                self.netns
                    .run(|| check_bridge(ip))
                    .map_err(NetfilterError::Namespace)??;
            }
            let node_pod = found.entry(way.interface.clone()).or_insert(NodePod {
                interface: way.interface,
                alone: !way.on_bridge,
                ips: Vec::new(),
                node_ips: Vec::new(),
                outbound: Selection::outbound(&pod.options),
                inbound: Selection::inbound(&pod.options),
                capture_inbound: !pod.options.bypass_inbound,
                capture_dns: dns && pod.options.capture_dns,
                capture_metadata_address: pod.options.capture_metadata_address,
            });
            node_pod.ips.push(ip);
            node_pod.node_ips.push(way.node_ip);
        }
        Ok(found.into_values().collect())
    }
}

/// How the calling thread's namespace reaches an address.
struct Way {
    interface: String,
    /// Others are on the interface, too, and reach each other without it.
    on_bridge: bool,
    node_ip: IpAddr,
}

impl Way {
    fn to(ip: IpAddr) -> io::Result<Self> {
        let question = match ip {
            IpAddr::V4(ip) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(ip, 32)
                .build(),
            IpAddr::V6(ip) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(ip, 128)
                .build(),
        };
        let answers = request(RouteNetlinkMessage::GetRoute(question), NLM_F_ACK)?;
        let (mut index, mut node_ip, mut is_direct) = (None, None, true);
        for answer in answers {
            let RouteNetlinkMessage::NewRoute(route) = answer else {
                continue;
            };
            for attribute in route.attributes {
                match attribute {
                    RouteAttribute::Oif(oif) => index = Some(oif),
                    RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => node_ip = Some(ip.into()),
                    RouteAttribute::PrefSource(RouteAddress::Inet6(ip)) => {
                        node_ip = Some(ip.into());
                    }
                    RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => is_direct = false,
                    _ => {}
                }
            }
        }
        let (Some(index), Some(node_ip), true) = (index, node_ip, is_direct) else {
            return Err(io::Error::other("it is not on an interface of this node"));
        };
        let (interface, on_bridge) = link(index)?;
        Ok(Self {
            interface,
            on_bridge,
            node_ip,
        })
    }
}

/// The name of an interface, and whether it is a bridge.
fn link(index: u32) -> io::Result<(String, bool)> {
    let mut question = LinkMessage::default();
    question.header.index = index;
    let answers = request(RouteNetlinkMessage::GetLink(question), NLM_F_ACK)?;
    let attributes = answers.into_iter().flat_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => link.attributes,
        _ => Vec::new(),
    });
    let (mut name, mut is_bridge) = (None, false);
    for attribute in attributes {
        match attribute {
            LinkAttribute::IfName(found) => name = Some(found),
            LinkAttribute::LinkInfo(infos) => {
                is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
            }
            _ => {}
        }
    }
    let name = name.ok_or_else(|| io::Error::other("the interface has no name"))?;
    Ok((name, is_bridge))
}

/// What pods on a bridge send to each other passes the node's rules only with br_netfilter.
fn check_bridge(ip: IpAddr) -> Result<(), NetfilterError> {
    let name = match ip {
        IpAddr::V4(_) => "/proc/sys/net/bridge/bridge-nf-call-iptables",
        IpAddr::V6(_) => "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
    };
    match fs::read_to_string(name) {
        Ok(value) if value.trim() == "1" => Ok(()),
        _ => Err(NetfilterError::Bridge { ip, sysctl: name }),
    }
}
