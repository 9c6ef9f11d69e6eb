//! Programs on a network interface, attached in the network namespace of the calling thread.
//!
//! By tcx where the kernel has it (Linux 6.6): a link, which is pinned like all our others. Else by a filter of the clsact
//! qdisc, which stays with the interface and is known by its handle, priority and name.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use nix::libc;
use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage},
        tc::{
            TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage,
            TcOption,
        },
    },
};

use super::netlink::{is, request};
use crate::sys::bpf::{self, TcxHook};

/// An interface of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    /// Whether its packets begin with an Ethernet header, and not with that of IP.
    pub is_ethernet: bool,
}

/// All interfaces but loopback.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let links = request(
        RouteNetlinkMessage::GetLink(LinkMessage::default()),
        NLM_F_DUMP,
    )?;
    let links = links.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    });
    let links = links.filter(|link| !link.header.flags.contains(LinkFlags::Loopback));
    let interface = |link: LinkMessage| Interface {
        index: link.header.index,
        is_ethernet: link.header.link_layer_type == LinkLayerType::Ether,
        name: link
            .attributes
            .into_iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })
            .unwrap_or_default(),
    };
    Ok(links.map(interface).collect())
}

/// Attaches by tcx, before what may be there. `None` if the kernel has no tcx.
pub fn link_egress(program: BorrowedFd<'_>, interface: u32) -> io::Result<Option<OwnedFd>> {
    match bpf::link_interface(program, interface, TcxHook::Egress) {
        Err(error) if is(&error, &[libc::EINVAL]) => Ok(None),
        result => result.map(Some),
    }
}

/// Of our filter, in every clsact qdisc. The first priority: a filter before it could end the matter.
const PRIORITY: u16 = 1;
const HANDLE: u32 = 0x7264;
const NAME: &str = "redirect";
const CLSACT: &str = "clsact";

/// Makes `program` our filter at the interface's egress, in the place of an earlier one without a moment in between.
pub fn filter_egress(program: BorrowedFd<'_>, interface: u32) -> io::Result<()> {
    let mut qdisc = message(interface, TcHandle::CLSACT);
    qdisc.header.handle = TcHandle {
        major: u16::MAX,
        minor: 0,
    };
    qdisc.attributes.push(TcAttribute::Kind(CLSACT.into()));
    let flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK;
    match request(RouteNetlinkMessage::NewQueueDiscipline(qdisc), flags) {
        Err(error) if !is(&error, &[libc::EEXIST]) => return Err(error),
        _ => {}
    }
    let mut filter = ours(interface);
    filter.attributes.push(TcAttribute::Options(
        [
            TcFilterBpfOption::ProgFd(program.as_raw_fd() as u32),
            TcFilterBpfOption::ProgName(NAME.into()),
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
        ]
        .map(TcOption::Bpf)
        .into(),
    ));
    let flags = NLM_F_CREATE | NLM_F_REPLACE | NLM_F_ACK;
    request(RouteNetlinkMessage::NewTrafficFilter(filter), flags).map(drop)
}

/// Removes our filter, if it is there, and then the qdisc if nothing is in it any more: an empty one does nothing.
pub fn remove_filter(interface: u32) -> io::Result<()> {
    let sides = [TcHandle::MIN_INGRESS, TcHandle::MIN_EGRESS];
    if !has_filter(interface)? {
        return Ok(());
    }
    let ours = RouteNetlinkMessage::DelTrafficFilter(ours(interface));
    ignore_missing(request(ours, NLM_F_ACK))?;
    for side in sides {
        if !filters(interface, side)?.is_empty() {
            return Ok(());
        }
    }
    let mut qdisc = message(interface, TcHandle::CLSACT);
    qdisc.attributes.push(TcAttribute::Kind(CLSACT.into()));
    ignore_missing(request(
        RouteNetlinkMessage::DelQueueDiscipline(qdisc),
        NLM_F_ACK,
    ))
}

/// Whether our filter is there.
pub fn has_filter(interface: u32) -> io::Result<bool> {
    let filters = filters(interface, TcHandle::MIN_EGRESS)?;
    Ok(filters.iter().any(is_ours))
}

fn filters(interface: u32, side: u16) -> io::Result<Vec<TcMessage>> {
    let all = message(interface, parent(side));
    match request(RouteNetlinkMessage::GetTrafficFilter(all), NLM_F_DUMP) {
        // Without such a qdisc.
        Err(error) if is(&error, &[libc::EINVAL, libc::EOPNOTSUPP, libc::ENOENT]) => Ok(Vec::new()),
        answers => Ok(answers?.into_iter().filter_map(filter).collect()),
    }
}

/// A filter of a dump, other than the entry that stands for all of a priority.
fn filter(answer: RouteNetlinkMessage) -> Option<TcMessage> {
    match answer {
        RouteNetlinkMessage::NewTrafficFilter(filter) if u32::from(filter.header.handle) != 0 => {
            Some(filter)
        }
        _ => None,
    }
}

fn is_ours(filter: &TcMessage) -> bool {
    let has_name = filter.attributes.iter().any(|attribute| {
        match attribute {
        TcAttribute::Options(options) => options.iter().any(|option| {
            matches!(option, TcOption::Bpf(TcFilterBpfOption::ProgName(name)) if name == NAME)
        }),
        _ => false,
    }
    });
    has_name && u32::from(filter.header.handle) == HANDLE
}

/// The message that names our filter.
fn ours(interface: u32) -> TcMessage {
    const ETH_P_ALL: u16 = 3;
    let mut filter = message(interface, parent(TcHandle::MIN_EGRESS));
    filter.header.handle = HANDLE.into();
    // TC_H_MAKE(priority << 16, protocol).
    filter.header.info = u32::from(PRIORITY) << 16 | u32::from(ETH_P_ALL.to_be());
    filter
        .attributes
        .push(TcAttribute::Kind(TcFilterBpf::KIND.into()));
    filter
}

fn parent(side: u16) -> TcHandle {
    TcHandle {
        major: u16::MAX,
        minor: side,
    }
}

fn message(interface: u32, parent: TcHandle) -> TcMessage {
    let header = TcHeader {
        index: interface as i32,
        parent,
        ..TcHeader::default()
    };
    TcMessage::from_parts(header, Vec::new())
}

fn ignore_missing<T>(result: io::Result<T>) -> io::Result<()> {
    match result {
        Err(error) if is(&error, &[libc::ENOENT, libc::EINVAL, libc::ENODEV]) => Ok(()),
        result => result.map(drop),
    }
}
