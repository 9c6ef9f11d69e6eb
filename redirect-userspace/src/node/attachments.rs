//! The sandboxes that a CNI plugin told of, on disk: a restarted agent knows which pod to let go at DEL, and Kubernetes' pods
//! are found by them.
//!
//! `STATE_DIR/attachments/CONTAINER_ID` holds a JSON object. All sandboxes are in there, also those that are not captured: they may
//! be enrolled later.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::remembered::write_whole;
use crate::cni::protocol::Attachment;

/// The folder in the state directory.
pub const FOLDER: &str = "attachments";

/// A sandbox, and which pod it was captured as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Known {
    pub attachment: Attachment,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captured: Option<CapturedAs>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedAs {
    pub uid: String,
    /// Whose wish it is, by its name.
    pub source: String,
}

#[derive(Debug, thiserror::Error)]
pub enum AttachmentsError {
    #[error("{call} {}: {source}", path.display())]
    Io {
        call: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "{0:?} is no container id: letters, digits, `_`, `.` and `-`, the first a letter or a digit"
    )]
    Id(String),
}

#[derive(Debug)]
pub struct Attachments {
    folder: PathBuf,
    known: Mutex<BTreeMap<String, Known>>,
}

impl Attachments {
    /// Reads what an earlier daemon wrote; what cannot be read is reported and left out.
    pub fn open(state_dir: &Path) -> Result<Self, AttachmentsError> {
        let folder = state_dir.join(FOLDER);
        let mut known = BTreeMap::new();
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            entries => Some(entries.map_err(|source| AttachmentsError::Io {
                call: "list",
                path: folder.clone(),
                source,
            })?),
        };
        for entry in entries.into_iter().flatten().filter_map(Result::ok) {
            let (path, name) = (entry.path(), entry.file_name());
            let Some(id) = name.to_str().filter(|id| is_id(id)) else {
                continue;
            };
            let read = fs::read_to_string(&path).map_err(|error| error.to_string());
            let parsed = |text: String| serde_json::from_str(&text).map_err(|e| e.to_string());
            match read.and_then(parsed) {
                Ok(sandbox) => _ = known.insert(id.to_owned(), sandbox),
                Err(error) => {
                    tracing::error!(path = %path.display(), error, "cannot read an attachment");
                }
            }
        }
        Ok(Self {
            folder,
            known: Mutex::new(known),
        })
    }

    pub fn insert(&self, known: Known) -> Result<(), AttachmentsError> {
        let id = known.attachment.container_id.clone();
        let path = self.path(&id)?;
        let text = serde_json::to_string_pretty(&known).map_err(io::Error::other);
        text.and_then(|text| write_whole(&path, &text))
            .map_err(|source| AttachmentsError::Io {
                call: "write",
                path,
                source,
            })?;
        self.lock().insert(id, known);
        Ok(())
    }

    /// Forgets a sandbox; `None` if it is not known.
    pub fn remove(&self, container_id: &str) -> Result<Option<Known>, AttachmentsError> {
        let path = self.path(container_id)?;
        let removed = self.lock().remove(container_id);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(AttachmentsError::Io {
                call: "remove",
                path,
                source,
            }),
            _ => Ok(removed),
        }
    }

    pub fn get(&self, container_id: &str) -> Option<Known> {
        self.lock().get(container_id).cloned()
    }

    pub fn all(&self) -> Vec<Known> {
        self.lock().values().cloned().collect()
    }

    /// The sandboxes of a pod, as Kubernetes calls it.
    pub fn of_pod(&self, namespace: &str, name: &str) -> Vec<Known> {
        let is_it = |known: &&Known| {
            let pod = known.attachment.pod.as_ref();
            pod.is_some_and(|pod| pod.namespace == namespace && pod.name == name)
        };
        self.lock().values().filter(is_it).cloned().collect()
    }

    fn path(&self, container_id: &str) -> Result<PathBuf, AttachmentsError> {
        match is_id(container_id) {
            true => Ok(self.folder.join(container_id)),
            false => Err(AttachmentsError::Id(container_id.to_owned())),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        // Each change is one call: whoever panicked left it whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// CNI spec 1.1, section 2: as `CNI_CONTAINERID` has to be. It is a file's name here.
fn is_id(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    text.chars().all(plain)
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.len() <= 200
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::protocol::PodName;

    fn known(id: &str, pod: Option<&str>) -> Known {
        Known {
            attachment: Attachment {
                container_id: id.into(),
                netns: "/run/netns/a".into(),
                network: "n".into(),
                pod: pod.map(|name| PodName {
                    namespace: "shop".into(),
                    name: name.into(),
                    uid: None,
                }),
                ips: vec!["10.0.0.1".parse().unwrap()],
            },
            captured: pod.map(|uid| CapturedAs {
                uid: uid.into(),
                source: "cni".into(),
            }),
        }
    }

    #[test]
    fn sandboxes_outlive_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Attachments::open(dir.path()).unwrap();
        let attachments = open();
        assert_eq!(attachments.all(), []);
        let (a, b) = (known("a1", Some("web")), known("b2", None));
        attachments.insert(a.clone()).unwrap();
        attachments.insert(b.clone()).unwrap();
        assert_eq!(open().all(), [a.clone(), b.clone()]);
        assert_eq!(open().of_pod("shop", "web"), std::slice::from_ref(&a));
        assert_eq!(open().of_pod("shop", "db"), []);
        assert_eq!(attachments.remove("a1").unwrap(), Some(a));
        assert_eq!(attachments.remove("a1").unwrap(), None);
        fs::write(dir.path().join(FOLDER).join("c3"), "{").unwrap();
        assert_eq!(open().all(), [b]);
    }

    #[test]
    fn no_id_leads_out_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let attachments = Attachments::open(dir.path()).unwrap();
        for id in ["", ".", "../x", "a/b", "-a", "a b", &"a".repeat(201)] {
            let inserted = attachments.insert(known(id, None));
            assert!(matches!(inserted, Err(AttachmentsError::Id(_))), "{id}");
            assert!(attachments.remove(id).is_err(), "{id}");
        }
        assert!(!dir.path().join(FOLDER).exists());
    }
}
