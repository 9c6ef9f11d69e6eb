//! What mode `node` needs on the node, once for all pods: an interface at which packets are delivered to the proxy, and
//! routing that takes the destination of such packets for a local one.
//!
//! ```text
//! ip link add redirect0 mtu 65535 up type veth peer name redirect1 up     # all that is special about it ends with it
//! ip addr add 127.114.0.1/32 dev redirect0 scope host                     # without any, loose rp_filter drops (fib_validate_source)
//! net.ipv4.conf.redirect0.rp_filter = 2, accept_local = 1                 # sources are anywhere, also on this node
//! net.ipv4.tcp_early_demux = 0                                            # else ip_forward drops what belongs to a socket of ours
//! ip [-6] rule add pref 5 fwmark 0x6a0/0xff0 lookup 115
//! ip [-6] route add local default dev lo table 115
//! ```
//!
//! One end of a pair is all that is used: there is no plainer kind of interface that every node with pods has.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nix::{ifaddrs::getifaddrs, libc, net::if_::InterfaceFlags};
use redirect_common::node::mark;
use rtnetlink::{
    LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressMessage, AddressScope},
        link::{LinkAttribute, LinkMessage},
        route::{RouteMessage, RouteProtocol, RouteScope, RouteType},
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};

use super::super::netlink::{is, request};
use crate::sys::sysctl;

/// Where packets are delivered.
pub const DEVICE: &str = "redirect0";
const PEER: &str = "redirect1";
const MTU: u32 = 65_535;
/// Only so that there is an address. It is in no use, and neither reachable nor near what is usual in 127.0.0.0/8.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 114, 0, 1);

const TABLE: u32 = 115;
/// Before the rules of CNI plugins, which send what goes to a pod to the pod (the one of AWS has 512).
const PRIORITY: u32 = 5;
const PROTOCOL: RouteProtocol = RouteProtocol::Other(114);
/// Of `lo`, in every network namespace (kernel: LOOPBACK_IFINDEX).
const LOOPBACK: u32 = 1;

const EARLY_DEMUX: &str = "net/ipv4/tcp_early_demux";

/// Of the interface.
const SYSCTLS: [(&str, &str); 2] = [("rp_filter", "2"), ("accept_local", "1")];

fn sysctl_of_device(name: &str) -> String {
    format!("net/ipv4/conf/{DEVICE}/{name}")
}

/// What failed, and on which object.
pub type Failure = (&'static str, String, io::Error);

fn at(call: &'static str, object: impl ToString) -> impl FnOnce(io::Error) -> Failure {
    let object = object.to_string();
    move |error| (call, object, error)
}

/// Makes all of it in the calling thread's network namespace, or what is missing; gives the index of the interface.
pub fn apply() -> Result<u32, Failure> {
    let index = device().map_err(at("make the interface", DEVICE))?;
    for (name, value) in SYSCTLS {
        let name = sysctl_of_device(name);
        sysctl::write(&name, value).map_err(at("write", &name))?;
    }
    address(index).map_err(at("give an address to", DEVICE))?;
    for family in families() {
        let add = RouteNetlinkMessage::NewRoute(route(family));
        request(add, NLM_F_CREATE | NLM_F_REPLACE | NLM_F_ACK)
            .map_err(at("add the local route to table", TABLE))?;
        let add = RouteNetlinkMessage::NewRule(rule(family));
        match request(add, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK) {
            Err(error) if is(&error, &[libc::EEXIST]) => {}
            result => drop(result.map_err(at("add the rule for table", TABLE))?),
        }
    }
    Ok(index)
}

/// In words, what of it is not there, or not as it was made.
pub fn missing() -> Result<Vec<String>, Failure> {
    let mut missing = Vec::new();
    let mut found = getifaddrs().map_err(|errno| at("list", "interfaces")(errno.into()))?;
    let has_address = found.any(|interface| {
        let is_up = interface.flags.contains(InterfaceFlags::IFF_UP);
        let address = interface.address.as_ref();
        let address = address.and_then(|address| Some(address.as_sockaddr_in()?.ip()));
        interface.interface_name == DEVICE && is_up && address == Some(ADDRESS)
    });
    if !has_address {
        missing.push(format!("{DEVICE} was not there, or without its address"));
    }
    let sysctls = SYSCTLS.map(|(name, value)| (sysctl_of_device(name), value));
    let demux = (EARLY_DEMUX.to_owned(), "0");
    for (name, wanted) in sysctls.into_iter().chain([demux]) {
        if sysctl::read(&name).is_ok_and(|value| value.trim() != wanted) {
            missing.push(format!("{name} was not {wanted}"));
        }
    }
    for family in families() {
        let mut question = RuleMessage::default();
        question.header.family = family;
        let rules = request(RouteNetlinkMessage::GetRule(question), NLM_F_DUMP);
        let rules = rules.map_err(at("list", "routing rules"))?;
        let wanted = rule(family).attributes;
        let is_ours = |answer: &RouteNetlinkMessage| {
            matches!(answer, RouteNetlinkMessage::NewRule(rule)
                if wanted.iter().all(|attribute| rule.attributes.contains(attribute)))
        };
        if !rules.iter().any(is_ours) {
            missing.push(format!(
                "the rule for table {TABLE} was missing ({family:?})"
            ));
        }
        let routes = request(RouteNetlinkMessage::GetRoute(route(family)), NLM_F_DUMP);
        let routes = routes.map_err(at("list", "routes"))?;
        let is_ours = |answer: &RouteNetlinkMessage| {
            matches!(answer, RouteNetlinkMessage::NewRoute(route)
                if u32::from(route.header.table) == TABLE && route.header.protocol == PROTOCOL)
        };
        if !routes.iter().any(is_ours) {
            missing.push(format!(
                "the route in table {TABLE} was missing ({family:?})"
            ));
        }
    }
    Ok(missing)
}

/// Takes all of it back. What is gone already is no error.
pub fn clean() -> Result<(), Failure> {
    for family in families() {
        let rule = RouteNetlinkMessage::DelRule(rule(family));
        gone(request(rule, NLM_F_ACK)).map_err(at("remove the rule for table", TABLE))?;
        let route = RouteNetlinkMessage::DelRoute(route(family));
        gone(request(route, NLM_F_ACK)).map_err(at("remove the route in table", TABLE))?;
    }
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(DEVICE.into()));
    gone(request(RouteNetlinkMessage::DelLink(link), NLM_F_ACK))
        .map_err(at("remove the interface", DEVICE))
}

/// Switches early demultiplexing of TCP off. Returns whether it was on.
pub fn stop_early_demux() -> Result<bool, Failure> {
    let before = sysctl::read(EARLY_DEMUX).map_err(at("read", EARLY_DEMUX))?;
    let was_on = before.trim() != "0";
    if was_on {
        sysctl::write(EARLY_DEMUX, "0").map_err(at("write", EARLY_DEMUX))?;
    }
    Ok(was_on)
}

pub fn restore_early_demux() -> Result<(), Failure> {
    sysctl::write(EARLY_DEMUX, "1").map_err(at("write", EARLY_DEMUX))
}

/// The index of the interface, which is made if it is missing.
fn device() -> io::Result<u32> {
    let make = LinkVeth::new(DEVICE, PEER).mtu(MTU).up().build();
    let flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK;
    match request(RouteNetlinkMessage::NewLink(make), flags) {
        Err(error) if is(&error, &[libc::EEXIST]) => {}
        result => drop(result?),
    }
    for name in [DEVICE, PEER] {
        let up = LinkUnspec::new_with_name(name).up().build();
        request(RouteNetlinkMessage::SetLink(up), NLM_F_ACK)?;
    }
    Ok(nix::net::if_::if_nametoindex(DEVICE)?)
}

fn address(index: u32) -> io::Result<()> {
    let mut address = AddressMessage::default();
    address.header.family = AddressFamily::Inet;
    address.header.prefix_len = 32;
    address.header.scope = AddressScope::Host;
    address.header.index = index;
    let ip = IpAddr::from(ADDRESS);
    address.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    let flags = NLM_F_CREATE | NLM_F_REPLACE | NLM_F_ACK;
    request(RouteNetlinkMessage::NewAddress(address), flags).map(drop)
}

fn families() -> impl Iterator<Item = AddressFamily> {
    let ipv6 = sysctl::has_ipv6();
    [AddressFamily::Inet]
        .into_iter()
        .chain(ipv6.then_some(AddressFamily::Inet6))
}

fn rule(family: AddressFamily) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.action = RuleAction::ToTable;
    rule.header.table = TABLE as u8;
    rule.attributes = vec![
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::FwMark(mark::DELIVERED),
        RuleAttribute::FwMask(mark::DELIVERED_MASK),
        RuleAttribute::Table(TABLE),
    ];
    rule
}

/// `local default dev lo table 115`.
fn route(family: AddressFamily) -> RouteMessage {
    match family {
        AddressFamily::Inet6 => local(RouteMessageBuilder::<Ipv6Addr>::new()).build(),
        _ => local(RouteMessageBuilder::<Ipv4Addr>::new()).build(),
    }
}

fn local<T>(builder: RouteMessageBuilder<T>) -> RouteMessageBuilder<T> {
    builder
        .table_id(TABLE)
        .kind(RouteType::Local)
        .scope(RouteScope::Host)
        .protocol(PROTOCOL)
        .output_interface(LOOPBACK)
}

fn gone<T>(result: io::Result<T>) -> io::Result<()> {
    match result {
        Err(error)
            if is(
                &error,
                &[libc::ENOENT, libc::ESRCH, libc::ENODEV, libc::EINVAL],
            ) =>
        {
            Ok(())
        }
        result => result.map(drop),
    }
}
