//! A pod that is to be captured, with what was found out about it on this node.

use std::{
    net::IpAddr,
    os::{fd::AsFd, unix::net::UnixDatagram},
};

use super::{super::CaptureError, inbound, pins::Place};
use crate::{
    pod::Pod,
    sys::{bpf, cgroup::Cgroup, netns::Netns},
};

pub struct Subject<'a> {
    pub pod: &'a Pod,
    pub netns: &'a Netns,
    pub netns_cookie: u64,
    pub cgroup: Cgroup,
    /// At which it is reached: those that are declared first.
    pub ips: Vec<IpAddr>,
    /// Ids of cgroups below the pod's that capture leaves alone.
    pub exempt: Vec<u64>,
    /// Whether the daemon runs in one of these: it is the pod's own proxy.
    pub is_dedicated: bool,
}

impl<'a> Subject<'a> {
    /// `own` is the daemon's cgroup, and `predecessor` that of the one from which it takes over.
    pub fn find(
        pod: &'a Pod,
        netns: &'a Netns,
        own: &Cgroup,
        predecessor: Option<&Cgroup>,
    ) -> Result<Self, CaptureError> {
        let cgroup = Cgroup::open(&pod.cgroup)?;
        if own.id == cgroup.id {
            return Err(CaptureError::CapturesItself(pod.cgroup.clone()));
        }
        let exempt = pod.options.exempt_cgroups.iter();
        let exempt = exempt.map(|path| Cgroup::open(path).map(|cgroup| cgroup.id));
        let mut exempt = exempt.collect::<Result<Vec<_>, _>>()?;
        let is_dedicated = own.is_in(&cgroup);
        let proxies = [Some(own), predecessor].into_iter().flatten();
        exempt.extend(proxies.filter(|_| is_dedicated).map(|proxy| proxy.id));
        Ok(Self {
            pod,
            netns,
            netns_cookie: netns_cookie(netns)?,
            cgroup,
            ips: inbound::addresses(pod, netns)?,
            exempt,
            is_dedicated,
        })
    }

    pub fn place(&self) -> Place {
        Place {
            netns_cookie: self.netns_cookie,
            cgroup: self.cgroup.id,
        }
    }
}

pub fn netns_cookie(netns: &Netns) -> Result<u64, CaptureError> {
    netns
        .run(|| bpf::netns_cookie(UnixDatagram::unbound()?.as_fd()))
        .and_then(|cookie| cookie)
        .map_err(|error| {
            CaptureError::kernel(
                "ask for the cookie of network namespace",
                netns.path().display(),
                &error,
            )
        })
}
