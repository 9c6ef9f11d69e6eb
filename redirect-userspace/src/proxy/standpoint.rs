//! Where the proxy is, seen from the pods that it serves: decides how its sockets are made.

use std::net::IpAddr;

use redirect_common::{node::mark, ports};

use crate::sys::socket::{ClientOptions, ListenOptions};

/// By which rules of Istio's form know the proxy's packets.
const PROXY_MARK: u32 = 0x539;

/// Where the proxy's sockets for a pod are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standpoint {
    /// In the pod's network namespace: the pod's addresses are local.
    Inside,
    /// The same, captured by rules of another agent's, which know the proxy by its mark.
    InsideMarked,
    /// On the node, where capture brings to the proxy's sockets what passes the pod's interface, under the addresses that it
    /// bears: the proxy speaks to each side as the other.
    OnPath,
    /// On the node, under the node's own addresses.
    OnNode,
}

impl Standpoint {
    pub fn is_on_node(self) -> bool {
        matches!(self, Self::OnPath | Self::OnNode)
    }

    /// How to listen on one of our ports.
    pub fn listening(self, port: u16) -> ListenOptions {
        match self {
            Self::Inside | Self::InsideMarked | Self::OnNode => ListenOptions::default(),
            // No address leads there; connections are assigned to the socket whatever their addresses.
            Self::OnPath => ListenOptions {
                loopback: true,
                transparent: true,
                mark: Some(match port {
                    ports::OUTBOUND => mark::TO_POD,
                    _ => mark::AS_POD,
                }),
                beside_others: false,
            },
        }
    }

    /// How to connect on behalf of a pod, whose address is `source`.
    pub fn as_pod(self, source: Option<IpAddr>) -> ClientOptions {
        ClientOptions {
            bind: source.filter(|_| self != Self::OnNode),
            transparent: self == Self::OnPath && source.is_some(),
            mark: self.own_mark(),
        }
    }

    /// On all that the proxy sends for a pod.
    pub fn own_mark(self) -> Option<u32> {
        (self == Self::InsideMarked).then_some(PROXY_MARK)
    }

    /// How to connect to a pod's app, which is to see `client`.
    pub fn to_app(self, client: Option<IpAddr>) -> ClientOptions {
        match (self, client) {
            (Self::OnPath, bind) => ClientOptions {
                bind,
                transparent: bind.is_some(),
                mark: Some(mark::TO_POD),
            },
            (Self::Inside, Some(client)) => ClientOptions {
                bind: Some(client),
                transparent: true,
                mark: Some(super::client_ip::MARK),
            },
            // The mark alone leads the app's answers back: the rules remember it for the connection.
            (Self::InsideMarked, bind) => ClientOptions {
                bind,
                transparent: bind.is_some(),
                mark: self.own_mark(),
            },
            (Self::Inside | Self::OnNode, _) => ClientOptions::default(),
        }
    }
}
