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
    config::{IptablesVariant, Mode},
    sys::netns,
};

/// Where the redirected connection goes; nobody listens there.
const ELSEWHERE: u16 = 9;
const PATIENCE: Duration = Duration::from_secs(2);

/// `variant` may leave one kind of iptables out; `cgroup` is the one that this process is in; `ipv6` whether the node has IPv6 at all.
pub fn probe(variant: IptablesVariant, cgroup: Option<&CgroupPath>, ipv6: bool) -> Vec<Finding> {
    let wanted = |way: &Way| match way {
        Way::Ebpf => false,
        Way::Nftables => true,
        Way::IptablesNft => variant != IptablesVariant::Legacy,
        Way::IptablesLegacy => variant != IptablesVariant::Nft,
    };
    let ways = Way::ALL.into_iter().filter(wanted);
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
            Some(cgroup) => exempts(&rules, cgroup, ipv6),
            None => Err("this process is in no cgroup v2 that has a name".to_owned()),
        },
        vec![way.needs_in(Weight::Exact, &[Mode::Shared])],
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
    /// The same, but not for sockets of this cgroup.
    Except(&'a CgroupPath, u16),
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
            Way::IptablesNft => Self::Iptables {
                v4: find("iptables-nft-restore")?,
                v6: find("ip6tables-nft-restore")?,
            },
            Way::Ebpf => return Err("no rules".to_owned()),
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
    let redirect =
        |port| format!("-A OUTPUT -p tcp --dport {ELSEWHERE} -j REDIRECT --to-ports {port}");
    let (table, rules) = match piece {
        Piece::Redirect(port) => ("nat", redirect(port)),
        Piece::Except(cgroup, port) => {
            let path = &cgroup.in_hierarchy;
            let except = format!("-A OUTPUT -m cgroup --path \"{path}\" -j RETURN");
            ("nat", format!("{except}\n{}", redirect(port)))
        }
        Piece::Owner => (
            "nat",
            "-A OUTPUT -m owner --uid-owner 1337 -j RETURN".to_owned(),
        ),
        Piece::Connmark => (
            "mangle",
            "-A OUTPUT -m mark --mark 1 -j CONNMARK --save-mark".to_owned(),
        ),
        Piece::Zone => ("raw", "-A OUTPUT -p udp -j CT --zone 1".to_owned()),
    };
    format!("*{table}\n{rules}\nCOMMIT\n")
}

fn nft(piece: &Piece<'_>) -> Result<String, String> {
    const NAT: &str = "nat hook output priority -100";
    let redirect = |port| format!("tcp dport {ELSEWHERE} redirect to :{port}");
    let (chain, rules) = match piece {
        Piece::Redirect(port) => (NAT, redirect(port)),
        Piece::Except(cgroup, port) => {
            let path = cgroup.in_sysfs.as_ref();
            let path = path.ok_or("cgroup v2 is not mounted at /sys/fs/cgroup, where nft looks")?;
            let level = cgroup.level();
            let except = format!("socket cgroupv2 level {level} \"{path}\" return");
            (NAT, format!("{except}\n{}", redirect(port)))
        }
        Piece::Owner => (NAT, "meta skuid 1337 return".to_owned()),
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
        "table inet redirect-try {{\nchain try {{\ntype {chain};\n{rules}\n}}\n}}\n"
    ))
}

/// That a rule is taken does not mean that it matches: a connection of this process must go past the redirection.
fn exempts(rules: &Rules, cgroup: &CgroupPath, ipv6: bool) -> Result<(), String> {
    let each = [
        (true, IpAddr::from(Ipv4Addr::LOCALHOST)),
        (ipv6, Ipv6Addr::LOCALHOST.into()),
    ];
    let mut each = each.into_iter().filter(|(there, _)| *there);
    each.try_for_each(|(_, ip)| {
        in_new_namespace(|| {
            let (_listener, port) = listen(ip)?;
            rules.apply(ip.is_ipv6(), &Piece::Except(cgroup, port))?;
            match TcpStream::connect_timeout(&SocketAddr::new(ip, ELSEWHERE), PATIENCE) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
                Err(error) => Err(format!("connect: {error}")),
                Ok(_) => Err("the rule is taken, but does not match this process".to_owned()),
            }
        })
    })
}

/// In a namespace that is new.
fn listen(ip: IpAddr) -> Result<(TcpListener, u16), String> {
    netns::raise_loopback().map_err(|error| format!("bring up lo: {error}"))?;
    let listen = || -> io::Result<_> {
        let listener = TcpListener::bind((ip, 0))?;
        let port = listener.local_addr()?.port();
        Ok((listener, port))
    };
    listen().map_err(|error| format!("listen: {error}"))
}

/// Redirects a connection of this thread to itself, and asks conntrack where it was meant to go.
fn redirects(rules: &Rules, ip: IpAddr) -> Result<(), String> {
    in_new_namespace(|| {
        let failed = |call: &'static str| move |error: io::Error| format!("{call}: {error}");
        let (listener, port) = listen(ip)?;
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
