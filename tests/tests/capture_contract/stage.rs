//! The scenery of one way of capture, and what it was before.

use std::{fs, path::PathBuf};

use redirect_tests::{App, Mesh, Node, Pod, exchange::greeter, state::State};
use serde_json::json;

use crate::matrix::{Family, Way, is_made};

/// Of the server, and of the pod that is in no mesh.
pub const PORT: u16 = 8080;
/// Excluded from outbound capture.
pub const EXCLUDED: u16 = 2222;
/// Excluded from inbound capture.
pub const EXCLUDED_INBOUND: u16 = 3333;
/// Denied to everybody by [`POLICY`].
pub const DENIED: u16 = 8087;
/// Denied as well, and declared for probes.
pub const PROBED: u16 = 8086;
/// Nobody listens there.
pub const CLOSED: u16 = 9;
/// The name of the policy in the log.
pub const POLICY: &str = "not-these";

/// What the mesh knows by name, and its address.
pub const SERVICE: &str = "web.default.svc.cluster.local";
pub const SERVICE_VIP: &str = "10.96.0.20";

/// When a check is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Captured,
    /// The daemon of the client's node was killed.
    Dead,
    /// Another daemon has taken over.
    Again,
    /// Everybody has let go.
    Cleaned,
}

impl Phase {
    pub const ALL: [Self; 4] = [Self::Captured, Self::Dead, Self::Again, Self::Cleaned];
}

pub struct Stage {
    pub way: Way,
    pub mesh: Mesh,
    /// The DNS server of the pod that is in no mesh.
    pub upstream: Option<App>,
    /// The cgroup of whoever probes the client.
    pub prober: PathBuf,
    _apps: Vec<App>,
    before: Vec<(&'static str, State)>,
}

impl Stage {
    pub fn start(way: Way) -> Self {
        let mut before = Vec::new();
        let mesh = Mesh::builder()
            .way(way.backend, way.mode)
            .config_a_of(move |node| {
                let prober = prober(node);
                fs::create_dir(&prober).expect("make the prober's cgroup");
                match is_made(way, "probe") {
                    true => json!({ "capture": { "probes": { "cgroups": [prober] } } }),
                    false => json!({}),
                }
            })
            .client(json!({
                "excludeOutboundPorts": [EXCLUDED],
                "excludeOutboundCidrs": ["10.99.0.0/16", "fd00:99::/32"],
                "excludeInboundPorts": own_ports(EXCLUDED_INBOUND),
                "excludeInboundCidrs": ["10.98.0.0/16", "fd00:98::/32"],
                "probePorts": own_ports(PROBED),
            }))
            .start_with(|client, server| {
                client.ip("route add 10.98.0.0/15 dev eth0\n\
                     route add fd00:98::/31 dev eth0\n\
                     route add 169.254.169.254/32 dev eth0\n");
                before = states(client, server);
            });
        mesh.outsider.ip(
            "addr add 10.99.1.1/32 dev eth0\naddr add fd00:99::1/128 dev eth0 nodad\n\
             addr add 10.98.1.1/32 dev eth0\naddr add fd00:98::1/128 dev eth0 nodad\n\
             addr add 169.254.169.254/32 dev eth0\n",
        );
        let denied = [own_ports(DENIED), own_ports(PROBED)].concat();
        let condition = json!({ "destinationPorts": denied });
        mesh.workloads
            .clone()
            .service("web", &[SERVICE_VIP], 80, &[&mesh.server], PORT)
            .policy(POLICY, "Deny", condition)
            .write();
        for daemon in [&mesh.daemon_a, &mesh.daemon_b] {
            daemon.wait_log("line of the reloaded file", |line| {
                line.contains("workload file loaded") && line.contains("policies=1")
            });
        }
        let mut apps: Vec<App> = [
            (&mesh.server, PORT),
            (&mesh.server, DENIED),
            (&mesh.outsider, PORT),
            (&mesh.outsider, EXCLUDED),
        ]
        .map(|(pod, port)| greeter(pod, port))
        .into();
        for port in [PORT, EXCLUDED_INBOUND, DENIED, PROBED] {
            for any in ["0.0.0.0", "[::]"] {
                let family = if any == "[::]" {
                    Family::Ipv6
                } else {
                    Family::Ipv4
                };
                let listen = format!("{any}:{}", own_port(family, port));
                let app = ["serve", "--mode", "greet", "--listen", listen.as_str()];
                let app = mesh.client.app(app);
                app.event("listening");
                apps.push(app);
            }
        }
        let upstream = is_made(way, "DNS: a service").then(|| {
            let [v4, v6] = [mesh.outsider.at(53), mesh.outsider.at6(53)].map(|at| at.to_string());
            let upstream = mesh
                .outsider
                .app(["dns-serve", "--listen", &v4, "--listen", &v6]);
            upstream.event("listening");
            upstream
        });
        Self {
            way,
            prober: prober(&mesh.a),
            upstream,
            mesh,
            _apps: apps,
            before,
        }
    }

    /// What comes before the checks of a phase.
    pub fn enter(&mut self, phase: Phase) {
        match phase {
            Phase::Captured => {}
            Phase::Dead => self.mesh.daemon_a.sigkill(),
            Phase::Again => self.mesh.daemon_a = self.mesh.daemon_a.spec().start(),
            Phase::Cleaned => {
                for daemon in [&mut self.mesh.daemon_a, &mut self.mesh.daemon_b] {
                    let status = daemon.stop();
                    assert!(status.success(), "{status}");
                    daemon.spec().uninstall();
                }
            }
        }
    }

    /// What is not as it was before anything was captured.
    pub fn changed(&self) -> Vec<String> {
        let mut told = Vec::new();
        for ((what, before), after) in self
            .before
            .iter()
            .zip(states(&self.mesh.client, &self.mesh.server))
        {
            let differences = before.differences(&after.1);
            told.extend(
                differences
                    .into_iter()
                    .map(|line| format!("{what}: {line}")),
            );
        }
        told
    }
}

/// The port of the client's own app of a family: a socket for IPv6 takes IPv4 too, and so the port of both.
pub fn own_port(family: Family, port: u16) -> u16 {
    family.pick(port + 100, port, port)
}

fn prober(node: &Node) -> PathBuf {
    node.cgroup().join("kubelet.service")
}

fn own_ports(port: u16) -> [u16; 2] {
    [Family::Ipv4, Family::Ipv6].map(|family| own_port(family, port))
}

fn states(client: &Pod, server: &Pod) -> Vec<(&'static str, State)> {
    let of_pod = |pod: &Pod| State::of(pod.netns(), &[pod.cgroup(), pod.container("app")]);
    let of_node = |pod: &Pod| State::of(pod.node().netns(), &[]);
    vec![
        ("the client's pod", of_pod(client)),
        ("the server's pod", of_pod(server)),
        ("the client's node", of_node(client)),
        ("the server's node", of_node(server)),
    ]
}
