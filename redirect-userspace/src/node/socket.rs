//! The agent's unix socket: one request and one answer per connection, each a JSON object on one line.
//!
//! Only root is served: the file is root's alone, and the kernel says who connected. A client that writes nothing, too much, or
//! never reads costs a place among a limited number for a limited time.

mod client;

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};

pub use self::client::{ClientError, ask};
use crate::cni::protocol::{Answer, MAX_LINE, Request};

/// How much clients may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections that are served at a time; the others wait in the kernel's queue.
    pub connections: usize,
    /// For the request to come, and for the answer to be taken.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            patience: Duration::from_secs(5),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("{call} {}: {source}; choose another place with agent.socket", path.display())]
    Io {
        call: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// A socket that clients can connect to. Its file is removed when this is dropped, unless another daemon has put its own there.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Socket {
    /// Listens at `path`, in place of an earlier daemon.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let fail = |call| {
            let path = path.to_owned();
            move |source| SocketError::Io { call, path, source }
        };
        if let Some(folder) = path.parent() {
            let mut builder = fs::DirBuilder::new();
            let created = builder.recursive(true).mode(0o700).create(folder);
            created.map_err(fail("make the folder of"))?;
        }
        // Beside it and then renamed: there is no moment in which others could connect, or nobody could.
        let mut staged = path.as_os_str().to_owned();
        staged.push(format!(".{}", std::process::id()));
        let staged = PathBuf::from(staged);
        match fs::remove_file(&staged) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(fail("remove what was left of")(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&staged).map_err(fail("listen at"))?;
        let made = fs::set_permissions(&staged, fs::Permissions::from_mode(0o600))
            .and_then(|()| fs::metadata(&staged))
            .and_then(|metadata| fs::rename(&staged, path).map(|()| metadata.ino()));
        match made {
            Ok(inode) => Ok(Self {
                listener,
                path: path.to_owned(),
                inode,
            }),
            Err(error) => {
                // The error that is returned is the one to know of.
                let _ = fs::remove_file(&staged);
                Err(fail("put in place")(error))
            }
        }
    }

    /// Serves clients for ever. A request that was read is answered to its end, whether or not the client waits.
    pub async fn serve<F>(
        self,
        limits: Limits,
        handle: impl Fn(Request) -> F + Clone + Send + 'static,
    ) where
        F: Future<Output = Answer> + Send,
    {
        let places = Arc::new(Semaphore::new(limits.connections));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let handle = handle.clone();
                    tokio::spawn(async move {
                        if let Err(error) = converse(stream, limits, handle).await {
                            tracing::debug!(%error, "a client of the agent's socket");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the agent's socket; is `nofile` too low?");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// After an error that will come again at once.
const PAUSE: Duration = Duration::from_millis(50);

impl Drop for Socket {
    fn drop(&mut self) {
        if fs::metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            // The next daemon replaces it all the same.
            let _ = fs::remove_file(&self.path);
        }
    }
}

async fn converse<F>(
    stream: UnixStream,
    limits: Limits,
    handle: impl Fn(Request) -> F,
) -> io::Result<()>
where
    F: Future<Output = Answer>,
{
    let peer = stream.peer_cred()?;
    if peer.uid() != 0 {
        tracing::warn!(
            uid = peer.uid(),
            pid = peer.pid(),
            "only root may use the agent's socket"
        );
        return Ok(());
    }
    let (read, mut write) = stream.into_split();
    let mut line = Vec::new();
    let mut reader = BufReader::new(read.take(MAX_LINE as u64));
    timeout(limits.patience, reader.read_until(b'\n', &mut line)).await??;
    let answer = match parse(&line) {
        Ok(request) => handle(request).await,
        Err(error) => Answer::Failed {
            error,
            hint: "the client and the daemon are of different versions?".to_owned(),
        },
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    timeout(limits.patience, write.write_all(&text)).await??;
    timeout(limits.patience, write.shutdown()).await?
}

fn parse(line: &[u8]) -> Result<Request, String> {
    match line.strip_suffix(b"\n") {
        Some(line) => {
            serde_json::from_slice(line).map_err(|error| format!("not a request: {error}"))
        }
        None if line.len() >= MAX_LINE => Err(format!("a request has at most {MAX_LINE} bytes")),
        None => Err("the request did not end with a line end".to_owned()),
    }
}

#[cfg(test)]
mod tests;
