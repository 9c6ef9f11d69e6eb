//! Ports that the kernel chooses by itself, in a pod that has widened its range of them.
//!
//! The program on `bind()` refuses our ports, but sees none that the kernel chooses: for `bind()` to port 0, or for a connect.
//! The usual range begins at 32768, above all of ours. Where it does not, we have them reserved
//! (`net.ipv4.ip_local_reserved_ports`, which serves IPv6, too): a connection from such a port would keep the next daemon from
//! listening there.

use std::{collections::BTreeSet, io};

use redirect_common::ports;

use super::super::CaptureError;
use crate::sys::{netns::Netns, sysctl};

const RANGE: &str = "net/ipv4/ip_local_port_range";
const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";

/// Has our ports reserved, if the kernel could choose one. Says whether that was to be done.
pub fn add(netns: &Netns) -> Result<bool, CaptureError> {
    change(netns, |range, reserved| {
        let chosen = ports::IN_POD.iter().filter(|port| range.contains(port));
        reserved.extend(chosen);
    })
}

/// Takes that back.
pub fn remove(netns: &Netns) -> Result<(), CaptureError> {
    change(netns, |_, reserved| {
        reserved.retain(|port| !ports::IN_POD.contains(port));
    })
    .map(drop)
}

fn change(
    netns: &Netns,
    change: impl FnOnce(&std::ops::RangeInclusive<u16>, &mut BTreeSet<u16>) + Send,
) -> Result<bool, CaptureError> {
    let result = netns.run(|| {
        let range = parse_range(&sysctl::read(RANGE)?).ok_or_else(|| unreadable(RANGE))?;
        let text = sysctl::read(RESERVED)?;
        let before = parse(&text).ok_or_else(|| unreadable(RESERVED))?;
        let mut after = before.clone();
        change(&range, &mut after);
        match after == before {
            true => Ok(false),
            false => sysctl::write(RESERVED, &render(&after)).map(|()| true),
        }
    });
    result
        .and_then(|result| result)
        .map_err(|error| CaptureError::kernel("reserve ports in", netns.path().display(), &error))
}

fn unreadable(file: &str) -> io::Error {
    io::Error::other(format!("{file} is not as expected"))
}

/// Of two numbers with a tab between them.
fn parse_range(text: &str) -> Option<std::ops::RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some(numbers.next()?.ok()?..=numbers.next()?.ok()?)
}

/// `8080,9148-9150`
fn parse(text: &str) -> Option<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        ports.extend(first.parse::<u16>().ok()?..=last.parse().ok()?);
    }
    Some(ports)
}

/// What the kernel takes, and shows as ranges again. A lone newline for none.
fn render(ports: &BTreeSet<u16>) -> String {
    let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
    ports.join(",") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_as_the_kernel_writes_them() {
        for (text, expected) in [
            ("\n", Some(vec![])),
            ("8080\n", Some(vec![8080])),
            ("1,3-5\n", Some(vec![1, 3, 4, 5])),
            ("a", None),
            ("1-70000", None),
        ] {
            let parsed = parse(text).map(|ports| ports.into_iter().collect::<Vec<_>>());
            assert_eq!(parsed, expected, "{text:?}");
        }
        assert_eq!(render(&[1, 3].into()), "1,3\n");
        assert_eq!(render(&BTreeSet::new()), "\n");
        assert_eq!(parse_range("1024\t65535\n"), Some(1024..=65535));
        assert_eq!(parse_range("1024"), None);
    }
}
