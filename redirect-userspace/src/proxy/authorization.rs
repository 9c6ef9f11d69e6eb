//! Applies the policies to an inbound connection: when it comes, and again whenever the workload data changes.

use std::net::SocketAddr;

use tracing::field::{DisplayValue, display};

use super::{PodContext, Shared, worker::Worker};
use crate::{
    identity::tls::Peer,
    policy::{self, Decision, Judgement, Subject, Target},
    workload::{Policy, Workloads},
};

/// Who is at the other end of an inbound connection.
pub struct Caller {
    pub address: SocketAddr,
    /// `None` in plaintext: nobody has proved anything.
    pub peer: Option<Peer>,
}

impl Caller {
    /// As the log shows it.
    pub fn identity(&self) -> Option<DisplayValue<&str>> {
        self.peer.as_ref().map(|peer| display(&*peer.uri))
    }
}

/// Refuses what the policies deny, and says which of them.
pub fn check(
    shared: &Shared,
    workloads: &Workloads,
    context: &PodContext,
    caller: &Caller,
    app: SocketAddr,
) -> Result<(), String> {
    let judgement = judge(shared, workloads, context, caller, app);
    for policy in &judgement.would_deny {
        tracing::info!(
            target: "redirect::access", pod = %context.pod.uid, src.addr = %caller.address,
            src.identity = caller.identity(), dst.addr = %app, policy = name(policy), "a policy in dry-run would deny"
        );
    }
    match judgement.decision {
        Decision::Allow(_) => Ok(()),
        Decision::Deny(by) => Err(explain(by.as_deref())),
    }
}

/// Waits until the policies deny an established connection; says which.
pub async fn revoked(
    worker: &Worker,
    context: &PodContext,
    caller: &Caller,
    app: SocketAddr,
) -> String {
    let shared = &worker.shared;
    let mut changes = shared.workloads.subscribe();
    loop {
        if changes.changed().await.is_err() {
            // The store lives as long as the workers; without it nothing changes any more.
            return std::future::pending().await;
        }
        let Some(workloads) = shared.workloads.snapshot() else {
            continue;
        };
        if let Decision::Deny(by) = judge(shared, &workloads, context, caller, app).decision {
            return explain(by.as_deref());
        }
    }
}

fn judge(
    shared: &Shared,
    workloads: &Workloads,
    context: &PodContext,
    caller: &Caller,
    app: SocketAddr,
) -> Judgement {
    let workload = workloads.workload(&shared.network, app.ip());
    let target = Target {
        namespace: &context.pod.namespace,
        selected_by: workload.map_or(&[], |workload| workload.authorization_policies.as_slice()),
    };
    let subject = Subject {
        source: caller.peer.as_ref().and_then(|peer| peer.identity.as_ref()),
        source_ip: caller.address.ip(),
        destination: app,
    };
    policy::evaluate(workloads, target, subject)
}

fn explain(policy: Option<&Policy>) -> String {
    match policy {
        Some(policy) => format!("policy {} denies it", name(policy)),
        None => "no ALLOW policy matches it, and at least one applies".to_owned(),
    }
}

fn name(policy: &Policy) -> String {
    format!("{}/{}", policy.namespace, policy.name)
}
