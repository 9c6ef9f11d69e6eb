//! Pods whose connections another's proxy carries: we capture, and drive it by ZDS.

use std::sync::Arc;

use super::{Captured, PodError, Pods, inode};
use crate::{
    capture::Applied,
    node::zds::{Workload, server::Server},
    pod::{Pod, PodUid},
    proxy::{PodContext, client_ip, standpoint::Standpoint},
    sys::netns::Netns,
};

/// Has the proxy listen in the pod, before anything is steered there.
pub async fn have_carried(server: &Server, pod: &Pod) -> Result<(), PodError> {
    let netns = open(pod)?;
    Ok(server.add(&pod.uid, workload(pod), netns).await?)
}

/// Whether the proxy listens in the pod as what is wanted now.
pub fn is_carried(server: &Server, pod: &Pod) -> bool {
    open(pod).is_ok_and(|netns| server.carries(&pod.uid, &workload(pod), &netns))
}

fn open(pod: &Pod) -> Result<Netns, PodError> {
    Netns::open(&pod.netns).map_err(|source| PodError::Netns {
        path: pod.netns.clone(),
        source,
    })
}

fn workload(pod: &Pod) -> Workload {
    Workload {
        name: pod.name.clone(),
        namespace: pod.namespace.clone(),
        service_account: pod.identity.service_account.to_string(),
    }
}

impl Pods {
    pub fn server(&self) -> Option<&Server> {
        self.server.as_ref()
    }

    /// Captures a pod that the other proxy carries, or captures it as it is wanted now.
    pub(super) fn capture_alone(&mut self, pod: Pod) -> Result<Applied, PodError> {
        let netns = open(&pod)?;
        let place = self.place(&pod, &netns)?;
        let earlier = self.record(&pod)?;
        // Whether it speaks as the client is the other proxy's choice; without a way for the app's answers it could not.
        client_ip::apply(&netns)?;
        let applied = self.capture.apply_for_another(&pod, &netns)?;
        self.forget_earlier(&pod, &netns, earlier)?;
        let captured = Captured {
            site: place.site,
            cgroup: inode(&pod.cgroup).unwrap_or_default(),
            dns: None,
            context: Arc::new(PodContext::new(
                pod,
                netns.clone(),
                true,
                Standpoint::Inside,
                &self.shared.cluster_id,
            )),
            netns,
        };
        let uid = captured.context.pod.uid.clone();
        self.captured.insert(uid, captured);
        Ok(applied)
    }

    /// Has the other proxy let go of the pod, if there is one that may have been told of it.
    pub fn release_elsewhere(&self, uid: &PodUid) {
        let Some(server) = self.server.clone() else {
            return;
        };
        if !server.knows(uid) {
            return;
        }
        let uid = uid.clone();
        // It may be slow, and what is carried there is not steered to it any more.
        tokio::spawn(async move { server.remove(&uid).await });
    }
}
