//! The addresses that a network namespace has.

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
};

use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrStorage};

use super::netns::Netns;

/// Those of its interfaces at which others reach it.
pub fn global_addresses(netns: &Netns) -> io::Result<Vec<IpAddr>> {
    let found = netns.run(|| {
        let interfaces = getifaddrs()?;
        let addresses = interfaces.filter_map(|interface| ip(interface.address?));
        io::Result::Ok(addresses.collect::<Vec<_>>())
    })??;
    Ok(found.into_iter().filter(|ip| is_global(*ip)).collect())
}

fn ip(address: SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
}

/// Whether an address says anything beyond its link.
fn is_global(ip: IpAddr) -> bool {
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => Ipv6Addr::is_unicast_link_local(&ip),
    };
    !(is_link_local || ip.is_loopback() || ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_say_nothing_elsewhere() {
        for (ip, expected) in [
            ("10.0.0.1", true),
            ("fd00::1", true),
            ("2001:db8::1", true),
            ("127.0.0.1", false),
            ("::1", false),
            ("169.254.1.1", false),
            ("fe80::1", false),
        ] {
            assert_eq!(is_global(ip.parse().unwrap()), expected, "{ip}");
        }
    }
}
