//! The scenario that most tests want: a client pod on one node, a server pod on another, both captured.

use serde_json::{Value, json};

use crate::{
    cgroup,
    daemon::{Daemon, DaemonSpec},
    namespace,
    testbed::{Node, Pod, Testbed},
    wall::Wall,
    way::{Backend, Mode},
    workloads::{Workloads, merge},
};

/// Two nodes `a` and `b`; pod `client` on `a`, pod `server` on `b`, and `outsider` on `a`, which is in no mesh. Between the
/// nodes only HBONE passes, see [`Wall`].
#[derive(Debug)]
pub struct Mesh {
    pub daemon_a: Daemon,
    pub daemon_b: Daemon,
    pub client: Pod,
    pub server: Pod,
    pub outsider: Pod,
    pub a: Node,
    pub b: Node,
    pub workloads: Workloads,
    pub wall: Wall,
    // Last, so that it outlives what runs in it.
    pub bed: Testbed,
}

/// Differences from the plain scenario.
pub struct MeshBuilder {
    config_a: Value,
    config_a_of: Vec<NodeConfig>,
    config_b: Value,
    client: Vec<PodOptions>,
    server: Value,
    netfilter: bool,
    mode: Mode,
}

type NodeConfig = Box<dyn FnOnce(&Node) -> Value>;
type PodOptions = Box<dyn FnOnce(&Pod) -> Value>;

impl Mesh {
    /// The scenario without differences, both daemons ready.
    #[track_caller]
    pub fn start() -> Self {
        Self::builder().start()
    }

    pub fn builder() -> MeshBuilder {
        MeshBuilder {
            config_a: json!({}),
            config_a_of: Vec::new(),
            config_b: json!({}),
            client: Vec::new(),
            server: json!({}),
            netfilter: false,
            mode: Mode::Shared,
        }
    }
}

impl MeshBuilder {
    /// Merges `fields` into both daemons' configuration.
    #[must_use]
    pub fn config(self, fields: Value) -> Self {
        self.config_a(fields.clone()).config_b(fields)
    }

    #[must_use]
    pub fn config_a(mut self, fields: Value) -> Self {
        merge(&mut self.config_a, fields);
        self
    }

    /// Configuration of the client's daemon that names something of the node, which exists when `fields` is called.
    #[must_use]
    pub fn config_a_of(mut self, fields: impl FnOnce(&Node) -> Value + 'static) -> Self {
        self.config_a_of.push(Box::new(fields));
        self
    }

    #[must_use]
    pub fn config_b(mut self, fields: Value) -> Self {
        merge(&mut self.config_b, fields);
        self
    }

    /// Options of the pod `client`.
    #[must_use]
    pub fn client(self, fields: Value) -> Self {
        self.client_of(|_| fields)
    }

    /// Options of the pod `client` that name something of the pod, which exists when `fields` is called.
    #[must_use]
    pub fn client_of(mut self, fields: impl FnOnce(&Pod) -> Value + 'static) -> Self {
        self.client.push(Box::new(fields));
        self
    }

    /// Options of the pod `server`.
    #[must_use]
    pub fn server(mut self, fields: Value) -> Self {
        merge(&mut self.server, fields);
        self
    }

    /// Captures both pods by `backend`, with the proxies where `mode` says.
    #[must_use]
    pub fn way(mut self, backend: Backend, mode: Mode) -> Self {
        self.mode = mode;
        self.config(backend.config()).config(mode.config())
    }

    /// Captures the client by iptables rules of the test's own, not by the daemon's programs.
    #[must_use]
    pub fn by_netfilter(mut self) -> Self {
        self.netfilter = true;
        self.config(json!({ "capture": { "backend": "none" } }))
    }

    #[track_caller]
    pub fn start(self) -> Mesh {
        self.start_with(|_, _| {})
    }

    /// As `start`; `prepare` may change the pods (sysctls, cgroups) before any daemon runs.
    #[track_caller]
    pub fn start_with(self, prepare: impl FnOnce(&Pod, &Pod)) -> Mesh {
        let bed = Testbed::new();
        let (a, b) = (bed.node("a"), bed.node("b"));
        let wall = Wall::around(&a);
        let (client, server, outsider) = (a.pod("client"), b.pod("server"), a.pod("outsider"));
        prepare(&client, &server);
        if self.netfilter {
            redirect_by_netfilter(&client);
            redirect_by_netfilter(&server);
        }
        let workloads = bed.workloads().hbone(&client).hbone(&server);
        workloads.write();
        let start = |spec: DaemonSpec, pod: &Pod, options: Value, config: Value| {
            spec.capture_with(pod, options).config(config).start()
        };
        let mut client_options = json!({});
        self.client
            .into_iter()
            .for_each(|options| merge(&mut client_options, options(&client)));
        let mut config_a = self.config_a;
        self.config_a_of
            .into_iter()
            .for_each(|fields| merge(&mut config_a, fields(&a)));
        let spec = |node: &Node, pod: &Pod| match self.mode {
            Mode::Dedicated => pod.daemon(),
            Mode::Shared | Mode::Node => node.daemon(),
        };
        let daemon_a = start(spec(&a, &client), &client, client_options, config_a);
        let daemon_b = start(spec(&b, &server), &server, self.server, self.config_b);
        Mesh {
            daemon_a,
            daemon_b,
            client,
            server,
            outsider,
            a,
            b,
            workloads,
            wall,
            bed,
        }
    }
}

/// Redirects the TCP connections of the pod's cgroup to port 15001, those to itself excepted.
fn redirect_by_netfilter(pod: &Pod) {
    let cgroup = pod.cgroup();
    let cgroup = cgroup
        .strip_prefix(cgroup::mount_point())
        .expect("below the mount point");
    for (program, own, loopback) in [
        ("iptables", pod.ipv4(), "127.0.0.0/8"),
        ("ip6tables", pod.ipv6(), "::1/128"),
    ] {
        let table = format!(
            "*nat\n-A OUTPUT -d {loopback} -j RETURN\n-A OUTPUT -d {own} -j RETURN\n\
             -A OUTPUT -p tcp -m cgroup --path {} -j REDIRECT --to-ports 15001\nCOMMIT\n",
            cgroup.display()
        );
        namespace::run_with_input(pod.netns(), &format!("{program}-restore"), &[], &table);
    }
}
