//! The side of the command line.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::cni::protocol::{Answer, MAX_LINE, MAX_LIST, Request};

/// The agent waits for certificates and workers, and says itself when that takes too long.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{call} {}: {source}; does the daemon run, with this agent.socket, and are you root?", path.display())]
    Io {
        call: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the request has {0} bytes, and at most {MAX_LINE} are taken")]
    TooLong(usize),
    #[error("the daemon's answer cannot be read: {0}")]
    Answer(#[from] serde_json::Error),
    #[error("{error}; {hint}")]
    Failed { error: String, hint: String },
}

/// Asks the agent at `socket`; an answer of failure is an error.
pub fn ask(socket: &Path, request: &Request) -> Result<Answer, ClientError> {
    let fail = |call| {
        let path = socket.to_owned();
        move |source| ClientError::Io { call, path, source }
    };
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    if line.len() > MAX_LINE {
        return Err(ClientError::TooLong(line.len()));
    }
    let mut stream = UnixStream::connect(socket).map_err(fail("connect to"))?;
    stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
        .and_then(|()| stream.write_all(&line))
        .map_err(fail("write to"))?;
    let mut answer = Vec::new();
    BufReader::new(stream.take(MAX_LIST as u64))
        .read_until(b'\n', &mut answer)
        .map_err(fail("read from"))?;
    match serde_json::from_slice(&answer)? {
        Answer::Failed { error, hint } => Err(ClientError::Failed { error, hint }),
        answer => Ok(answer),
    }
}
