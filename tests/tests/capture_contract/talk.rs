//! One exchange with a greeter, and what both its ends and the daemon saw of it.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    time::Duration,
};

use redirect_tests::{App, Daemon, Pod, Process, app_binary};

/// Long enough for a line of the log; what fails often fails in many cells.
pub const SOON: Duration = Duration::from_secs(8);

/// An exchange that went well.
pub struct Talk {
    /// The client's own address, and the one that it believes to be connected to, as its socket spells them.
    pub sockname: SocketAddr,
    pub peername: SocketAddr,
    /// Whom the server sees.
    pub seen: SocketAddr,
}

impl Talk {
    /// Whether the server's connection is the client's own, without a proxy between.
    pub fn is_direct(&self) -> bool {
        self.seen == canonical(self.sockname)
    }
}

/// What became of a connect.
pub enum Fate {
    Talked(Talk),
    /// By this error.
    Refused(String),
}

/// Connects from `pod` to a greeter, wants its greeting and an echo.
#[track_caller]
pub fn talk(pod: &Pod, dst: SocketAddr) -> Talk {
    talk_with(pod, dst, &[])
}

/// As `talk`, with options of `rdt-app connect`.
#[track_caller]
pub fn talk_with(pod: &Pod, dst: SocketAddr, options: &[&str]) -> Talk {
    match attempt(pod.command(app_binary()), dst, options) {
        Fate::Talked(talk) => talk,
        Fate::Refused(error) => panic!("{dst}: {error}"),
    }
}

/// Wants the connection to be refused, or reset before anything was said.
#[track_caller]
pub fn refused(pod: &Pod, dst: SocketAddr) -> String {
    match attempt(pod.command(app_binary()), dst, &[]) {
        Fate::Talked(talk) => panic!("{dst} was reached, which saw {}", talk.seen),
        Fate::Refused(error) => {
            let fit = ["ECONNREFUSED", "ECONNRESET"].contains(&error.as_str());
            assert!(fit, "{dst}: {error} instead of a refusal");
            error
        }
    }
}

/// Lets `command`, which becomes `rdt-app` somewhere, connect.
#[track_caller]
pub fn attempt(mut command: Command, dst: SocketAddr, options: &[&str]) -> Fate {
    let dst = dst.to_string();
    command.arg("connect").args(options);
    command.args(["--timeout", "5", dst.as_str()]);
    command.args(["recv-line", "send:ping\\n", "recv-line"]);
    let app = App::new(Process::spawn(format!("connect to {dst}"), command));
    let next = || {
        let event = app.next_event();
        match event.name() {
            "error" => Err(event.str("name").to_owned()),
            "eof" => Err("a clean end".to_owned()),
            _ => Ok(event),
        }
    };
    let run = || {
        let connected = next()?;
        let greeting = next()?;
        let seen = greeting.text().strip_prefix("hello ");
        let seen = seen.and_then(|seen| seen.parse().ok());
        let seen = seen.unwrap_or_else(|| panic!("no greeting: {greeting:?}"));
        assert_eq!(next()?.text(), "ping");
        Ok(Talk {
            sockname: connected.addr("sockname"),
            peername: connected.addr("peername"),
            seen,
        })
    };
    run().map_or_else(Fate::Refused, Fate::Talked)
}

/// The access log's line of the connection from `client`: only what a proxy carried has one.
#[track_caller]
pub fn access(daemon: &Daemon, direction: &str, client: SocketAddr) -> String {
    let client = format!(" src.addr={} ", canonical(client));
    let direction = format!("direction=\"{direction}\"");
    let process = daemon.process();
    let found = process.wait_line_from(0, "line of the access log", SOON, |line| {
        let fits = line.contains("connection closed") && line.contains(&direction);
        (fits && line.contains(&client)).then(|| line.to_owned())
    });
    found.1
}

pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Wants that nobody serves these ports: refused, reset, closed at once, or never answered (dropped).
#[track_caller]
pub fn not_served(pod: &Pod, ip: IpAddr, ports: &[u16]) {
    // At once, since those that are dropped take their time.
    let apps = ports.iter().map(|port| {
        let dst = SocketAddr::new(ip, *port).to_string();
        let args = [
            "connect",
            "--nonblocking",
            "--timeout",
            "2",
            &dst,
            "recv-line",
        ];
        (dst.clone(), pod.app(args))
    });
    for (dst, app) in apps.collect::<Vec<_>>() {
        let first = app.next_event();
        let served = first.name() == "connected" && app.next_event().name() == "received";
        assert!(!served, "{dst} answers");
    }
}
