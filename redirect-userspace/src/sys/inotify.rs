//! Waiting until something changes in a folder (inotify(7)).

use std::{io, os::fd::OwnedFd, path::Path};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::{Interest, unix::AsyncFd};

/// Changes of some folders, from when this was made.
pub struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    /// Inside a runtime. A folder that is not there yet is noticed when its nearest parent changes.
    pub fn of<'a>(folders: impl IntoIterator<Item = &'a Path>) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF;
        for folder in folders {
            let existing = folder.ancestors().find(|path| path.exists());
            inotify.add_watch(existing.unwrap_or(Path::new("/")), flags)?;
        }
        // SAFETY: the descriptor is owned by what is registered, and never changed.
        let registered =
            unsafe { AsyncFd::register_with_interest(OwnedFd::from(inotify), Interest::READABLE) };
        Ok(Self(registered.map_err(io::Error::from)?))
    }

    /// Returns when something has changed; it does not tell what.
    pub async fn next(&self) {
        // An error means that there will be no word: the caller looks by itself then.
        let _ = self.0.readable().await;
    }
}
