//! The real `redirect run` on a node.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sys::signal::Signal,
    unistd::{SysconfVar, sysconf},
};
use redirect::sys::netns::Netns;
use serde_json::{Value, json};

use crate::{
    binaries::redirect_binary,
    http::{self, Response},
    metrics::Metrics,
    process::{PATIENCE, Process},
    testbed::{Node, Pod},
    wait::eventually,
    workloads::merge,
};

const METRICS: &str = "127.0.0.1:15020";
const READINESS: &str = "127.0.0.1:15021";

/// What to start: configuration, pods, arguments. Can be started again after the daemon's end, with the same state.
#[derive(Clone, Debug)]
pub struct DaemonSpec {
    node: Node,
    /// The pod that it runs in: dedicated mode.
    pod: Option<Pod>,
    config: Value,
    pods: Vec<Value>,
    args: Vec<String>,
    once: Vec<String>,
    cgroup: String,
    environment: Vec<(String, String)>,
    binary: PathBuf,
}

impl DaemonSpec {
    pub(crate) fn new(node: Node, pod: Option<Pod>, workloads: PathBuf) -> Self {
        let dir = directory(&node, pod.as_ref());
        let mut config = json!({
            "node": node.name(),
            "workers": 1,
            "stateDir": dir.join("state"),
            "workloads": workloads,
            "capture": { "backend": "ebpf", "bpffs": dir.join("bpf") },
        });
        if pod.is_none() {
            config["admin"] = json!({ "metrics": METRICS, "readiness": READINESS });
        }
        let args = vec!["--dev-ca".to_owned()];
        Self {
            node,
            pod,
            config,
            pods: Vec::new(),
            args,
            once: Vec::new(),
            cgroup: "redirect".to_owned(),
            environment: Vec::new(),
            binary: redirect_binary(),
        }
    }

    /// Captures `pod`.
    #[must_use]
    pub fn capture(self, pod: &Pod) -> Self {
        self.capture_with(pod, json!({}))
    }

    /// Captures `pod`, with further or other fields of its configuration.
    #[must_use]
    pub fn capture_with(mut self, pod: &Pod, fields: Value) -> Self {
        let mut entry = json!({
            "name": pod.name(),
            "namespace": pod.namespace(),
            "serviceAccount": pod.service_account(),
            "netns": pod.netns().path(),
            "cgroup": pod.cgroup(),
            "ips": [pod.ipv4(), pod.ipv6()],
        });
        merge(&mut entry, fields);
        self.pods.push(entry);
        self
    }

    /// Adds an entry to `pods` as it is.
    #[must_use]
    pub fn raw_pod(mut self, entry: Value) -> Self {
        self.pods.push(entry);
        self
    }

    /// Merges `fields` into the configuration file.
    #[must_use]
    pub fn config(mut self, fields: Value) -> Self {
        merge(&mut self.config, fields);
        self
    }

    /// Adds an argument of `redirect run`.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Adds an argument of `redirect run` for the daemon that is started from this, and not for those started from its spec.
    #[must_use]
    pub fn once(mut self, arg: &str) -> Self {
        self.once = vec![arg.to_owned()];
        self
    }

    /// Runs it in another cgroup of the same node or pod, beside the usual one.
    #[must_use]
    pub fn in_cgroup(mut self, name: &str) -> Self {
        name.clone_into(&mut self.cgroup);
        self
    }

    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.environment.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Forgets the pods that were to be captured.
    #[must_use]
    pub fn without_pods(mut self) -> Self {
        self.pods.clear();
        self
    }

    /// Runs another program than [`redirect_binary`].
    #[must_use]
    pub fn binary(mut self, path: &Path) -> Self {
        path.clone_into(&mut self.binary);
        self
    }

    /// Starts the daemon and waits until it says that it is ready.
    #[track_caller]
    pub fn start(&self) -> Daemon {
        let daemon = self.spawn();
        daemon.wait_ready();
        daemon
    }

    /// Starts the daemon without waiting.
    #[track_caller]
    pub fn spawn(&self) -> Daemon {
        let command = self.ready_command();
        let process = Process::spawn(format!("daemon on {}", self.node.name()), command);
        let mut spec = self.clone();
        spec.once.clear();
        Daemon { process, spec }
    }

    /// The command that `spawn` runs, with its configuration written: for who wants the output elsewhere.
    pub fn ready_command(&self) -> Command {
        let cgroup = self.cgroup();
        fs::create_dir_all(&cgroup).expect("make the daemon's cgroup");
        let mut command = match &self.pod {
            Some(pod) => pod.command_at(&cgroup, &self.binary),
            None => self.node.command_in(&cgroup, &self.binary),
        };
        command
            .arg("run")
            .arg("--config")
            .arg(self.write_config())
            .args(&self.args)
            .args(&self.once);
        command
            .env_remove("RUST_LOG")
            .env("NO_COLOR", "1")
            .envs(self.environment.iter().cloned());
        command
    }

    /// Writes the configuration file and what it names; gives its path.
    pub fn write_config(&self) -> PathBuf {
        let dir = self.directory();
        fs::create_dir_all(dir.join("state")).expect("make the daemon's state directory");
        self.mount_bpffs();
        let mut config = self.config.clone();
        if config.get("identity").is_none() {
            config["identity"] = json!({ "source": "devCa", "dir": self.node.ca() });
        }
        config["pods"] = Value::from(self.pods.clone());
        let path = dir.join("config.yaml");
        fs::write(&path, serde_json::to_string_pretty(&config).expect("JSON"))
            .expect("write the configuration");
        path
    }

    /// The daemon's own cgroup; a container of the pod that it runs in.
    pub fn cgroup(&self) -> PathBuf {
        match &self.pod {
            Some(pod) => pod.container(&self.cgroup),
            None => self.node.cgroup().join(&self.cgroup),
        }
    }

    /// The namespace that it runs in.
    pub fn netns(&self) -> &Netns {
        self.pod.as_ref().map_or(self.node.netns(), Pod::netns)
    }

    fn directory(&self) -> PathBuf {
        directory(&self.node, self.pod.as_ref())
    }

    /// The node's private bpffs, which holds the pins.
    pub fn bpffs(&self) -> PathBuf {
        self.directory().join("bpf")
    }

    /// The daemon's state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.directory().join("state")
    }

    /// A command of `redirect` with other arguments, such as `uninstall`, in the daemon's namespace.
    pub fn command(&self) -> Command {
        match &self.pod {
            Some(pod) => pod.outside_command(&self.binary),
            None => self.node.command(&self.binary),
        }
    }

    /// Runs `redirect uninstall` on what this daemon left.
    #[track_caller]
    pub fn uninstall(&self) {
        let mut command = self.command();
        command.arg("uninstall").arg("--bpffs").arg(self.bpffs());
        command.arg("--state-dir").arg(self.state_dir());
        let output = command.output().expect("start redirect");
        assert!(
            output.status.success(),
            "uninstall: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Mounts the daemon's own bpffs, once.
    pub fn mount_bpffs(&self) {
        let dir = self.bpffs();
        if !dir.exists() {
            fs::create_dir_all(&dir).expect("make the mount point");
            mount(
                Some("bpf"),
                &dir,
                Some("bpf"),
                MsFlags::empty(),
                Some("mode=0700"),
            )
            .expect("mount a bpffs");
        }
    }
}

/// Where the files of a node's daemon are, or of that in a pod.
fn directory(node: &Node, pod: Option<&Pod>) -> PathBuf {
    let dir = node.directory();
    pod.map_or(dir.clone(), |pod| dir.join(pod.name()))
}

/// A running daemon. Killed when dropped; shows its log if a test is failing then.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    spec: DaemonSpec,
}

impl Daemon {
    /// Waits for the log line that says `ready`.
    #[track_caller]
    pub fn wait_ready(&self) {
        self.wait_log("line that says `ready`", |line| {
            line.contains("ready") && line.contains("pods=")
        });
    }

    /// Waits for a log line, from the start of the log on.
    #[track_caller]
    pub fn wait_log(&self, what: &str, mut found: impl FnMut(&str) -> bool) -> String {
        self.process
            .wait_line(what, |line| found(line).then(|| line.to_owned()))
    }

    /// Waits for a log line after the first `from` lines (see [`Process::line_count`]).
    #[track_caller]
    pub fn wait_log_from(
        &self,
        from: usize,
        what: &str,
        mut found: impl FnMut(&str) -> bool,
    ) -> String {
        self.process
            .wait_line_from(from, what, PATIENCE, |line| {
                found(line).then(|| line.to_owned())
            })
            .1
    }

    /// The log until now.
    pub fn log(&self) -> Vec<String> {
        self.process.stderr()
    }

    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        let response = self.get(METRICS, "/metrics");
        assert_eq!(response.status, 200, "{}", response.body);
        Metrics::parse(&response.body)
    }

    /// How many connections were refused or broke for this reason, by the metric that counts them.
    #[track_caller]
    pub fn failed(&self, direction: &str, reason: &str) -> u64 {
        let labels = [("direction", direction), ("reason", reason)];
        self.metrics()
            .sum("redirect_connections_failed_total", &labels) as u64
    }

    /// Waits until [`failed`](Self::failed) is at least `count`: counting comes a moment after what the client sees.
    #[track_caller]
    pub fn wait_failed(&self, direction: &str, reason: &str, count: u64) {
        eventually(
            &format!("{count} failed, {direction}, {reason}"),
            PATIENCE,
            || {
                let failed = self.failed(direction, reason);
                if failed >= count {
                    Ok(())
                } else {
                    Err(format!(
                        "{failed} are counted in\n{}",
                        self.metrics().text()
                    ))
                }
            },
        );
    }

    /// The status of `/healthz/ready`.
    #[track_caller]
    pub fn readiness(&self) -> u16 {
        self.get(READINESS, "/healthz/ready").status
    }

    #[track_caller]
    pub fn get(&self, addr: &str, path: &str) -> Response {
        let addr: SocketAddr = addr.parse().expect("a socket address");
        http::get(self.spec.netns(), addr, path)
            .unwrap_or_else(|error| panic!("GET {addr}{path}: {error}"))
    }

    /// Resident memory in KiB.
    pub fn rss_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .expect("the daemon is running");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("VmRSS in status");
        let kib = line.trim().trim_end_matches(" kB");
        kib.parse().expect("a number")
    }

    /// CPU time used until now, user and system of all threads.
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))
            .expect("the daemon is running");
        let fields: Vec<&str> = stat[stat.rfind(')').expect("comm") + 1..]
            .split_ascii_whitespace()
            .collect();
        let ticks: u64 =
            fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
        let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten();
        let per_second = per_second.unwrap_or(100).cast_unsigned();
        Duration::from_millis(ticks * 1000 / per_second)
    }

    /// How many file descriptors it holds.
    pub fn fds(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .expect("the daemon is running")
            .count()
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn spec(&self) -> &DaemonSpec {
        &self.spec
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    pub fn sigterm(&self) {
        self.process.signal(Signal::SIGTERM);
    }

    /// Sends SIGTERM and waits for the end.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.sigterm();
        self.wait()
    }

    /// Kills it with SIGKILL and reaps it.
    pub fn sigkill(&mut self) {
        self.process.kill();
    }

    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait_for(Duration::from_secs(60))
    }

    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.process.try_wait()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "log of {}:\n{}",
                self.process.name(),
                self.process.transcript(60)
            );
        }
    }
}
