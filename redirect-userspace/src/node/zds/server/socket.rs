//! The socket where proxies connect.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tokio_seqpacket::UnixSeqpacketListener;

use super::ServeError;

/// The file of a socket, which is removed when this is dropped, unless another has taken its place.
pub struct Place {
    path: PathBuf,
    inode: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|there| there.ino() == self.inode);
        if is_ours {
            // Without a listener it only looks as if somebody were there.
            _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at `path`, for root alone. What listened there before does so no more, and nobody finds nothing there in between.
pub fn listen(path: &Path) -> Result<(UnixSeqpacketListener, Place), ServeError> {
    let at = |call| {
        let path = path.to_owned();
        move |source| ServeError::Socket { call, path, source }
    };
    match fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            return Err(ServeError::NoSocket(path.to_owned()));
        }
        _ => {}
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(at("make the directory of"))?;
    }
    let mut staged = path.as_os_str().to_owned();
    staged.push(".new");
    let staged = Path::new(&staged);
    match fs::remove_file(staged) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(at("remove what is left beside")(error));
        }
        _ => {}
    }
    let listener = UnixSeqpacketListener::bind(staged).map_err(at("listen at"))?;
    fs::set_permissions(staged, fs::Permissions::from_mode(0o600))
        .map_err(at("set the permissions of"))?;
    let inode = fs::symlink_metadata(staged).map_err(at("look at"))?.ino();
    fs::rename(staged, path).map_err(at("listen at"))?;
    let path = path.to_owned();
    Ok((listener, Place { path, inode }))
}
