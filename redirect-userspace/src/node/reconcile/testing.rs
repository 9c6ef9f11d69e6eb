//! Pods for tables.

use crate::{
    identity::Identity,
    pod::{Pod, PodOptions, PodUid},
};

/// A pod whose paths say `netns`, and whose options say `port`.
pub fn pod(uid: &str, netns: u64, port: u16) -> Pod {
    Pod {
        uid: PodUid::new(uid),
        name: uid.into(),
        namespace: "ns".into(),
        identity: Identity::new("td", "ns", uid).unwrap(),
        netns: format!("/n/{netns}").into(),
        cgroup: "/c".into(),
        ips: vec!["10.0.0.1".parse().unwrap()],
        cgroup_only: None,
        options: PodOptions {
            exclude_outbound_ports: vec![port],
            ..PodOptions::default()
        },
    }
}
