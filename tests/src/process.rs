//! Processes of the testbed: their output as lines that can be waited for, and an end that is certain.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Write},
    net::SocketAddr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::wait::{stretched, wait_until};

/// How long anything that should happen at once may take on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A child process in a process group of its own (so that Ctrl-C reaches only the testbed). Killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    output: Arc<Output>,
    exit: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`, with its output and errors read line by line.
    #[track_caller]
    pub fn spawn(name: impl Into<String>, mut command: Command) -> Self {
        let name = name.into();
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("start {name} ({command:?}): {error}"));
        let stdout: OwnedFd = child.stdout.take().expect("piped").into();
        let stderr: OwnedFd = child.stderr.take().expect("piped").into();
        let own = |pipe: &OwnedFd| pipe.try_clone().expect("duplicate a pipe");
        let output = Arc::new(Output {
            pipes: [own(&stdout), own(&stderr)],
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        output.lock().open = 2;
        read_lines(stdout, Arc::clone(&output), Stream::Out);
        read_lines(stderr, Arc::clone(&output), Stream::Err);
        let stdin = child.stdin.take();
        Self {
            name,
            child,
            stdin,
            output,
            exit: None,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The lines of standard output until now: all that it has written before this call.
    pub fn stdout(&self) -> Vec<String> {
        self.output
            .current()
            .lines
            .iter()
            .filter(|(s, _)| *s == Stream::Out)
            .map(|(_, line)| line.clone())
            .collect()
    }

    /// The lines of standard error until now: all that it has written before this call.
    pub fn stderr(&self) -> Vec<String> {
        self.output
            .current()
            .lines
            .iter()
            .filter(|(s, _)| *s == Stream::Err)
            .map(|(_, line)| line.clone())
            .collect()
    }

    /// Waits for a line, of output or errors, that `found` gives a value for.
    #[track_caller]
    pub fn wait_line<T>(&self, what: &str, found: impl FnMut(&str) -> Option<T>) -> T {
        self.wait_line_from(0, what, PATIENCE, found).1
    }

    /// As [`wait_line`](Self::wait_line), from the line with index `from` on; gives the found line's index too.
    #[track_caller]
    pub fn wait_line_from<T>(
        &self,
        from: usize,
        what: &str,
        limit: Duration,
        mut found: impl FnMut(&str) -> Option<T>,
    ) -> (usize, T) {
        let deadline = Instant::now() + stretched(limit);
        let mut next = from;
        let mut state = self.output.lock();
        loop {
            while next < state.lines.len() {
                if let Some(value) = found(&state.lines[next].1) {
                    return (next, value);
                }
                next += 1;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.open == 0 {
                let why = if state.open == 0 {
                    "it ended"
                } else {
                    "time is over"
                };
                drop(state);
                panic!(
                    "{} (pid {}): no {what}: {why}; it said:\n{}",
                    self.name,
                    self.pid(),
                    self.transcript(80)
                );
            }
            state = self
                .output
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// How many lines there are until now, for [`wait_line_from`](Self::wait_line_from).
    pub fn line_count(&self) -> usize {
        self.output.current().lines.len()
    }

    /// The last `lines` lines that it wrote.
    pub fn transcript(&self, lines: usize) -> String {
        let state = self.output.current();
        let skip = state.lines.len().saturating_sub(lines);
        state
            .lines
            .iter()
            .skip(skip)
            .map(|(_, line)| format!("  | {line}\n"))
            .collect()
    }

    #[track_caller]
    pub fn write(&mut self, text: &str) {
        let stdin = self
            .stdin
            .as_mut()
            .expect("standard input was closed before");
        stdin
            .write_all(text.as_bytes())
            .and_then(|()| stdin.flush())
            .expect("the process reads its input");
    }

    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    pub fn signal(&self, signal: Signal) {
        if self.exit.is_none() {
            // The child is not reaped yet, so the pid is still its own.
            let _ = kill(Pid::from_raw(self.pid().cast_signed()), signal);
        }
    }

    /// Waits for its end and for the end of its output.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        self.wait_for(PATIENCE)
    }

    #[track_caller]
    pub fn wait_for(&mut self, limit: Duration) -> ExitStatus {
        let ended = wait_until(limit, || self.try_wait().is_some());
        assert!(
            ended,
            "{} did not end within {limit:?}; it said:\n{}",
            self.name,
            self.transcript(80)
        );
        let _ = wait_until(Duration::from_secs(2), || self.output.lock().open == 0);
        self.exit.expect("set by try_wait")
    }

    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.exit.is_none() {
            self.exit = self
                .child
                .try_wait()
                .expect("our own child can be waited for");
        }
        self.exit
    }

    /// Kills it with SIGKILL and reaps it.
    pub fn kill(&mut self) {
        if self.try_wait().is_none() {
            let _ = self.child.kill();
            self.exit = self.child.wait().ok();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// An `rdt-app` in a pod: its standard output is one JSON event per line.
#[derive(Debug)]
pub struct App {
    process: Process,
    /// Per event name, the index of the line after the last one that was given out.
    seen: Mutex<HashMap<String, usize>>,
}

impl App {
    pub fn new(process: Process) -> Self {
        Self {
            process,
            seen: Mutex::default(),
        }
    }

    /// The next event of this name: waits for it, and never gives one out twice.
    #[track_caller]
    pub fn event(&self, name: &str) -> Event {
        self.event_within(name, PATIENCE)
    }

    #[track_caller]
    pub fn event_within(&self, name: &str, limit: Duration) -> Event {
        let from = self.seen().get(name).copied().unwrap_or(0);
        let (at, event) =
            self.process
                .wait_line_from(from, &format!("event `{name}`"), limit, |line| {
                    Event::parse(line).filter(|event| event.name() == name)
                });
        self.seen().insert(name.to_owned(), at + 1);
        event
    }

    /// The next event, whatever its name, after the last one that `event` or `next_event` of any name gave out.
    #[track_caller]
    pub fn next_event(&self) -> Event {
        let from = self.seen().values().copied().max().unwrap_or(0);
        let (at, event) = self
            .process
            .wait_line_from(from, "event", PATIENCE, Event::parse);
        self.seen().insert(event.name().to_owned(), at + 1);
        event
    }

    /// All events of this name until now, without waiting and without counting as given out.
    pub fn events(&self, name: &str) -> Vec<Event> {
        self.process
            .stdout()
            .iter()
            .filter_map(|line| Event::parse(line))
            .filter(|e| e.name() == name)
            .collect()
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::ops::Deref for App {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl std::ops::DerefMut for App {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// One JSON line of `rdt-app`: `{"event": NAME, ...}`.
#[derive(Clone, Debug, PartialEq)]
pub struct Event(Value);

impl Event {
    pub fn parse(line: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(line).ok()?;
        value.get("event")?.as_str()?;
        Some(Self(value))
    }

    pub fn name(&self) -> &str {
        self.str("event")
    }

    #[track_caller]
    pub fn str(&self, field: &str) -> &str {
        self.0[field]
            .as_str()
            .unwrap_or_else(|| panic!("no text `{field}` in {}", self.0))
    }

    #[track_caller]
    pub fn u64(&self, field: &str) -> u64 {
        self.0[field]
            .as_u64()
            .unwrap_or_else(|| panic!("no number `{field}` in {}", self.0))
    }

    #[track_caller]
    pub fn f64(&self, field: &str) -> f64 {
        self.0[field]
            .as_f64()
            .unwrap_or_else(|| panic!("no number `{field}` in {}", self.0))
    }

    #[track_caller]
    pub fn addr(&self, field: &str) -> SocketAddr {
        self.str(field)
            .parse()
            .unwrap_or_else(|_| panic!("no socket address `{field}` in {}", self.0))
    }

    /// The field `text` of a `received` event.
    #[track_caller]
    pub fn text(&self) -> &str {
        self.str("text")
    }

    pub fn json(&self) -> &Value {
        &self.0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Out,
    Err,
}

#[derive(Debug)]
struct Output {
    /// The ends that are read from, to see whether something is in them.
    pipes: [OwnedFd; 2],
    state: Mutex<OutputState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct OutputState {
    lines: Vec<(Stream, String)>,
    /// Streams that have not reached their end.
    open: usize,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, OutputState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same once everything is read that has been written. What is read is among the lines before the lock is released, so
    /// empty pipes say that nothing is on the way.
    fn current(&self) -> MutexGuard<'_, OutputState> {
        loop {
            let state = self.lock();
            if !self
                .pipes
                .iter()
                .any(|pipe| is_readable(pipe, PollTimeout::ZERO))
            {
                return state;
            }
            drop(state);
            thread::yield_now();
        }
    }
}

/// Whether something can be read; at the end of all that was written there is nothing.
fn is_readable(pipe: &impl AsFd, limit: PollTimeout) -> bool {
    let mut poll_fd = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    poll(&mut poll_fd, limit).is_ok()
        && poll_fd[0]
            .revents()
            .is_some_and(|events| events.contains(PollFlags::POLLIN))
}

fn read_lines(source: OwnedFd, output: Arc<Output>, stream: Stream) {
    thread::spawn(move || {
        let mut source = File::from(source);
        let (mut chunk, mut unfinished) = (vec![0; 64 << 10], Vec::new());
        loop {
            // Without the lock until there is something, so that reading it below does not wait.
            is_readable(&source, PollTimeout::NONE);
            let mut state = output.lock();
            let read = source.read(&mut chunk).unwrap_or(0);
            unfinished.extend_from_slice(&chunk[..read]);
            while let Some(end) = unfinished.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = unfinished.drain(..=end).collect();
                state.lines.push((stream, text(&line)));
            }
            if read == 0 {
                if !unfinished.is_empty() {
                    state.lines.push((stream, text(&unfinished)));
                }
                state.open -= 1;
                drop(state);
                output.changed.notify_all();
                return;
            }
            output.changed.notify_all();
        }
    });
}

fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(line)
        .trim_end_matches(['\n', '\r'])
        .to_owned()
}
