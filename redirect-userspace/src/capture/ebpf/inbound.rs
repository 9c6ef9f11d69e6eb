//! What the programs know of connections to the pods: at which addresses each is reached, the proxy's sockets, and connections
//! that pass.

use std::{net::IpAddr, os::fd::BorrowedFd};

use aya::maps::{Array, HashMap, MapData, SockMap};
use redirect_common::{
    Addr,
    maps::{InboundEntry, PassEntry, PassKey, SocketKind, inbound_flags, names},
};

use super::{
    super::{CaptureError, Sockets},
    keys::union,
    object::Object,
    subject::Subject,
    tables::{Numbers, at, ignore_missing, typed},
};
use crate::{
    pod::{OnProxyFailure, Pod, PodOptions},
    sys::{bpf::Plain, interfaces, netns::Netns},
};

pub struct Inbound {
    entries: HashMap<MapData, Plain<Addr>, Plain<InboundEntry>>,
    sockets: SockMap<MapData>,
    pass: HashMap<MapData, Plain<PassKey>, Plain<PassEntry>>,
    passing: Array<MapData, i64>,
}

/// An address of a pod is that of another pod, too.
pub struct Conflict {
    pub ip: IpAddr,
    /// The cookie of the other's network namespace.
    pub netns_cookie: u64,
}

impl Inbound {
    pub fn open(object: &mut Object) -> Result<Self, CaptureError> {
        Ok(Self {
            entries: typed(object, names::INBOUND)?,
            sockets: typed(object, names::SOCKETS)?,
            pass: typed(object, names::PASS)?,
            passing: typed(object, names::PASSING)?,
        })
    }

    /// The first of `ips` that a namespace other than those in `own` has.
    pub fn conflict(&self, ips: &[IpAddr], own: &[u64]) -> Option<Conflict> {
        ips.iter().find_map(|ip| {
            let entry = self.entries.get(&Plain(Addr::from(*ip)), 0).ok()?.0;
            let netns_cookie = entry.netns_cookie;
            (!own.contains(&netns_cookie)).then_some(Conflict {
                ip: *ip,
                netns_cookie,
            })
        })
    }

    /// Steers what comes to the pod to `sockets`: from now on, or anew.
    pub fn add(
        &mut self,
        numbers: Numbers,
        subject: &Subject<'_>,
        sockets: &Sockets<'_>,
    ) -> Result<(), CaptureError> {
        let (netns_cookie, ips) = (subject.netns_cookie, &subject.ips);
        let dns = sockets.dns.map(|socket| (SocketKind::DnsTcp, socket));
        for (kind, socket) in [
            (SocketKind::Outbound, sockets.outbound),
            (SocketKind::InboundPlaintext, sockets.inbound_plaintext),
            (SocketKind::Hbone, sockets.hbone),
        ]
        .into_iter()
        .chain(dns)
        {
            for number in [numbers.pod, numbers.namespace] {
                self.steer(kind, number, socket)?;
            }
        }
        let entry = Plain(InboundEntry {
            netns_cookie,
            pod: numbers.namespace,
            flags: match subject.pod.cgroup_only {
                None => flags(&subject.pod.options, subject.is_dedicated),
                Some(_) => inbound_flags::SHARED,
            },
        });
        for ip in ips {
            self.entries
                .insert(Plain(Addr::from(*ip)), entry, 0)
                .map_err(at(names::INBOUND, ip))?;
        }
        // What others of a shared namespace have goes with the last of them.
        let former = match subject.pod.cgroup_only {
            None => self.addresses(numbers.namespace),
            Some(_) => Vec::new(),
        };
        for ip in former.iter().filter(|ip| !ips.contains(ip)) {
            self.forget(*ip)?;
        }
        Ok(())
    }

    /// Puts `socket` in the place of what was there, with no moment in between.
    fn steer(
        &mut self,
        kind: SocketKind,
        number: u32,
        socket: BorrowedFd<'_>,
    ) -> Result<(), CaptureError> {
        use std::os::fd::AsRawFd;
        self.sockets
            .set(kind.place(number), &socket.as_raw_fd(), 0)
            .map_err(at(names::SOCKETS, format!("{kind:?} of pod {number}")))
    }

    /// Makes the programs forget the pod, or the namespace, that had this number.
    pub fn remove(&mut self, number: u32) -> Result<(), CaptureError> {
        for ip in self.addresses(number) {
            self.forget(ip)?;
        }
        for place in 0..SocketKind::PLACES {
            let place = number * SocketKind::PLACES + place;
            // The kernel has EINVAL for a place without a socket.
            _ = self.sockets.clear_index(&place);
        }
        let passing: Vec<_> = self.pass.iter().filter_map(Result::ok).collect();
        for (key, _) in passing.iter().filter(|(_, entry)| entry.0.pod == number) {
            ignore_missing(self.pass.remove(key)).map_err(at(names::PASS, number))?;
        }
        self.passing
            .set(number, 0, 0)
            .map_err(at(names::PASSING, number))
    }

    /// Forgets all addresses of namespaces other than `known`.
    pub fn remove_orphans(&mut self, known: &[u64]) -> Result<(), CaptureError> {
        let entries = self.entries.iter().filter_map(Result::ok);
        let orphans: Vec<_> = entries
            .filter(|(_, entry)| !known.contains(&entry.0.netns_cookie))
            .map(|(addr, _)| addr.0.to_ip())
            .collect();
        orphans.into_iter().try_for_each(|ip| self.forget(ip))
    }

    fn addresses(&self, number: u32) -> Vec<IpAddr> {
        let entries = self.entries.iter().filter_map(Result::ok);
        entries
            .filter(|(_, entry)| entry.0.pod == number)
            .map(|(addr, _)| addr.0.to_ip())
            .collect()
    }

    fn forget(&mut self, ip: IpAddr) -> Result<(), CaptureError> {
        ignore_missing(self.entries.remove(&Plain(Addr::from(ip)))).map_err(at(names::INBOUND, ip))
    }
}

fn flags(options: &PodOptions, is_dedicated: bool) -> u32 {
    union(&[
        (
            !options.exclude_inbound_ports.is_empty(),
            inbound_flags::EXCLUDED_PORTS,
        ),
        (
            !options.exclude_inbound_cidrs.is_empty(),
            inbound_flags::EXCLUDED_NETS,
        ),
        (
            !options.include_inbound_ports.is_empty(),
            inbound_flags::INCLUDED_PORTS,
        ),
        (
            !options.include_inbound_cidrs.is_empty(),
            inbound_flags::INCLUDED_NETS,
        ),
        (options.bypass_inbound, inbound_flags::BYPASS),
        (
            options.on_proxy_failure == OnProxyFailure::Pass,
            inbound_flags::PASS_ON_FAILURE,
        ),
        (options.probe_ports.is_some(), inbound_flags::PROBED_PORTS),
        (is_dedicated, inbound_flags::SERVES_ADMIN),
    ])
}

/// The addresses at which `pod` is reached: those that are declared, then others that interfaces in its namespace have. These
/// are none that the pod may speak with: for that, only what is declared counts.
///
/// Not link-local ones, which say nothing beyond their link: what comes to them is refused, as is what comes to addresses that
/// are added later. What else is in a namespace that workloads share is not theirs.
pub fn addresses(pod: &Pod, netns: &Netns) -> Result<Vec<IpAddr>, CaptureError> {
    let mut ips: Vec<_> = pod.ips.iter().map(IpAddr::to_canonical).collect();
    if pod.cgroup_only.is_some() {
        return Ok(ips);
    }
    let found = interfaces::global_addresses(netns).map_err(|error| {
        CaptureError::kernel("list the addresses in", netns.path().display(), &error)
    })?;
    for ip in found {
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    Ok(ips)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_as_flags() {
        let plain = PodOptions::default();
        assert_eq!(flags(&plain, false), 0);
        assert_eq!(flags(&plain, true), inbound_flags::SERVES_ADMIN);
        let options = PodOptions {
            exclude_inbound_ports: vec![1],
            include_inbound_cidrs: vec!["10.0.0.0/8".parse().unwrap()],
            bypass_inbound: true,
            probe_ports: Some(Vec::new()),
            ..plain
        };
        use inbound_flags::*;
        let expected = EXCLUDED_PORTS | INCLUDED_NETS | BYPASS | PROBED_PORTS;
        assert_eq!(flags(&options, false), expected);
    }
}
