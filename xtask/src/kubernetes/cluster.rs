//! The cluster: a machine with the control plane, which is also the switch, and nodes with containerd and kubelet.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{certs::Certs, cgroups, images, machine::Machine, source::renew, wait};
use crate::program::output;

/// All that clusters of this command leave anywhere begins with it.
pub const PREFIX: &str = "rdt-k8s-";
/// The control plane's address on the machines' network, and of the service `kubernetes`.
const CONTROL: &str = "172.31.0.1";
const SERVICE: &str = "10.96.0.1";
/// The nodes, and the number that is in their addresses and their pods'.
const NODES: [(usize, &str); 2] = [(1, "node-a"), (2, "node-b")];

pub struct Cluster {
    pub name: String,
    pub folder: PathBuf,
    pub control: Machine,
    pub nodes: Vec<Machine>,
    pub kubeconfig: PathBuf,
    certs: Certs,
}

impl Cluster {
    /// Starts everything; the nodes are ready some seconds later. `programs` has the programs of Kubernetes.
    ///
    /// When it fails, what was there until then stays only if it is to be looked at.
    pub fn start(programs: &Path, keep: bool) -> Result<Self> {
        let name = format!("{PREFIX}{}", std::process::id());
        let folder = Path::new("/run").join(&name);
        Self::build(name.clone(), folder, programs).or_else(|error| {
            if !keep {
                cgroups::kill(&name)?;
                remove(&name)?;
            }
            Err(error)
        })
    }

    fn build(name: String, folder: PathBuf, programs: &Path) -> Result<Self> {
        renew(&folder)?;
        let certs = Certs::create(&folder.join("certs"), CONTROL, SERVICE)?;
        let shown = [programs, &folder.join("certs")];
        let control = Machine::start(&name, "control", &folder.join("control"), &shown)?;
        let kubeconfig = certs.kubeconfig("admin", "/O=system:masters/CN=admin")?;
        control.shell(&format!(
            "ip link add nodes type bridge forward_delay 0 mcast_snooping 0\n\
             ip addr add {CONTROL}/24 dev nodes\n\
             ip addr add {SERVICE}/32 dev lo\n\
             ip link set nodes up"
        ))?;
        let mut cluster = Self {
            name,
            folder: folder.clone(),
            control,
            nodes: Vec::new(),
            kubeconfig,
            certs,
        };
        cluster.api_server(programs)?;
        for (number, name) in NODES {
            let mut node = Machine::start(&cluster.name, name, &folder.join(name), &shown)?;
            cluster.connect(&node, number)?;
            cluster.containerd(&mut node, number)?;
            cluster.nodes.push(node);
        }
        cluster.controllers(programs)?;
        for (number, name) in NODES {
            cluster.kubelet(number, name, programs)?;
        }
        Ok(cluster)
    }

    /// kubectl as the cluster's administrator. It speaks to the API server through the control plane's network.
    pub fn kubectl(&self) -> Command {
        self.client("kubectl")
    }

    pub fn client(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.control.on_network(program);
        command.env("KUBECONFIG", &self.kubeconfig);
        // Discovery is cached there: it must not meet another cluster's, which had the same address.
        command.env("HOME", &self.folder);
        command
    }

    pub fn node(&self, name: &str) -> &Machine {
        let mut nodes = self.nodes.iter();
        nodes
            .find(|node| node.name == name)
            .expect("both nodes are started together")
    }

    fn api_server(&mut self, programs: &Path) -> Result<()> {
        let certs = |name: &str| self.certs.path(name).display().to_string();
        let etcd = find("etcd")?;
        self.control.run(
            "etcd",
            &etcd,
            &args(&[
                ("data-dir", "/run/etcd"),
                ("listen-client-urls", "http://127.0.0.1:2379"),
                ("advertise-client-urls", "http://127.0.0.1:2379"),
                ("listen-peer-urls", "http://127.0.0.1:2380"),
                ("initial-advertise-peer-urls", "http://127.0.0.1:2380"),
                ("initial-cluster", "default=http://127.0.0.1:2380"),
            ]),
        )?;
        self.control.run(
            "kube-apiserver",
            &programs.join("kube-apiserver"),
            &args(&[
                ("etcd-servers", "http://127.0.0.1:2379"),
                ("secure-port", "443"),
                ("advertise-address", CONTROL),
                ("tls-cert-file", &certs("apiserver.crt")),
                ("tls-private-key-file", &certs("apiserver.key")),
                ("client-ca-file", &certs("ca.crt")),
                ("kubelet-client-certificate", &certs("kubelet-client.crt")),
                ("kubelet-client-key", &certs("kubelet-client.key")),
                ("service-account-key-file", &certs("service-accounts.key")),
                (
                    "service-account-signing-key-file",
                    &certs("service-accounts.key"),
                ),
                (
                    "service-account-issuer",
                    "https://kubernetes.default.svc.cluster.local",
                ),
                ("service-cluster-ip-range", "10.96.0.0/16"),
                // Nobody resolves the nodes' names.
                ("kubelet-preferred-address-types", "InternalIP"),
                ("authorization-mode", "Node,RBAC"),
                ("enable-admission-plugins", "NodeRestriction"),
                ("allow-privileged", "true"),
            ]),
        )
    }

    fn controllers(&mut self, programs: &Path) -> Result<()> {
        let kubectl = |args: &[&str]| output(self.kubectl().args(args));
        wait::until("the API server answers", 90, || {
            kubectl(&["get", "--raw=/readyz"]).is_ok()
        })
        .with_context(|| self.control.said("kube-apiserver"))?;
        let manager = self
            .certs
            .kubeconfig("controller-manager", "/CN=system:kube-controller-manager")?;
        let scheduler = self
            .certs
            .kubeconfig("scheduler", "/CN=system:kube-scheduler")?;
        let (manager, scheduler) = (
            manager.display().to_string(),
            scheduler.display().to_string(),
        );
        let (root, key) = (
            self.certs.path("ca.crt").display().to_string(),
            self.certs
                .path("service-accounts.key")
                .display()
                .to_string(),
        );
        self.control.run(
            "kube-controller-manager",
            &programs.join("kube-controller-manager"),
            &args(&[
                ("kubeconfig", &manager),
                ("leader-elect", "false"),
                ("root-ca-file", &root),
                ("service-account-private-key-file", &key),
                ("use-service-account-credentials", "true"),
            ]),
        )?;
        self.control.run(
            "kube-scheduler",
            &programs.join("kube-scheduler"),
            &args(&[("kubeconfig", &scheduler), ("leader-elect", "false")]),
        )
    }

    /// The node's interface `eth0`, and routes to the API server and to the other node's pods.
    fn connect(&self, node: &Machine, number: usize) -> Result<()> {
        let name = &node.name;
        output(
            Command::new("ip")
                .args(["link", "add", "name", "eth0", "netns"])
                .arg(node.init().to_string())
                .args(["type", "veth", "peer", "name", name, "netns"])
                .arg(self.control.init().to_string()),
        )?;
        let address = address(number);
        self.control.shell(&format!(
            "ip link set {name} master nodes\n\
             ip link set {name} up\n\
             ip route add 10.244.{number}.0/24 via {address}"
        ))?;
        let other = 3 - number;
        node.shell(&format!(
            "ip addr add {address}/24 dev eth0\n\
             ip link set eth0 up\n\
             ip route add {SERVICE} via {CONTROL}\n\
             ip route add 10.244.{other}.0/24 via {}",
            self::address(other)
        ))?;
        Ok(())
    }

    fn containerd(&self, node: &mut Machine, number: usize) -> Result<()> {
        let (here, there) = node.shared("containerd.toml");
        fs::write(here, CONTAINERD)?;
        let (here, conflist) = node.shared("10-pods.conflist");
        fs::write(here, serde_json::to_string_pretty(&network(number))?)?;
        node.shell(&format!("cp {} /etc/cni/net.d/", conflist.display()))?;
        node.run(
            "containerd",
            &find("containerd")?,
            &["--config".to_owned(), there.display().to_string()],
        )?;
        wait::until("containerd answers", 60, || {
            output(node.command("ctr").args(["--namespace=k8s.io", "version"])).is_ok()
        })
        .with_context(|| node.said("containerd"))?;
        images::import_basic(node)
    }

    fn kubelet(&mut self, number: usize, name: &str, programs: &Path) -> Result<()> {
        let kubeconfig = self
            .certs
            .kubeconfig(name, &format!("/O=system:nodes/CN=system:node:{name}"))?;
        let config = kubelet(&self.certs.path("ca.crt"));
        let mut nodes = self.nodes.iter_mut();
        let node = nodes
            .find(|node| node.name == name)
            .context("it was started a moment ago")?;
        let (here, there) = node.shared("kubelet.json");
        fs::write(here, serde_json::to_string_pretty(&config)?)?;
        node.run(
            "kubelet",
            &programs.join("kubelet"),
            &args(&[
                ("config", &there.display().to_string()),
                ("kubeconfig", &kubeconfig.display().to_string()),
                ("hostname-override", name),
                ("node-ip", &address(number)),
                ("container-runtime", "remote"),
                (
                    "container-runtime-endpoint",
                    "unix:///run/containerd/containerd.sock",
                ),
            ]),
        )
    }

    /// How somebody can look around in it.
    pub fn how_to_look(&self) -> String {
        let network = format!("nsenter --target {} --net --", self.control.init());
        let mut lines = format!(
            "kubectl:  {network} kubectl --kubeconfig {} get pods -A -o wide\n",
            self.kubeconfig.display()
        );
        for node in &self.nodes {
            lines += &format!("{}:   nsenter --target {} --all\n", node.name, node.init());
        }
        lines
            + &format!(
                "logs:     {}/*/logs/\nend it:   cargo xtask test-k8s --remove",
                self.folder.display()
            )
    }

    /// Ends all machines and removes what they had here.
    pub fn stop(mut self) -> Result<()> {
        for machine in self.nodes.iter_mut().chain([&mut self.control]) {
            machine.stop();
        }
        remove(&self.name)
    }
}

/// Removes clusters that nobody cleaned up, or that were kept; says which.
pub fn sweep() -> Result<Vec<String>> {
    let mut names = cgroups::named(PREFIX)?;
    let folders = fs::read_dir("/run")?.flatten();
    names.extend(
        folders
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(PREFIX)),
    );
    names.sort();
    names.dedup();
    // One that another run of this command is busy with is not ours.
    names.retain(|name| !Path::new("/proc").join(&name[PREFIX.len()..]).exists());
    for name in &names {
        cgroups::kill(name)?;
        remove(name)?;
    }
    Ok(names)
}

fn remove(name: &str) -> Result<()> {
    cgroups::remove(name)?;
    let folder = Path::new("/run").join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    Ok(())
}

fn address(number: usize) -> String {
    format!("172.31.0.{}", number + 1)
}

fn args(flags: &[(&str, &str)]) -> Vec<String> {
    let flags = flags.iter();
    flags
        .map(|(flag, value)| format!("--{flag}={value}"))
        .collect()
}

fn find(program: &str) -> Result<PathBuf> {
    crate::setup::find_program(program).with_context(|| format!("no program {program}"))
}

/// Pods on a bridge, routed between the nodes with their own addresses.
fn network(number: usize) -> Value {
    let ipam = json!({
        "type": "host-local",
        "ranges": [[{ "subnet": format!("10.244.{number}.0/24") }]],
        "routes": [{ "dst": "0.0.0.0/0" }],
    });
    json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            { "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": ipam },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}

fn kubelet(ca: &Path) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": false },
            "x509": { "clientCAFile": ca },
        },
        "authorization": { "mode": "AlwaysAllow" },
        "cgroupDriver": "cgroupfs",
        "clusterDomain": "cluster.local",
        "clusterDNS": ["10.96.0.10"],
        "resolvConf": "/run/resolv.conf",
        "failSwapOn": false,
        // Neither may be had without CAP_SYS_RESOURCE.
        "oomScoreAdj": 0,
        "maxOpenFiles": 10000,
        // A disk that is nearly full is this machine's matter.
        "evictionHard": { "memory.available": "50Mi", "nodefs.available": "0%", "imagefs.available": "0%" },
        "imageGCHighThresholdPercent": 100,
        "syncFrequency": "5s",
        "nodeStatusUpdateFrequency": "5s",
    })
}

/// `restrict_oom_score_adj`: lowering it takes CAP_SYS_RESOURCE, which a test machine need not have.
const CONTAINERD: &str = r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "redirect.test/pause:1"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"#;
