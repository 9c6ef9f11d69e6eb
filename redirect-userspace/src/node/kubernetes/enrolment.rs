//! Which pods are to be captured, and as what. Pure.

use super::{
    annotations,
    objects::{Meta, Pod},
    probes,
};
use crate::{
    identity::{Identity, spiffe::check_segment},
    node::source::Description,
    pod::PodUid,
};

/// Of pods and namespaces.
pub const MODE_LABEL: &str = "istio.io/dataplane-mode";
const AMBIENT: &str = "ambient";
const NONE: &str = "none";
/// Set by what injects sidecars: the pod has a proxy of its own.
const SIDECAR: &str = "sidecar.istio.io/status";

/// What the labels say of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    Enrolled,
    /// Why not.
    Not(&'static str),
}

/// `namespace` is `None` while it is not known; then `None` means that it would decide.
pub fn judge(pod: &Pod, namespace: Option<&Meta>) -> Option<Judgement> {
    use Judgement::{Enrolled, Not};
    let own = pod.metadata.label(MODE_LABEL);
    if pod.spec.host_network {
        return Some(Not("it is in the node's own network namespace"));
    }
    if pod.metadata.annotation(SIDECAR).is_some() {
        return Some(Not("it has a sidecar proxy of its own"));
    }
    if own == Some(NONE) {
        return Some(Not("its label istio.io/dataplane-mode is none"));
    }
    if own == Some(AMBIENT) {
        return Some(Enrolled);
    }
    Some(match namespace?.label(MODE_LABEL) {
        Some(AMBIENT) => Enrolled,
        _ => Not("neither it nor its namespace has the label istio.io/dataplane-mode=ambient"),
    })
}

/// A pod as it is to be captured, and what is wrong with what was asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    pub description: Description,
    /// Each names an annotation or probe that is not heeded, so that more is captured, never less.
    pub complaints: Vec<String>,
}

/// What is the same for all pods of the node.
#[derive(Clone, Debug)]
pub struct Common {
    pub trust_domain: String,
    /// Whether pods' DNS may be captured at all.
    pub dns: bool,
}

/// An error if the API names it in a way that cannot be.
pub fn describe(pod: &Pod, common: &Common) -> Result<Described, String> {
    let meta = &pod.metadata;
    check_segment("pod name", &meta.name).map_err(|error| error.to_string())?;
    check_segment("uid", &meta.uid).map_err(|error| error.to_string())?;
    let account = match pod.spec.service_account_name.as_str() {
        "" => "default",
        name => name,
    };
    let identity = Identity::new(&common.trust_domain, &meta.namespace, account)
        .map_err(|error| error.to_string())?;
    let (mut options, mut complaints) = annotations::options(&meta.annotations);
    options.capture_dns &= common.dns;
    let (ports, unknown) = probes::ports(pod);
    options.probe_ports = Some(ports);
    complaints.extend(unknown);
    Ok(Described {
        description: Description {
            uid: PodUid::new(meta.uid.as_str()),
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            identity,
            options,
            config_hash: pod.config_hash().map(str::to_owned),
        },
        complaints,
    })
}

#[cfg(test)]
mod tests;
