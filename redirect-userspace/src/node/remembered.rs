//! Wishes on disk: what a restarted daemon knows before anybody has spoken to it.
//!
//! `STATE_DIR/wishes/SOURCE/UID` holds an entry as the configuration's `pods` has them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::source::Source;
use crate::{
    config::{Mode, entry},
    pod::{Pod, PodUid},
};

/// The folder in the state directory.
pub const FOLDER: &str = "wishes";

/// The wishes of some sources, by file.
#[derive(Debug)]
pub struct Remembered {
    folder: PathBuf,
    trust_domain: String,
    mode: Mode,
    sources: Vec<Source>,
}

impl Remembered {
    /// The others repeat at each start what they want.
    pub const SOURCES: [Source; 3] = [Source::Command, Source::Kubernetes, Source::Cni];

    /// Forgets what sources wanted that are none of `sources` any more.
    pub fn open(state_dir: &Path, trust_domain: &str, mode: Mode, sources: &[Source]) -> Self {
        let remembered = Self {
            folder: state_dir.join(FOLDER),
            trust_domain: trust_domain.to_owned(),
            mode,
            sources: sources.to_vec(),
        };
        for source in Self::SOURCES {
            if !remembered.is_kept(source) {
                let removed = fs::remove_dir_all(remembered.folder_of(source));
                tell(source, "cannot forget what was wanted", removed);
            }
        }
        remembered
    }

    pub fn keep(&self, source: Source, pod: &Pod) {
        if self.is_kept(source) {
            let path = self.path(source, &pod.uid);
            let text = format!("{:#}\n", entry::write(pod));
            let kept = write_whole(&path, &text);
            tell(source, "a restarted daemon will not know the pod", kept);
        }
    }

    pub fn forget(&self, source: Source, uid: &PodUid) {
        if self.is_kept(source) {
            let removed = fs::remove_file(self.path(source, uid));
            tell(
                source,
                "a restarted daemon will want the pod again",
                removed,
            );
        }
    }

    /// The wishes of a source, and the pods of which there is one that cannot be read.
    pub fn load(&self, source: Source) -> (Vec<Pod>, Vec<PodUid>) {
        let (mut pods, mut unreadable) = (Vec::new(), Vec::new());
        let entries = match fs::read_dir(self.folder_of(source)) {
            Ok(entries) => entries,
            Err(error) => {
                tell(source, "cannot see what was wanted", Err(error));
                return (pods, unreadable);
            }
        };
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(STAGED) {
                continue;
            }
            let text = fs::read_to_string(entry.path()).map_err(|error| error.to_string());
            let read = |text: String| {
                entry::read(&text, &self.trust_domain, self.mode).map_err(|error| error.to_string())
            };
            match text.and_then(read) {
                Ok(pod) => pods.push(pod),
                Err(error) => {
                    let path = entry.path();
                    tracing::error!(path = %path.display(), error, "cannot read a wish; the pod stays as it is");
                    unreadable.push(PodUid::of_file(&name));
                }
            }
        }
        (pods, unreadable)
    }

    fn is_kept(&self, source: Source) -> bool {
        Self::SOURCES.contains(&source) && self.sources.contains(&source)
    }

    fn folder_of(&self, source: Source) -> PathBuf {
        self.folder.join(source.name())
    }

    fn path(&self, source: Source, uid: &PodUid) -> PathBuf {
        self.folder_of(source).join(uid.file_name())
    }
}

/// Ends the names of files that are being written.
const STAGED: &str = "%new";

/// Writes a file that is never seen in part, and makes its folder if need be.
pub fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut staged = path.as_os_str().to_owned();
    staged.push(STAGED);
    fs::write(&staged, text)?;
    fs::rename(&staged, path)
}

/// What is not there is no error.
fn tell(source: Source, what: &str, result: io::Result<()>) {
    if let Err(error) = result
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::error!(%source, %error, "{what}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::reconcile::testing::pod;

    #[test]
    fn wishes_outlive_the_daemon_until_they_are_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let open = |sources: &[Source]| Remembered::open(dir.path(), "td", Mode::Shared, sources);
        let both = [Source::Command, Source::Kubernetes];
        let remembered = open(&both);
        assert_eq!(remembered.load(Source::Command), (Vec::new(), Vec::new()));
        let (mut a, b) = (pod("a", 1, 1), pod("b", 1, 2));
        a.uid = PodUid::new("ns/a");
        remembered.keep(Source::Command, &a);
        remembered.keep(Source::Command, &b);
        remembered.keep(Source::Kubernetes, &b);
        // Said anew at each start.
        remembered.keep(Source::Config, &b);
        let mut loaded = open(&both).load(Source::Command).0;
        loaded.sort_by(|a, b| a.uid.cmp(&b.uid));
        assert_eq!(loaded, [b.clone(), a.clone()]);
        remembered.forget(Source::Command, &a.uid);
        remembered.forget(Source::Command, &a.uid);
        for source in both {
            assert_eq!(open(&both).load(source).0, std::slice::from_ref(&b));
        }
        // The source is none any more.
        let one = [Source::Command];
        assert_eq!(open(&one).load(Source::Kubernetes).0, []);
        assert_eq!(open(&both).load(Source::Kubernetes).0, []);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let remembered = Remembered::open(dir.path(), "td", Mode::Shared, &[Source::Command]);
        remembered.keep(Source::Command, &pod("a", 1, 1));
        let folder = dir.path().join(FOLDER).join("command");
        fs::write(folder.join("ns%2fb"), "name: [").unwrap();
        fs::write(folder.join(format!("c{STAGED}")), "half").unwrap();
        let (pods, unreadable) = remembered.load(Source::Command);
        assert_eq!((pods.len(), unreadable), (1, vec![PodUid::new("ns/b")]));
    }
}
