//! The source of pods with a fake API before it and a fake agent behind it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::Deref,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use redirect::{
    capture::Applied,
    cni::protocol::PodName,
    config::{HostPaths, KubernetesConfig},
    node::{
        agent::{Agent, AgentError, Order, PodEvent, PodStatus},
        kubernetes::{Connected, Kubernetes, Settings},
        source::{Description, Enrolled, Enrolment as _, Source},
    },
    pod::{Pod, PodUid},
    workload::WorkloadStore,
};
use redirect_tests::{eventually, kubernetes::FakeApi};
use serde_json::{Value, json};
use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

pub const PATIENCE: Duration = Duration::from_secs(20);
pub const NODE: &str = "node-a";

/// Everything up to the agent's socket and the kernel.
pub struct Stage {
    pub api: FakeApi,
    pub agent: FakeAgent,
    pub kubernetes: Arc<Kubernetes>,
    pub runtime: Background,
    _dir: Directory,
}

impl Stage {
    /// With a namespace `shop`, which is enrolled, and one `plain`, which is not.
    pub fn set() -> Self {
        Self::set_with(|_, _| {})
    }

    pub fn set_with(prepare: impl FnOnce(&FakeApi, &FakeAgent)) -> Self {
        let api = FakeApi::start();
        api.put(
            "namespaces",
            json!({"metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}}}),
        );
        api.put("namespaces", json!({"metadata": {"name": "plain"}}));
        let runtime = Background::start();
        let agent = FakeAgent::start(&runtime);
        prepare(&api, &agent);
        let dir = Directory::new();
        let settings = settings(api.kubeconfig(&dir.0), &dir);
        let kubernetes = runtime.block_on(async {
            let connected = Connected::new(settings).await.expect("a good kubeconfig");
            connected.keep(agent.agent.clone())
        });
        Self {
            api,
            agent,
            kubernetes,
            runtime,
            _dir: dir,
        }
    }

    /// A running pod in the API, which has its uid of its name.
    pub fn pod(&self, namespace: &str, name: &str, more: Value) {
        self.api.put("pods", pod(namespace, name, more));
    }

    /// What CNI's ADD does.
    pub fn add(&self, namespace: &str, name: &str) -> Enrolled {
        let enrolled = self.asked(namespace, name, Some(&uid(name)));
        if let Enrolled::Yes(source, description) = &enrolled {
            let pod = located(description);
            let added = self.runtime.block_on(self.agent.agent.add(*source, pod));
            // The pod's own trouble.
            drop(added);
        }
        enrolled
    }

    pub fn asked(&self, namespace: &str, name: &str, uid: Option<&str>) -> Enrolled {
        let name = PodName {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.map(str::to_owned),
        };
        self.runtime
            .block_on(self.kubernetes.of(Some(&name), "container"))
    }

    /// Waits until these pods, and no others, are wanted by this source.
    #[track_caller]
    pub fn wait_wanted(&self, names: &[&str]) {
        let expected: BTreeSet<String> = names.iter().map(|name| uid(name)).collect();
        eventually(&format!("wanted: {names:?}"), PATIENCE, || {
            let wanted = self.agent.wanted();
            match wanted == expected {
                true => Ok(()),
                false => Err(format!("{wanted:?}")),
            }
        });
    }
}

pub fn settings(kubeconfig: PathBuf, dir: &Directory) -> Settings {
    Settings {
        api: KubernetesConfig {
            kubeconfig: Some(kubeconfig),
            workloads: false,
        },
        node: NODE.to_owned(),
        trust_domain: "cluster.local".to_owned(),
        cluster_id: "c1".to_owned(),
        network: String::new(),
        dns: true,
        domain: "cluster.local".to_owned(),
        host: HostPaths {
            // No process is here.
            proc: dir.0.clone(),
            cgroup: None,
            container_cgroup: None,
        },
    }
}

/// Feeds a store from the API.
pub fn feed(runtime: &Handle, api: &FakeApi, dir: &Directory) -> Arc<WorkloadStore> {
    let store = WorkloadStore::new();
    let settings = settings(api.kubeconfig(&dir.0), dir);
    runtime.block_on(async {
        let connected = Connected::new(settings).await.expect("a good kubeconfig");
        connected.feed(store.clone());
    });
    store
}

pub fn uid(name: &str) -> String {
    format!("uid-of-{name}")
}

pub fn pod(namespace: &str, name: &str, more: Value) -> Value {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": namespace, "uid": uid(name)},
        "spec": {"nodeName": NODE, "serviceAccountName": name},
        "status": {"phase": "Running", "podIP": "10.0.0.1"},
    });
    merge(&mut pod, more);
    pod
}

fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more,
    }
}

/// Where CNI says that the pod is.
pub fn located(description: &Description) -> Pod {
    let ip: IpAddr = "10.0.0.1".parse().expect("an address");
    Pod {
        uid: description.uid.clone(),
        name: description.name.clone(),
        namespace: description.namespace.clone(),
        identity: description.identity.clone(),
        netns: format!("/netns/{}", description.uid).into(),
        cgroup: format!("/cgroup/{}", description.uid).into(),
        ips: vec![ip],
        cgroup_only: None,
        options: description.options.clone(),
    }
}

/// Does what it is told, captures nothing, and says that it did.
#[derive(Clone)]
pub struct FakeAgent {
    pub agent: Agent,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    pods: BTreeMap<PodUid, (Pod, BTreeSet<Source>)>,
    /// Pods that cannot be captured, and why.
    failing: BTreeMap<String, String>,
    /// Each order but lists, as text.
    orders: Vec<String>,
}

impl FakeAgent {
    fn start(runtime: &Handle) -> Self {
        let (agent, mut orders) = Agent::new();
        let this = Self {
            agent,
            state: Arc::default(),
        };
        let fake = this.clone();
        runtime.spawn(async move {
            while let Some(order) = orders.recv().await {
                fake.obey(order);
            }
        });
        this
    }

    pub fn fail(&self, name: &str, why: &str) {
        self.lock().failing.insert(uid(name), why.to_owned());
    }

    /// A wish that an earlier daemon left.
    pub fn remember(&self, description: &Description) {
        let pod = located(description);
        let sources = [Source::Kubernetes].into();
        self.lock().pods.insert(pod.uid.clone(), (pod, sources));
    }

    /// The uids of pods that Kubernetes wants.
    pub fn wanted(&self) -> BTreeSet<String> {
        let state = self.lock();
        let pods = state.pods.iter();
        pods.filter(|(_, (_, sources))| sources.contains(&Source::Kubernetes))
            .map(|(uid, _)| uid.as_str().to_owned())
            .collect()
    }

    pub fn pod(&self, name: &str) -> Option<Pod> {
        let state = self.lock();
        let found = state.pods.get(&PodUid::new(uid(name)));
        found.map(|(pod, _)| pod.clone())
    }

    pub fn orders(&self) -> Vec<String> {
        self.lock().orders.clone()
    }

    fn obey(&self, order: Order) {
        let mut state = self.lock();
        match order {
            Order::Add(source, pod, reply) => {
                let uid = pod.uid.clone();
                state.orders.push(format!("add {uid}"));
                let failing = state.failing.get(uid.as_str()).cloned();
                let entry = state.pods.entry(uid.clone());
                let entry = entry.or_insert_with(|| ((*pod).clone(), BTreeSet::new()));
                entry.0 = *pod;
                entry.1.insert(source);
                let answer = match failing {
                    Some(reason) => {
                        self.agent
                            .tell(PodEvent::Failed(uid.clone(), reason.clone()));
                        Err(AgentError::Pod { uid, reason })
                    }
                    None => {
                        self.agent.tell(PodEvent::Captured(uid));
                        Ok(Applied::Attached)
                    }
                };
                let _ = reply.send(answer);
            }
            Order::Remove(source, uid, reply) => {
                state.orders.push(format!("remove {uid}"));
                let _ = reply.send(self.remove(&mut state, source, &uid));
            }
            Order::Replace(source, pods, reply) => {
                state.orders.push(format!("replace with {}", pods.len()));
                let wanted: BTreeSet<PodUid> = pods.iter().map(|pod| pod.uid.clone()).collect();
                let gone = state.pods.keys().filter(|uid| !wanted.contains(uid));
                let gone: Vec<_> = gone.cloned().collect();
                for uid in gone {
                    let _ = self.remove(&mut state, source, &uid);
                }
                for pod in pods {
                    let uid = pod.uid.clone();
                    let sources = [source].into();
                    state.pods.insert(uid.clone(), (pod, sources));
                    self.agent.tell(PodEvent::Captured(uid));
                }
                let _ = reply.send(());
            }
            Order::Verify(uid, reply) => {
                let known = state.pods.contains_key(&uid);
                let _ = reply.send(match known {
                    true => Ok(()),
                    false => Err(AgentError::NotWanted(uid)),
                });
            }
            Order::List(reply) => {
                let list = state.pods.values().map(|(pod, sources)| PodStatus {
                    pod: pod.clone(),
                    sources: sources.iter().copied().collect(),
                    state: Ok(()),
                });
                let _ = reply.send(list.collect());
            }
        }
    }

    fn remove(&self, state: &mut State, source: Source, uid: &PodUid) -> Result<(), AgentError> {
        let Some((_, sources)) = state.pods.get_mut(uid) else {
            return Err(AgentError::NotWanted(uid.clone()));
        };
        sources.remove(&source);
        if sources.is_empty() {
            state.pods.remove(uid);
            self.agent.tell(PodEvent::Released(uid.clone()));
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A runtime on a thread of its own, which goes on while the test does other things.
pub struct Background {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    pub fn start() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            // The end of the test is as good as its word.
            let _ = runtime.block_on(stopped);
        });
        Self {
            handle,
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Deref for Background {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Its panic, if any, is in the test's output.
            let _ = thread.join();
        }
    }
}

/// Removed when dropped.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new() -> Self {
        let id = redirect_tests::RunId::fresh();
        let path = std::env::temp_dir().join(format!("{id}-kubernetes"));
        std::fs::create_dir_all(&path).expect("make a directory");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Nothing else is in it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
