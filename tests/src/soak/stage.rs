//! A node with many pods that are not captured yet, and a daemon that is told of them over its socket.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use redirect::{
    cni::protocol::{Answer, ListedPod, Request},
    node::socket::{ClientError, ask},
};
use serde_json::json;

use crate::{Daemon, Node, Pod, Testbed, state::State};

pub const WORKERS: usize = 1;

/// Requests under way at a time, as a container runtime might have.
const PARALLEL: usize = 8;

/// Pods of which all that is in the kernel is compared; of the others, what is pinned.
const SAMPLES: usize = 8;

pub struct Stage {
    pub daemon: Daemon,
    pub pods: Vec<Pod>,
    /// Captured all the while: for the connections elsewhere.
    pub caller: Pod,
    pub callee: Pod,
    /// Some of them, with what was in the kernel before.
    before: Vec<(Pod, State)>,
    pub node: Node,
    _bed: Testbed,
}

impl Stage {
    pub fn set(count: usize) -> Result<Self> {
        let bed = Testbed::new();
        let node = bed.node("a");
        let (caller, callee) = (node.pod("caller"), node.pod("callee"));
        bed.workloads().hbone(&caller).hbone(&callee).write();
        let pods: Vec<Pod> = (0..count).map(|n| node.pod(&format!("p{n}"))).collect();
        println!("soak: made {count} pods");
        let some = pods.iter().step_by(count.div_ceil(SAMPLES).max(1));
        let before = some.map(|pod| (pod.clone(), state_of(pod))).collect();
        let daemon = node
            .daemon()
            .config(json!({ "workers": WORKERS, "proxy": { "drain": "1s" } }))
            .capture(&caller)
            .capture(&callee)
            .start();
        Ok(Self {
            daemon,
            pods,
            caller,
            callee,
            before,
            node,
            _bed: bed,
        })
    }

    pub fn socket(&self) -> PathBuf {
        self.daemon.spec().state_dir().join("agent.sock")
    }

    pub fn add_all(&self) -> Result<()> {
        self.ask_all(|pod| Request::PodAdd { pod: entry(pod) })
    }

    pub fn remove_all(&self) -> Result<()> {
        self.ask_all(|pod| Request::PodRemove { uid: uid(pod) })
    }

    /// Some requests at a time, one for each pod.
    fn ask_all(&self, request: impl Fn(&Pod) -> Request) -> Result<()> {
        let requests: Vec<Request> = self.pods.iter().map(request).collect();
        let socket = self.socket();
        let (sender, answers) = mpsc::channel();
        thread::scope(|scope| {
            for part in requests.chunks(requests.len().div_ceil(PARALLEL).max(1)) {
                let (sender, socket) = (sender.clone(), &socket);
                scope.spawn(move || {
                    for request in part {
                        // The other end is there until the scope is over.
                        _ = sender.send(ask(socket, request));
                    }
                });
            }
        });
        drop(sender);
        let failed: Vec<ClientError> = answers.iter().filter_map(Result::err).collect();
        match failed.first() {
            None => Ok(()),
            Some(first) => Err(anyhow!(
                "{} requests failed, such as: {first}",
                failed.len()
            )),
        }
    }

    pub fn listed(&self) -> Result<Vec<ListedPod>> {
        match ask(&self.socket(), &Request::PodList)? {
            Answer::Pods { pods } => Ok(pods),
            other => Err(anyhow!("the answer to PodList is {other:?}")),
        }
    }

    /// Whether what is wanted is these pods beside the two of the configuration, what is captured is the same, and nothing is
    /// left of the others in the kernel.
    pub fn verify(&self, wanted: &BTreeSet<String>) -> Result<()> {
        let listed = self.listed()?;
        let own = |listed: &&ListedPod| listed.sources == ["command"];
        let uids: BTreeSet<String> = listed
            .iter()
            .filter(own)
            .filter_map(|listed| Some(listed.pod["uid"].as_str()?.to_owned()))
            .collect();
        ensure!(uids == *wanted, "wanted: {wanted:?}\nlisted: {uids:?}");
        let failed: Vec<_> = listed
            .iter()
            .filter(|listed| listed.error.is_some())
            .collect();
        ensure!(failed.is_empty(), "not captured: {failed:?}");
        let pinned = self.pinned()?;
        let expected = wanted.len() + 2;
        ensure!(
            pinned == expected,
            "{pinned} pods have pins, not {expected}"
        );
        for (pod, before) in &self.before {
            let differences = before.differences(&state_of(pod));
            let is_captured = wanted.contains(&uid(pod));
            ensure!(
                differences.is_empty() != is_captured,
                "{} is wanted: {is_captured}; changed: {differences:?}",
                pod.name()
            );
        }
        Ok(())
    }

    /// Pods with pins.
    pub fn pinned(&self) -> Result<usize> {
        let ours = self.daemon.spec().bpffs().join("redirect");
        let mut count = 0;
        for version in fs::read_dir(&ours).context("list the pins")? {
            count += entries(&version?.path().join("pods"));
        }
        Ok(count)
    }

    /// Files in the bpffs: links and maps.
    pub fn pins(&self) -> usize {
        files(&self.daemon.spec().bpffs())
    }

    /// Cgroups below the node's.
    pub fn cgroups(&self) -> usize {
        folders(&self.node.cgroup())
    }

    /// Lets go of everything, and looks for what is left.
    pub fn end(mut self) -> Result<()> {
        ensure!(self.daemon.stop().success(), "the daemon failed at its end");
        self.daemon.spec().uninstall();
        for (pod, before) in &self.before {
            let left = before.differences(&state_of(pod));
            ensure!(left.is_empty(), "left in {}: {left:?}", pod.name());
        }
        Ok(())
    }
}

pub fn uid(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace(), pod.name())
}

pub fn entry(pod: &Pod) -> serde_json::Value {
    json!({
        "name": pod.name(), "namespace": pod.namespace(), "serviceAccount": pod.service_account(),
        "netns": pod.netns().path(), "cgroup": pod.cgroup(), "ips": [pod.ipv4(), pod.ipv6()],
    })
}

fn state_of(pod: &Pod) -> State {
    State::of(pod.netns(), &[pod.cgroup()])
}

/// How long `f` takes.
pub fn timed<T>(f: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let started = Instant::now();
    let value = f()?;
    Ok((value, started.elapsed()))
}

fn entries(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

fn files(folder: &Path) -> usize {
    walk(folder, &|path| !path.is_dir())
}

fn folders(folder: &Path) -> usize {
    walk(folder, &Path::is_dir)
}

fn walk(folder: &Path, is_counted: &dyn Fn(&Path) -> bool) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .map(|path| {
            let below = if path.is_dir() {
                walk(&path, is_counted)
            } else {
                0
            };
            below + usize::from(is_counted(&path))
        })
        .sum()
}
