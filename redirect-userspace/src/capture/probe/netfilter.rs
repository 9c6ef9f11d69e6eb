//! What netfilter and its programs can do, found by trying in a network namespace made for it: small rules, and a connection
//! that is really redirected.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use socket2::SockRef;

use super::finding::{Finding, Found, Group, Use, Way, Weight};
use crate::{
    capture::netfilter::{plan::CgroupPath, tool},
    config::Mode,
    sys::netns,
};

/// Where the redirected connection goes; nobody listens there.
const ELSEWHERE: u16 = 9;
const PATIENCE: Duration = Duration::from_secs(2);

/// `cgroup` is any cgroup that exists; `ipv6` whether the node has IPv6 at all.
pub fn probe(cgroup: Option<&CgroupPath>, ipv6: bool) -> Vec<Finding> {
    let ways = Way::NETFILTER.into_iter();
    ways.flat_map(|way| of_way(way, cgroup, ipv6)).collect()
}

fn of_way(way: Way, cgroup: Option<&CgroupPath>, ipv6: bool) -> Vec<Finding> {
    let rules = match Rules::find(way) {
        Ok(rules) => rules,
        Err(missing) => {
            let found = Finding {
                name: way.name().to_owned(),
                ..finding("capture without eBPF", Err(missing), required(way))
            };
            return vec![found];
        }
    };
    let row = |what: &str, needed_for: &str, result, uses: Vec<Use>| Finding {
        name: format!("{}: {what}", way.name()),
        ..finding(needed_for, result, uses)
    };
    let mut found = vec![row(
        "REDIRECT, IPv4",
        "original destinations",
        redirects(&rules, Ipv4Addr::LOCALHOST.into()),
        required(way),
    )];
    if ipv6 {
        found.push(row(
            "REDIRECT, IPv6",
            "original destinations",
            redirects(&rules, Ipv6Addr::LOCALHOST.into()),
            required(way),
        ));
    }
    found.push(row(
        "match by cgroup",
        "telling the daemon from pods",
        match cgroup {
            Some(cgroup) => rules.try_all(ipv6, &Piece::Cgroup(cgroup)),
            None => Err("this process is in no cgroup v2".to_owned()),
        },
        vec![way.needs_in(Weight::Exact, &[Mode::Shared, Mode::Node])],
    ));
    for (piece, what, needed_for, modes, without) in [
        (
            Piece::Owner,
            "match by user",
            "dedicated: telling the proxy by its user",
            &[Mode::Dedicated][..],
            "a dedicated proxy is told by its cgroup only",
        ),
        (
            Piece::Connmark,
            "marks of connections",
            "the client's address",
            super::finding::ALL_MODES,
            "answers to the proxy's connections may be captured",
        ),
        (
            Piece::Zone,
            "zones of conntrack",
            "DNS",
            super::finding::ALL_MODES,
            "DNS that is captured and DNS that is forwarded may be taken for one another",
        ),
    ] {
        found.push(Finding {
            without,
            ..row(
                what,
                needed_for,
                rules.try_all(ipv6, &piece),
                vec![way.needs_in(Weight::Optional, modes)],
            )
        });
    }
    found
}

fn required(way: Way) -> Vec<Use> {
    vec![way.needs(Weight::Required)]
}

/// Something that a rule can do.
enum Piece<'a> {
    Redirect(u16),
    Cgroup(&'a CgroupPath),
    Owner,
    Connmark,
    Zone,
}

/// The programs of one way.
enum Rules {
    Nft(PathBuf),
    /// The `-restore` of each family.
    Iptables {
        v4: PathBuf,
        v6: PathBuf,
    },
}

impl Rules {
    fn find(way: Way) -> Result<Self, String> {
        let find = |name: &str| tool::find(name).ok_or_else(|| format!("no program {name}"));
        Ok(match way {
            Way::Nftables => Self::Nft(find("nft")?),
            Way::IptablesLegacy => Self::Iptables {
                v4: find("iptables-legacy-restore")?,
                v6: find("ip6tables-legacy-restore")?,
            },
            Way::IptablesNft | Way::Ebpf => Self::Iptables {
                v4: find("iptables-nft-restore")?,
                v6: find("ip6tables-nft-restore")?,
            },
        })
    }

    /// Whether rules of both families (or of IPv4, where there is no IPv6) can hold `piece`.
    fn try_all(&self, ipv6: bool, piece: &Piece<'_>) -> Result<(), String> {
        in_new_namespace(|| {
            self.apply(false, piece)?;
            match (self, ipv6) {
                (Self::Iptables { .. }, true) => {
                    let result = self.apply(true, piece);
                    result.map_err(|error| format!("IPv6: {error}"))
                }
                _ => Ok(()),
            }
        })
    }

    /// In the calling thread's namespace.
    fn apply(&self, ipv6: bool, piece: &Piece<'_>) -> Result<(), String> {
        let (program, args, input): (&Path, &[&str], String) = match self {
            Self::Nft(program) => (program, &["-f", "-"], nft(piece)?),
            Self::Iptables { v4, v6 } => {
                let program = if ipv6 { v6 } else { v4 };
                (program, &["--noflush"], iptables(piece))
            }
        };
        let result = tool::run(program, args, &input);
        // One line of the table: the words after the command and before what it says next.
        result.map(drop).map_err(|error| match error {
            tool::ToolError::Failed { message, .. } => first(&message),
            error => error.to_string(),
        })
    }
}

fn first(message: &str) -> String {
    let end = message.find("; ").unwrap_or(message.len());
    message[..end].to_owned()
}

fn iptables(piece: &Piece<'_>) -> String {
    let (table, rule) = match piece {
        Piece::Redirect(port) => (
            "nat",
            format!("OUTPUT -p tcp --dport {ELSEWHERE} -j REDIRECT --to-ports {port}"),
        ),
        Piece::Cgroup(cgroup) => (
            "nat",
            format!(
                "OUTPUT -m cgroup --path \"{}\" -j RETURN",
                cgroup.in_hierarchy
            ),
        ),
        Piece::Owner => (
            "nat",
            "OUTPUT -m owner --uid-owner 1337 -j RETURN".to_owned(),
        ),
        Piece::Connmark => (
            "mangle",
            "OUTPUT -m mark --mark 1 -j CONNMARK --save-mark".to_owned(),
        ),
        Piece::Zone => ("raw", "OUTPUT -p udp -j CT --zone 1".to_owned()),
    };
    format!("*{table}\n-A {rule}\nCOMMIT\n")
}

fn nft(piece: &Piece<'_>) -> Result<String, String> {
    let (chain, rule) = match piece {
        Piece::Redirect(port) => (
            "nat hook output priority -100",
            format!("tcp dport {ELSEWHERE} redirect to :{port}"),
        ),
        Piece::Cgroup(cgroup) => {
            let path = cgroup.in_sysfs.as_ref();
            let path = path.ok_or("cgroup v2 is not mounted at /sys/fs/cgroup, where nft looks")?;
            let level = cgroup.level();
            let rule = format!("socket cgroupv2 level {level} \"{path}\" return");
            ("nat hook output priority -100", rule)
        }
        Piece::Owner => (
            "nat hook output priority -100",
            "meta skuid 1337 return".to_owned(),
        ),
        Piece::Connmark => (
            "filter hook output priority -150",
            "meta mark 1 ct mark set meta mark".to_owned(),
        ),
        Piece::Zone => (
            "filter hook output priority -300",
            "meta l4proto udp ct zone set 1".to_owned(),
        ),
    };
    Ok(format!(
        "table inet redirect-try {{ chain try {{ type {chain}; {rule}; }} }}\n"
    ))
}

/// Redirects a connection of this thread to itself, and asks conntrack where it was meant to go.
fn redirects(rules: &Rules, ip: IpAddr) -> Result<(), String> {
    in_new_namespace(|| {
        let failed = |call: &'static str| move |error: io::Error| format!("{call}: {error}");
        netns::raise_loopback().map_err(failed("bring up lo"))?;
        let listener = TcpListener::bind((ip, 0)).map_err(failed("listen"))?;
        let port = listener.local_addr().map_err(failed("listen"))?.port();
        rules.apply(ip.is_ipv6(), &Piece::Redirect(port))?;
        let meant = SocketAddr::new(ip, ELSEWHERE);
        // Accepted already when this returns: the listener's queue has it.
        let client = TcpStream::connect_timeout(&meant, PATIENCE).map_err(failed("connect"))?;
        let (accepted, _) = listener.accept().map_err(failed("accept"))?;
        let socket = SockRef::from(&accepted);
        let told = match ip {
            IpAddr::V4(_) => socket.original_dst_v4(),
            IpAddr::V6(_) => socket.original_dst_v6(),
        };
        drop(client);
        let told = told.map_err(failed("SO_ORIGINAL_DST"))?.as_socket();
        match told == Some(meant) {
            true => Ok(()),
            false => Err(format!("SO_ORIGINAL_DST tells {told:?} of {meant}")),
        }
    })
}

fn in_new_namespace(f: impl FnOnce() -> Result<(), String> + Send) -> Result<(), String> {
    netns::in_new(f).unwrap_or_else(|error| Err(format!("make a network namespace: {error}")))
}

fn finding(needed_for: &str, result: Result<(), String>, uses: Vec<Use>) -> Finding {
    Finding {
        group: Group::Netfilter,
        name: String::new(),
        needed_for: needed_for.to_owned(),
        found: match result {
            Ok(()) => Found::Yes,
            Err(why) => Found::No(why),
        },
        uses,
        without: "",
    }
}
