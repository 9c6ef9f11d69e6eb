//! Noticing that a file changed.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    os::unix::fs::MetadataExt,
    path::Path,
};

/// Stands for one state of some files; another state, another value.
pub type Revision = u64;

/// Follows symbolic links, so that Kubernetes' swap of a projected volume counts as a change. A missing file is a state, too.
pub fn revision_of(paths: &[&Path]) -> Revision {
    let mut hasher = DefaultHasher::new();
    for path in paths {
        match fs::metadata(path) {
            Ok(found) => (
                found.dev(),
                found.ino(),
                found.size(),
                found.mtime(),
                found.mtime_nsec(),
            )
                .hash(&mut hasher),
            Err(error) => error.raw_os_error().hash(&mut hasher),
        }
    }
    hasher.finish()
}
