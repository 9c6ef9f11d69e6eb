//! The guard stays while no daemon runs, follows the next one, and goes with capture.

use std::{fs, net::TcpListener, os::fd::AsFd};

use redirect::{
    capture::{
        self, Applied, Capture, Sockets,
        ebpf::{EbpfCapture, guard::AttachBy},
    },
    config::{Backend, CaptureConfig, IptablesVariant, Mode, Part, ProberCgroups},
    identity::Identity,
    pod::{Pod, PodOptions, PodUid},
};
use redirect_tests::{
    App, Process, Testbed,
    exchange::{greeted, greeter},
};
use serde_json::json;

use crate::{
    frames::{self, SYN, TCP},
    stage::{
        Counter, DEFAULT_CAPABILITIES, PORT, Stage, as_in_a_container, guarded_interfaces, run_in,
        with_capabilities,
    },
};

/// As the kernel lists what is attached to the pod's interface by tc.
fn filters(pod: &redirect_tests::Pod) -> String {
    run_in(pod, "tc", &["filter", "show", "dev", "eth0", "egress"])
        + &run_in(pod, "tc", &["filter", "show", "dev", "eth0", "ingress"])
        + &run_in(pod, "tc", &["qdisc", "show", "dev", "eth0"])
}

#[test]
fn a_daemon_in_another_cgroup_takes_over() {
    let mut stage = Stage::set();
    let _server = greeter(&stage.mesh.server, 8080);
    greeted(stage.client(), stage.mesh.server.at(8080), &[]);
    assert_eq!(stage.guarded_interfaces(), [2]);
    stage.mesh.daemon_a.sigkill();
    // Nobody is there, and nothing leaves.
    let seen = Counter::of(stage.outsider(), "tcp dport 9000");
    let [(src, dst), _] = stage.ends();
    stage.attack_raw(TCP, dst.ip(), &frames::tcp(src, dst, SYN, b""));
    assert_eq!(seen.packets(), 0);

    let cgroup = stage.mesh.a.cgroup().join("another");
    let spec = stage.mesh.daemon_a.spec().clone();
    let spec = spec.config(json!({ "capture": { "cgroup": cgroup } }));
    stage.mesh.daemon_a = spec.start();
    greeted(stage.client(), stage.mesh.server.at(8080), &[]);
    greeted(stage.client(), stage.mesh.server.at6(8080), &[]);
    stage.attack_raw(TCP, dst.ip(), &frames::tcp(src, dst, SYN, b""));
    stage.wait_dropped("raw_socket", 2);
    assert_eq!(seen.packets(), 0);
}

#[test]
fn without_leak_guard_there_is_none() {
    let mut stage = Stage::set();
    assert_eq!(stage.guarded_interfaces(), [2]);
    stage.mesh.daemon_a.stop();
    let spec = stage.mesh.daemon_a.spec().clone();
    stage.mesh.daemon_a = spec
        .config(json!({ "capture": { "leakGuard": false } }))
        .start();
    assert!(stage.guarded_interfaces().is_empty());
    let seen = Counter::of(stage.outsider(), "tcp dport 9000");
    let [(src, dst), _] = stage.ends();
    stage.attack_raw(TCP, dst.ip(), &frames::tcp(src, dst, SYN, b""));
    seen.wait(1);
}

#[test]
fn an_interface_that_comes_later_is_guarded_too() {
    let mut stage = Stage::set();
    let peer = format!("{}-b", stage.mesh.outsider.netns_name());
    let _other = redirect_tests::namespace::create(&peer);
    stage.client().ip(&format!(
        "link add eth1 type veth peer name eth1 netns {peer}\nlink set eth1 up\n"
    ));
    let process = stage.mesh.daemon_a.process();
    process.signal(nix::sys::signal::Signal::SIGHUP);
    stage.mesh.daemon_a.wait_log("line of a repair", |line| {
        line.contains("the guard was not on eth1")
    });
    let [eth0, eth1] = stage.guarded_interfaces()[..] else {
        panic!("{:?}", stage.guarded_interfaces())
    };
    assert!(eth0 == 2 && eth1 > 2);
    // It takes its link along; the pin goes at the next start.
    stage.client().ip("link del eth1\n");
    stage.mesh.daemon_a.stop();
    stage.mesh.daemon_a = stage.mesh.daemon_a.spec().clone().start();
    assert_eq!(stage.guarded_interfaces(), [2]);
}

#[test]
fn removing_the_pod_and_uninstalling_leave_nothing() {
    let mut stage = Stage::set();
    assert_eq!(stage.guarded_interfaces(), [2]);
    stage.mesh.daemon_a.stop();
    let with = stage.mesh.daemon_a.spec().clone();
    with.clone().without_pods().start().stop();
    assert!(stage.guarded_interfaces().is_empty());
    let seen = Counter::of(stage.outsider(), "tcp dport 9000");
    let [(src, dst), _] = stage.ends();
    let attack = || stage.attack_raw(TCP, dst.ip(), &frames::tcp(src, dst, SYN, b""));
    attack();
    seen.wait(1);
    with.start().stop();
    attack();
    assert_eq!(seen.packets(), 1);
    uninstall(&with);
    attack();
    seen.wait(2);
}

fn uninstall(spec: &redirect_tests::DaemonSpec) {
    let mut command = spec.command();
    command.arg("uninstall").arg("--bpffs").arg(spec.bpffs());
    command.arg("--state-dir").arg(spec.state_dir());
    let output = command.output().expect("run redirect uninstall");
    assert!(output.status.success(), "{output:?}");
}

/// Root in a container cannot take the guard off; nor can who has CAP_NET_ADMIN, as long as it is a link.
#[test]
fn the_pod_cannot_take_it_off() {
    let stage = Stage::set();
    let net_admin = format!("{DEFAULT_CAPABILITIES},+net_admin");
    for (capabilities, command) in [
        (DEFAULT_CAPABILITIES, "tc qdisc del dev eth0 clsact"),
        (DEFAULT_CAPABILITIES, "tc qdisc add dev eth0 clsact"),
        (DEFAULT_CAPABILITIES, "ip link set eth0 down"),
        (&net_admin, "tc qdisc del dev eth0 clsact"),
        (&net_admin, "tc filter del dev eth0 egress"),
        (
            &net_admin,
            "/usr/sbin/bpftool net detach tcx_egress dev eth0",
        ),
    ] {
        let mut words = command.split(' ');
        let program = words.next().unwrap_or_default();
        let mut command = with_capabilities(stage.client(), capabilities, program);
        command.args(words);
        let mut process = Process::spawn("tamper", command);
        assert!(!process.wait().success(), "{}", process.transcript(9));
        assert_eq!(stage.guarded_interfaces(), [2], "{capabilities}");
    }
    let [(src, dst), _] = stage.ends();
    stage.attack_raw(TCP, dst.ip(), &frames::tcp(src, dst, SYN, b""));
    stage.wait_dropped("raw_socket", 1);
}

/// A kernel without tcx.
#[test]
fn by_a_filter() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let (client, outsider) = (node.pod("client"), node.pod("outsider"));
    let before = filters(&client);
    let daemon = node.daemon();
    daemon.mount_bpffs();
    let cgroup = node.cgroup().join("proxy");
    fs::create_dir_all(&cgroup).expect("make the proxy's cgroup");
    let load = || EbpfCapture::load(&config(&daemon), &cgroup).expect("load the programs");
    let mut by_filter = load();
    by_filter.guard_by(AttachBy::Filter);
    let uid = PodUid::new("default/client");
    let listener = listener(&client);
    let sockets = Sockets {
        outbound: listener.as_fd(),
        inbound_plaintext: listener.as_fd(),
        hbone: listener.as_fd(),
        dns: None,
    };
    let apply = |capture: &mut EbpfCapture| {
        capture
            .apply(&pod(&client), client.netns(), &sockets)
            .expect("capture the pod")
    };
    assert_eq!(apply(&mut by_filter), Applied::Attached);
    assert_eq!(apply(&mut by_filter), Applied::Adopted);
    let found = filters(&client);
    assert_eq!(found.matches("direct-action").count(), 1, "{found}");
    assert!(found.contains("handle 0x7264 redirect"), "{found}");

    let seen = Counter::of(&outsider, "tcp dport 9000");
    let (src, dst) = (client.at(40_000), outsider.at(PORT));
    let bytes: String = frames::tcp(src, dst, SYN, b"")
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let args = ["attack", "raw", "6", &dst.ip().to_string(), &bytes];
    let attack = || {
        let app = App::new(Process::spawn(
            "attacker",
            as_in_a_container(&client, &args),
        ));
        app.event("sent");
    };
    attack();
    assert_eq!(seen.packets(), 0);

    // Whoever has CAP_NET_ADMIN in the pod can remove the filter, with its qdisc.
    run_in(&client, "tc", &["qdisc", "del", "dev", "eth0", "clsact"]);
    let repairs = by_filter.reassert(std::slice::from_ref(&uid));
    let [repair] = &repairs[..] else {
        panic!("{repairs:?}")
    };
    let words = repair.result.as_ref().expect("it can be put back");
    assert_eq!(*words, ["the guard was not on eth0"]);
    assert_eq!(filters(&client), found);

    // A daemon that attaches by links takes the filter away; the first one takes the links away.
    let mut by_link = load();
    assert_eq!(apply(&mut by_link), Applied::Adopted);
    assert_eq!(filters(&client), before);
    assert_eq!(guarded_interfaces(&daemon), [2]);
    assert_eq!(apply(&mut by_filter), Applied::Adopted);
    assert_eq!(filters(&client), found);
    assert!(guarded_interfaces(&daemon).is_empty());

    // Somebody else's qdisc would stay; ours was empty, and is gone.
    by_filter.clean(&uid).expect("clean");
    assert_eq!(filters(&client), before);
    attack();
    seen.wait(1);
    run_in(&client, "tc", &["qdisc", "add", "dev", "eth0", "clsact"]);
    let foreign = "filter add dev eth0 ingress bpf bytecode";
    let accept = ["1,6 0 0 4294967295,"];
    let foreign: Vec<_> = foreign.split(' ').chain(accept).collect();
    run_in(&client, "tc", &foreign);
    let foreign = filters(&client);
    apply(&mut by_filter);
    capture::clean_netns(client.netns(), "ebpf").expect("clean the namespace");
    assert_eq!(filters(&client), foreign);
    by_filter.clean(&uid).expect("clean");
    drop((by_filter, by_link));
    capture::uninstall(&daemon.bpffs()).expect("uninstall");
}

fn listener(pod: &redirect_tests::Pod) -> TcpListener {
    let listener = pod.netns().run(|| TcpListener::bind("127.0.0.1:0"));
    listener.and_then(|listener| listener).expect("listen")
}

fn config(daemon: &redirect_tests::DaemonSpec) -> CaptureConfig {
    CaptureConfig {
        part: Part::Whole,
        backend: Backend::Ebpf,
        iptables: IptablesVariant::Auto,
        mode: Mode::Shared,
        leak_guard: true,
        probers: ProberCgroups::Paths(Vec::new()),
        exempt_uid: None,
        bpffs: daemon.bpffs(),
        mount_bpffs: false,
        cgroup: None,
        events: false,
        detach_on_exit: false,
        verify_interval: std::time::Duration::from_secs(10),
        abi: redirect_common::ABI_VERSION,
    }
}

fn pod(client: &redirect_tests::Pod) -> Pod {
    Pod {
        uid: PodUid::new("default/client"),
        name: "client".into(),
        namespace: "default".into(),
        identity: Identity {
            trust_domain: "cluster.local".into(),
            namespace: "default".into(),
            service_account: "client".into(),
        },
        netns: client.netns().path(),
        cgroup: client.cgroup(),
        ips: vec![client.ipv4(), client.ipv6()],
        cgroup_only: None,
        options: PodOptions::default(),
    }
}
