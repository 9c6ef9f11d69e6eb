//! A node with a daemon that captures nobody until it is told, a client, and a server that no daemon knows.

use std::{path::PathBuf, process::Output};

use redirect_tests::{App, Daemon, Node, Pod, Testbed, exchange::greeter, state::State};
use serde_json::{Value, json};

pub struct Stage {
    pub daemon: Daemon,
    pub server: App,
    pub client: Pod,
    pub outside: Pod,
    pub node: Node,
    /// Dropped last.
    pub bed: Testbed,
}

/// How a connect fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Captured,
    Direct,
    Refused,
}

impl Stage {
    pub fn set() -> Self {
        Self::with(json!({}))
    }

    pub fn with(config: Value) -> Self {
        let bed = Testbed::new();
        let node = bed.node("a");
        let (client, outside) = (node.pod("client"), node.pod("outside"));
        bed.workloads().hbone(&client).write();
        let spec = node
            .daemon()
            .config(json!({ "capture": { "verifyInterval": "200ms" } }));
        let daemon = spec.config(config).start();
        Self {
            server: greeter(&outside, 8080),
            daemon,
            client,
            outside,
            node,
            bed,
        }
    }

    pub fn fate(&self) -> Fate {
        self.fate_of(&self.client)
    }

    #[track_caller]
    pub fn fate_of(&self, client: &Pod) -> Fate {
        let dst = self.outside.at(8080).to_string();
        let app = client.app(["connect", &dst, "recv-line"]);
        let first = app.next_event();
        if first.name() == "error" {
            return Fate::Refused;
        }
        if app.next_event().name() == "error" {
            return Fate::Refused;
        }
        let peer = self.server.event("accepted").addr("peer");
        match peer.port() == first.addr("sockname").port() {
            true => Fate::Direct,
            false => Fate::Captured,
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.daemon.spec().state_dir().join("agent.sock")
    }

    /// Runs `redirect pod ARGUMENTS`; a YAML document goes to its standard input.
    pub fn pod(&self, arguments: &[&str]) -> Output {
        let mut command = self.daemon.spec().command();
        let (subcommand, rest) = arguments.split_first().expect("a subcommand");
        command.args(["pod", subcommand, "--socket"]);
        command.arg(self.socket()).args(rest);
        command.output().expect("start redirect")
    }

    /// `redirect pod add` of a pod of the testbed, with further arguments.
    pub fn try_add(&self, pod: &Pod, more: &[&str]) -> Output {
        let (netns, cgroup) = (pod.netns().path(), pod.cgroup());
        let ips = format!("{},{}", pod.ipv4(), pod.ipv6());
        let (netns, cgroup) = (netns.to_string_lossy(), cgroup.to_string_lossy());
        let arguments = [
            "add",
            "--name",
            pod.name(),
            "--namespace",
            pod.namespace(),
            "--service-account",
            pod.service_account(),
            "--netns",
            &netns,
            "--cgroup",
            &cgroup,
            "--ips",
            &ips,
        ];
        self.pod(&[&arguments, more].concat())
    }

    #[track_caller]
    pub fn add(&self, pod: &Pod, more: &[&str]) {
        succeeded(&self.try_add(pod, more));
    }

    #[track_caller]
    pub fn remove(&self, uid: &str) {
        succeeded(&self.pod(&["remove", uid]));
    }

    /// `redirect pod list --json`.
    #[track_caller]
    pub fn list(&self) -> Vec<Value> {
        let output = self.pod(&["list", "--json"]);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", told(&output)))
    }

    pub fn state_of(&self, pod: &Pod) -> State {
        State::of(pod.netns(), &[pod.cgroup()])
    }
}

#[track_caller]
pub fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", told(output));
}

#[track_caller]
pub fn failed_with(output: &Output, expected: &str) {
    let told = told(output);
    assert!(!output.status.success(), "{told}");
    assert!(told.contains(expected), "{expected:?} is not in: {told}");
}

pub fn told(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}
