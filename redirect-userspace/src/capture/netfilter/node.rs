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
    NetfilterError, Tool, cgroup_path, clean, families,
    plan::{
        CgroupPath, Plan, Probed, Selection,
        host::{Node, NodePod, Probes},
    },
    pods::repair,
    rules::Rules,
};
use crate::{
    capture::{
        CaptureError,
        ebpf::{netlink::request, prober},
    },
    config::ProberCgroups,
    pod::Pod,
    sys::{cgroup::Cgroup, netns::Netns},
};

pub struct NodeRules {
    tool: Tool,
    netns: Netns,
    purpose: Purpose,
    /// What is in force, once that is known.
    in_force: Option<(Vec<Plan>, Option<Rules>)>,
}

pub enum Purpose {
    /// For whoever probes pods.
    Probes(Probers),
    /// The proxy listens on the node.
    Proxy {
        /// Whether it serves DNS.
        dns: bool,
    },
}

/// Whose connections are probes: a service that is started anew gets another cgroup of the same name.
pub struct Probers {
    wanted: ProberCgroups,
    /// With the ids that they had when they were looked up.
    found: Vec<(CgroupPath, u64)>,
    /// They could not be looked for, which was said.
    failed: bool,
}

impl Probers {
    pub fn find(wanted: &ProberCgroups) -> Self {
        let mut probers = Self {
            wanted: wanted.clone(),
            found: Vec::new(),
            failed: false,
        };
        probers.renew();
        probers
    }

    /// Looks again; whether anything is different.
    fn renew(&mut self) -> bool {
        match self.look() {
            Ok(found) => {
                self.failed = false;
                let is_new = found != self.found;
                self.found = found;
                is_new
            }
            // Captured pods are none the worse for that, but for their probes.
            Err(error) => {
                if !self.failed {
                    tracing::warn!(%error, "cannot find who probes pods; name the cgroup in capture.probes.cgroups");
                }
                self.failed = true;
                false
            }
        }
    }

    fn look(&self) -> Result<Vec<(CgroupPath, u64)>, CaptureError> {
        let mut found = Vec::new();
        for path in prober::cgroups(&self.wanted)? {
            let cgroup = Cgroup::open(&path)?;
            let known = self.found.iter().find(|(_, id)| *id == cgroup.id);
            match known {
                Some(known) => found.push(known.clone()),
                None => {
                    found.push((cgroup_path(&path)?, cgroup.id));
                    prober::report_sharers(&cgroup);
                }
            }
        }
        Ok(found)
    }
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
        matches!(&self.purpose, Purpose::Probes(probers) if !probers.found.is_empty())
    }

    /// Whether it is not known what is in force: nothing was applied yet, or that failed.
    pub fn is_pending(&self) -> bool {
        self.in_force.is_none()
    }

    /// Looks for probers again; whether there are others, for whom the rules are to be made anew.
    pub fn renew(&mut self) -> bool {
        let is_new = match &mut self.purpose {
            Purpose::Probes(probers) => probers.renew(),
            Purpose::Proxy { .. } => false,
        };
        if is_new {
            self.in_force = None;
        }
        is_new
    }

    /// Makes the rules those of `pods`, in one step.
    pub fn apply<'a>(&mut self, pods: impl Iterator<Item = &'a Pod>) -> Result<(), CaptureError> {
        let families = families(&self.netns)?.into_iter();
        let plans: Vec<Plan> = match &self.purpose {
            Purpose::Probes(probers) => {
                let probes = Probes {
                    probers: probers.found.iter().map(|(path, _)| path.clone()).collect(),
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
        self.in_force = None;
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
