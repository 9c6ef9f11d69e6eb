//! What is asked of the agent over its socket, and the answers: pods of the command line here, sandboxes of the CNI plugin in
//! [`cni`].

mod cni;

use std::sync::Arc;

use super::{
    agent::{Agent, AgentError, PodStatus},
    attachments::{Attachments, AttachmentsError},
    location::LocationError,
    source::{Enrolment, Source},
};
use crate::{
    cni::protocol::{Answer, ListedPod, Request},
    config::{
        HostPaths, Mode,
        entry::{self, EntryError},
    },
    pod::{Pod, PodUid},
};

/// Answers requests. Cheap to clone.
#[derive(Clone)]
pub struct Requests(Arc<Parts>);

pub struct Parts {
    pub agent: Agent,
    pub enrolment: Arc<dyn Enrolment>,
    pub attachments: Arc<Attachments>,
    pub host: HostPaths,
    pub trust_domain: String,
    pub mode: Mode,
}

#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("not a pod: {0}")]
    Entry(#[from] EntryError),
    #[error("pod {0} was not added by `redirect pod add`; {1}")]
    NotOfCommand(PodUid, &'static str),
    #[error(transparent)]
    Attachments(#[from] AttachmentsError),
    #[error(transparent)]
    Location(#[from] LocationError),
    #[error("the network gave the pod no address")]
    NoAddress,
    #[error("whether the pod is to be captured is not known: {0}")]
    Unknown(String),
    #[error("sandbox {0} is not known")]
    NoSuchSandbox(String),
    #[error("{0}")]
    Interrupted(String),
}

impl RequestError {
    /// What an operator can do.
    fn hint(&self) -> &'static str {
        match self {
            Self::Agent(AgentError::Pod { .. }) => {
                "`redirect pod list` says how it stands with each pod, the daemon's log says more"
            }
            Self::Agent(AgentError::NotWanted(_)) | Self::NoSuchSandbox(_) => {
                "it was removed meanwhile, or never added"
            }
            Self::Agent(AgentError::Ended) | Self::Interrupted(_) => "ask again in a moment",
            Self::Entry(_) => "see `pods` in the documentation of the configuration",
            Self::NotOfCommand(..) => "`redirect pod list` says who wants it",
            Self::Attachments(_) => {
                "look at the state directory: is its file system full, or read-only?"
            }
            Self::Location(_) => "agent.host says where the node's file systems are",
            Self::NoAddress => "the plugin goes behind the one that makes the network",
            Self::Unknown(_) => {
                "pods of namespaces in excludeNamespaces of the plugin's configuration start all the same"
            }
        }
    }
}

impl Requests {
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    pub async fn answer(&self, request: Request) -> Answer {
        let answer = match request {
            Request::Add(attachment) => self.0.cni_add(attachment).await,
            Request::Check(attachment) => self.0.cni_check(&attachment).await,
            Request::Del { container_id } => self.0.cni_del(&container_id).await,
            Request::Gc {
                network,
                container_ids,
            } => self.0.cni_gc(&network, &container_ids).await,
            Request::Status => self.0.status().await,
            Request::PodAdd { pod } => self.0.pod_add(&pod).await,
            Request::PodRemove { uid } => self.0.pod_remove(PodUid::new(uid)).await,
            Request::PodList => self.0.pod_list().await,
        };
        answer.unwrap_or_else(|error| Answer::Failed {
            error: error.to_string(),
            hint: error.hint().to_owned(),
        })
    }
}

impl Parts {
    async fn status(&self) -> Result<Answer, RequestError> {
        // Answered by the task that adds pods: it is there, and not stuck.
        self.agent.list().await?;
        Ok(Answer::Done)
    }

    async fn pod_add(&self, pod: &serde_json::Value) -> Result<Answer, RequestError> {
        let pod = entry::read(&pod.to_string(), &self.trust_domain, self.mode)?;
        let uid = pod.uid.clone();
        let before = self.of_command(&uid).await?;
        match self.agent.add(Source::Command, pod).await {
            Ok(_) => Ok(Answer::Done),
            Err(error) => {
                // Who asked is told, and asks again; what was there before stays.
                match before {
                    Some(before) => _ = self.agent.add(Source::Command, before).await,
                    None => _ = self.agent.remove(Source::Command, &uid).await,
                }
                Err(error.into())
            }
        }
    }

    async fn pod_remove(&self, uid: PodUid) -> Result<Answer, RequestError> {
        let listed = self.agent.list().await?;
        let known = listed.iter().find(|status| status.pod.uid == uid);
        match known {
            Some(known) if known.sources.contains(&Source::Command) => {
                self.agent.remove(Source::Command, &uid).await?;
                Ok(Answer::Done)
            }
            Some(_) => Err(RequestError::NotOfCommand(uid, "others want it")),
            None => Err(RequestError::NotOfCommand(uid, "nobody wants it")),
        }
    }

    async fn pod_list(&self) -> Result<Answer, RequestError> {
        let pods = self.agent.list().await?.iter().map(listed).collect();
        Ok(Answer::Pods { pods })
    }

    /// What the command line wants of the pod.
    async fn of_command(&self, uid: &PodUid) -> Result<Option<Pod>, RequestError> {
        let listed = self.agent.list().await?.into_iter();
        let mut of_command =
            listed.filter(|status| status.sources.first() == Some(&Source::Command));
        let known = of_command.find(|status| status.pod.uid == *uid);
        Ok(known.map(|status| status.pod))
    }
}

fn listed(status: &PodStatus) -> ListedPod {
    ListedPod {
        pod: entry::write(&status.pod),
        sources: status.sources.iter().map(ToString::to_string).collect(),
        error: status.state.clone().err(),
    }
}
