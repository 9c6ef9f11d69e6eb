//! Workloads that share a network namespace with others, and have only their cgroup to themselves: host networking, systemd
//! units.

use std::{fs, net::SocketAddr, path::PathBuf, process::Command};

use redirect_tests::{
    App, Daemon, DaemonSpec, Mesh, Node, Pod, Process, app_binary,
    exchange::{Held, greeted, greeter, refused},
};
use serde_json::{Value, json};

/// A mesh of two captured pods, and on its second node, in the node's own namespace, the workloads `web` and `other`, which
/// share an address and an identity, and `client`, which has another. A process of the node, `host`, is nobody's workload.
struct Shared {
    mesh: Mesh,
    address: [String; 2],
}

const WEB: u16 = 8080;
const OTHER: u16 = 8081;

impl Shared {
    #[track_caller]
    fn start() -> Self {
        // The second daemon comes later, with these workloads.
        let mut mesh = Mesh::start();
        assert!(mesh.daemon_b.stop().success());
        let address = ["10.244.2.1".to_owned(), "fd00:10:244:2::1".to_owned()];
        for name in ["web", "other", "client"] {
            fs::create_dir_all(cgroup(&mesh.b, name)).expect("make the workload's cgroup");
        }
        let spec = Self::spec(&mesh, &address);
        mesh.daemon_b = spec.start();
        Self { mesh, address }
    }

    fn spec(mesh: &Mesh, address: &[String; 2]) -> DaemonSpec {
        let workload = |name: &str, account: &str, port: Option<u16>| {
            let port = port.into_iter();
            let inbound = port.flat_map(|port| address.each_ref().map(|ip| at(ip, port)));
            let inbound: Vec<_> = inbound.map(|service| service.to_string()).collect();
            json!({
                "name": name, "namespace": "default", "serviceAccount": account,
                "cgroup": cgroup(&mesh.b, name), "ips": address, "cgroupOnly": { "inbound": inbound },
            })
        };
        let entry = |name: &str, account: &str, ips: Value| json!({ "name": name, "namespace": "default", "serviceAccount": account, "workloadIps": ips, "protocol": "HBONE" });
        let pod = |pod: &Pod| entry(pod.name(), pod.name(), json!([pod.ipv4(), pod.ipv6()]));
        let list = [
            pod(&mesh.client),
            pod(&mesh.server),
            entry("node-b", "node-b", json!(address)),
        ];
        let list: Vec<_> = list
            .into_iter()
            .map(|mut entry| {
                entry["uid"] = json!(format!("uid/{}", entry["name"]));
                entry
            })
            .collect();
        mesh.workloads
            .write_text(&json!({ "workloads": list }).to_string());
        let spec = mesh.daemon_b.spec().clone().without_pods();
        spec.capture(&mesh.server)
            .raw_pod(workload("web", "node-b", Some(WEB)))
            .raw_pod(workload("other", "node-b", Some(OTHER)))
            .raw_pod(workload("client", "someone", None))
    }

    fn daemon(&self) -> &Daemon {
        &self.mesh.daemon_b
    }

    fn at(&self, port: u16) -> [SocketAddr; 2] {
        self.address.each_ref().map(|ip| at(ip, port))
    }

    /// Starts `rdt-app` as the workload.
    #[track_caller]
    fn app(&self, workload: &str, args: &[&str]) -> App {
        let command = self
            .mesh
            .b
            .command_in(&cgroup(&self.mesh.b, workload), app_binary());
        start(workload, command, args)
    }

    /// Starts it as a process of the node that is no workload.
    #[track_caller]
    fn host(&self, args: &[&str]) -> App {
        start("host", self.mesh.b.command(app_binary()), args)
    }

    #[track_caller]
    fn serve(&self, workload: &str, port: u16) -> App {
        let listen = format!("[::]:{port}");
        let args = ["serve", "--mode", "greet", "--listen", &listen];
        let app = match workload {
            "host" => self.host(&args),
            _ => self.app(workload, &args),
        };
        app.event("listening");
        app
    }

    /// Waits for the access log of a connection of `workload` in `direction`.
    #[track_caller]
    fn logged(&self, workload: &str, direction: &str) -> String {
        let pod = format!("pod=default/{workload}");
        let direction = format!("direction=\"{direction}\"");
        self.daemon().wait_log("access log line", |line| {
            line.contains(&pod) && line.contains(&direction) && line.contains("connection closed")
        })
    }
}

#[track_caller]
fn start(name: &str, mut command: Command, args: &[&str]) -> App {
    command.args(args);
    App::new(Process::spawn(name, command))
}

fn cgroup(node: &Node, workload: &str) -> PathBuf {
    node.cgroup()
        .join("system.slice")
        .join(format!("{workload}.service"))
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}

#[track_caller]
fn call(app: &App) -> String {
    let greeting = app.event("received").text().to_owned();
    assert!(greeting.starts_with("hello "), "{greeting}");
    greeting
}

#[test]
fn each_workloads_connections_carry_its_own_identity() {
    let shared = Shared::start();
    let _server = greeter(&shared.mesh.client, 9090);
    for dst in [shared.mesh.client.at(9090), shared.mesh.client.at6(9090)] {
        let dst = dst.to_string();
        for (workload, account) in [("web", "node-b"), ("client", "someone")] {
            let app = shared.app(workload, &["connect", &dst, "recv-line", "names"]);
            app.event("connected");
            // The app sees its node's address.
            let greeting = call(&app);
            assert!(
                shared.address.iter().any(|ip| greeting.contains(ip)),
                "{greeting}"
            );
            app.event("done");
            let identity = format!("src.identity=spiffe://cluster.local/ns/default/sa/{account}");
            let line = shared.logged(workload, "outbound");
            assert!(line.contains(&identity), "{line}");
            let peer = shared.mesh.daemon_a.wait_log("access log line", |line| {
                line.contains("direction=\"inbound\"") && line.contains(&identity)
            });
            assert!(peer.contains("connection closed"), "{peer}");
        }
    }
    assert_eq!(shared.mesh.wall.leaked(), 0);
}

#[test]
fn a_process_of_the_node_is_left_alone() {
    let shared = Shared::start();
    // On the same node, so that it needs no way through the wall.
    let outsider = shared.mesh.b.pod("outsider");
    let outside = greeter(&outsider, 9090);
    let app = shared.host(&["connect", &outsider.at(9090).to_string(), "recv-line"]);
    let port = app.event("connected").addr("sockname").port();
    call(&app);
    assert_eq!(outside.event("accepted").addr("peer").port(), port);
    // A workload's is carried, and the same address is another's socket then.
    let app = shared.app(
        "web",
        &["connect", &outsider.at(9090).to_string(), "recv-line"],
    );
    let port = app.event("connected").addr("sockname").port();
    call(&app);
    assert_ne!(outside.event("accepted").addr("peer").port(), port);
}

#[test]
fn tunnels_and_plaintext_reach_what_a_workload_serves_and_nothing_else() {
    let shared = Shared::start();
    let web = shared.serve("web", WEB);
    let _other = shared.serve("other", OTHER);
    let private = shared.serve("host", 7070);
    for (web_at, other_at) in shared.at(WEB).into_iter().zip(shared.at(OTHER)) {
        // Over HBONE from another node.
        greeted(&shared.mesh.client, web_at, &[]);
        let line = shared.logged("web", "inbound");
        assert!(line.contains("sa/client"), "{line}");
        let client = web.event("accepted").addr("peer").ip();
        assert!(
            [shared.mesh.client.ipv4(), shared.mesh.client.ipv6()].contains(&client),
            "{client}"
        );
        greeted(&shared.mesh.client, other_at, &[]);
        shared.logged("other", "inbound");
    }
    for dst in shared.at(7070) {
        refused(&shared.mesh.client, dst);
    }
    shared.daemon().wait_failed("inbound", "not_served", 2);
    assert_eq!(private.events("accepted"), []);
    // In plaintext, from a pod of the same node that is in no mesh, and from the node itself.
    let stranger = shared.mesh.b.pod("stranger");
    for dst in shared.at(WEB) {
        greeted(&stranger, dst, &[]);
        let app = shared.host(&["connect", &dst.to_string(), "recv-line"]);
        call(&app);
    }
    shared
        .daemon()
        .wait_log("line of a plaintext connection", |line| {
            line.contains("plaintext connection closed") && line.contains("pod=default/web")
        });
    for dst in shared.at(7070) {
        greeted(&stranger, dst, &[]);
    }
}

#[test]
fn policies_hold_for_what_is_served() {
    let shared = Shared::start();
    let _web = shared.serve("web", WEB);
    let stranger = shared.mesh.b.pod("stranger");
    let mut held = Held::open(&stranger, shared.at(WEB)[0]);
    held.echo("before").expect("no policy yet");
    let text = fs::read_to_string(shared.mesh.workloads.path()).expect("the workload file");
    let mut file: Value = serde_json::from_str(&text).expect("JSON");
    file["policies"] = json!([{
        "name": "mesh-only", "namespace": "default", "scope": "Namespace", "action": "Allow",
        "rules": [[[{ "principals": [{ "Presence": {} }] }]]],
    }]);
    shared.mesh.workloads.write_text(&file.to_string());
    assert_eq!(held.app().event("error").str("name"), "ECONNRESET");
    for dst in shared.at(WEB) {
        refused(&stranger, dst);
        let app = shared.host(&["connect", &dst.to_string(), "recv-all"]);
        assert_eq!(app.event("error").str("name"), "ECONNRESET");
        greeted(&shared.mesh.client, dst, &[]);
    }
}

#[test]
fn our_ports_are_of_no_use_to_others_while_the_daemon_is_down() {
    let mut shared = Shared::start();
    let _web = shared.serve("web", WEB);
    shared.mesh.daemon_b.sigkill();
    // The node's own processes may take them; what was captured does not go there.
    let takers: Vec<_> = [15001, 15006, 15008]
        .map(|port| shared.serve("host", port))
        .into();
    let stranger = shared.mesh.b.pod("stranger");
    for workload in ["web", "client"] {
        for dst in [shared.mesh.client.at(9), shared.mesh.client.at6(9)] {
            let app = shared.app(workload, &["connect", &dst.to_string(), "recv-all"]);
            assert_eq!(app.event("error").str("name"), "ECONNREFUSED");
        }
    }
    for port in [WEB, 15001, 15006, 15008] {
        for dst in shared.at(port) {
            refused(&stranger, dst);
        }
    }
    for taker in &takers {
        assert_eq!(taker.events("accepted"), []);
    }
    // A workload may not take them at all.
    let app = shared.app("web", &["serve", "--listen", "[::]:15053"]);
    assert!(!{ app }.wait().success());
    drop(takers);
    let spec = shared.mesh.daemon_b.spec().clone();
    shared.mesh.daemon_b = spec.start();
    for dst in shared.at(WEB) {
        greeted(&stranger, dst, &[]);
        greeted(&shared.mesh.client, dst, &[]);
    }
}

#[test]
fn a_workload_leaves_and_the_others_stay_captured() {
    let mut shared = Shared::start();
    let server = greeter(&shared.mesh.client, 9090);
    let _web = shared.serve("web", WEB);
    assert!(shared.mesh.daemon_b.stop().success());
    // Without `client` and `other`.
    let spec = Shared::spec(&shared.mesh, &shared.address);
    let config = spec.write_config();
    let text = fs::read_to_string(&config).expect("the configuration");
    let config: Value = serde_json::from_str(&text).expect("JSON");
    let pods = config["pods"].as_array().expect("a list").iter();
    let keep = pods.filter(|pod| !["client", "other"].contains(&pod["name"].as_str().unwrap()));
    let spec = keep.fold(spec.clone().without_pods(), |spec, pod| {
        spec.raw_pod(pod.clone())
    });
    shared.mesh.daemon_b = spec.start();
    let dst = shared.mesh.client.at(9090).to_string();
    let app = shared.app("web", &["connect", &dst, "recv-line"]);
    call(&app);
    assert_eq!(server.events("accepted").len(), 1);
    greeted(&shared.mesh.client, shared.at(WEB)[0], &[]);
    // The one that left is free, and so meets the wall.
    let app = shared.app("client", &["connect", &dst, "recv-all"]);
    assert_eq!(app.event("error").str("name"), "ECONNREFUSED");
    assert!(shared.mesh.wall.leaked() > 0);
    // Nothing of ours is left in the end.
    assert!(shared.mesh.daemon_b.stop().success());
    spec.uninstall();
    let mut ip = Command::new("ip");
    ip.args(["route", "show", "table", "local", "proto", "114"]);
    let routes = shared.mesh.b.netns().run(|| ip.output());
    let routes = routes.expect("enter the namespace").expect("start ip");
    assert_eq!(String::from_utf8_lossy(&routes.stdout), "");
}

/// Each start of a systemd unit makes its cgroup anew.
#[test]
fn a_unit_that_is_started_anew_is_captured_again() {
    let shared = Shared::start();
    let server = greeter(&shared.mesh.client, 9090);
    let dst = shared.mesh.client.at(9090).to_string();
    let cgroup = cgroup(&shared.mesh.b, "web");
    fs::remove_dir(&cgroup).expect("remove the unit's cgroup");
    fs::create_dir(&cgroup).expect("make it anew");
    let process = shared.daemon().process();
    process.signal(nix::sys::signal::Signal::SIGHUP);
    shared.daemon().wait_log("line of a repair", |line| {
        line.contains("default/web") && line.contains("its cgroup was made anew")
    });
    call(&shared.app("web", &["connect", &dst, "recv-line"]));
    assert_eq!(server.events("accepted").len(), 1);
    assert!(shared.logged("web", "outbound").contains("sa/node-b"));
    // The others are who they were, and what the unit serves is its own.
    call(&shared.app("client", &["connect", &dst, "recv-line"]));
    assert!(shared.logged("client", "outbound").contains("sa/someone"));
    let _web = shared.serve("web", WEB);
    greeted(&shared.mesh.client, shared.at(WEB)[0], &[]);
    assert_eq!(shared.mesh.wall.leaked(), 0);
}
