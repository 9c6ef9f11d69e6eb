//! A mesh of two nodes, load that goes through it without a pause, and daemons that take over.

use std::net::SocketAddr;

use redirect_tests::{
    App, Daemon, DaemonSpec, Mesh, Pod,
    exchange::{greeter, serve},
    way::{Backend, Mode},
};
use serde_json::json;

/// Serves what each connection of the load wants.
pub const ECHO: u16 = 8080;
/// For connections that are held.
pub const GREETER: u16 = 8081;

/// A mesh with servers; `drain` is the drain limit.
#[track_caller]
pub fn mesh(backend: Backend, mode: Mode, drain: &str) -> (Mesh, [App; 2]) {
    let mesh = Mesh::builder()
        .way(backend, mode)
        .config(json!({ "proxy": { "drain": drain } }))
        .start();
    let servers = [
        serve(&mesh.server, ECHO, "echo"),
        greeter(&mesh.server, GREETER),
    ];
    (mesh, servers)
}

/// The daemon that takes over from `daemon`, in a cgroup of its own.
pub fn next(daemon: &Daemon, generation: usize) -> DaemonSpec {
    daemon
        .spec()
        .clone()
        .in_cgroup(&format!("redirect-{generation}"))
        .once("--take-over")
}

/// Starts one that takes over from `daemon`, and puts it in its place; returns that one, which drains.
#[track_caller]
pub fn take_over(daemon: &mut Daemon, generation: usize) -> Daemon {
    let next = next(daemon, generation).start();
    daemon.wait_log("line that says that it was taken over from", |line| {
        line.contains("another daemon has taken over")
    });
    std::mem::replace(daemon, next)
}

/// Waits until the predecessor has ended in order, and its successor knows.
#[track_caller]
pub fn wait_settled(old: &mut Daemon, new: &Daemon) {
    let status = old.wait();
    assert!(status.success(), "{status}");
    new.wait_log("line that says that the other has ended", |line| {
        line.contains("the daemon before this one has ended")
    });
}

/// Connections without a pause.
pub struct Load(App);

impl Load {
    /// Returns when they go.
    #[track_caller]
    pub fn start(client: &Pod, to: &[SocketAddr]) -> Self {
        let mut args = vec!["ceaseless".to_owned()];
        args.extend(to.iter().map(ToString::to_string));
        let app = client.app(args);
        app.event("going");
        Self(app)
    }

    /// Ends it; gives how many connections were right, and what was wrong with the others.
    #[track_caller]
    pub fn end(mut self) -> (u64, String) {
        self.0.close_stdin();
        let done = self.0.event("done");
        (done.u64("ok"), done.json()["errors"].to_string())
    }
}
