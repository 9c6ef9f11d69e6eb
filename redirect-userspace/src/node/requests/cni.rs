//! The CNI plugin's requests.
//!
//! A sandbox is on record before its capture begins, so that a DEL that comes in the midst finds it and takes the wish back;
//! the ADD then fails, and nothing is left.

use std::path::PathBuf;

use super::{Parts, RequestError};
use crate::{
    cni::protocol::{Answer, Attachment},
    node::{
        attachments::{CapturedAs, Known},
        location::{self, LocationError},
        source::{Description, Enrolled, Source},
    },
    pod::{Pod, PodUid},
};

impl Parts {
    pub(super) async fn cni_add(&self, attachment: Attachment) -> Result<Answer, RequestError> {
        let id = attachment.container_id.clone();
        let enrolled = self.enrolment.of(attachment.pod.as_ref(), &id).await;
        let (source, description) = match enrolled {
            Enrolled::Yes(source, description) => (source, *description),
            Enrolled::Unknown(why) => return Err(RequestError::Unknown(why)),
            Enrolled::No(reason) => {
                tracing::debug!(container = id, reason, "not enrolled");
                self.attachments.insert(Known {
                    attachment,
                    captured: None,
                })?;
                return Ok(Answer::NotEnrolled);
            }
        };
        if attachment.ips.is_empty() {
            return Err(RequestError::NoAddress);
        }
        let uid = description.uid.clone();
        self.attachments.insert(Known {
            attachment: attachment.clone(),
            captured: Some(CapturedAs {
                uid: uid.as_str().to_owned(),
                source: source.name().to_owned(),
            }),
        })?;
        let added = self.capture(source, description, attachment).await;
        if added.is_err() && self.is_newest(&id, uid.as_str()) {
            // The wish stays where the API repeats it; an error here would hide the one that matters.
            _ = self.agent.remove(source, &uid).await;
            _ = self.attachments.remove(&id);
            location::forget(&self.host, &id);
        }
        added
    }

    async fn capture(
        &self,
        source: Source,
        description: Description,
        attachment: Attachment,
    ) -> Result<Answer, RequestError> {
        let host = self.host.clone();
        let (uid, hash) = (description.uid.clone(), description.config_hash.clone());
        let is_kubernetes = attachment.pod.is_some();
        let (netns, id) = (attachment.netns.clone(), attachment.container_id.clone());
        // Walks file systems.
        let found = tokio::task::spawn_blocking(move || -> Result<_, RequestError> {
            let by_uid = (is_kubernetes && uid.as_str() != id).then_some(uid.as_str());
            let cgroup = location::cgroup_of(&host, by_uid, hash.as_deref(), &id, &netns)?;
            Ok((location::netns_here(&host, &netns), cgroup))
        });
        let (netns, cgroup) = found
            .await
            .map_err(|error| RequestError::Interrupted(error.to_string()))??;
        let pod = pod(description, netns, cgroup, attachment);
        self.agent.add(source, pod).await?;
        Ok(Answer::Done)
    }

    pub(super) async fn cni_check(&self, attachment: &Attachment) -> Result<Answer, RequestError> {
        let id = &attachment.container_id;
        let known = self.attachments.get(id);
        let known = known.ok_or_else(|| RequestError::NoSuchSandbox(id.clone()))?;
        match known.captured {
            Some(captured) => {
                let uid = PodUid::new(captured.uid);
                self.agent.verify(&uid).await?;
                self.has_no_stack_of_its_own(&uid, attachment).await?;
                Ok(Answer::Done)
            }
            None => Ok(Answer::NotEnrolled),
        }
    }

    /// Its programs may all be there: what the app sends does not meet them in a sandbox that has a network stack of its own, and
    /// at ADD nothing of that ran yet.
    async fn has_no_stack_of_its_own(
        &self,
        uid: &PodUid,
        attachment: &Attachment,
    ) -> Result<(), RequestError> {
        let (host, netns) = (self.host.clone(), attachment.netns.clone());
        let look = tokio::task::spawn_blocking(move || location::sandbox_in(&host, &netns));
        let found = look.await;
        match found.map_err(|error| RequestError::Interrupted(error.to_string()))?? {
            None => Ok(()),
            Some(sandbox) => Err(RequestError::Location(LocationError::ForeignStack {
                pod: uid.to_string(),
                sandbox,
            })),
        }
    }

    pub(super) async fn cni_del(&self, container_id: &str) -> Result<Answer, RequestError> {
        let is_newest = |captured: &CapturedAs| self.is_newest(container_id, &captured.uid);
        let known = self.attachments.get(container_id);
        let captured = known.and_then(|known| known.captured).filter(is_newest);
        if let Some(captured) = captured {
            let uid = PodUid::new(captured.uid);
            let sources = [Source::Cni, Source::Kubernetes];
            for source in sources.iter().filter(|s| s.name() == captured.source) {
                self.agent.remove(*source, &uid).await?;
            }
        }
        // Last: what failed until here is done again by the next DEL.
        self.attachments.remove(container_id)?;
        location::forget(&self.host, container_id);
        Ok(Answer::Done)
    }

    pub(super) async fn cni_gc(
        &self,
        network: &str,
        container_ids: &[String],
    ) -> Result<Answer, RequestError> {
        for known in self.attachments.all() {
            let id = known.attachment.container_id;
            if known.attachment.network == network && !container_ids.contains(&id) {
                tracing::info!(container = id, "its runtime does not know it any more");
                self.cni_del(&id).await?;
            }
        }
        Ok(Answer::Done)
    }

    /// Whether no other sandbox is captured as the same pod. One that was made anew has the pod's uid, and may be told of before
    /// the old one's DEL.
    fn is_newest(&self, container_id: &str, uid: &str) -> bool {
        let others = self.attachments.all().into_iter();
        let mut others = others.filter(|known| known.attachment.container_id != container_id);
        !others.any(|known| known.captured.is_some_and(|other| other.uid == uid))
    }
}

fn pod(description: Description, netns: PathBuf, cgroup: PathBuf, attachment: Attachment) -> Pod {
    Pod {
        uid: description.uid,
        name: description.name,
        namespace: description.namespace,
        identity: description.identity,
        netns,
        cgroup,
        ips: attachment.ips,
        cgroup_only: None,
        options: description.options,
    }
}
