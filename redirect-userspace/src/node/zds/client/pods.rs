//! The pods that the other agent has told of, and the descriptors of their namespaces, which are all that we have of these.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
};

use super::super::{Workload, convert::Request};
use crate::{
    identity::Identity,
    node::{agent::Agent, source::Source},
    pod::{Pod, PodOptions, PodUid},
    sys::{interfaces, netns::Netns},
};

pub struct Pods {
    agent: Agent,
    trust_domain: String,
    options: PodOptions,
    held: HashMap<PodUid, Held>,
    naming: Naming,
}

struct Held {
    pod: Pod,
    /// The pod's path leads through it: it stays open until nobody can want to go there any more.
    netns: Netns,
}

/// How far the agent has come with naming its pods on this connection.
enum Naming {
    /// These so far.
    UnderWay(HashSet<PodUid>),
    Done,
}

impl Pods {
    pub fn new(agent: Agent, trust_domain: String, options: PodOptions) -> Self {
        Self {
            agent,
            trust_domain,
            options,
            held: HashMap::new(),
            naming: Naming::UnderWay(HashSet::new()),
        }
    }

    /// A new connection: the agent begins to name its pods.
    pub fn begin(&mut self) {
        self.naming = Naming::UnderWay(HashSet::new());
    }

    /// Whether the agent has named all of its pods.
    pub fn is_named(&self) -> bool {
        matches!(self.naming, Naming::Done)
    }

    pub fn count(&self) -> usize {
        self.held.len()
    }

    /// Does what the agent asks; an error is its answer.
    pub async fn obey(&mut self, request: Request) -> Result<(), String> {
        match request {
            Request::Add(uid, workload, netns) => self.add(uid, workload, netns).await,
            Request::Keep(uid) => match &mut self.naming {
                Naming::UnderWay(named) => {
                    named.insert(uid);
                    Ok(())
                }
                Naming::Done => Err(format!("keep of {uid} after the snapshot")),
            },
            Request::Del(uid) => match &mut self.naming {
                // It goes with those that were not named.
                Naming::UnderWay(named) => {
                    named.remove(&uid);
                    Ok(())
                }
                Naming::Done => self.remove(uid).await,
            },
            Request::SnapshotSent => self.end_of_snapshot().await,
        }
    }

    async fn add(&mut self, uid: PodUid, workload: Workload, netns: Netns) -> Result<(), String> {
        if let Naming::UnderWay(named) = &mut self.naming {
            // Whatever comes of it, the pod is there.
            named.insert(uid.clone());
        }
        // The same namespace by another descriptor is nothing new.
        let netns = match self.held.get(&uid) {
            Some(held) if held.netns.inode() == netns.inode() => held.netns.clone(),
            _ => netns,
        };
        let pod = self.describe(&uid, workload, &netns)?;
        let held = Held {
            pod: pod.clone(),
            netns,
        };
        let former = self.held.insert(uid.clone(), held);
        let agent = self.agent.clone();
        let added = finish(former, async move {
            agent.add(Source::Zds, pod).await.map(drop)
        });
        added.await.map_err(|error| {
            tracing::warn!(pod = %uid, %error, "cannot carry the pod; it is tried again");
            error
        })
    }

    fn describe(&self, uid: &PodUid, workload: Workload, netns: &Netns) -> Result<Pod, String> {
        let Workload {
            name,
            namespace,
            service_account,
        } = workload;
        let identity = Identity::new(&self.trust_domain, &namespace, &service_account)
            .map_err(|error| format!("pod {uid}: {error}"))?;
        let ips = interfaces::global_addresses(netns)
            .map_err(|error| format!("pod {uid}: list the addresses in its namespace: {error}"))?;
        if ips.is_empty() {
            return Err(format!("pod {uid}: its network namespace has no address"));
        }
        Ok(Pod {
            uid: uid.clone(),
            name,
            namespace,
            identity,
            netns: netns.path(),
            // Nobody says which it is, and who captures by rules in the namespace needs none.
            cgroup: PathBuf::new(),
            ips,
            cgroup_only: None,
            options: self.options.clone(),
        })
    }

    async fn remove(&mut self, uid: PodUid) -> Result<(), String> {
        // One that we do not have is gone, as it should be.
        let Some(held) = self.held.remove(&uid) else {
            return Ok(());
        };
        let agent = self.agent.clone();
        finish(
            Some(held),
            async move { agent.remove(Source::Zds, &uid).await },
        )
        .await
    }

    async fn end_of_snapshot(&mut self) -> Result<(), String> {
        let Naming::UnderWay(named) = &self.naming else {
            return Err("snapshot sent twice on one connection".to_owned());
        };
        let gone: Vec<Held> = {
            let gone = self.held.extract_if(|uid, _| !named.contains(uid));
            gone.map(|(_, held)| held).collect()
        };
        self.naming = Naming::Done;
        let pods: Vec<Pod> = self.held.values().map(|held| held.pod.clone()).collect();
        tracing::info!(
            pods = pods.len(),
            gone = gone.len(),
            "the node agent has named its pods"
        );
        let agent = self.agent.clone();
        finish(gone, async move { agent.replace(Source::Zds, pods).await }).await
    }
}

/// Does `work` to its end, also if nobody waits for that any more, and only then gives up what it still needs.
async fn finish<T, E>(
    needed: T,
    work: impl Future<Output = Result<(), E>> + Send + 'static,
) -> Result<(), String>
where
    T: Send + 'static,
    E: std::fmt::Display + Send + 'static,
{
    let task = tokio::spawn(async move {
        let result = work.await;
        drop(needed);
        result
    });
    match task.await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
