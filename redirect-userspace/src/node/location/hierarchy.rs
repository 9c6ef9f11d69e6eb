//! The host's cgroup v2 hierarchy: where it is seen from here, and what is in it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{LocationError, name};
use crate::{
    config::{CONTAINER_ID, HostPaths},
    sys::{
        cgroup::{self, Cgroup},
        mountinfo,
    },
};

/// No hierarchy is deeper than this in practice; the kernel has no limit.
const DEPTH: usize = 24;

/// Cgroup v2 as the host has it.
pub struct Hierarchy(PathBuf);

/// How far to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Not at what is inside of a pod's.
    AtPods,
    Everywhere,
}

impl Hierarchy {
    pub fn of(host: &HostPaths) -> Result<Self, LocationError> {
        let configured = host.cgroup.as_deref();
        if let Some(path) = configured
            && Cgroup::open(path).is_ok()
        {
            return Ok(Self::at(path));
        }
        // A hybrid one: what is mounted there are folders for each hierarchy of version 1, and one for version 2.
        let mounts = mountinfo::read().map_err(|source| LocationError::Io {
            call: "read",
            path: mountinfo::TABLE.into(),
            source,
        })?;
        widest(&mounts, configured)
            .map(Self)
            .ok_or_else(|| LocationError::NoHierarchy(host.cgroup.clone()))
    }

    /// The hierarchy whose root is this folder.
    pub fn at(root: &Path) -> Self {
        Self(root.to_owned())
    }

    pub fn root(&self) -> &Path {
        &self.0
    }

    /// The first cgroup whose path, from the root on, `is_it`. Where pods are is looked first: there are hundreds of others.
    pub fn find(&self, look: Look, is_it: &mut dyn FnMut(&str) -> bool) -> Option<PathBuf> {
        find(&self.0, "", look, DEPTH, is_it).map(|below| self.0.join(below))
    }

    /// Makes the cgroup that has its like in a hierarchy of version 1 beside this one.
    ///
    /// Where both versions are, kubelet makes a pod's cgroup in version 1 alone; the runtime makes the one here with the pod's first
    /// container, after its network. It takes what is there.
    pub fn make_like_v1(
        &self,
        is_it: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Option<PathBuf>, LocationError> {
        let beside = self.0.parent().and_then(|above| fs::read_dir(above).ok());
        let folders = beside.into_iter().flatten().flatten();
        let mut v1 = folders
            .map(|entry| entry.path())
            // Only they have this file.
            .filter(|root| root.join("cgroup.clone_children").exists());
        let Some(below) = v1.find_map(|root| find(&root, "", Look::AtPods, DEPTH, is_it)) else {
            return Ok(None);
        };
        make(self.0.join(below)).map(Some)
    }

    /// The cgroup that a bare runtime will use for a container, if it is known.
    pub fn expected(&self, host: &HostPaths, container_id: &str) -> Option<PathBuf> {
        let pattern = host.container_cgroup.as_deref()?;
        // The id comes from a runtime: it is one part of a path, and no other place.
        if container_id.is_empty() || container_id.starts_with('.') || container_id.contains('/') {
            return None;
        }
        let below = pattern.replace(CONTAINER_ID, container_id);
        Some(self.0.join(below.trim_start_matches('/')))
    }

    /// Makes it. Runtimes take one that is there and empty.
    pub fn make_for(
        &self,
        host: &HostPaths,
        container_id: &str,
    ) -> Result<Option<PathBuf>, LocationError> {
        self.expected(host, container_id).map(make).transpose()
    }
}

fn make(path: PathBuf) -> Result<PathBuf, LocationError> {
    match fs::create_dir_all(&path) {
        Ok(()) => Ok(path),
        Err(source) => Err(LocationError::Io {
            call: "create the cgroup",
            path,
            source,
        }),
    }
}

fn find(
    root: &Path,
    below: &str,
    look: Look,
    depth: usize,
    is_it: &mut dyn FnMut(&str) -> bool,
) -> Option<String> {
    // A cgroup may go at any moment.
    let entries = fs::read_dir(root.join(below)).ok()?.flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut names: Vec<String> = folders
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_by_key(|name| !name.contains("kube"));
    let paths: Vec<String> = names
        .iter()
        .map(|name| match below {
            "" => name.clone(),
            below => format!("{below}/{name}"),
        })
        .collect();
    if let Some(found) = paths.iter().find(|path| is_it(path)) {
        return Some(found.clone());
    }
    paths.iter().find_map(|path| {
        let is_pod = look == Look::AtPods && name::pod_key(path).is_some();
        match is_pod || depth == 0 {
            true => None,
            false => find(root, path, look, depth - 1, is_it),
        }
    })
}

/// Of the cgroup v2 mounts in the text of mountinfo, at or below a folder: the one that shows most of the hierarchy. Pure.
///
/// Seen from a cgroup namespace, the root of a mount that shows more than that is `/..`, once for each level (cgroup_namespaces(7)).
fn widest(mountinfo: &str, below: Option<&Path>) -> Option<PathBuf> {
    let mounts = cgroup::mounts(mountinfo);
    let mounts = mounts.filter(|(_, point)| below.is_none_or(|below| point.starts_with(below)));
    let narrowness = |root: &Path| {
        let (up, down): (Vec<_>, Vec<_>) = root
            .components()
            .skip(1)
            .partition(|part| part.as_os_str() == "..");
        (down.len(), usize::MAX - up.len())
    };
    mounts
        .min_by_key(|(root, _)| narrowness(root))
        .map(|(_, point)| point)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_kubelet_made_in_version_1_alone() {
        let folder = tempfile::tempdir().unwrap();
        let at = |below: &str| folder.path().join(below);
        let pod = "kubepods/besteffort/pod28c545ad-6490-4553-8314-6d20a06440dc";
        fs::create_dir_all(at("unified/kubepods/besteffort")).unwrap();
        fs::create_dir_all(at("cpu").join(pod).join("container")).unwrap();
        fs::create_dir_all(at("other/kubepods/besteffort/pod1")).unwrap();
        fs::write(at("cpu/cgroup.clone_children"), "0").unwrap();
        let hierarchy = Hierarchy::at(&at("unified"));
        let is =
            |key: &'static str| move |below: &str| name::pod_key(below).is_some_and(|k| k == key);

        let made = hierarchy.make_like_v1(&mut is("28c545ad-6490-4553-8314-6d20a06440dc"));
        assert_eq!(made.unwrap(), Some(at("unified").join(pod)));
        assert!(at("unified").join(pod).is_dir());
        // What is no hierarchy of version 1 is not looked at.
        assert_eq!(hierarchy.make_like_v1(&mut is("1")).unwrap(), None);
    }

    #[test]
    fn the_mount_that_shows_most() {
        let tmpfs = "25 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n";
        let pure = "30 25 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let hybrid =
            "30 25 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
        let v1 = "31 25 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        // In a container with a cgroup namespace of its own, and the host's hierarchy mounted from the host.
        let own = "30 25 0:27 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let hosts = "40 25 0:27 /../../../.. /host/sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let hosts_hybrid =
            "40 25 0:27 /../../.. /host/sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let part = "41 25 0:27 /kubepods/pod1 /mnt rw - cgroup2 cgroup2 rw\n";
        let host = Some("/host/sys/fs/cgroup");
        for (mounts, below, expected) in [
            (format!("{tmpfs}{pure}"), None, Some("/sys/fs/cgroup")),
            (
                format!("{tmpfs}{v1}{hybrid}"),
                None,
                Some("/sys/fs/cgroup/unified"),
            ),
            (format!("{own}{hosts}"), None, Some("/host/sys/fs/cgroup")),
            (format!("{own}{hosts}"), host, Some("/host/sys/fs/cgroup")),
            (
                format!("{own}{hosts_hybrid}"),
                host,
                Some("/host/sys/fs/cgroup/unified"),
            ),
            (format!("{part}{pure}"), None, Some("/sys/fs/cgroup")),
            (own.to_owned(), host, None),
            (v1.to_owned(), None, None),
            (String::new(), None, None),
        ] {
            let found = widest(&mounts, below.map(Path::new));
            assert_eq!(found, expected.map(PathBuf::from), "{mounts}");
        }
    }
}
