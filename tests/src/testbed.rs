//! Nodes and pods.

use std::{
    ffi::OsStr,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, Once, OnceLock, PoisonError},
};

use redirect::sys::netns::Netns;

use crate::{
    binaries::{app_binary, redirect_binary},
    daemon::DaemonSpec,
    leftovers, namespace,
    process::{App, Process},
    run_id::RunId,
    way::Mode,
    workloads::Workloads,
};

/// Nodes with pods, routed to each other. Removes everything it made when dropped: keep it alive longest.
#[derive(Debug)]
pub struct Testbed {
    shared: Arc<Shared>,
}

/// A host-like network namespace with a bridge for its pods and a link to each other node. Clones are handles.
#[derive(Clone, Debug)]
pub struct Node {
    shared: Arc<Shared>,
    name: String,
    pub(crate) number: u8,
    netns: Netns,
    pods: Arc<Mutex<u8>>,
}

/// A network namespace with an interface `eth0`, an IPv4 and an IPv6 address, and a cgroup. Clones are handles.
#[derive(Clone, Debug)]
pub struct Pod {
    node: Box<Node>,
    name: String,
    uid: String,
    netns_name: String,
    netns: Netns,
    ipv4: IpAddr,
    ipv6: IpAddr,
}

#[derive(Debug)]
struct Shared {
    id: RunId,
    directory: PathBuf,
    nodes: Mutex<Vec<Node>>,
    ca: OnceLock<PathBuf>,
}

impl Testbed {
    /// An empty testbed; sweeps what killed test processes left, once per process.
    pub fn new() -> Self {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(|| {
            leftovers::sweep()
                .iter()
                .for_each(|failure| eprintln!("sweep: {failure}"))
        });
        let id = RunId::fresh();
        let directory = leftovers::directory(&id);
        let shared = Shared {
            id,
            directory,
            nodes: Mutex::default(),
            ca: OnceLock::new(),
        };
        let bed = Self {
            shared: Arc::new(shared),
        };
        fs::create_dir_all(bed.directory()).expect("make the testbed's directory");
        fs::create_dir(leftovers::cgroup_root(bed.id()))
            .expect("make the testbed's cgroup (needs root)");
        bed
    }

    pub fn id(&self) -> &RunId {
        &self.shared.id
    }

    /// A directory for files, removed with the testbed.
    pub fn directory(&self) -> &Path {
        &self.shared.directory
    }

    /// Makes a node, with a veth and routes to and from each earlier node.
    pub fn node(&self, name: &str) -> Node {
        let mut nodes = lock(&self.shared.nodes);
        let number = u8::try_from(nodes.len() + 1).expect("few nodes");
        let node = Node::create(Arc::clone(&self.shared), name, number);
        for other in nodes.iter() {
            other.connect(&node);
        }
        nodes.push(node.clone());
        node
    }

    /// A new list of workloads, which all daemons of this testbed read (see [`Workloads::write`]).
    pub fn workloads(&self) -> Workloads {
        Workloads::new(self.directory().join("workloads.yaml"))
    }

    /// The development CA that daemons of this testbed share; made at the first call.
    pub fn ca(&self) -> &Path {
        self.shared.ca()
    }
}

impl Default for Testbed {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        let failed = leftovers::remove(&self.shared.id);
        if !failed.is_empty() {
            let failed = failed.join("\n");
            if std::thread::panicking() {
                eprintln!("cleaning up {}: {failed}", self.shared.id);
            } else {
                panic!("cleaning up {}: {failed}", self.shared.id);
            }
        }
    }
}

impl Node {
    fn create(shared: Arc<Shared>, name: &str, number: u8) -> Self {
        let netns = namespace::create(&format!("{}-{name}", shared.id));
        namespace::ip(
            Some(&netns),
            &format!(
                "link add br0 address 02:00:00:00:00:{number:02x} type bridge forward_delay 0 mcast_snooping 0\n\
                 addr add 10.244.{number}.1/24 dev br0\n\
                 addr add fd00:10:244:{number}::1/64 dev br0 nodad\n\
                 link set br0 up\n"
            ),
        );
        namespace::sysctl(&netns, "net.ipv4.ip_forward", "1");
        namespace::sysctl(&netns, "net.ipv6.conf.all.forwarding", "1");
        let node = Self {
            shared,
            name: name.to_owned(),
            number,
            netns,
            pods: Arc::default(),
        };
        fs::create_dir_all(node.cgroup().join("host")).expect("make the node's cgroup");
        fs::create_dir_all(node.directory()).expect("make the node's directory");
        node
    }

    /// Links `self` and `other` by a veth whose ends are named `to-NODE`, and routes their pods over it.
    fn connect(&self, other: &Self) {
        let (i, j) = (self.number, other.number);
        let (to_other, to_self) = (self.link_to(other), other.link_to(self));
        let other_netns = format!("{}-{}", self.shared.id, other.name);
        let side = |number: u8, link: &str, peer: u8| {
            format!(
                "addr add 172.30.{i}{j}.{number}/24 dev {link}\n\
                 addr add fd00:172:30:{i}{j}::{number}/64 dev {link} nodad\n\
                 link set {link} up\n\
                 route add 10.244.{peer}.0/24 via 172.30.{i}{j}.{peer}\n\
                 route add fd00:10:244:{peer}::/64 via fd00:172:30:{i}{j}::{peer}\n"
            )
        };
        let make =
            format!("link add {to_other} type veth peer name {to_self} netns {other_netns}\n");
        namespace::ip(Some(&self.netns), &(make + &side(i, &to_other, j)));
        namespace::ip(Some(&other.netns), &side(j, &to_self, i));
    }

    /// The name of this node's interface to `other`.
    pub fn link_to(&self, other: &Self) -> String {
        format!("to-{}", other.name)
    }

    /// Makes a pod of namespace `default` whose service account has the pod's name.
    pub fn pod(&self, name: &str) -> Pod {
        let host = {
            let mut pods = lock(&self.pods);
            *pods += 1;
            10 + *pods
        };
        let number = self.number;
        let netns_name = format!("{}-{}-{name}", self.shared.id, self.name);
        let netns = namespace::create(&netns_name);
        namespace::ip(
            Some(&self.netns),
            &format!(
                "link add veth{host} type veth peer name eth0 netns {netns_name}\n\
                 link set veth{host} master br0 up\n"
            ),
        );
        namespace::ip(
            Some(&netns),
            &format!(
                "addr add 10.244.{number}.{host}/24 dev eth0\n\
                 addr add fd00:10:244:{number}::{host}/64 dev eth0 nodad\n\
                 link set eth0 up\n\
                 route add default via 10.244.{number}.1\n\
                 route add ::/0 via fd00:10:244:{number}::1\n"
            ),
        );
        let pod = Pod {
            node: Box::new(self.clone()),
            name: name.to_owned(),
            uid: format!("{}-{name}", self.shared.id),
            netns_name,
            netns,
            ipv4: format!("10.244.{number}.{host}")
                .parse()
                .expect("an address"),
            ipv6: format!("fd00:10:244:{number}::{host}")
                .parse()
                .expect("an address"),
        };
        fs::create_dir_all(pod.container("app")).expect("make the pod's cgroup");
        pod
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The cgroup above everything of this node.
    pub fn cgroup(&self) -> PathBuf {
        leftovers::cgroup_root(&self.shared.id).join(&self.name)
    }

    /// A directory for the node's files, removed with the testbed.
    pub fn directory(&self) -> PathBuf {
        self.shared.directory.join(&self.name)
    }

    /// The testbed's development CA, see [`Testbed::ca`].
    pub fn ca(&self) -> &Path {
        self.shared.ca()
    }

    /// Describes a daemon for this node; nothing runs before [`DaemonSpec::start`].
    pub fn daemon(&self) -> DaemonSpec {
        let workloads = self.shared.directory.join("workloads.yaml");
        DaemonSpec::new(self.clone(), None, workloads)
    }

    /// A command that will run in the node's namespace, in a cgroup beside the pods'.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        enter(
            &self.cgroup().join("host"),
            &self.netns.path(),
            program.as_ref(),
        )
    }

    /// A command that will run in the node's namespace and in `cgroup`, which must exist.
    pub fn command_in(&self, cgroup: &Path, program: impl AsRef<OsStr>) -> Command {
        enter(cgroup, &self.netns.path(), program.as_ref())
    }

    pub fn sysctl(&self, key: &str, value: &str) {
        namespace::sysctl(&self.netns, key, value);
    }

    pub fn ip(&self, lines: &str) {
        namespace::ip(Some(&self.netns), lines);
    }
}

impl Pod {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn namespace(&self) -> &str {
        "default"
    }

    pub fn service_account(&self) -> &str {
        &self.name
    }

    /// The SPIFFE identity under the default trust domain.
    pub fn identity(&self) -> String {
        format!("spiffe://cluster.local/ns/default/sa/{}", self.name)
    }

    pub fn node(&self) -> &Node {
        &self.node
    }

    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    pub fn ipv4(&self) -> IpAddr {
        self.ipv4
    }

    pub fn ipv6(&self) -> IpAddr {
        self.ipv6
    }

    /// The pod's IPv4 address with `port`.
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.ipv4, port).into()
    }

    /// The pod's IPv6 address with `port`.
    pub fn at6(&self, port: u16) -> SocketAddr {
        (self.ipv6, port).into()
    }

    /// The pod's cgroup, above its containers'.
    pub fn cgroup(&self) -> PathBuf {
        self.node
            .cgroup()
            .join("kubepods/besteffort")
            .join(format!("pod{}", self.uid))
    }

    /// The cgroup of a container; `app` always exists, others are made by [`command_in`](Self::command_in).
    pub fn container(&self, name: &str) -> PathBuf {
        self.cgroup().join(name)
    }

    /// Describes a daemon that runs inside this pod, for it alone; nothing runs before [`DaemonSpec::start`].
    pub fn daemon(&self) -> DaemonSpec {
        let workloads = self.node.shared.directory.join("workloads.yaml");
        DaemonSpec::new(Node::clone(&self.node), Some(self.clone()), workloads)
            .config(Mode::Dedicated.config())
    }

    /// A command that will run in the pod: its cgroup first, then its namespace, before any socket exists.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.command_in("app", program)
    }

    /// As [`command`](Self::command), in the container `container`.
    pub fn command_in(&self, container: &str, program: impl AsRef<OsStr>) -> Command {
        let cgroup = self.container(container);
        fs::create_dir_all(&cgroup).expect("make the container's cgroup");
        enter(&cgroup, &self.netns.path(), program.as_ref())
    }

    /// A command in the pod's namespace and in a cgroup anywhere, which must exist.
    pub fn command_at(&self, cgroup: &Path, program: impl AsRef<OsStr>) -> Command {
        enter(cgroup, &self.netns.path(), program.as_ref())
    }

    /// A command in the pod's namespace but not in its cgroup: capture does not see it.
    pub fn outside_command(&self, program: impl AsRef<OsStr>) -> Command {
        enter(
            &self.node.cgroup().join("host"),
            &self.netns.path(),
            program.as_ref(),
        )
    }

    /// Starts `rdt-app` in the pod.
    #[track_caller]
    pub fn app<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> App {
        self.app_with(self.command(app_binary()), args)
    }

    /// Starts `rdt-app` in another container of the pod.
    #[track_caller]
    pub fn app_in<S: AsRef<OsStr>>(
        &self,
        container: &str,
        args: impl IntoIterator<Item = S>,
    ) -> App {
        self.app_with(self.command_in(container, app_binary()), args)
    }

    /// Starts `rdt-app` in the pod's namespace but not in its cgroup.
    #[track_caller]
    pub fn app_outside<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> App {
        self.app_with(self.outside_command(app_binary()), args)
    }

    #[track_caller]
    fn app_with<S: AsRef<OsStr>>(
        &self,
        mut command: Command,
        args: impl IntoIterator<Item = S>,
    ) -> App {
        command.args(args);
        App::new(Process::spawn(format!("app in {}", self.name), command))
    }

    pub fn sysctl(&self, key: &str, value: &str) {
        namespace::sysctl(&self.netns, key, value);
    }

    pub fn ip(&self, lines: &str) {
        namespace::ip(Some(&self.netns), lines);
    }

    pub fn netns_name(&self) -> &str {
        &self.netns_name
    }
}

impl Shared {
    fn ca(&self) -> &Path {
        self.ca.get_or_init(|| {
            let dir = self.directory.join("ca");
            let output = Command::new(redirect_binary())
                .args(["ca", "init"])
                .arg(&dir)
                .output();
            let output = output.expect("start `redirect ca init`");
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success(),
                "redirect ca init {}: {errors}",
                dir.display()
            );
            dir
        })
    }
}

/// `rdt-app enter` joins the cgroup and the namespace, in this order, and then becomes `program`: same pid, no socket
/// ever existed elsewhere.
fn enter(cgroup: &Path, netns: &Path, program: &OsStr) -> Command {
    let mut command = Command::new(app_binary());
    command.arg("enter").arg(cgroup).arg(netns).arg(program);
    command
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
