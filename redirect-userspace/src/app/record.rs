//! What is remembered of a captured pod on disk: where to clean up for a daemon, or an `uninstall`, that does not know the pod.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use crate::pod::PodUid;

/// The file of one pod. In it: the path of its network namespace, and the names of all backends that may have left something
/// there, each after a zero byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub netns: PathBuf,
    pub backends: BTreeSet<String>,
}

impl Record {
    /// `None` if there is none.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
        let mut parts = bytes.split(|byte| *byte == 0);
        let netns = parts.next().unwrap_or_default().to_vec();
        Ok(Some(Self {
            netns: OsString::from_vec(netns).into(),
            backends: parts
                .map(|name| String::from_utf8_lossy(name).into_owned())
                .collect(),
        }))
    }

    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut bytes = self.netns.as_os_str().as_bytes().to_vec();
        for backend in &self.backends {
            bytes.push(0);
            bytes.extend(backend.as_bytes());
        }
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(path, bytes)
    }
}

/// The folder of the records.
pub fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("pods")
}

pub fn path(folder: &Path, uid: &PodUid) -> PathBuf {
    folder.join(uid.file_name())
}

/// The pods that are on record.
pub fn uids(folder: &Path) -> io::Result<Vec<PodUid>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    entries
        .map(|entry| {
            let name = entry?.file_name().to_string_lossy().into_owned();
            Ok(PodUid::of_file(&name))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        assert_eq!(uids(&folder).unwrap(), []);
        let uid = PodUid::new("default/100%/client");
        let path = path(&folder, &uid);
        assert_eq!(Record::read(&path).unwrap(), None);
        for backends in [&[][..], &["ebpf"], &["ebpf", "iptables"]] {
            let record = Record {
                netns: "/run/netns/a b".into(),
                backends: backends.iter().map(ToString::to_string).collect(),
            };
            record.write(&path).unwrap();
            assert_eq!(Record::read(&path).unwrap(), Some(record));
        }
        assert_eq!(uids(&folder).unwrap(), [uid]);
    }
}
