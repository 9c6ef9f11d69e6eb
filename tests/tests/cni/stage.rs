//! A node whose pods start through the chain, a server outside of the mesh, and a daemon that captures all that it is told of.

use std::path::PathBuf;

use redirect_tests::{
    App, Daemon, DaemonSpec, Event, Node, Pod, Testbed,
    cni::{Chain, Sandbox},
    exchange::greeter,
};
use serde_json::json;

pub struct Stage {
    pub chain: Chain,
    pub server: App,
    pub outside: Pod,
    pub node: Node,
    // Last: what it made is removed when nothing uses it any more.
    _bed: Testbed,
}

impl Stage {
    /// Without a daemon.
    pub fn set() -> Self {
        let bed = Testbed::new();
        let node = bed.node("a");
        let outside = node.pod("outside");
        bed.workloads().write();
        let server = greeter(&outside, 8080);
        let stage = Self {
            chain: Chain::new(&node),
            server,
            outside,
            node,
            _bed: bed,
        };
        stage.chain.install(&stage.socket());
        stage
    }

    /// The daemon, not started.
    pub fn daemon(&self) -> DaemonSpec {
        let cgroup = self.node.cgroup();
        let agent = json!({ "agent": { "cni": { "enroll": true }, "host": { "cgroup": cgroup } } });
        self.node.daemon().config(agent)
    }

    pub fn socket(&self) -> PathBuf {
        self.node.daemon().state_dir().join("agent.sock")
    }

    pub fn with_daemon() -> (Self, Daemon) {
        let stage = Self::set();
        let daemon = stage.daemon().start();
        (stage, daemon)
    }

    /// How the pod's first connection fares: whether the server sees another socket than the app's own.
    #[track_caller]
    pub fn fate(&self, sandbox: &Sandbox) -> Fate {
        let dst = self.outside.at(8080).to_string();
        let app = sandbox.app(&["connect", &dst, "recv-line"]);
        let first = app.next_event();
        if first.name() == "error" {
            return Fate::Refused(first.str("name").to_owned());
        }
        let received = app.next_event();
        if received.name() == "error" {
            return Fate::Refused(received.str("name").to_owned());
        }
        match self.peer().port() == first.addr("sockname").port() {
            true => Fate::Direct,
            false => Fate::Captured,
        }
    }

    /// Whom the server sees in its next connection.
    #[track_caller]
    fn peer(&self) -> std::net::SocketAddr {
        let accepted: Event = self.server.event("accepted");
        accepted.addr("peer")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Captured,
    Direct,
    /// With this error.
    Refused(String),
}
