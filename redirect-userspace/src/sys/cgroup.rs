//! cgroups v2.
use std::{
    io,
    path::{Path, PathBuf},
};
pub fn own(_: Option<&Path>) -> io::Result<PathBuf> {
    Ok(PathBuf::new())
}
