//! What a pod's annotations ask of its capture: ours, and Istio's of the same meaning. Pure.
//!
//! docs/annotations.md lists them. What cannot be understood is complained of, and heeded in the way that captures more.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use crate::pod::PodOptions;

/// Before our own annotations' names.
pub const OURS: &str = "redirect.dev/";
/// Written for everybody to see once a pod is captured; never read as a proof of it.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
pub const ENABLED: &str = "enabled";

const ALL: &str = "*";

type Annotations = BTreeMap<String, String>;

/// The options, and a sentence about each annotation that is not heeded.
pub fn options(annotations: &Annotations) -> (PodOptions, Vec<String>) {
    let mut reader = Reader {
        annotations,
        complaints: Vec::new(),
    };
    let options = reader.options();
    reader.unknown();
    (options, reader.complaints)
}

/// Ours, without [`OURS`].
const NAMES: [&str; 12] = [
    "exclude-outbound-ports",
    "exclude-outbound-cidrs",
    "include-outbound-ports",
    "include-outbound-cidrs",
    "exclude-inbound-ports",
    "exclude-inbound-cidrs",
    "include-inbound-ports",
    "include-inbound-cidrs",
    "bypass-inbound",
    "capture-dns",
    "preserve-client-ip",
    "refuse-udp",
];

struct Reader<'a> {
    annotations: &'a Annotations,
    complaints: Vec<String>,
}

impl Reader<'_> {
    fn options(&mut self) -> PodOptions {
        let default = PodOptions::default();
        let istio_ranges = self.list("traffic.sidecar.istio.io/includeOutboundIPRanges", cidr);
        // There, ports come on top of networks, and all networks are in unless some are named.
        let istio_ports = match &istio_ranges {
            Some(ranges) if !ranges.is_empty() => {
                self.list("traffic.sidecar.istio.io/includeOutboundPorts", port)
            }
            _ => None,
        };
        let include_outbound_ports = self.list("redirect.dev/include-outbound-ports", port);
        let include_outbound_cidrs = self.list("redirect.dev/include-outbound-cidrs", cidr);
        let (include_outbound_ports, include_outbound_cidrs) =
            match include_outbound_ports.is_some() || include_outbound_cidrs.is_some() {
                true => (include_outbound_ports, include_outbound_cidrs),
                false => (istio_ports, istio_ranges),
            };
        PodOptions {
            exclude_outbound_ports: self.first(
                "redirect.dev/exclude-outbound-ports",
                "traffic.sidecar.istio.io/excludeOutboundPorts",
                port,
            ),
            exclude_outbound_cidrs: self.first(
                "redirect.dev/exclude-outbound-cidrs",
                "traffic.sidecar.istio.io/excludeOutboundIPRanges",
                cidr,
            ),
            include_outbound_ports: include_outbound_ports.unwrap_or_default(),
            include_outbound_cidrs: include_outbound_cidrs.unwrap_or_default(),
            exclude_inbound_ports: self.first(
                "redirect.dev/exclude-inbound-ports",
                "traffic.sidecar.istio.io/excludeInboundPorts",
                port,
            ),
            exclude_inbound_cidrs: self
                .list("redirect.dev/exclude-inbound-cidrs", cidr)
                .unwrap_or_default(),
            include_inbound_ports: self.first(
                "redirect.dev/include-inbound-ports",
                "traffic.sidecar.istio.io/includeInboundPorts",
                port,
            ),
            include_inbound_cidrs: self
                .list("redirect.dev/include-inbound-cidrs", cidr)
                .unwrap_or_default(),
            bypass_inbound: self.boolean(
                &[
                    "redirect.dev/bypass-inbound",
                    "ambient.istio.io/bypass-inbound-capture",
                ],
                default.bypass_inbound,
            ),
            capture_dns: self.boolean(
                &["redirect.dev/capture-dns", "ambient.istio.io/dns-capture"],
                default.capture_dns,
            ),
            preserve_client_ip: self.boolean(
                &["redirect.dev/preserve-client-ip"],
                default.preserve_client_ip,
            ),
            refuse_udp: self.boolean(&["redirect.dev/refuse-udp"], default.refuse_udp),
            ..default
        }
    }

    /// Ours, if it is there and well-formed; else Istio's.
    fn first<T: PartialEq>(
        &mut self,
        ours: &str,
        theirs: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let ours = self.list(ours, &parse);
        let theirs = self.list(theirs, &parse);
        ours.or(theirs).unwrap_or_default()
    }

    /// A list with commas between. One bad part spoils the whole, since a half of what was meant may let through what was not.
    /// `*` stands for all, which is what an empty list includes.
    fn list<T: PartialEq>(
        &mut self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let text = self.annotations.get(name)?.trim();
        let short = name.rsplit('/').next().unwrap_or(name);
        if text == ALL && short.starts_with("include") {
            return Some(Vec::new());
        }
        let mut list = Vec::new();
        let parts = text.split(',').map(str::trim);
        for part in parts {
            match parse(part) {
                Ok(item) if !list.contains(&item) => list.push(item),
                Ok(_) => {}
                Err(why) => {
                    self.complain(name, &why);
                    return None;
                }
            }
        }
        Some(list)
    }

    /// The first of the names that is there and well-formed.
    fn boolean(&mut self, names: &[&str], default: bool) -> bool {
        let mut found = None;
        for name in names {
            let value = match self.annotations.get(*name).map(|text| text.trim()) {
                Some("true") => Some(true),
                Some("false") => Some(false),
                Some(other) => {
                    let why = format!("{other:?} is neither true nor false");
                    self.complain(name, &why);
                    None
                }
                None => None,
            };
            found = found.or(value);
        }
        found.unwrap_or(default)
    }

    /// A slip in a name would otherwise never be seen.
    fn unknown(&mut self) {
        let names = self.annotations.keys();
        let ours = names.filter_map(|name| Some((name, name.strip_prefix(OURS)?)));
        for (name, short) in ours {
            if !NAMES.contains(&short) {
                self.complaints
                    .push(format!("annotation {name}: there is none of this name"));
            }
        }
    }

    fn complain(&mut self, name: &str, why: &str) {
        self.complaints
            .push(format!("annotation {name} is not heeded: {why}"));
    }
}

fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("{text:?} is not a port between 1 and 65535")),
    }
}

fn cidr(text: &str) -> Result<IpNet, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(ip.to_canonical().into());
    }
    match text.parse::<IpNet>() {
        Ok(net) if net.trunc() == net => Ok(net),
        Ok(net) => Err(format!(
            "{net} has bits set after its prefix; {} is meant?",
            net.trunc()
        )),
        Err(_) => Err(format!("{text:?} is not a network such as 10.9.0.0/16")),
    }
}

#[cfg(test)]
mod tests;
