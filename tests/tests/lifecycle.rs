//! Start, end and everything between: capture outlives the daemon, and lets go only when told to.

use std::{ffi::OsString, fs, path::Path, time::Duration};

use nix::sys::signal::Signal;
use redirect_tests::{
    App, Daemon, Mesh, Node, Pod, Testbed, cgroup,
    exchange::{Held, greeted, greeter, refused},
    wait_until,
};
use serde_json::json;

/// One node with a captured client and a server that no daemon knows: whether a connection is captured shows in its source port.
struct Stage {
    daemon: Daemon,
    server: App,
    client: Pod,
    outside: Pod,
    node: Node,
    bed: Testbed,
}

impl Stage {
    fn set() -> Self {
        Self::with(&[])
    }

    fn with(args: &[&str]) -> Self {
        let bed = Testbed::new();
        let node = bed.node("a");
        let (client, outside) = (node.pod("client"), node.pod("outside"));
        bed.workloads().hbone(&client).write();
        let spec = args
            .iter()
            .fold(node.daemon().capture(&client), |spec, arg| spec.arg(arg));
        let daemon = spec.start();
        let server = greeter(&outside, 8080);
        Self {
            daemon,
            server,
            client,
            outside,
            node,
            bed,
        }
    }

    /// How a connect of the client fares now.
    #[track_caller]
    fn fate(&self) -> Fate {
        let mut fates = [self.outside.at(8080), self.outside.at6(8080)].map(|dst| {
            let app = self.client.app(["connect", &dst.to_string(), "recv-line"]);
            let first = app.next_event();
            if first.name() == "error" {
                assert_eq!(first.str("name"), "ECONNREFUSED");
                return Fate::Refused;
            }
            app.event("received");
            let peer = self.server.event("accepted").addr("peer");
            if peer.port() == first.addr("sockname").port() {
                Fate::Direct
            } else {
                Fate::Captured
            }
        });
        fates.sort();
        assert_eq!(fates[0], fates[1], "the families differ");
        fates[0]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Captured,
    Direct,
    Refused,
}

#[test]
fn sigterm_leaves_capture_in_place() {
    let mut stage = Stage::set();
    assert_eq!(stage.fate(), Fate::Captured);
    let status = stage.daemon.stop();
    assert!(status.success(), "{status}");
    assert_eq!(stage.fate(), Fate::Refused);
}

#[test]
fn sigkill_leaves_capture_in_place_and_a_new_daemon_adopts_it() {
    let mut stage = Stage::set();
    for _ in 0..3 {
        assert_eq!(stage.fate(), Fate::Captured);
        stage.daemon.sigkill();
        assert_eq!(stage.fate(), Fate::Refused);
        stage.daemon = stage.daemon.spec().start();
    }
    assert_eq!(stage.fate(), Fate::Captured);
    assert!(
        stage.daemon.log().iter().any(|line| line.contains("adopt")),
        "nothing was adopted"
    );
}

#[test]
fn an_abort_leaves_capture_in_place() {
    for signal in [Signal::SIGABRT, Signal::SIGQUIT] {
        let mut stage = Stage::set();
        stage.daemon.process().signal(signal);
        stage.daemon.wait();
        assert_eq!(stage.fate(), Fate::Refused, "{signal}");
    }
}

#[test]
fn a_panic_unwinds_and_leaves_capture_in_place() {
    let mut stage = Stage::set();
    stage.daemon.sigkill();
    // The daemon's own parts, in its cgroup, in a program that panics while it holds them.
    let spec = stage.daemon.spec();
    let mut command = stage
        .node
        .command_in(&spec.cgroup(), redirect_tests::app_binary());
    command.arg("capture-and-panic").arg(spec.write_config());
    let mut program = redirect_tests::Process::spawn("program that panics", command);
    let status = program.wait();
    assert_eq!(status.code(), Some(101), "{}", program.transcript(20));
    assert!(
        program.stdout().iter().any(|line| line == "captured"),
        "{}",
        program.transcript(20)
    );
    assert_eq!(stage.fate(), Fate::Refused);
}

#[test]
fn nothing_leaks_while_the_daemons_come_and_go() {
    let mut mesh = Mesh::start();
    let _server = greeter(&mesh.server, 8080);
    let dst = mesh.server.at(8080).to_string();
    let hammer = |rounds: usize| {
        let apps: Vec<App> = (0..rounds)
            .map(|_| mesh.client.app(["connect", &dst, "recv-line"]))
            .collect();
        for mut app in apps {
            app.wait();
        }
    };
    hammer(10);
    mesh.daemon_a.sigkill();
    hammer(10);
    mesh.daemon_a = mesh.daemon_a.spec().spawn();
    hammer(30);
    mesh.daemon_a.wait_ready();
    mesh.daemon_a.sigterm();
    hammer(30);
    mesh.daemon_a.wait();
    hammer(10);
    mesh.daemon_a = mesh.daemon_a.spec().start();
    greeted(&mesh.client, mesh.server.at(8080), &[]);
    assert_eq!(mesh.wall.leaked(), 0);
}

#[test]
fn sigterm_lets_connections_finish() {
    let mut mesh = Mesh::start();
    let _server = greeter(&mesh.server, 8080);
    let mut held: Vec<Held> = (0..3)
        .map(|_| Held::open(&mesh.client, mesh.server.at(8080)))
        .collect();
    // Both ends drain: the client's daemon and the server's.
    mesh.daemon_a.sigterm();
    mesh.daemon_b.sigterm();
    for daemon in [&mesh.daemon_a, &mesh.daemon_b] {
        daemon.wait_log("line that says that it drains", |line| {
            line.contains("drain")
        });
    }
    let app = mesh
        .client
        .app(["connect", &mesh.server.at(8080).to_string(), "recv-all"]);
    app.event("error");
    for round in 0..3 {
        for connection in &mut held {
            connection
                .echo(&format!("round {round}"))
                .expect("an open connection goes on");
        }
    }
    assert!(
        mesh.daemon_a.try_wait().is_none(),
        "it ended with connections open"
    );
    assert!(
        mesh.daemon_b.try_wait().is_none(),
        "it ended with connections open"
    );
    held.into_iter().for_each(Held::close);
    assert!(mesh.daemon_a.wait().success());
    assert!(mesh.daemon_b.wait().success());
    assert_eq!(mesh.wall.leaked(), 0);
}

#[test]
fn draining_has_a_limit_and_what_is_cut_off_is_a_reset() {
    let mut mesh = Mesh::builder()
        .config_a(json!({ "proxy": { "drain": "1s" } }))
        .start();
    let _server = greeter(&mesh.server, 8080);
    let held = Held::open(&mesh.client, mesh.server.at(8080));
    assert!(mesh.daemon_a.stop().success());
    assert_eq!(held.app().event("error").str("name"), "ECONNRESET");
}

#[test]
fn uninstall_lets_go_without_a_daemon() {
    let mut stage = Stage::set();
    stage.daemon.sigkill();
    assert_eq!(stage.fate(), Fate::Refused);
    // Twice: the second finds nothing to do.
    for _ in 0..2 {
        let mut command = stage.daemon.spec().command();
        command
            .arg("uninstall")
            .arg("--bpffs")
            .arg(stage.daemon.spec().bpffs())
            .arg("--state-dir")
            .arg(stage.daemon.spec().state_dir());
        let output = command.output().expect("start redirect");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(stage.fate(), Fate::Direct);
    }
    assert!(pins(&stage).is_empty(), "{:?}", pins(&stage));
}

#[test]
fn detach_on_exit_lets_go() {
    let mut stage = Stage::with(&["--detach-on-exit"]);
    assert_eq!(stage.fate(), Fate::Captured);
    assert!(stage.daemon.stop().success());
    assert_eq!(stage.fate(), Fate::Direct);
    assert!(pins(&stage).is_empty(), "{:?}", pins(&stage));
    assert!(
        routes(&stage.client).is_empty(),
        "{}",
        routes(&stage.client)
    );
}

/// What of ours is pinned in the bpffs: anything but empty directories.
fn pins(stage: &Stage) -> Vec<std::path::PathBuf> {
    let (mut pins, mut dirs) = (
        Vec::new(),
        vec![stage.daemon.spec().bpffs().join("redirect")],
    );
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                dirs.push(entry.path());
            } else {
                pins.push(entry.path());
            }
        }
    }
    pins
}

/// Policy routes and rules of ours in a pod.
fn routes(pod: &Pod) -> String {
    let show = |args: &[&str]| {
        let run = || {
            std::process::Command::new("ip")
                .args(args)
                .output()
                .expect("iproute2 is installed")
        };
        let output = pod.netns().run(run).expect("the namespace can be entered");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let table =
        show(&["route", "show", "table", "100"]) + &show(&["-6", "route", "show", "table", "100"]);
    let rules = show(&["rule"]) + &show(&["-6", "rule"]);
    table
        + &rules
            .lines()
            .filter(|line| line.contains("fwmark"))
            .collect::<String>()
}

#[test]
fn a_pod_that_is_no_longer_listed_is_let_go() {
    let mut stage = Stage::set();
    let other = stage.node.pod("other");
    assert!(stage.daemon.stop().success());
    assert_eq!(stage.fate(), Fate::Refused);
    stage.daemon = stage
        .daemon
        .spec()
        .clone()
        .without_pods()
        .capture(&other)
        .start();
    assert_eq!(stage.fate(), Fate::Direct);
    let _ = &stage.bed;
}

#[test]
fn a_pod_that_cannot_be_captured_stops_no_other() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let (client, outside, blocked) = (node.pod("client"), node.pod("outside"), node.pod("blocked"));
    bed.workloads().hbone(&client).write();
    // Somebody has the port already.
    let holder = blocked.app(["serve", "--listen", "[::]:15001"]);
    holder.event("listening");
    let missing = |name: &str, netns: &str, cgroup: &str| {
        json!({ "name": name, "namespace": "default", "serviceAccount": name, "ips": [format!("10.77.0.{}", name.len())],
                "netns": netns, "cgroup": cgroup })
    };
    let netns = outside.netns().path();
    let daemon = node
        .daemon()
        .raw_pod(missing(
            "nowhere",
            "/run/netns/rdt-nowhere",
            &client
                .cgroup()
                .to_string_lossy()
                .replace("client", "nowhere"),
        ))
        .raw_pod(missing(
            "no-cgroup",
            &netns.to_string_lossy(),
            "/nonexistent/cgroup",
        ))
        .capture(&blocked)
        .capture(&client)
        .start();
    daemon.wait_log("ready line", |line| {
        line.contains("ready") && line.contains("pods=1") && line.contains("failed=3")
    });
    for name in ["default/nowhere", "default/no-cgroup", "default/blocked"] {
        daemon.wait_log(&format!("report of {name}"), |line| line.contains(name));
    }
    assert_eq!(
        daemon.readiness(),
        200,
        "one pod's failure never makes the node unready"
    );
    assert_eq!(daemon.metrics().sum("redirect_pods_failed", &[]), 3.0);
    let server = greeter(&outside, 8080);
    let connected = greeted(&client, outside.at(8080), &[]);
    assert_ne!(
        server.event("accepted").addr("peer").port(),
        connected.addr("sockname").port()
    );
}

#[test]
fn the_daemon_moves_to_a_cgroup_of_its_own_which_goes_with_it() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let (client, outside) = (node.pod("client"), node.pod("outside"));
    bed.workloads().hbone(&client).write();
    let spec = node.daemon().capture(&client);
    // Another process lives where the daemon is started.
    fs::create_dir_all(spec.cgroup()).expect("make the cgroup");
    let mut sleeper = node.command_in(&spec.cgroup(), "sleep");
    sleeper.arg("600");
    let sleeper = redirect_tests::Process::spawn("sleeper", sleeper);
    let shares = || {
        cgroup::pids(&spec.cgroup())
            .expect("readable")
            .contains(&sleeper.pid().cast_signed())
    };
    assert!(wait_until(Duration::from_secs(5), shares));
    let mut daemon = spec.start();
    let pids = cgroup::pids(&spec.cgroup()).expect("readable");
    assert!(
        !pids.contains(&daemon.pid().cast_signed()),
        "the daemon shares a cgroup with {pids:?}"
    );
    let server = greeter(&outside, 8080);
    let connected = greeted(&client, outside.at(8080), &[]);
    assert_ne!(
        server.event("accepted").addr("peer").port(),
        connected.addr("sockname").port()
    );
    let left = || cgroups_below(&spec.cgroup());
    assert_eq!(left().len(), 1);
    daemon.sigkill();
    let mut next = spec.start();
    assert_eq!(left().len(), 1, "the earlier daemon's is still there");
    assert!(next.stop().success());
    spec.uninstall();
    assert!(left().is_empty(), "{:?} stays behind", left());
}

/// The names of a cgroup's children.
fn cgroups_below(cgroup: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(cgroup).expect("readable").flatten();
    let children = entries.filter(|entry| entry.path().is_dir());
    children.map(|entry| entry.file_name()).collect()
}

#[test]
fn readiness_and_metrics_are_served() {
    let stage = Stage::set();
    assert_eq!(stage.daemon.readiness(), 200);
    assert_eq!(stage.fate(), Fate::Captured);
    let metrics = stage.daemon.metrics();
    assert_eq!(metrics.sum("redirect_pods_captured", &[]), 1.0);
    assert_eq!(metrics.sum("redirect_dev_ca", &[]), 1.0);
    assert!(
        metrics.sum(
            "redirect_connections_opened_total",
            &[("direction", "outbound")]
        ) >= 2.0
    );
}

#[test]
fn a_development_root_needs_the_flag() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let client = node.pod("client");
    bed.workloads().hbone(&client).write();
    let spec = node.daemon().capture(&client);
    let config = spec.write_config();
    let output = spec
        .command()
        .arg("run")
        .arg("--config")
        .arg(config)
        .output()
        .expect("start redirect");
    assert!(!output.status.success());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("--dev-ca"), "{errors}");
}

#[test]
fn connections_to_a_dead_daemons_pod_are_refused_at_once() {
    let mut mesh = Mesh::start();
    let _server = greeter(&mesh.server, 8080);
    mesh.daemon_a.sigkill();
    refused(&mesh.client, mesh.server.at(8080));
}
