//! Enrolment where no Kubernetes API is asked: what the configuration says of all pods that a CNI plugin tells of.

use std::{future, pin::Pin};

use super::source::{Description, Enrolled, Enrolment, Source};
use crate::{
    cni::protocol::PodName,
    config::CniEnrolment,
    identity::{Identity, spiffe::InvalidName},
    pod::{PodOptions, PodUid},
};

/// All or none.
#[derive(Clone, Debug)]
pub struct ByCni {
    pub config: CniEnrolment,
    pub trust_domain: String,
}

impl ByCni {
    fn decide(&self, pod: Option<&PodName>, container_id: &str) -> Enrolled {
        if !self.config.enroll {
            return Enrolled::No("agent.cni.enroll is not set".to_owned());
        }
        match self.describe(pod, container_id) {
            Ok(description) => Enrolled::Yes(Source::Cni, Box::new(description)),
            Err(error) => Enrolled::Unknown(format!("it cannot have an identity: {error}")),
        }
    }

    fn describe(
        &self,
        pod: Option<&PodName>,
        container_id: &str,
    ) -> Result<Description, InvalidName> {
        let config = &self.config;
        let namespace = pod.map_or(config.namespace.as_str(), |pod| &pod.namespace);
        let name = pod.map_or(container_id, |pod| &pod.name);
        // Its own, if Kubernetes does not tell it: a name is used again for another pod.
        let uid = pod
            .and_then(|pod| pod.uid.as_deref())
            .unwrap_or(container_id);
        Ok(Description {
            uid: PodUid::new(uid),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            identity: Identity::new(&self.trust_domain, namespace, &config.service_account)?,
            options: PodOptions::default(),
            config_hash: None,
        })
    }
}

impl Enrolment for ByCni {
    fn of<'a>(
        &'a self,
        pod: Option<&'a PodName>,
        container_id: &'a str,
    ) -> Pin<Box<dyn Future<Output = Enrolled> + Send + 'a>> {
        Box::pin(future::ready(self.decide(pod, container_id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(enroll: bool, pod: Option<(&str, &str, Option<&str>)>) -> Enrolled {
        let config = CniEnrolment {
            enroll,
            namespace: "plain".into(),
            service_account: "sa".into(),
        };
        let by_cni = ByCni {
            config,
            trust_domain: "td".into(),
        };
        let pod = pod.map(|(namespace, name, uid)| PodName {
            namespace: namespace.into(),
            name: name.into(),
            uid: uid.map(Into::into),
        });
        by_cni.decide(pod.as_ref(), "c0ffee")
    }

    #[test]
    fn all_or_none_and_as_what() {
        for (pod, uid, identity) in [
            (None, "c0ffee", "spiffe://td/ns/plain/sa/sa"),
            (
                Some(("shop", "web-0", None)),
                "c0ffee",
                "spiffe://td/ns/shop/sa/sa",
            ),
            (
                Some(("shop", "web-0", Some("b5c0"))),
                "b5c0",
                "spiffe://td/ns/shop/sa/sa",
            ),
        ] {
            let Enrolled::Yes(Source::Cni, description) = decide(true, pod) else {
                panic!("{pod:?} is not enrolled");
            };
            assert_eq!(description.uid.as_str(), uid, "{pod:?}");
            assert_eq!(description.identity.to_string(), identity, "{pod:?}");
            assert!(matches!(decide(false, pod), Enrolled::No(_)));
        }
        let bad = decide(true, Some(("a/b", "c", None)));
        assert!(matches!(bad, Enrolled::Unknown(_)), "{bad:?}");
    }
}
