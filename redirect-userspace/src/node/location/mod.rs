//! Where a pod is on this node: its network namespace, its cgroup, its sandbox.
//!
//! A runtime tells of a sandbox by CNI's ADD, before its first process runs: [`cgroup_of`] finds the cgroup that the pod's
//! processes will be in. Pods that ran before anybody told of them are found by their processes: [`scan`]. Both read the host's
//! file systems and block; what they conclude from them is pure, in [`name`] and [`choose`].

mod choose;
mod hierarchy;
mod name;
mod processes;
mod sandbox;

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use self::sandbox::Sandbox;
use self::{
    choose::Candidate,
    hierarchy::{Hierarchy, Look},
    processes::Process,
};
use crate::{config::HostPaths, sys::cgroup};

/// What CNI's ADD tells of a sandbox, or what is found in /proc, and the cgroup that was found for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Location {
    /// A file that names the network namespace, as this process can open it.
    pub netns: PathBuf,
    /// The pod's cgroup v2 directory, as this process can open it: at the level of the pod, above its containers.
    pub cgroup: PathBuf,
    pub ips: Vec<IpAddr>,
    /// The sandbox, if a CNI plugin told of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
}

/// A pod to be [found](scan).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// As Kubernetes' API calls it.
    pub uid: String,
    /// Of a static pod, whose cgroup has this for a uid.
    pub config_hash: Option<String>,
    /// Its addresses; the namespace that is found holds one of them.
    pub ips: Vec<IpAddr>,
}

#[derive(Debug, thiserror::Error)]
pub enum LocationError {
    #[error(
        "no cgroup v2 hierarchy {}; mount one, or say in `agent.host.cgroup` where the host's is",
        place(.0.as_deref())
    )]
    NoHierarchy(Option<PathBuf>),
    #[error(
        "pod {uid} has no cgroup below {}: kubelet makes it before the sandbox; if the host's hierarchy is elsewhere, say so in \
         `agent.host.cgroup`",
        root.display()
    )]
    NoPodCgroup { uid: String, root: PathBuf },
    #[error(
        "container {container_id} has no cgroup below {} yet; where the runtime makes it after the network, say in \
         `agent.host.containerCgroup` what it will be",
        root.display()
    )]
    NoContainerCgroup { container_id: String, root: PathBuf },
    #[error(
        "pod {0} is in no cgroup v2, only in those of version 1: its connections cannot be captured"
    )]
    OnlyV1(String),
    #[error("pod {0} has no process here")]
    NoProcess(String),
    #[error("pod {0} has no address yet, so that its network namespace cannot be told from others")]
    NoAddress(String),
    #[error(
        "no process of pod {0} is in a network namespace of its own that holds the pod's address"
    )]
    NoNetns(String),
    #[error(
        "pod {pod} runs in {sandbox}, which has a network stack of its own: it cannot be captured"
    )]
    ForeignStack { pod: String, sandbox: Sandbox },
    #[error("{call} {}: {source}", path.display())]
    Io {
        call: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// The cgroup of a sandbox that a runtime has just made, at the level of the pod.
///
/// Kubelet makes a pod's cgroup before its sandbox, by its uid, or for a static pod by the hash of its manifest; where version 1 is
/// beside version 2, only there, and the one of version 2 is made here. Without a uid it
/// is a bare runtime's container: its cgroup may be there, or is made here if its path is known beforehand (docs/adr/0021).
pub fn cgroup_of(
    host: &HostPaths,
    pod_uid: Option<&str>,
    config_hash: Option<&str>,
    container_id: &str,
    netns: &Path,
) -> Result<PathBuf, LocationError> {
    let hierarchy = Hierarchy::of(host)?;
    if let Some(uid) = pod_uid {
        let keys = [Some(uid), config_hash];
        let mut is_it = |below: &str| {
            let key = name::pod_key(below);
            key.is_some_and(|key| keys.iter().flatten().any(|wanted| *wanted == key))
        };
        let found = match hierarchy.find(Look::AtPods, &mut is_it) {
            Some(found) => Some(found),
            None => hierarchy.make_like_v1(&mut is_it)?,
        };
        return found.ok_or_else(|| LocationError::NoPodCgroup {
            uid: uid.to_owned(),
            root: hierarchy.root().to_owned(),
        });
    }
    let by_name = hierarchy.find(Look::Everywhere, &mut |below| {
        name::last(below).is_some_and(|last| name::is_container(last, container_id))
    });
    if let Some(found) = by_name {
        return Ok(found);
    }
    if let Some(found) = of_processes_in(host, container_id, netns)? {
        return Ok(found);
    }
    hierarchy
        .make_for(host, container_id)?
        .ok_or_else(|| LocationError::NoContainerCgroup {
            container_id: container_id.to_owned(),
            root: hierarchy.root().to_owned(),
        })
}

/// Takes back what [`cgroup_of`] made for a container of a bare runtime. The kernel keeps it if it is in use.
pub fn forget(host: &HostPaths, container_id: &str) {
    if let Ok(hierarchy) = Hierarchy::of(host)
        && let Some(path) = hierarchy.expected(host, container_id)
    {
        // Gone already, or the runtime's to remove.
        let _ = fs::remove_dir(path);
    }
}

/// The network namespace that a runtime names, as this process can open it: processes are those of the host.
pub fn netns_here(host: &HostPaths, netns: &Path) -> PathBuf {
    match netns.strip_prefix("/proc") {
        Ok(below) => host.proc.join(below),
        Err(_) => netns.to_owned(),
    }
}

/// What has a network stack of its own among the processes in a network namespace. At ADD there is none yet: who reports a pod as
/// captured asks again when it runs.
pub fn sandbox_in(host: &HostPaths, netns: &Path) -> Result<Option<Sandbox>, LocationError> {
    let inode = processes::inode(&netns_here(host, netns))?;
    let all = processes::all(&host.proc)?.into_iter();
    let mut inside = all.filter(|process| process.netns().is_some_and(|netns| netns == inode));
    Ok(inside.find_map(|process| process.sandbox()))
}

/// Finds pods that run already, by their processes: each pod that is wanted, by its uid.
pub fn scan(
    host: &HostPaths,
    wanted: &[Wanted],
) -> Result<BTreeMap<String, Result<Location, LocationError>>, LocationError> {
    let hierarchy = Hierarchy::of(host)?;
    let mut of_pods: BTreeMap<String, Found> = BTreeMap::new();
    for process in processes::all(&host.proc)? {
        // One that has ended meanwhile has no cgroups.
        let Some(cgroups) = process.cgroups() else {
            continue;
        };
        let in_v2 = name::version_2(&cgroups).and_then(name::owner);
        let is_v2 = in_v2.is_some();
        let Some(owner) = in_v2.or_else(|| cgroups.lines().find_map(name::owner)) else {
            continue;
        };
        let found = of_pods.entry(owner.pod).or_default();
        match is_v2 {
            true => found.processes.push((process, owner.container_id)),
            false => found.only_v1 = true,
        }
    }
    let own = processes::hosts(&host.proc);
    let located = wanted.iter().map(|pod| {
        let keys = [Some(&pod.uid), pod.config_hash.as_ref()];
        let found = keys.iter().flatten().find_map(|key| of_pods.get(*key));
        (pod.uid.clone(), locate(pod, found, &hierarchy, &own))
    });
    Ok(located.collect())
}

/// The processes that were found of one pod, and the container that each is in.
#[derive(Default)]
struct Found {
    processes: Vec<(Process, Option<String>)>,
    only_v1: bool,
}

fn locate(
    pod: &Wanted,
    found: Option<&Found>,
    hierarchy: &Hierarchy,
    hosts: &[u64],
) -> Result<Location, LocationError> {
    let uid = || pod.uid.clone();
    let found = found.ok_or_else(|| LocationError::NoProcess(uid()))?;
    if found.processes.is_empty() && found.only_v1 {
        return Err(LocationError::OnlyV1(uid()));
    }
    if pod.ips.is_empty() {
        return Err(LocationError::NoAddress(uid()));
    }
    let sandboxes = found.processes.iter();
    if let Some(sandbox) = sandboxes
        .into_iter()
        .find_map(|(process, _)| process.sandbox())
    {
        return Err(LocationError::ForeignStack {
            pod: uid(),
            sandbox,
        });
    }
    let candidates = found.processes.iter().filter_map(|(process, container)| {
        Some(Candidate {
            netns: process.netns()?,
            started: process.started()?,
            what: (process, container),
        })
    });
    let holds = |candidate: &Candidate<(&Process, &Option<String>)>| {
        let addresses = candidate.what.0.addresses().unwrap_or_default();
        pod.ips.iter().any(|ip| addresses.contains(ip))
    };
    let chosen = choose::oldest(candidates.collect(), hosts, holds);
    let (process, container_id) = chosen.ok_or_else(|| LocationError::NoNetns(uid()))?;
    let keys = [Some(&pod.uid), pod.config_hash.as_ref()];
    let cgroup = hierarchy.find(Look::AtPods, &mut |below| {
        name::pod_key(below).is_some_and(|key| keys.iter().flatten().any(|wanted| **wanted == key))
    });
    Ok(Location {
        netns: process.netns_path(),
        cgroup: cgroup.ok_or_else(|| LocationError::NoPodCgroup {
            uid: uid(),
            root: hierarchy.root().to_owned(),
        })?,
        ips: pod.ips.clone(),
        container_id: container_id.clone(),
    })
}

/// The cgroup of the oldest process in `netns`: a runtime may have made the container before its network.
fn of_processes_in(
    host: &HostPaths,
    container_id: &str,
    netns: &Path,
) -> Result<Option<PathBuf>, LocationError> {
    let inode = processes::inode(&netns_here(host, netns))?;
    if processes::hosts(&host.proc).contains(&inode) {
        return Ok(None);
    }
    let mut oldest: Option<(u64, PathBuf)> = None;
    for process in processes::all(&host.proc)? {
        if process.netns() != Some(inode) {
            continue;
        }
        if let Some(sandbox) = process.sandbox() {
            return Err(LocationError::ForeignStack {
                pod: container_id.to_owned(),
                sandbox,
            });
        }
        let Some(started) = process.started() else {
            continue;
        };
        let cgroups = process.cgroups().unwrap_or_default();
        // The root holds every process of the node: who is only there has no cgroup to itself.
        let Some(path) = name::version_2(&cgroups).filter(|path| *path != "/") else {
            continue;
        };
        let Ok(directory) = cgroup::directory_of(path) else {
            continue;
        };
        let is_older = oldest.as_ref().is_none_or(|(other, _)| started < *other);
        if is_older && cgroup::Cgroup::open(&directory).is_ok_and(|cgroup| !cgroup.is_root()) {
            oldest = Some((started, directory));
        }
    }
    Ok(oldest.map(|(_, directory)| directory))
}

fn place(configured: Option<&Path>) -> String {
    match configured {
        Some(path) => format!("is at or below {}", path.display()),
        None => "is mounted".to_owned(),
    }
}

#[cfg(test)]
mod tests;
