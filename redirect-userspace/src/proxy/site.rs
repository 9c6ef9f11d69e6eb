//! A network namespace in which the proxy listens, and the pods behind it: whose connection is an accepted one?
//!
//! In most sites there is one pod, and every connection is its own. Where several pods share a namespace (node mode, and
//! workloads that are cgroups only), what capture knows of the connection names the pod, or its addresses do. A connection of
//! no pod is reset: to guess would be to lend it somebody's identity.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use crate::pod::{Pod, PodUid};

/// Names a site: the inode of its network namespace, which the site holds open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SiteId(pub u64);

/// How many pods can be behind a namespace's listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenancy {
    /// The namespace is the pod's.
    OnePod,
    /// Pods come and go, and are told apart, also while there is only one.
    ManyPods,
}

/// The pods of a site.
pub struct Members<P> {
    tenancy: Tenancy,
    pods: HashMap<PodUid, Rc<P>>,
    /// The only pod of a site for one.
    only: Option<Rc<P>>,
    /// Pods by their addresses; of a workload that is a cgroup only, those at which it serves.
    by_ip: HashMap<IpAddr, Rc<P>>,
    /// Workloads that are cgroups only, by what they serve.
    by_service: HashMap<SocketAddr, Rc<P>>,
    ips: Vec<IpAddr>,
}

impl<P: AsRef<Pod>> Members<P> {
    pub fn new(tenancy: Tenancy) -> Self {
        Self {
            tenancy,
            pods: HashMap::new(),
            only: None,
            by_ip: HashMap::new(),
            by_service: HashMap::new(),
            ips: Vec::new(),
        }
    }

    pub fn join(&mut self, pod: Rc<P>) {
        let uid = (*pod).as_ref().uid.clone();
        self.pods.insert(uid, pod);
        self.index();
    }

    pub fn leave(&mut self, uid: &PodUid) {
        self.pods.remove(uid);
        self.index();
    }

    /// The pod that made a connection, which capture says is `named`, and which comes from `client`.
    pub fn outbound(&self, named: Option<&PodUid>, client: IpAddr) -> Option<&Rc<P>> {
        if self.only.is_some() {
            return self.only.as_ref();
        }
        match named {
            Some(uid) => self.pods.get(uid),
            None => self.whole(client),
        }
    }

    /// The pod to which a tunnel's listener belongs at this address of ours. Workloads that share it have one identity.
    pub fn tunnel(&self, local: IpAddr) -> Option<&Rc<P>> {
        self.only.as_ref().or_else(|| self.by_ip.get(&local))
    }

    /// The pod that is meant by a connection to `destination`.
    pub fn inbound(&self, destination: SocketAddr) -> Option<&Rc<P>> {
        if self.only.is_some() {
            return self.only.as_ref();
        }
        let service = self.by_service.get(&destination);
        service.or_else(|| self.whole(destination.ip()))
    }

    /// Whether an address of the namespace is that of a pod.
    pub fn ips(&self) -> &[IpAddr] {
        &self.ips
    }

    pub fn pods(&self) -> impl Iterator<Item = &Rc<P>> {
        self.pods.values()
    }

    /// The pod that has the address to itself.
    fn whole(&self, ip: IpAddr) -> Option<&Rc<P>> {
        let pod = self.by_ip.get(&ip)?;
        (**pod).as_ref().cgroup_only.is_none().then_some(pod)
    }

    fn index(&mut self) {
        self.by_ip.clear();
        self.by_service.clear();
        self.ips.clear();
        for pod in self.pods.values() {
            let of = (**pod).as_ref();
            self.ips.extend(&of.ips);
            match &of.cgroup_only {
                None => self
                    .by_ip
                    .extend(of.ips.iter().map(|ip| (*ip, pod.clone()))),
                Some(services) => {
                    for service in &services.inbound {
                        self.by_ip.insert(service.ip(), pod.clone());
                        self.by_service.insert(*service, pod.clone());
                    }
                }
            }
        }
        self.only = match self.tenancy {
            Tenancy::OnePod => self.pods.values().next().cloned(),
            Tenancy::ManyPods => None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::Identity,
        pod::{CgroupOnly, PodOptions},
    };

    struct Here(Pod);

    impl AsRef<Pod> for Here {
        fn as_ref(&self) -> &Pod {
            &self.0
        }
    }

    fn pod(uid: &str, ip: &str, services: Option<&[&str]>) -> Rc<Here> {
        Rc::new(Here(Pod {
            uid: PodUid::new(uid),
            name: uid.into(),
            namespace: "ns".into(),
            identity: Identity::new("td", "ns", uid).unwrap(),
            netns: "/n".into(),
            cgroup: "/c".into(),
            ips: vec![ip.parse().unwrap()],
            cgroup_only: services.map(|services| CgroupOnly {
                inbound: services.iter().map(|s| s.parse().unwrap()).collect(),
            }),
            options: PodOptions::default(),
        }))
    }

    fn uid(pod: Option<&Rc<Here>>) -> Option<&str> {
        pod.map(|pod| pod.0.uid.as_str())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_pod_has_every_connection_of_its_namespace() {
        let mut members = Members::new(Tenancy::OnePod);
        assert_eq!(uid(members.outbound(None, ip("10.0.0.1"))), None);
        members.join(pod("a", "10.0.0.1", None));
        assert_eq!(uid(members.outbound(None, ip("10.9.9.9"))), Some("a"));
        assert_eq!(uid(members.tunnel(ip("10.9.9.9"))), Some("a"));
        assert_eq!(
            uid(members.inbound("10.9.9.9:1".parse().unwrap())),
            Some("a")
        );
        members.leave(&PodUid::new("a"));
        assert_eq!(uid(members.tunnel(ip("10.0.0.1"))), None);
        assert!(members.ips().is_empty());
    }

    #[test]
    fn of_many_pods_the_named_one_or_the_one_with_the_address() {
        let mut members = Members::new(Tenancy::ManyPods);
        members.join(pod("a", "10.0.0.1", None));
        for (named, client, expected) in [
            (None, "10.0.0.1", Some("a")),
            (Some("a"), "10.0.0.9", Some("a")),
            (None, "10.0.0.9", None),
            (Some("gone"), "10.0.0.1", None),
        ] {
            let named = named.map(PodUid::new);
            let found = uid(members.outbound(named.as_ref(), ip(client)));
            assert_eq!(found, expected, "{named:?} {client}");
        }
        members.join(pod("b", "10.0.0.2", None));
        assert_eq!(
            uid(members.inbound("10.0.0.2:80".parse().unwrap())),
            Some("b")
        );
        assert_eq!(uid(members.inbound("10.0.0.3:80".parse().unwrap())), None);
        assert_eq!(uid(members.tunnel(ip("10.0.0.1"))), Some("a"));
    }

    #[test]
    fn workloads_of_one_address_are_told_apart_by_what_they_serve() {
        let mut members = Members::new(Tenancy::ManyPods);
        members.join(pod("a", "10.0.0.1", Some(&["10.0.0.1:80"])));
        members.join(pod("b", "10.0.0.1", Some(&["10.0.0.1:81"])));
        members.join(pod("client", "10.0.0.1", Some(&[])));
        for (destination, expected) in [
            ("10.0.0.1:80", Some("a")),
            ("10.0.0.1:81", Some("b")),
            ("10.0.0.1:82", None),
        ] {
            let found = uid(members.inbound(destination.parse().unwrap()));
            assert_eq!(found, expected, "{destination}");
        }
        // The address is not one workload's: who connects from it has to be named.
        assert_eq!(uid(members.outbound(None, ip("10.0.0.1"))), None);
        let client = PodUid::new("client");
        assert_eq!(
            uid(members.outbound(Some(&client), ip("10.0.0.1"))),
            Some("client")
        );
        assert!(members.tunnel(ip("10.0.0.1")).is_some());
    }
}
