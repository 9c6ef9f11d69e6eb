//! Pods that start as a container runtime starts them: a runner of CNI plugins, with Debian's bridge, host-local, loopback and
//! portmap ahead of ours.
//!
//! It does what libcni does with a list (CNI spec 1.1, section 3): ADD and CHECK in order, DEL in reverse, each plugin with the
//! result of the one before it. Plugins run in the node's network namespace.

use std::{
    fs,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use redirect::sys::netns::Netns;
use serde_json::{Value, json};

use crate::{
    App, Process, app_binary,
    binaries::{cni_binary, redirect_binary},
    namespace,
    testbed::{Node, lock},
};

/// Where Debian's `containernetworking-plugins` are.
pub const DEBIANS: &str = "/usr/lib/cni";
/// The name of our plugin: of its binary, and in lists.
pub const OURS: &str = "redirect-cni";

/// A node's CNI configuration, and the runtime that uses it. Clones are handles.
#[derive(Clone, Debug)]
pub struct Chain {
    node: Node,
    folder: PathBuf,
    count: Arc<AtomicU32>,
}

/// What a runtime has made before it calls plugins: a namespace without a network, and the pod's cgroup, which kubelet made.
#[derive(Clone, Debug)]
pub struct Sandbox {
    pub name: String,
    pub uid: String,
    pub container_id: String,
    pub netns: Netns,
    pub cgroup: PathBuf,
    /// Whether the plugins are told the Kubernetes pod that it is.
    pub is_kubernetes: bool,
    node: Node,
    netns_name: String,
    /// What ADD gave, which a runtime keeps for the later calls.
    result: Arc<Mutex<Option<String>>>,
}

/// What a plugin answered.
#[derive(Clone, Debug)]
pub struct Answer {
    pub plugin: String,
    pub stdout: String,
    /// From its start to its exit.
    pub took: Duration,
}

/// A plugin failed; what it said, as the specification wants it.
#[derive(Clone, Debug)]
pub struct Failure {
    pub plugin: String,
    pub code: u64,
    pub msg: String,
    pub details: String,
    pub took: Duration,
}

impl Chain {
    /// A list of Debian's plugins, which give addresses of the node's pods from `.50` on; ours is not in it yet.
    pub fn new(node: &Node) -> Self {
        let chain = Self {
            node: node.clone(),
            folder: node.directory().join("cni"),
            count: Arc::default(),
        };
        for folder in [chain.net_dir(), chain.bin_dir()] {
            fs::create_dir_all(folder).expect("make the folders of CNI");
        }
        chain.write("1.0.0");
        chain
    }

    /// Writes the list anew, in a version of the specification and without ours.
    pub fn write(&self, version: &str) {
        let number = self.node.number;
        let list = json!({
            "cniVersion": version,
            "name": "rdt",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "br0",
                    "isDefaultGateway": true,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": self.folder.join("ipam"),
                        "ranges": [
                            [{ "subnet": format!("10.244.{number}.0/24"), "rangeStart": format!("10.244.{number}.50") }],
                            [{ "subnet": format!("fd00:10:244:{number}::/64"), "rangeStart": format!("fd00:10:244:{number}::50") }],
                        ],
                    },
                },
                { "type": "loopback" },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ],
        });
        let text = serde_json::to_string_pretty(&list).expect("JSON");
        fs::write(self.conflist(), text).expect("write the list");
    }

    pub fn net_dir(&self) -> PathBuf {
        self.folder.join("net.d")
    }

    pub fn bin_dir(&self) -> PathBuf {
        self.folder.join("bin")
    }

    pub fn conflist(&self) -> PathBuf {
        self.net_dir().join("10-rdt.conflist")
    }

    /// A command `redirect cni VERB` for this node's folders.
    pub fn installer(&self, verb: &str) -> Command {
        let mut command = Command::new(redirect_binary());
        command.args(["cni", verb, "--bin-dir"]).arg(self.bin_dir());
        command.arg("--net-dir").arg(self.net_dir());
        if verb != "uninstall" {
            command.arg("--binary").arg(cni_binary());
        }
        command
    }

    /// Puts our plugin into the list by `redirect cni install`, to ask the agent at `socket`.
    #[track_caller]
    pub fn install(&self, socket: &Path) {
        let mut installer = self.installer("install");
        installer.arg("--socket").arg(socket);
        installer.args(["--exclude-namespaces", "kube-system"]);
        let output = installer.output().expect("start redirect");
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "cni install: {said}{errors}");
    }

    /// A sandbox of a Kubernetes pod in namespace `default`.
    pub fn sandbox(&self, name: &str) -> Sandbox {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let testbed = self.node.cgroup();
        let id = testbed.parent().and_then(Path::file_name);
        let id = id.expect("a node's cgroup is in its testbed's").display();
        let netns_name = format!("{id}-{}-cni{number}", self.node.name());
        // As long as real ones, and unique.
        let container_id = format!("{:0>64}", format!("{:x}", fingerprint(&netns_name)));
        let uid = format!("{id}-{name}-{number}");
        let cgroup = self
            .node
            .cgroup()
            .join(format!("kubepods/besteffort/pod{uid}"));
        fs::create_dir_all(&cgroup).expect("make the pod's cgroup");
        Sandbox {
            name: name.to_owned(),
            uid,
            container_id,
            netns: namespace::create(&netns_name),
            cgroup,
            is_kubernetes: true,
            node: self.node.clone(),
            netns_name,
            result: Arc::default(),
        }
    }

    /// ADD of each plugin in order. After a failure nothing is taken back: a runtime calls DEL then.
    pub fn add(&self, sandbox: &Sandbox) -> Result<Vec<Answer>, Failure> {
        let (list, plugins) = self.read();
        let (mut answers, mut result) = (Vec::new(), None);
        for plugin in &plugins {
            let answer = self.call("ADD", &list, plugin, Some(sandbox), result.as_deref(), "")?;
            result = Some(answer.stdout.clone());
            answers.push(answer);
        }
        *lock(&sandbox.result) = result;
        Ok(answers)
    }

    pub fn check(&self, sandbox: &Sandbox) -> Result<Vec<Answer>, Failure> {
        let (list, plugins) = self.read();
        let result = lock(&sandbox.result).clone();
        let calls = plugins
            .iter()
            .map(|plugin| self.call("CHECK", &list, plugin, Some(sandbox), result.as_deref(), ""));
        calls.collect()
    }

    /// DEL of each plugin in reverse order. May be called at any time, and again.
    pub fn del(&self, sandbox: &Sandbox) -> Result<Vec<Answer>, Failure> {
        let (list, plugins) = self.read();
        let result = lock(&sandbox.result).clone();
        let calls = plugins
            .iter()
            .rev()
            .map(|plugin| self.call("DEL", &list, plugin, Some(sandbox), result.as_deref(), ""));
        calls.collect()
    }

    /// GC of our plugin alone, with the sandboxes that are still there: Debian's plugins are older than that.
    pub fn gc(&self, valid: &[&Sandbox]) -> Result<Answer, Failure> {
        let valid: Vec<Value> = valid
            .iter()
            .map(|sandbox| json!({ "containerID": sandbox.container_id, "ifname": "eth0" }))
            .collect();
        let valid = format!(r#","cni.dev/valid-attachments":{}"#, Value::from(valid));
        self.ours("GC", None, None, &valid)
    }

    /// STATUS of our plugin alone.
    pub fn status(&self) -> Result<Answer, Failure> {
        self.ours("STATUS", None, None, "")
    }

    /// A call of our plugin alone, with more members of its configuration (`,"a":1`).
    pub fn ours(
        &self,
        command: &str,
        sandbox: Option<&Sandbox>,
        previous: Option<&str>,
        more: &str,
    ) -> Result<Answer, Failure> {
        let (mut list, plugins) = self.read();
        let ours = plugins.iter().find(|plugin| plugin["type"] == OURS);
        if ["GC", "STATUS"].contains(&command) {
            list["cniVersion"] = "1.1.0".into();
        }
        let ours = ours.expect("our plugin is installed");
        self.call(command, &list, ours, sandbox, previous, more)
    }

    fn read(&self) -> (Value, Vec<Value>) {
        let text = fs::read_to_string(self.conflist()).expect("the list is there");
        let list: Value = serde_json::from_str(&text).expect("the list is JSON");
        let plugins = list["plugins"].as_array().expect("it has plugins").clone();
        (list, plugins)
    }

    /// One plugin. `previous` goes in as it is: what a plugin passes on untouched can be told by its bytes.
    fn call(
        &self,
        command: &str,
        list: &Value,
        plugin: &Value,
        sandbox: Option<&Sandbox>,
        previous: Option<&str>,
        more: &str,
    ) -> Result<Answer, Failure> {
        let mut config = plugin.clone();
        config["cniVersion"] = list["cniVersion"].clone();
        config["name"] = list["name"].clone();
        let mut text = config.to_string();
        assert_eq!(text.pop(), Some('}'));
        text.push_str(more);
        if let Some(previous) = previous {
            text.push_str(",\"prevResult\":");
            text.push_str(previous);
        }
        text.push('}');
        let kind = plugin["type"]
            .as_str()
            .expect("a plugin has a type")
            .to_owned();
        let folder = match kind == OURS {
            true => self.bin_dir(),
            false => DEBIANS.into(),
        };
        let mut process = Command::new(folder.join(&kind));
        process.env_clear().env("CNI_COMMAND", command);
        process.env(
            "CNI_PATH",
            format!("{DEBIANS}:{}", self.bin_dir().display()),
        );
        // For iptables, which portmap runs.
        process.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        if let Some(sandbox) = sandbox {
            process.env("CNI_CONTAINERID", &sandbox.container_id);
            process.env("CNI_NETNS", sandbox.netns_path());
            process.env("CNI_IFNAME", "eth0");
            if sandbox.is_kubernetes {
                process.env("CNI_ARGS", sandbox.args());
            }
        }
        let begun = Instant::now();
        let output = self
            .node
            .netns()
            .run(|| feed(process, text.as_bytes()))
            .expect("the namespace can be entered")
            .unwrap_or_else(|e| panic!("{kind}: {e}: is it installed (`cargo xtask setup`)?"));
        let took = begun.elapsed();
        answer(kind, output, took)
    }
}

impl Sandbox {
    pub fn netns_path(&self) -> PathBuf {
        namespace::path(&self.netns_name)
    }

    /// The address that the network gave to it.
    #[track_caller]
    pub fn ips(&self) -> Vec<IpAddr> {
        let result = lock(&self.result).clone().expect("it was added");
        let result: Value = serde_json::from_str(&result).expect("a result is JSON");
        let ips = result["ips"].as_array().expect("it has addresses").iter();
        ips.map(|ip| {
            let address = ip["address"].as_str().expect("an address");
            let address = address.split('/').next().expect("before the length");
            address.parse().expect("an address")
        })
        .collect()
    }

    /// Its IPv4 address with `port`.
    #[track_caller]
    pub fn at(&self, port: u16) -> SocketAddr {
        let v4 = self.ips().into_iter().find(IpAddr::is_ipv4);
        (v4.expect("it has an IPv4 address"), port).into()
    }

    /// A command as the first process of a container of the pod.
    pub fn command(&self, program: &Path) -> Command {
        let container = self.cgroup.join("app");
        fs::create_dir_all(&container).expect("make the container's cgroup");
        let mut command = Command::new(app_binary());
        command.arg("enter").arg(container);
        command.arg(self.netns_path()).arg(program);
        command
    }

    /// Starts `rdt-app` as the first process of a container of the pod.
    #[track_caller]
    pub fn app(&self, args: &[&str]) -> App {
        let mut command = self.command(&app_binary());
        command.args(args);
        App::new(Process::spawn(format!("app in {}", self.name), command))
    }

    /// As a runtime and kubelet do at the end: namespace and cgroup go, whatever is in them.
    pub fn remove(&self) {
        crate::cgroup::kill_all(&self.cgroup).expect("end the pod's processes");
        namespace::delete(&self.netns_name).expect("delete the namespace");
        crate::cgroup::remove(&self.cgroup).expect("remove the pod's cgroup");
    }

    pub fn node(&self) -> &Node {
        &self.node
    }

    fn args(&self) -> String {
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            self.name, self.container_id, self.uid
        )
    }
}

fn feed(mut command: Command, input: &[u8]) -> io::Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().expect("piped");
    match stdin.write_all(input) {
        // One that refuses before it has read all.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written?,
    }
    drop(stdin);
    child.wait_with_output()
}

fn answer(plugin: String, output: Output, took: Duration) -> Result<Answer, Failure> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(Answer {
            plugin,
            stdout,
            took,
        });
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let error: Value = serde_json::from_str(&stdout)
        .unwrap_or_else(|_| panic!("{plugin} failed without an error: {stdout}{errors}"));
    let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    Err(Failure {
        plugin,
        code: error["code"].as_u64().unwrap_or_default(),
        msg: text("msg"),
        details: text("details"),
        took,
    })
}

/// FNV-1a: enough to make names differ.
fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
