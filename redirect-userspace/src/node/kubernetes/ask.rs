//! Whether a pod is enrolled that a runtime starts: from what is known, else by asking the API for that pod.

use std::{future::Future, pin::Pin, time::Duration};

use http::StatusCode;
use tokio::time::timeout;

use super::{
    Kubernetes, Ready,
    api::ApiError,
    enrolment::{Judgement, describe},
    keeper::Heard,
    objects::Pod,
    watch::Change,
};
use crate::{
    cni::protocol::PodName,
    identity::spiffe::check_segment,
    node::source::{Enrolled, Enrolment, Source},
};

/// A daemon that has just started hears all of the API before it lets pods start.
const START: Duration = Duration::from_secs(10);
/// The answer about one pod.
const ASK: Duration = Duration::from_secs(5);

impl Enrolment for Kubernetes {
    fn of<'a>(
        &'a self,
        pod: Option<&'a PodName>,
        _container_id: &'a str,
    ) -> Pin<Box<dyn Future<Output = Enrolled> + Send + 'a>> {
        Box::pin(async move {
            match pod {
                Some(pod) => self.enrolled(pod).await,
                None => Enrolled::No("it is not a pod of Kubernetes".to_owned()),
            }
        })
    }
}

impl Kubernetes {
    async fn enrolled(&self, name: &PodName) -> Enrolled {
        for (what, part) in [("namespace", &name.namespace), ("pod name", &name.name)] {
            if let Err(error) = check_segment(what, part) {
                return Enrolled::Unknown(error.to_string());
            }
        }
        // Before the agent has heard which pods there are, it would take this one for one that is not wanted.
        let mut ready = self.ready.clone();
        let is_ready = ready.wait_for(|ready| *ready == Ready::Yes);
        if !timeout(START, is_ready)
            .await
            .is_ok_and(|ready| ready.is_ok())
        {
            let Ready::NotYet(why) = self.ready.borrow().clone() else {
                return Enrolled::Unknown("the daemon is ending".to_owned());
            };
            return Enrolled::Unknown(why);
        }
        if let Some(known) = self.by_cache(name) {
            return known;
        }
        match timeout(ASK, self.by_api(name)).await {
            Ok(Ok(enrolled)) => enrolled,
            Ok(Err(error)) => Enrolled::Unknown(format!("whether it is enrolled: {error}")),
            Err(_) => Enrolled::Unknown(format!(
                "whether it is enrolled: the Kubernetes API at {} does not answer",
                self.api.server()
            )),
        }
    }

    /// Only if it is the very pod that is meant: one of the same name may have been there before.
    fn by_cache(&self, name: &PodName) -> Option<Enrolled> {
        let uid = name.uid.as_deref()?;
        let known = self.known();
        let pod = known.pods.get(&name.namespace, &name.name)?;
        if !is_it(pod, uid) {
            return None;
        }
        let judgement = known.judge(pod)?;
        Some(self.answer(pod, &judgement))
    }

    async fn by_api(&self, name: &PodName) -> Result<Enrolled, ApiError> {
        let pod = match self.api.pod(&name.namespace, &name.name).await {
            Ok(pod) => pod,
            Err(error) if error.is(StatusCode::NOT_FOUND) => {
                return Ok(Enrolled::Unknown(
                    "the Kubernetes API has no such pod (any more)".to_owned(),
                ));
            }
            Err(error) => return Err(error),
        };
        if let Some(uid) = &name.uid
            && !is_it(&pod, uid)
        {
            return Ok(Enrolled::Unknown(format!(
                "the Kubernetes API has another pod of this name, {} and not {uid}",
                pod.metadata.uid
            )));
        }
        let is_known = (self.known().namespaces).get("", &name.namespace).is_some();
        if !is_known {
            let namespace = self.api.namespace(&name.namespace).await?;
            self.hear(Heard::Namespace(Change::Put(namespace.clone())));
            self.known().namespaces.apply(Change::Put(namespace));
        }
        let judgement = {
            let mut known = self.known();
            known.pods.apply(Change::Put(pod.clone()));
            known.judge(&pod)
        };
        self.hear(Heard::Again);
        Ok(match judgement {
            Some(judgement) => self.answer(&pod, &judgement),
            None => Enrolled::Unknown(format!("its namespace {} is gone", name.namespace)),
        })
    }

    fn answer(&self, pod: &Pod, judgement: &Judgement) -> Enrolled {
        if let Judgement::Not(why) = judgement {
            return Enrolled::No((*why).to_owned());
        }
        let on = &pod.spec.node_name;
        if *on != self.node {
            return Enrolled::Unknown(format!(
                "the Kubernetes API has it on the node {on:?}, and this is {:?}: does `node` in the configuration say what \
                 Kubernetes calls this node?",
                self.node
            ));
        }
        match describe(pod, &self.common) {
            Ok(described) => Enrolled::Yes(Source::Kubernetes, Box::new(described.description)),
            Err(error) => Enrolled::Unknown(error),
        }
    }

    /// The keeper need not hear it if it has much to hear already.
    fn hear(&self, heard: Heard) {
        let _ = self.heard.try_send(heard);
    }
}

/// Kubelet calls a static pod by the hash of its manifest, the API its mirror by a uid of its own.
fn is_it(pod: &Pod, uid: &str) -> bool {
    pod.metadata.uid == uid || pod.config_hash() == Some(uid)
}
