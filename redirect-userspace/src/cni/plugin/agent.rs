//! The plugin's side of the agent's socket.

use std::{
    io::{self, Read, Write},
    time::{Duration, Instant},
};

use socket2::{Domain, SockAddr, Socket, Type};

use super::{
    super::{
        conflist::Entry,
        protocol::{Answer, MAX_LINE, Request},
    },
    PluginError,
};

/// How long the end of a pod may be held up at most: it ends with or without the agent.
const PATIENCE_AT_DEL: Duration = Duration::from_secs(5);

/// Asks the agent; an answer other than yes is an error.
pub fn ask(entry: &Entry, request: &Request) -> Result<(), PluginError> {
    let no_agent = |error: io::Error| PluginError::NoAgent {
        socket: entry.socket.display().to_string(),
        error: error.to_string(),
    };
    let limit = Duration::from_secs(entry.timeout_seconds.max(1));
    let limit = match request {
        Request::Del { .. } => limit.min(PATIENCE_AT_DEL),
        _ => limit,
    };
    let line = exchange(entry, request, limit).map_err(no_agent)?;
    match serde_json::from_str(&line) {
        Ok(Answer::Done | Answer::NotEnrolled) => Ok(()),
        Ok(Answer::Failed { error, hint }) => Err(PluginError::NotCaptured { error, hint }),
        Ok(Answer::Pods { .. }) => Err(PluginError::Answer("it is a list of pods".to_owned())),
        Err(error) => Err(PluginError::Answer(error.to_string())),
    }
}

fn exchange(entry: &Entry, request: &Request, limit: Duration) -> io::Result<String> {
    let until = Instant::now() + limit;
    let left = || {
        let left = until.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(io::Error::from(io::ErrorKind::TimedOut)),
            false => Ok(Some(left)),
        }
    };
    let mut stream = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Also of the connect, which waits while the agent's queue is full.
    stream.set_write_timeout(left()?)?;
    stream.connect(&SockAddr::unix(&entry.socket)?)?;
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    let mut unsent = text.as_slice();
    while !unsent.is_empty() {
        stream.set_write_timeout(left()?)?;
        match stream.write(unsent)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => unsent = &unsent[n..],
        }
    }
    let mut answer = Vec::new();
    while !answer.ends_with(b"\n") {
        // Again for each part: an agent that answers in drops must not hold up the pod for ever.
        stream.set_read_timeout(left()?)?;
        let mut part = [0; 4096];
        match stream.read(&mut part)? {
            0 => {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "it ended before it had answered",
                ));
            }
            n if answer.len() + n > MAX_LINE => {
                return Err(io::Error::other("its answer is too long"));
            }
            n => answer.extend_from_slice(&part[..n]),
        }
    }
    String::from_utf8(answer).map_err(io::Error::other)
}
