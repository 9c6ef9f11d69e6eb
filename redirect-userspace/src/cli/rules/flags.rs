//! What the flags of `redirect rules` ask for, as plans.

use std::{net::IpAddr, path::PathBuf, str::FromStr};

use clap::{Args, ValueEnum};
use ipnet::IpNet;

use crate::{
    capture::netfilter::{
        self, Tool,
        plan::{
            Exemption, Family, Mode, Needs, PROXY_UID, Plan, Probed, Selection,
            host::{Node, NodePod, Probes},
        },
    },
    sys::netns::Netns,
};

#[derive(Debug, Args)]
pub struct RuleFlags {
    /// What carries the rules in; `iptables` is the variant that is in use there already, or that works
    #[arg(long, value_enum, default_value = "iptables")]
    backend: BackendArg,
    #[arg(long, value_enum, default_value = "both")]
    family: FamilyArg,
    /// Rules of a pod, whose proxy is on the node, or in the pod (the form that is known from sidecars); or rules of the node:
    /// those for probes of pods, or those for pods whose proxy listens on the node
    #[arg(long, value_enum, default_value = "shared")]
    mode: ModeArg,
    /// Leave connections of this cgroup v2 alone, and of those below: the proxy's (the daemon gives its own)
    #[arg(long, value_name = "DIR", group = "exempt")]
    exempt_cgroup: Option<PathBuf>,
    /// Leave packets with the mark 0x539/0xfff alone; whoever has CAP_NET_ADMIN or CAP_NET_RAW can set it
    #[arg(long, group = "exempt")]
    exempt_mark: bool,
    /// Leave connections of this user alone [default with --mode dedicated: 1337]
    #[arg(long, value_name = "UID", group = "exempt")]
    exempt_uid: Option<u32>,
    #[command(flatten)]
    selection: SelectionFlags,
    /// Capture connections to 169.254.169.254, too
    #[arg(long)]
    capture_metadata_address: bool,
    /// Capture connections in plaintext to the pod, too; something must listen on port 15006. Always with --mode dedicated
    #[arg(long)]
    capture_inbound: bool,
    /// Send DNS queries to port 15053, where something must answer them
    #[arg(long)]
    capture_dns: bool,
    /// Let connections from the address of probes through to any port (the node has rules that give it to its prober)
    #[arg(long)]
    probes: bool,
    /// The same, to these ports only
    #[arg(long, value_name = "PORT,..", value_delimiter = ',')]
    probe_ports: Vec<u16>,
    /// Refuse UDP other than DNS, which is not captured
    #[arg(long)]
    refuse_udp: bool,
    /// Refuse SCTP, which is not captured
    #[arg(long)]
    refuse_sctp: bool,
    #[command(flatten)]
    node: NodeFlags,
}

#[derive(Debug, Args)]
struct SelectionFlags {
    /// Destination ports that are left alone
    #[arg(long, value_name = "PORT,..", value_delimiter = ',')]
    exclude_outbound_ports: Vec<u16>,
    /// Destination networks that are left alone
    #[arg(long, value_name = "NET,..", value_delimiter = ',')]
    exclude_outbound_cidrs: Vec<IpNet>,
    /// Capture these destination ports, and nothing that is not included
    #[arg(long, value_name = "PORT,..", value_delimiter = ',')]
    include_outbound_ports: Vec<u16>,
    /// Capture these destination networks, and nothing that is not included
    #[arg(long, value_name = "NET,..", value_delimiter = ',')]
    include_outbound_cidrs: Vec<IpNet>,
    /// The pod's own ports to which connections are left alone
    #[arg(long, value_name = "PORT,..", value_delimiter = ',')]
    exclude_inbound_ports: Vec<u16>,
    /// Clients' networks that are left alone
    #[arg(long, value_name = "NET,..", value_delimiter = ',')]
    exclude_inbound_cidrs: Vec<IpNet>,
    /// Capture connections to these ports of the pod, and nothing that is not included
    #[arg(long, value_name = "PORT,..", value_delimiter = ',')]
    include_inbound_ports: Vec<u16>,
    /// Capture connections from these networks, and nothing that is not included
    #[arg(long, value_name = "NET,..", value_delimiter = ',')]
    include_inbound_cidrs: Vec<IpNet>,
}

#[derive(Debug, Args)]
struct NodeFlags {
    /// With --mode probes or node: a captured pod's addresses, for node with the interface on which its packets arrive
    #[arg(long, value_name = "[INTERFACE=]IP,..")]
    pod: Vec<PodArg>,
    /// With --mode probes: a cgroup v2 whose connections are probes, such as kubelet's
    #[arg(long, value_name = "DIR")]
    prober: Vec<PathBuf>,
    /// With --mode node: the node's addresses (one per family) at which the proxy listens
    #[arg(long, value_name = "IP,..", value_delimiter = ',')]
    node_ips: Vec<IpAddr>,
    /// With --mode node: each pod has its interface for itself; from another address than its own nothing is taken
    #[arg(long)]
    own_interfaces: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BackendArg {
    Iptables,
    IptablesNft,
    IptablesLegacy,
    Nftables,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FamilyArg {
    Ipv4,
    Ipv6,
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ModeArg {
    Shared,
    Dedicated,
    Probes,
    Node,
}

#[derive(Clone, Debug)]
struct PodArg {
    interface: Option<String>,
    ips: Vec<IpAddr>,
}

impl FromStr for PodArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (interface, ips) = match text.split_once('=') {
            Some((interface, ips)) => (Some(interface_name(interface)?), ips),
            None => (None, text),
        };
        let ips = ips.split(',').map(|ip| {
            let error = |_| format!("{ip:?} is not an IP address");
            ip.parse().map_err(error)
        });
        Ok(Self {
            interface,
            ips: ips.collect::<Result<_, String>>()?,
        })
    }
}

/// As the kernel takes it (dev_valid_name), and without what the tools would read as more than a name.
fn interface_name(name: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-@:".contains(c);
    match (1..16).contains(&name.len()) && name.chars().all(is_plain) && !name.starts_with('-') {
        true => Ok(name.to_owned()),
        false => Err(format!("{name:?} is not the name of an interface")),
    }
}

impl RuleFlags {
    pub fn tool(&self) -> Tool {
        match self.backend {
            BackendArg::Iptables => Tool::Iptables,
            BackendArg::IptablesNft => Tool::IptablesNft,
            BackendArg::IptablesLegacy => Tool::IptablesLegacy,
            BackendArg::Nftables => Tool::Nftables,
        }
    }

    /// `both` is what the namespace has.
    pub fn families(&self, netns: Option<&Netns>) -> anyhow::Result<Vec<Family>> {
        Ok(match (self.family, netns) {
            (FamilyArg::Ipv4, _) => vec![Family::Ipv4],
            (FamilyArg::Ipv6, _) => vec![Family::Ipv6],
            (FamilyArg::Both, Some(netns)) => netfilter::families(netns)?,
            (FamilyArg::Both, None) => Family::BOTH.into(),
        })
    }

    pub fn plans(&self, families: &[Family]) -> anyhow::Result<Vec<Plan>> {
        let families = families.iter();
        Ok(match self.mode {
            ModeArg::Shared | ModeArg::Dedicated => {
                let needs = self.needs()?;
                families.map(|family| needs.plan(*family)).collect()
            }
            ModeArg::Probes => {
                let probes = self.probe_rules()?;
                families.map(|family| probes.plan(*family)).collect()
            }
            ModeArg::Node => {
                let node = self.node_rules()?;
                families.map(|family| node.plan(*family)).collect()
            }
        })
    }

    fn needs(&self) -> anyhow::Result<Needs> {
        let mode = match self.mode {
            ModeArg::Dedicated => Mode::Dedicated,
            _ => Mode::Shared,
        };
        Ok(Needs {
            mode,
            exemption: self.exemption()?,
            exempt_cgroups: Vec::new(),
            outbound: self.selection.outbound(),
            inbound: self.selection.inbound(),
            capture_metadata_address: self.capture_metadata_address,
            capture_inbound: self.capture_inbound || mode == Mode::Dedicated,
            capture_dns: self.capture_dns,
            probes: match (self.probe_ports.is_empty(), self.probes) {
                (true, false) => Probed::Never,
                _ => self.probed(),
            },
            refuse_udp: self.refuse_udp,
            refuse_sctp: self.refuse_sctp,
        })
    }

    /// All ports if none is named.
    fn probed(&self) -> Probed {
        match self.probe_ports.is_empty() {
            true => Probed::AnyPort,
            false => Probed::Ports(self.probe_ports.clone()),
        }
    }

    fn probe_rules(&self) -> anyhow::Result<Probes> {
        anyhow::ensure!(
            !self.node.prober.is_empty(),
            "say whose connections are probes: --prober DIR (kubelet's cgroup)"
        );
        let probers = self.node.prober.iter();
        let pods = self.node.pod.iter();
        Ok(Probes {
            probers: probers
                .map(|path| netfilter::cgroup_path(path))
                .collect::<Result<_, _>>()?,
            pods: pods.map(|pod| (pod.ips.clone(), self.probed())).collect(),
        })
    }

    fn node_rules(&self) -> anyhow::Result<Node> {
        anyhow::ensure!(
            !self.node.node_ips.is_empty(),
            "say where the proxy listens: --node-ips IP,.. (one per family)"
        );
        let pods = self.node.pod.iter().map(|pod| {
            let interface = pod.interface.clone().ok_or_else(|| {
                anyhow::anyhow!(
                    "say on which interface a pod's packets arrive: --pod INTERFACE=IP,.."
                )
            })?;
            Ok(NodePod {
                interface,
                alone: self.node.own_interfaces,
                ips: pod.ips.clone(),
                node_ips: self.node.node_ips.clone(),
                outbound: self.selection.outbound(),
                inbound: self.selection.inbound(),
                capture_inbound: self.capture_inbound,
                capture_dns: self.capture_dns,
                capture_metadata_address: self.capture_metadata_address,
            })
        });
        Ok(Node {
            pods: pods.collect::<anyhow::Result<_>>()?,
        })
    }

    /// Without one, the proxy's own connections would come back to it.
    fn exemption(&self) -> anyhow::Result<Exemption> {
        if let Some(path) = &self.exempt_cgroup {
            return Ok(Exemption::Cgroup(netfilter::cgroup_path(path)?));
        }
        if self.exempt_mark {
            return Ok(Exemption::Mark);
        }
        match (self.exempt_uid, self.mode) {
            (Some(uid), _) => Ok(Exemption::Uid(uid)),
            (None, ModeArg::Dedicated) => Ok(Exemption::Uid(PROXY_UID)),
            (None, _) => anyhow::bail!(
                "say which connections are the proxy's own: --exempt-cgroup DIR (the daemon's cgroup), --exempt-mark or \
                 --exempt-uid UID"
            ),
        }
    }
}

impl SelectionFlags {
    fn outbound(&self) -> Selection {
        Selection {
            exclude_ports: self.exclude_outbound_ports.clone(),
            exclude_cidrs: self.exclude_outbound_cidrs.clone(),
            include_ports: self.include_outbound_ports.clone(),
            include_cidrs: self.include_outbound_cidrs.clone(),
        }
    }

    fn inbound(&self) -> Selection {
        Selection {
            exclude_ports: self.exclude_inbound_ports.clone(),
            exclude_cidrs: self.exclude_inbound_cidrs.clone(),
            include_ports: self.include_inbound_ports.clone(),
            include_cidrs: self.include_inbound_cidrs.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_its_addresses_and_perhaps_an_interface() {
        let pod: PodArg = "veth1=10.0.0.2,fd00::2".parse().unwrap();
        assert_eq!(pod.interface.as_deref(), Some("veth1"));
        assert_eq!(pod.ips.len(), 2);
        let pod: PodArg = "10.0.0.2".parse().unwrap();
        assert_eq!(pod.interface, None);
        for wrong in [
            "",
            "veth1=",
            "=10.0.0.2",
            "a b=10.0.0.2",
            "-j=10.0.0.2",
            "10.0.0",
            "\"=::1",
        ] {
            assert!(wrong.parse::<PodArg>().is_err(), "{wrong}");
        }
    }
}
