//! Where maps and links are pinned, which is at the same time the record of what is captured:
//!
//! ```text
//! BPFFS/redirect/vABI/maps/NAME
//!                    /pods/UID/NETNS_COOKIE-CGROUP_ID/HOOK
//!                    /proxy/CGROUP_ID/HOOK
//!                    /prober/CGROUP_ID/HOOK
//! ```
//!
//! The links of a pod come into being in `pods/UID/new-…`, which is renamed when it is complete. The version is
//! `redirect_common::ABI_VERSION`: daemons of different versions replace each other's links, pod by pod, and share no map but
//! those whose entries live as long as a connection, and mean the same to both (see [`Pins::inherit`]).

use std::{
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use aya::maps::{MapData, MapInfo};

use super::{super::CaptureError, guard};
use crate::{
    pod::PodUid,
    sys::{bpf, bpffs},
};

const FOLDER: &str = "redirect";
const FOLDERS: [&str; 4] = ["pods", "prober", "proxy", "maps"];
const STAGED: &str = "new-";
/// Longest name of a file (NAME_MAX).
const NAME_MAX: usize = 255;

/// Our folder of this ABI version.
#[derive(Clone)]
pub struct Pins {
    ours: PathBuf,
    root: PathBuf,
}

/// The network namespace and the cgroup in which a pod is captured: both change when its sandbox is made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub netns_cookie: u64,
    pub cgroup: u64,
}

impl Place {
    fn name(self) -> String {
        format!("{}-{}", self.netns_cookie, self.cgroup)
    }

    /// Of a complete place or one that was left half-made.
    fn parse(name: &str) -> Option<Self> {
        let (cookie, cgroup) = name.strip_prefix(STAGED).unwrap_or(name).split_once('-')?;
        Some(Self {
            netns_cookie: cookie.parse().ok()?,
            cgroup: cgroup.parse().ok()?,
        })
    }
}

impl Pins {
    /// Those of every version; makes nothing.
    pub fn every(bpffs: &Path) -> Result<Vec<Self>, CaptureError> {
        let ours = bpffs.join(FOLDER);
        let of = |root| Self {
            root,
            ours: ours.clone(),
        };
        Ok(entries(&ours)?.into_iter().map(of).collect())
    }

    /// Those of one version, as `redirect_common::ABI_VERSION`.
    pub fn create(bpffs: &Path, version: u32) -> Result<Self, CaptureError> {
        let ours = bpffs.join(FOLDER);
        let pins = Self {
            root: ours.join(format!("v{version}")),
            ours,
        };
        for folder in FOLDERS {
            let folder = pins.root.join(folder);
            fs::create_dir_all(&folder)
                .map_err(|error| CaptureError::kernel("create", folder.display(), &error))?;
        }
        Ok(pins)
    }

    /// Goes on with another version's map, if this one has none and values have this size: what is known of connections that
    /// stand would be forgotten.
    pub fn inherit(&self, name: &str, value_size: u32) -> Result<(), CaptureError> {
        let own = self.map(name);
        if own.exists() {
            return Ok(());
        }
        for other in self.others()? {
            let theirs = other.map(name);
            let fits = MapInfo::from_pin(&theirs).is_ok_and(|info| info.value_size() == value_size);
            if fits {
                let map = MapData::from_pin(&theirs);
                let map =
                    map.map_err(|error| CaptureError::kernel("open", theirs.display(), &error))?;
                return map
                    .pin(&own)
                    .map_err(|error| CaptureError::kernel("pin", own.display(), &error));
            }
        }
        Ok(())
    }

    fn others(&self) -> Result<Vec<Self>, CaptureError> {
        let roots = entries(&self.ours)?.into_iter();
        let others = roots.filter(|root| *root != self.root);
        Ok(others
            .map(|root| Self {
                root,
                ours: self.ours.clone(),
            })
            .collect())
    }

    /// Removes what is left of other versions that have no pod any more.
    pub fn remove_other_versions(&self) -> Result<(), CaptureError> {
        for other in self.others()? {
            if other.pods()?.is_empty() {
                remove_version(&other.root)?;
            }
        }
        Ok(())
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    pub fn proxy(&self, cgroup: u64) -> PathBuf {
        self.root.join("proxy").join(cgroup.to_string())
    }

    pub fn prober(&self, cgroup: u64) -> PathBuf {
        self.root.join("prober").join(cgroup.to_string())
    }

    /// Where the links of a pod are when they are complete.
    pub fn place(&self, uid: &PodUid, place: Place) -> Result<PathBuf, CaptureError> {
        Ok(self.pod(uid)?.join(place.name()))
    }

    /// An empty folder for links that are being made.
    pub fn stage(&self, uid: &PodUid, place: Place) -> Result<PathBuf, CaptureError> {
        let staged = self.pod(uid)?.join(format!("{STAGED}{}", place.name()));
        remove_links(&staged)?;
        fs::create_dir_all(&staged)
            .map_err(|error| CaptureError::kernel("create", staged.display(), &error))?;
        Ok(staged)
    }

    /// All pods that have pins of any version.
    pub fn pods_of_all_versions(&self) -> Result<Vec<PodUid>, CaptureError> {
        let mut pods = self.pods()?;
        for other in self.others()? {
            pods.extend(other.pods()?);
        }
        Ok(pods)
    }

    /// Whether another version's programs capture the pod.
    pub fn has_other_version(&self, uid: &PodUid) -> Result<bool, CaptureError> {
        for other in self.others()? {
            if other.pod(uid)?.exists() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// All pods that have pins of this version.
    pub fn pods(&self) -> Result<Vec<PodUid>, CaptureError> {
        let names = entries(&self.root.join("pods"))?;
        Ok(names
            .iter()
            .filter_map(|path| unescape(path.file_name()?.to_str()?))
            .map(PodUid::new)
            .collect())
    }

    /// Where a pod is captured, wholly or in part.
    pub fn places(&self, uid: &PodUid) -> Result<Vec<Place>, CaptureError> {
        let names = entries(&self.pod(uid)?)?;
        Ok(names
            .iter()
            .filter_map(|path| Place::parse(path.file_name()?.to_str()?))
            .collect())
    }

    pub fn remove_pod(&self, uid: &PodUid) -> Result<(), CaptureError> {
        let own = remove_pod(&self.pod(uid)?);
        own.and(self.remove_of_other_versions(uid))
    }

    fn remove_of_other_versions(&self, uid: &PodUid) -> Result<(), CaptureError> {
        let others = self.others()?;
        others
            .iter()
            .try_for_each(|other| remove_pod(&other.pod(uid)?))
    }

    /// Removes the pod's links elsewhere, and returns where they were.
    pub fn remove_other_places(
        &self,
        uid: &PodUid,
        keep: Place,
    ) -> Result<Vec<Place>, CaptureError> {
        let mut left = Vec::new();
        for path in entries(&self.pod(uid)?)? {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if name == keep.name() {
                continue;
            }
            remove_links(&path)?;
            left.extend(Place::parse(&name).filter(|place| *place != keep));
        }
        // Another version's links did their work until ours were there.
        self.remove_of_other_versions(uid)?;
        Ok(left)
    }

    pub fn remove_other_proxies(&self, keep: u64) -> Result<(), CaptureError> {
        self.remove_others("proxy", &[self.proxy(keep)])
    }

    pub fn remove_other_probers(&self, keep: &[u64]) -> Result<(), CaptureError> {
        let keep: Vec<_> = keep.iter().map(|cgroup| self.prober(*cgroup)).collect();
        self.remove_others("prober", &keep)
    }

    fn remove_others(&self, folder: &str, keep: &[PathBuf]) -> Result<(), CaptureError> {
        let others = entries(&self.root.join(folder))?
            .into_iter()
            .filter(|path| !keep.contains(path));
        CaptureError::collect(
            others
                .filter_map(|path| remove_links(&path).err())
                .collect(),
        )
    }

    fn pod(&self, uid: &PodUid) -> Result<PathBuf, CaptureError> {
        let name = escape(uid.as_str());
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(CaptureError::Kernel {
                call: "name a folder after",
                object: format!("pod {uid}"),
                cause: format!("{} bytes, not 1 to {NAME_MAX}", name.len()),
                hint: "; give the pod a shorter uid",
            });
        }
        Ok(self.root.join("pods").join(name))
    }
}

/// Removes all of ours below `bpffs`, of every version. Returns how many pins there were.
pub fn remove_all(bpffs: &Path) -> Result<usize, CaptureError> {
    let is_bpffs = bpffs::is_bpffs(bpffs)
        .map_err(|error| CaptureError::kernel("look at", bpffs.display(), &error))?;
    let ours = bpffs.join(FOLDER);
    if !is_bpffs || !ours.exists() {
        return Ok(0);
    }
    let removed = count(&ours);
    let mut errors = Vec::new();
    for version in entries(&ours)? {
        errors.extend(remove_version(&version).err());
    }
    errors.extend(remove(&ours).err());
    CaptureError::collect(errors).map(|()| removed)
}

fn remove_version(version: &Path) -> Result<(), CaptureError> {
    let mut errors = Vec::new();
    // Pods first, so that nothing is steered to a proxy that no longer learns where to.
    for pod in entries(&version.join("pods"))? {
        errors.extend(remove_pod(&pod).err());
    }
    for folder in ["prober", "proxy"] {
        for cgroup in entries(&version.join(folder))? {
            errors.extend(remove_links(&cgroup).err());
        }
    }
    for map in entries(&version.join("maps"))? {
        errors.extend(remove(&map).err());
    }
    for folder in FOLDERS {
        errors.extend(remove(&version.join(folder)).err());
    }
    errors.extend(remove(version).err());
    CaptureError::collect(errors)
}

fn remove_pod(pod: &Path) -> Result<(), CaptureError> {
    let mut errors: Vec<_> = entries(pod)?
        .iter()
        .filter_map(|place| remove_links(place).err())
        .collect();
    errors.extend(remove(pod).err());
    CaptureError::collect(errors)
}

/// Detaches all links in a folder, and removes it: first the guard, which would drop what is no longer captured, then what steers
/// connections.
pub fn remove_links(folder: &Path) -> Result<(), CaptureError> {
    let mut links = entries(folder)?;
    links.sort_by_key(|link| {
        let name = link.file_name().unwrap_or_default().as_encoded_bytes();
        let first = [guard::PIN, "connect", "sk_lookup"];
        first
            .iter()
            .position(|start| name.starts_with(start.as_bytes()))
            .unwrap_or(first.len())
    });
    let mut errors = Vec::new();
    for link in links {
        let detached = bpf::open_link(&link).and_then(|link| bpf::detach(link.as_fd()));
        if let Err(error) = detached {
            errors.push(CaptureError::kernel("detach", link.display(), &error));
        }
        errors.extend(remove(&link).err());
    }
    errors.extend(remove(folder).err());
    CaptureError::collect(errors)
}

/// The paths in a folder; none if there is no such folder.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, CaptureError> {
    let read = || {
        fs::read_dir(folder)?
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<Vec<_>>>()
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        result => result.map_err(|error| CaptureError::kernel("read", folder.display(), &error)),
    }
}

/// Removes a file or an empty folder; what is gone already is no error.
fn remove(path: &Path) -> Result<(), CaptureError> {
    let result = match path.is_dir() {
        true => fs::remove_dir(path),
        false => fs::remove_file(path),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|error| CaptureError::kernel("remove", path.display(), &error)),
    }
}

fn count(folder: &Path) -> usize {
    let entries = entries(folder).unwrap_or_default();
    entries
        .iter()
        .map(|path| if path.is_dir() { count(path) } else { 1 })
        .sum()
}

/// A name that bpffs takes (no dots) and that says the uid: other bytes than letters, digits, `-` and `_` as `=XX`.
fn escape(uid: &str) -> String {
    uid.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => char::from(byte).to_string(),
            _ => format!("={byte:02x}"),
        })
        .collect()
}

fn unescape(name: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = name.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let (byte, after) = match byte {
            b'=' => (
                u8::from_str_radix(str::from_utf8(after.get(..2)?).ok()?, 16).ok()?,
                &after[2..],
            ),
            _ => (byte, after),
        };
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_of_places() {
        let place = Place {
            netns_cookie: 4711,
            cgroup: 99,
        };
        assert_eq!(Place::parse(&place.name()), Some(place));
        assert_eq!(Place::parse("new-4711-99"), Some(place));
        for bad in ["", "new-", "1", "1-", "a-1", "1-2-3", "-1-2"] {
            assert_eq!(Place::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_of_pods() {
        assert_eq!(escape("default/web-0.a=b"), "default=2fweb-0=2ea=3db");
        for bad in ["=", "=2", "=zz", "=ff"] {
            assert_eq!(unescape(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_uid_has_a_name_of_its_own(uid in "\\PC{1,40}") {
            let name = escape(&uid);
            prop_assert!(!name.contains(['.', '/']));
            prop_assert_eq!(unescape(&name), Some(uid));
        }
    }
}
