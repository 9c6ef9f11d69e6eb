//! How long `connect()` takes, for a process that the programs see and for one beside it that they do not.
//!
//! Both are in the same namespace and connect to the same listener; only their cgroup differs. The two take turns every
//! few connects. For the redirected connect the daemon is stopped (SIGSTOP) meanwhile, so that the kernel's part is
//! measured and not how the two processes share the processors; the listener's queue holds the connections.

use std::{net::SocketAddr, process::Command};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    apps::{App, EXCLUDED_PORT, me},
    figure::Figure,
    helper::Timed,
    samples::{Part, median},
    stage::{Stage, Variant},
};
use crate::Process;

/// Few enough for a short accept queue: both processes' turns come before the daemon empties it.
const TURN: usize = 25;
const TURNS: usize = 40;

/// Medians of one round: `Redirect` with the programs, `Direct` without.
pub fn round(stage: &Stage) -> Result<Vec<(Variant, Part)>> {
    let server = &stage.captured.server;
    let own = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let daemon = stage
        .proxies(Variant::Redirect, App::Echo)
        .map(|proxies| proxies.outbound);
    let cases = [
        (
            Figure::ConnectExcluded,
            server.at(EXCLUDED_PORT),
            server.at(EXCLUDED_PORT),
            None,
        ),
        (
            Figure::ConnectLoopback,
            own(EXCLUDED_PORT),
            own(EXCLUDED_PORT),
            None,
        ),
        (
            Figure::ConnectRedirected,
            server.at(App::Echo.port()),
            own(redirect_common::ports::OUTBOUND),
            daemon,
        ),
    ];
    let (mut with, mut without) = (Part::default(), Part::default());
    for (figure, seen, unseen, stop) in cases {
        let pod = &stage.captured.client;
        let mut seen = Timer::start(pod.command(me()?), seen)?;
        // The guard of a captured pod drops what leaves it uncaptured.
        let outside = match figure {
            Figure::ConnectExcluded => &stage.plain.client,
            _ => pod,
        };
        let mut unseen = Timer::start(outside.outside_command(me()?), unseen)?;
        let (mut times_seen, mut times_unseen) = (Vec::new(), Vec::new());
        for turn in 0..TURNS {
            let _stopped = stop.map(Stopped::new).transpose()?;
            if turn % 2 == 0 {
                times_seen.extend(seen.time(TURN)?);
                times_unseen.extend(unseen.time(TURN)?);
            } else {
                times_unseen.extend(unseen.time(TURN)?);
                times_seen.extend(seen.time(TURN)?);
            }
        }
        with = with.with(figure, median(&times_seen).context("no connect was timed")?);
        without = without.with(
            figure,
            median(&times_unseen).context("no connect was timed")?,
        );
    }
    Ok(vec![(Variant::Redirect, with), (Variant::Direct, without)])
}

/// A process that times its connects to one address.
pub(super) struct Timer {
    process: Process,
    read: usize,
}

impl Timer {
    pub(super) fn start(mut command: Command, to: SocketAddr) -> Result<Self> {
        command.args(["helper", "connect", &to.to_string()]);
        let mut timer = Self {
            process: Process::spawn(format!("connect to {to}"), command),
            read: 0,
        };
        timer.time(5)?; // the first ones warm up
        Ok(timer)
    }

    /// Microseconds of each of `count` connects.
    pub(super) fn time(&mut self, count: usize) -> Result<Vec<f64>> {
        self.process.write(&format!("{count}\n"));
        let limit = std::time::Duration::from_secs(20);
        let parse = |line: &str| serde_json::from_str::<Timed>(line).ok();
        let (at, timed) = self
            .process
            .wait_line_from(self.read, "times of connects", limit, parse);
        self.read = at + 1;
        Ok(timed
            .nanoseconds
            .into_iter()
            .map(|nanoseconds| nanoseconds as f64 / 1e3)
            .collect())
    }
}

/// A process that does not run until this is dropped.
pub(super) struct Stopped(Pid);

impl Stopped {
    pub(super) fn new(pid: u32) -> Result<Self> {
        let pid = Pid::from_raw(pid.cast_signed());
        kill(pid, Signal::SIGSTOP).context("cannot stop the daemon")?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
        // Let it empty its queue before the next turn fills it.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
