//! What two pods of one configuration cannot both have.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use super::pods::normal;
use crate::{
    document::Node,
    identity::Identity,
    pod::{Pod, PodUid},
};

/// What earlier pods took, and which of them did.
#[derive(Default)]
pub struct Seen {
    uids: HashMap<PodUid, String>,
    netns: HashMap<PathBuf, Taken>,
    cgroups: Vec<(PathBuf, String)>,
    ips: HashMap<IpAddr, Taken>,
    services: HashMap<SocketAddr, String>,
    identities: HashMap<IpAddr, (Identity, String)>,
}

/// By workloads that are cgroups only, which may share it, or by a pod.
struct Taken {
    by: String,
    can_be_shared: bool,
}

impl Seen {
    pub fn check(&mut self, node: &Node<'_>, pod: &Pod) {
        let here = || node.path.clone();
        let can_be_shared = pod.cgroup_only.is_some();
        if let Some(other) = self.uids.insert(pod.uid.clone(), here()) {
            node.fail_at("uid", format!("{} is that of {other}, too", pod.uid));
        }
        let taken = |by| Taken { by, can_be_shared };
        if let Some(other) = self
            .netns
            .insert(normal(pod.netns.clone()), taken(here()))
            .filter(|other| !other.can_be_shared || !can_be_shared)
        {
            let what = format!("{} is that of {}, too", pod.netns.display(), other.by);
            node.fail_at("netns", what);
        }
        self.check_cgroup(node, pod);
        for ip in &pod.ips {
            let Some(other) = self.ips.insert(*ip, taken(here())) else {
                continue;
            };
            if other.by == node.path {
                node.fail_at("ips", format!("{ip} is given twice"));
            } else if !other.can_be_shared || !can_be_shared {
                node.fail_at("ips", format!("{ip} is that of {}, too", other.by));
            }
        }
        for service in pod.cgroup_only.iter().flat_map(|only| &only.inbound) {
            self.check_service(node, pod, *service);
        }
    }

    fn check_cgroup(&mut self, node: &Node<'_>, pod: &Pod) {
        // One inside the other would be captured twice.
        let clash = self
            .cgroups
            .iter()
            .find(|(path, _)| path.starts_with(&pod.cgroup) || pod.cgroup.starts_with(path));
        if let Some((path, other)) = clash {
            let what = if *path == pod.cgroup {
                "is that of"
            } else {
                "is inside, or around, that of"
            };
            let what = format!("{} {what} {other}, too", pod.cgroup.display());
            node.fail_at("cgroup", what);
        }
        self.cgroups.push((pod.cgroup.clone(), node.path.clone()));
    }

    fn check_service(&mut self, node: &Node<'_>, pod: &Pod, service: SocketAddr) {
        const FIELD: &str = "cgroupOnly.inbound";
        if let Some(other) = self.services.insert(service, node.path.clone()) {
            node.fail_at(FIELD, format!("{service} is served by {other}, too"));
        }
        // A tunnel comes to an address, and nothing in its handshake says for which of the workloads there.
        let mine = (pod.identity.clone(), node.path.clone());
        let (identity, other) = self.identities.entry(service.ip()).or_insert(mine);
        if *identity != pod.identity {
            let what = format!(
                "{} is an address of {other}, whose identity is another; workloads that serve at one address need one identity",
                service.ip()
            );
            node.fail_at(FIELD, what);
        }
    }
}
