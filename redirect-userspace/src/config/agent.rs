//! The part `agent`: where the node agent learns of pods.

use std::path::{Path, PathBuf};

use super::{
    AgentConfig, Backend, CONTAINER_ID, CaptureConfig, CniEnrolment, KubernetesConfig, Mode, Part,
    ZdsConfig,
    read::{absolute, boolean, section},
};
use crate::{document::Fields, identity::spiffe::check_segment};

pub(super) fn read(f: &mut Fields<'_>, state_dir: Option<&Path>) -> Option<AgentConfig> {
    let socket = match f.raw("socket") {
        Some(node) if node.is_null() => None,
        Some(node) => absolute(&node),
        None => state_dir.map(|directory| directory.join("agent.sock")),
    };
    let host = section(f, "host", |f| {
        Some(super::HostPaths {
            proc: path(f, "proc", "/proc"),
            cgroup: f.optional("cgroup").and_then(|node| absolute(&node)),
            container_cgroup: f
                .optional("containerCgroup")
                .and_then(|node| node.checked(container_cgroup)),
        })
    });
    let kubernetes = f.optional("kubernetes").map(|node| {
        let mut fields = node.fields()?;
        let f = &mut fields;
        let config = KubernetesConfig {
            kubeconfig: f.optional("kubeconfig").and_then(|node| absolute(&node)),
            workloads: boolean(f, "workloads", false),
        };
        fields.end();
        Some(config)
    });
    let cni = section(f, "cni", cni);
    let zds = section(f, "zds", |f| {
        let config = ZdsConfig {
            serve: f.optional("serve").and_then(|node| absolute(&node)),
            connect: f.optional("connect").and_then(|node| absolute(&node)),
        };
        if config.serve.is_some() && config.connect.is_some() {
            f.fail("serve (we drive another proxy) and connect (another agent drives ours) exclude each other");
        }
        Some(config)
    });
    Some(AgentConfig {
        socket,
        host: host?,
        kubernetes: match kubernetes {
            Some(kubernetes) => Some(kubernetes?),
            None => None,
        },
        cni: cni?,
        zds: zds?,
    })
}

/// What cannot be where capture or the proxy is another's; the field and why.
pub(super) fn misfit(capture: &CaptureConfig) -> Option<(&'static str, &'static str)> {
    let by_rules = matches!(capture.backend, Backend::Iptables | Backend::Nftables);
    match capture.part {
        Part::Whole => None,
        _ if capture.mode != Mode::Shared => Some((
            "agent.zds",
            "only with capture.mode: shared: the proxy listens inside each pod",
        )),
        Part::Capture if !by_rules => Some((
            "agent.zds.serve",
            "needs capture.backend: nftables or iptables: the programs of the others know the sockets of our own proxy only",
        )),
        Part::Proxy if capture.backend != Backend::None => Some((
            "agent.zds.connect",
            "needs capture.backend: none: the other agent captures, and two captures would meet in each pod",
        )),
        Part::Capture | Part::Proxy => None,
    }
}

fn cni(f: &mut Fields<'_>) -> Option<CniEnrolment> {
    let enroll = boolean(f, "enroll", false);
    let mut segment = |field, part| match f.optional(field) {
        Some(node) => node.checked(|text| check_segment(part, text).map(|()| text.to_owned())),
        None => Some("default".to_owned()),
    };
    Some(CniEnrolment {
        enroll,
        namespace: segment("namespace", "namespace")?,
        service_account: segment("serviceAccount", "service account")?,
    })
}

/// A path below the hierarchy in which the container's id stands once.
fn container_cgroup(text: &str) -> Result<String, String> {
    let parts = || text.trim_matches('/').split('/');
    if parts().any(|part| part.is_empty() || part == "." || part == "..") {
        return Err(format!("{text:?} is no path of a cgroup"));
    }
    match text.matches(CONTAINER_ID).count() {
        1 => Ok(text.to_owned()),
        _ => Err(format!("{text:?} has to have {CONTAINER_ID} in it, once")),
    }
}

fn path(f: &mut Fields<'_>, field: &'static str, default: &str) -> PathBuf {
    f.optional(field)
        .and_then(|node| absolute(&node))
        .unwrap_or_else(|| default.into())
}
