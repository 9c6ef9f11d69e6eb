//! What the names of cgroups say: whose pod it is, and which container. Pure.
//!
//! | driver | pod | container |
//! |---|---|---|
//! | cgroupfs | `kubepods/burstable/pod<uid>` | `<id>`, CRI-O `crio-<id>` |
//! | systemd | `kubepods.slice/…/kubepods-burstable-pod<uid, - as _>.slice` | `cri-containerd-<id>.scope`, `crio-…`, `docker-…` |
//!
//! Either may be below others: `kubelet.slice/kubelet-kubepods.slice/…` in kind, or whatever kubelet's `--cgroup-root` says.

/// Before a container's id, as runtimes write it.
const RUNTIMES: [&str; 6] = [
    "cri-containerd",
    "crio",
    "docker",
    "libpod",
    "nerdctl",
    "podman",
];

/// Whose cgroup it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The pod's uid, or the hash of a static pod's manifest.
    pub pod: String,
    pub container_id: Option<String>,
}

/// The pod that a cgroup's path leads through, if it does. A path as kernel and file system write it.
pub fn owner(path: &str) -> Option<Owner> {
    let mut components = path.split('/').peekable();
    let mut in_kubepods = false;
    for component in components.by_ref() {
        if in_kubepods && let Some(pod) = key(component) {
            let container_id = components.next().map(container_id);
            return Some(Owner { pod, container_id });
        }
        in_kubepods |= is_kubepods(component);
    }
    None
}

/// The pod that has the cgroup at `path` to itself: its last part names it.
pub fn pod_key(path: &str) -> Option<String> {
    let (above, last) = path.rsplit_once('/')?;
    let in_kubepods = above.split('/').any(is_kubepods);
    key(last).filter(|_| in_kubepods)
}

/// Whether a cgroup of this name is the container's of that id.
pub fn is_container(name: &str, id: &str) -> bool {
    let stem = name.strip_suffix(".scope").unwrap_or(name);
    stem == id
        || stem
            .strip_suffix(id)
            .and_then(|before| before.strip_suffix('-'))
            .is_some_and(|runtime| RUNTIMES.contains(&runtime))
}

/// The cgroup v2 of the process whose /proc/PID/cgroup this is.
pub fn version_2(cgroups: &str) -> Option<&str> {
    cgroups.lines().find_map(|line| line.strip_prefix("0::"))
}

pub fn last(path: &str) -> Option<&str> {
    path.rsplit('/').next()
}

fn is_kubepods(name: &str) -> bool {
    let stem = name.strip_suffix(".slice").unwrap_or(name);
    stem == "kubepods" || stem.ends_with("-kubepods")
}

fn key(name: &str) -> Option<String> {
    let key = match name.strip_suffix(".slice") {
        // Systemd's slices have the names of all above them in theirs, and no dash that is not for that.
        Some(stem) => stem.rsplit_once("-pod")?.1.replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (!key.is_empty() && key.chars().all(plain)).then_some(key)
}

fn container_id(name: &str) -> String {
    let stem = name.strip_suffix(".scope").unwrap_or(name);
    let with_runtime = RUNTIMES
        .iter()
        .find_map(|runtime| stem.strip_prefix(runtime)?.strip_prefix('-'));
    with_runtime.unwrap_or(stem).to_owned()
}
