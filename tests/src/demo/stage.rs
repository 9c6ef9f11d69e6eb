//! The demo's scenery: two nodes, four pods, two daemons.

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Lines, interrupt::Interrupt};
use crate::{App, Daemon, Node, Pod, Testbed, Wall, Workloads, exchange::greeter};

pub const PORT: u16 = 8080;
pub const VIP: &str = "10.96.0.10:80";

pub struct Stage {
    pub daemon_a: Daemon,
    pub daemon_b: Daemon,
    /// Greeters on [`PORT`] of `web` and `api`.
    pub web_app: App,
    pub api_app: App,
    pub client: Pod,
    pub batch: Pod,
    pub web: Pod,
    pub api: Pod,
    pub a: Node,
    pub b: Node,
    pub took: Duration,
    pub workloads: Workloads,
    // Last, so that it outlives what runs in it.
    pub bed: Testbed,
}

impl Stage {
    pub fn set(interrupt: &Interrupt) -> Self {
        let started = Instant::now();
        let bed = Testbed::new();
        interrupt.covers(bed.id());
        let (a, b) = (bed.node("a"), bed.node("b"));
        let (client, batch) = (a.pod("client"), a.pod("batch"));
        let (web, api) = (b.pod("web"), b.pod("api"));
        for pod in [&client, &batch, &web, &api] {
            // The kernel's default here may be BBR, whose pacing distorts figures over a veth.
            pod.sysctl("net.ipv4.tcp_congestion_control", "reno");
        }
        let workloads = bed
            .workloads()
            .hbone(&client)
            .hbone(&batch)
            .hbone(&web)
            .hbone(&api)
            .service("shop", &["10.96.0.10"], 80, &[&web, &api], PORT);
        workloads.write();
        let daemon = |node: &Node, pods: [&Pod; 2]| {
            let spec = node
                .daemon()
                .capture_with(pods[0], directly(pods[0]))
                .capture(pods[1])
                .arg("--detach-on-exit");
            spec.config(json!({ "capture": { "events": true } }))
                .start()
        };
        let (daemon_a, daemon_b) = (daemon(&a, [&client, &batch]), daemon(&b, [&web, &api]));
        let (web_app, api_app) = (greeter(&web, PORT), greeter(&api, PORT));
        let took = started.elapsed();
        Self {
            daemon_a,
            daemon_b,
            web_app,
            api_app,
            client,
            batch,
            web,
            api,
            a,
            b,
            took,
            workloads,
            bed,
        }
    }

    /// From now on anything but HBONE between the nodes is refused and counted.
    pub fn wall(&self) -> Wall {
        Wall::around(&self.a)
    }
}

/// The first step: what there is.
/// The container whose processes are not captured, for comparison.
pub const DIRECT: &str = "direct";
/// The ports to which others may connect directly.
pub const IPERF_PORT: u16 = 5201;
pub const PING_PORT: u16 = 8082;

/// Options of a pod that speaks directly to one like it, too.
fn directly(pod: &Pod) -> Value {
    let container = pod.container(DIRECT);
    fs::create_dir_all(&container).expect("make the container's cgroup");
    json!({ "exemptCgroups": [container], "excludeInboundPorts": [IPERF_PORT, PING_PORT] })
}

pub fn captured(stage: &mut Stage) -> Lines {
    let mut lines = Vec::new();
    for (name, daemon, pods) in [
        ("a", &stage.daemon_a, [&stage.client, &stage.batch]),
        ("b", &stage.daemon_b, [&stage.web, &stage.api]),
    ] {
        let ready = daemon.wait_log("ready line", |line| {
            line.contains("ready") && line.contains("pods=")
        });
        assert!(
            ready.contains("pods=2") && ready.contains("failed=0"),
            "{ready}"
        );
        assert_eq!(daemon.readiness(), 200, "readiness of daemon {name}");
        let pods = pods.map(|pod| format!("{} {} {}", pod.name(), pod.ipv4(), pod.ipv6()));
        lines.push((format!("node {name}"), pods.join(", ")));
        let resident = daemon.rss_kib() as f64 / 1024.0;
        lines.push((
            format!("daemon {name}"),
            format!("pid {}, 2 pods captured, {resident:.1} MiB", daemon.pid()),
        ));
    }
    lines.push((
        "all of it".to_owned(),
        format!("made and ready in {:.2} s", stage.took.as_secs_f64()),
    ));
    lines
}

/// The access log's line of the client's connection from `own`, when it is closed.
pub fn outbound_line(stage: &Stage, own: SocketAddr) -> String {
    stage.daemon_a.wait_log("line of the access log", |line| {
        line.contains("connection closed") && line.contains(&format!(" src.addr={own} "))
    })
}

/// Shorthand for a line.
pub fn line(label: &str, text: impl Into<String>) -> (String, String) {
    (label.to_owned(), text.into())
}

/// The value of `field=value` or `field="value"` in a log line.
#[track_caller]
pub fn field<'l>(line: &'l str, name: &str) -> &'l str {
    let start = format!(" {name}=");
    let (_, rest) = line
        .split_once(&start)
        .unwrap_or_else(|| panic!("no {name} in: {line}"));
    match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next().unwrap_or(quoted),
        None => rest.split(' ').next().unwrap_or(rest),
    }
}
