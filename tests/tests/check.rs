//! `redirect check` on this machine, and the backend that a daemon chooses by the same findings.

use std::process::Output;

use redirect_tests::{
    Node, Pod, Testbed,
    exchange::{greeted, greeter},
    redirect_binary,
};
use serde_json::{Value, json};

struct Stage {
    node: Node,
    client: Pod,
    bed: Testbed,
}

impl Stage {
    fn new() -> Self {
        let bed = Testbed::new();
        let node = bed.node("a");
        let client = node.pod("client");
        bed.workloads().hbone(&client).write();
        Self { node, client, bed }
    }

    /// Runs `redirect check` in the node, below a program that changes the environment and runs its arguments.
    fn check(&self, wrapper: &[&str], args: &[&str]) -> Output {
        let mut words = wrapper.iter().map(ToString::to_string).collect::<Vec<_>>();
        words.push(redirect_binary().display().to_string());
        words.push("check".to_owned());
        words.extend(args.iter().map(ToString::to_string));
        let mut command = self.node.command(&words[0]);
        let output = command.args(&words[1..]).output();
        output.expect("start redirect check")
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn json_of(output: &Output) -> Value {
    let told = text(output);
    serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error} in {told}"))
}

fn feature<'a>(told: &'a Value, name: &str) -> &'a Value {
    let mut features = told["features"].as_array().expect("a list").iter();
    let found = features.find(|feature| feature["name"] == name);
    found.unwrap_or_else(|| panic!("no feature {name} in {told:#}"))
}

#[test]
fn this_machine_can_do_ebpf() {
    let stage = Stage::new();
    for mode in ["shared", "dedicated", "node"] {
        let output = stage.check(&[], &["--json", "--mode", mode]);
        let told = json_of(&output);
        assert!(output.status.success(), "{told:#}");
        assert_eq!(told["mode"], mode);
        assert_eq!(told["backend"], "ebpf", "{told:#}");
    }
    let told = json_of(&stage.check(&[], &["--json"]));
    for name in [
        "connect4",
        "sock_ops",
        "sk_lookup",
        "links to namespaces",
        "tcx or clsact",
        "netns_cookie in sock_ops",
        "sk_storage map",
        "links to cgroups",
        "SO_NETNS_COOKIE",
        "verifier's consent",
        "iptables-nft: REDIRECT, IPv6",
        "iptables-legacy: match by cgroup",
        "nftables: REDIRECT, IPv4",
    ] {
        assert_eq!(feature(&told, name)["found"], true, "{told:#}");
    }
}

#[test]
fn the_table_ends_with_the_backend_and_nothing_stays() {
    let stage = Stage::new();
    let output = stage.check(&[], &[]);
    let table = text(&output);
    let last = table.lines().last().unwrap_or_default();
    assert_eq!(
        last, "backend: ebpf (all that eBPF capture needs is there)",
        "{table}"
    );
    // The command's own cgroup: what it tried attaching on was below.
    let own = stage.node.cgroup().join("host");
    let below = std::fs::read_dir(own)
        .expect("the cgroup is there")
        .flatten();
    let left: Vec<_> = below.filter(|entry| entry.path().is_dir()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn without_capabilities_it_says_so_and_fails() {
    let stage = Stage::new();
    let dropped = [
        "setpriv",
        "--bounding-set=-bpf,-perfmon,-sys_admin",
        "--inh-caps=-bpf,-perfmon,-sys_admin",
        "--",
    ];
    let output = stage.check(&dropped, &["--json"]);
    let told = json_of(&output);
    assert_eq!(output.status.code(), Some(1), "{told:#}");
    assert_eq!(told["backend"], Value::Null);
    let bpf = feature(&told, "CAP_BPF or CAP_SYS_ADMIN");
    assert_eq!(bpf["found"], false);
    assert_eq!(bpf["consequence"], "no capture by eBPF");
    let admin = feature(&told, "CAP_SYS_ADMIN");
    assert_eq!(admin["consequence"], "no capture at all");
    let connect = feature(&told, "connect4");
    let detail = connect["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("not permitted"), "{connect}");
    let table = text(&stage.check(&dropped, &[]));
    assert!(table.contains("\nbackend: none works ("), "{table}");
}

#[test]
fn a_daemon_chooses_and_says_why() {
    let stage = Stage::new();
    let auto = json!({ "capture": { "backend": "auto" } });
    let daemon = stage
        .node
        .daemon()
        .capture(&stage.client)
        .config(auto)
        .start();
    let line = daemon.wait_log("choice", |line| line.contains("chose the backend"));
    assert!(line.contains("ebpf") && line.contains("is there"), "{line}");
}

/// Where nothing can be pinned there is no capture by programs; rules do as well.
#[test]
fn a_daemon_falls_back_to_rules() {
    let stage = Stage::new();
    let config = json!({ "capture": { "backend": "auto", "bpffs": "/dev/null/bpf" } });
    let daemon = stage
        .node
        .daemon()
        .capture(&stage.client)
        .config(config)
        .start();
    let line = daemon.wait_log("choice", |line| line.contains("chose the backend"));
    assert!(line.contains("no BPF file system"), "{line}");
    assert!(!line.contains("ebpf"), "{line}");

    let outside = stage.node.pod("outside");
    let server = greeter(&outside, 8080);
    for dst in [outside.at(8080), outside.at6(8080)] {
        let connected = greeted(&stage.client, dst, &[]);
        let peer = server.event("accepted").addr("peer");
        assert_ne!(
            peer.port(),
            connected.addr("sockname").port(),
            "not captured"
        );
    }
    let _ = &stage.bed;
}
