//! Lets an app see its client's address without netfilter.
//!
//! The proxy's connection to the app is bound to the client's address (`IP_TRANSPARENT`) and marked. The app's answers would
//! leave for the real client; so the mark of the SYN is kept for the whole connection (`tcp_fwmark_accept`), and a rule sends
//! marked packets to a table in which every address is local. `fwmark_reflect` does the same for the reset of a closed port,
//! which no socket sends.

use std::{io, net::Ipv4Addr, net::Ipv6Addr, path::PathBuf};

use rtnetlink::{
    Handle, RouteMessageBuilder, new_connection,
    packet_route::{
        AddressFamily,
        route::{RouteMessage, RouteScope, RouteType},
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};

use crate::sys::{netns::Netns, sysctl};

/// Mark of the proxy's connections to apps, and of nothing else: a tunnel with this mark would never leave the pod.
pub const MARK: u32 = redirect_common::mark::TO_APP;
const MARK_MASK: u32 = 0xfff;
const TABLE: u32 = 100;
const PRIORITY: u32 = 32764;
/// `lo` is the first interface of every namespace (kernel: LOOPBACK_IFINDEX).
const LOOPBACK: u32 = 1;

/// In a pod's namespace; the first serves both families.
const SYSCTLS: [&str; 3] = [
    "net/ipv4/tcp_fwmark_accept",
    "net/ipv4/fwmark_reflect",
    "net/ipv6/fwmark_reflect",
];

#[derive(Debug, thiserror::Error)]
pub enum ClientIpError {
    #[error("enter the network namespace: {0}")]
    Netns(#[source] io::Error),
    #[error("write {}: {source}; set preserveClientIp: false to do without", path.display())]
    Sysctl { path: PathBuf, source: io::Error },
    #[error("{call} in the pod's namespace: {source}; set preserveClientIp: false to do without")]
    Netlink {
        call: &'static str,
        source: rtnetlink::Error,
    },
    #[error("open a netlink socket: {0}")]
    Socket(#[source] io::Error),
}

/// Makes the rules, routes and sysctls in `netns`; what is there already stays. Whether anything was missing.
pub fn apply(netns: &Netns) -> Result<bool, ClientIpError> {
    netns
        .run(|| {
            let mut missing = false;
            for sysctl in SYSCTLS {
                missing |= set(sysctl, "1")?;
            }
            let added = netlink(|handle| async move {
                let mut added = false;
                for family in families() {
                    let add = handle.route().add(route(family)).execute();
                    added |= !ignored(add.await, nix::libc::EEXIST)
                        .map_err(at("add the local route of table 100"))?;
                    let mut add = handle.rule().add();
                    *add.message_mut() = rule(family);
                    added |= !ignored(add.execute().await, nix::libc::EEXIST)
                        .map_err(at("add the rule for marked packets"))?;
                }
                Ok(added)
            });
            Ok(added? | missing)
        })
        .map_err(ClientIpError::Netns)?
}

/// Takes back what [`apply`] made; what is gone already is no error.
pub fn clean(netns: &Netns) -> Result<(), ClientIpError> {
    netns
        .run(|| {
            netlink(|handle| async move {
                for family in families() {
                    let removed = handle.rule().del(rule(family)).execute().await;
                    ignored(removed, nix::libc::ENOENT)
                        .map_err(at("remove the rule for marked packets"))?;
                    let removed = handle.route().del(route(family)).execute().await;
                    ignored(removed, nix::libc::ESRCH)
                        .map_err(at("remove the local route of table 100"))?;
                }
                Ok(())
            })?;
            for sysctl in SYSCTLS {
                set(sysctl, "0")?;
            }
            Ok(())
        })
        .map_err(ClientIpError::Netns)?
}

/// Whether it had another value.
fn set(sysctl: &str, value: &str) -> Result<bool, ClientIpError> {
    if sysctl::read(sysctl).is_ok_and(|present| present.trim() == value) {
        return Ok(false);
    }
    match sysctl::write(sysctl, value) {
        // Without IPv6 in the kernel there is nothing to set.
        Err(error) if error.kind() == io::ErrorKind::NotFound && sysctl.starts_with("net/ipv6") => {
            Ok(false)
        }
        result => result
            .map(|()| true)
            .map_err(|source| ClientIpError::Sysctl {
                path: sysctl::path(sysctl),
                source,
            }),
    }
}

/// IPv6 only where the namespace has it.
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
        RuleAttribute::FwMark(MARK),
        RuleAttribute::FwMask(MARK_MASK),
        RuleAttribute::Table(TABLE),
    ];
    rule
}

/// `local default dev lo table 100`.
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
        .output_interface(LOOPBACK)
}

/// Runs `f` with a netlink socket of the calling thread's namespace.
fn netlink<T, F>(f: impl FnOnce(Handle) -> F) -> Result<T, ClientIpError>
where
    F: Future<Output = Result<T, ClientIpError>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ClientIpError::Socket)?;
    runtime.block_on(async {
        let (connection, handle, _) = new_connection().map_err(ClientIpError::Socket)?;
        let connection = tokio::spawn(connection);
        let result = f(handle).await;
        connection.abort();
        result
    })
}

fn at(call: &'static str) -> impl Fn(rtnetlink::Error) -> ClientIpError {
    move |source| ClientIpError::Netlink { call, source }
}

/// Whether it failed with `errno`, which is as good as success.
fn ignored(result: Result<(), rtnetlink::Error>, errno: i32) -> Result<bool, rtnetlink::Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -errno => Ok(true),
        other => other.map(|()| false),
    }
}
