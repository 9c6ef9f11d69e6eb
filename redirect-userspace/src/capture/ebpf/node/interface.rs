//! The node's interfaces that lead to a pod, found without entering the pod's network namespace.
//!
//! The other end of a veth is known by the id that this namespace has for the one where it is; the kernel gives that id for an
//! open file of the namespace, too.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_DUMP},
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkLayerType, LinkMessage},
        nsid::{NsidAttribute, NsidMessage},
    },
};

use super::super::netlink::request;

/// An interface of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    pub name: String,
}

/// The Ethernet interfaces of the calling thread's namespace whose other end is in `netns`.
pub fn leading_to(netns: BorrowedFd<'_>) -> io::Result<Vec<Interface>> {
    // First: to tell of an interface, the kernel gives an id to the namespace of its other end.
    let all = request(
        RouteNetlinkMessage::GetLink(LinkMessage::default()),
        NLM_F_DUMP,
    )?;
    let Some(wanted) = id_of(netns)? else {
        return Ok(Vec::new());
    };
    let links = all.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    });
    let leads_there = |link: &LinkMessage| {
        let leads = |attribute: &LinkAttribute| *attribute == LinkAttribute::LinkNetNsId(wanted);
        link.header.link_layer_type == LinkLayerType::Ether && link.attributes.iter().any(leads)
    };
    Ok(links.filter(leads_there).map(interface).collect())
}

fn interface(link: LinkMessage) -> Interface {
    let name = link
        .attributes
        .into_iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        });
    Interface {
        index: link.header.index,
        name: name.unwrap_or_default(),
    }
}

/// This namespace's id for another one; `None` if nothing here has to do with it.
fn id_of(netns: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut question = NsidMessage::default();
    question
        .attributes
        .push(NsidAttribute::Fd(netns.as_raw_fd() as u32));
    let answers = request(RouteNetlinkMessage::GetNsId(question), NLM_F_ACK)?;
    let id = answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewNsId(answer) => {
            answer
                .attributes
                .into_iter()
                .find_map(|attribute| match attribute {
                    NsidAttribute::Id(id) => Some(id),
                    _ => None,
                })
        }
        _ => None,
    });
    // -1 (NETNSA_NSID_NOT_ASSIGNED) where there is none.
    Ok(id.filter(|id| *id >= 0))
}
