//! Our proxy for an agent that is not ours, from end to end: rules of Istio's form redirect, our proxy carries over HBONE. And
//! for one that is: each half of this project drives the other.

use std::{net::IpAddr, os::fd::AsFd, path::PathBuf, process::Command};

use redirect_tests::{
    App, DaemonSpec, Node, Pod, Testbed, Wall, eventually,
    exchange::{Held, greeted, greeter},
    namespace,
    process::PATIENCE,
    zds::{HELLO, SNAPSHOT_SENT, ZdsListener, ZdsSocket, add, del, netns_fd},
};
use serde_json::json;

fn socket(node: &Node) -> PathBuf {
    node.directory().join("ztunnel.sock")
}

/// A daemon that only carries.
fn carrier(node: &Node) -> DaemonSpec {
    node.daemon().config(json!({
        "capture": { "backend": "none" },
        "agent": { "zds": { "connect": socket(node) } },
    }))
}

/// What Istio's agent does in a pod.
fn redirect_as_istio_does(pod: &Pod) {
    for (program, family, loopback, probes) in [
        ("iptables-restore", "-4", "127.0.0.1/32", "169.254.7.127"),
        (
            "ip6tables-restore",
            "-6",
            "::1/128",
            "fd16:9254:7127:1337:ffff:ffff:ffff:ffff",
        ),
    ] {
        let any = if family == "-4" { "0.0.0.0/0" } else { "::/0" };
        let own = "-m mark --mark 0x539/0xfff";
        let other = "-m mark ! --mark 0x539/0xfff";
        let rules = format!(
            "*raw\n\
             -A PREROUTING -p udp --sport 53 -j CT --zone 1\n\
             -A OUTPUT -p udp {own} --dport 53 -j CT --zone 1\n\
             COMMIT\n\
             *mangle\n\
             -A PREROUTING {own} -j CONNMARK --set-xmark 0x111/0xfff\n\
             -A OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark\n\
             COMMIT\n\
             *nat\n\
             -A PREROUTING -s {probes} -p tcp -j ACCEPT\n\
             -A PREROUTING ! -d {loopback} -p tcp ! --dport 15008 {other} -j REDIRECT --to-ports 15006\n\
             -A OUTPUT -d {probes} -p tcp -j ACCEPT\n\
             -A OUTPUT ! -o lo -p udp {other} -m udp --dport 53 -j REDIRECT --to-ports 15053\n\
             -A OUTPUT ! -d {loopback} -p tcp --dport 53 {other} -j REDIRECT --to-ports 15053\n\
             -A OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT\n\
             -A OUTPUT ! -d {loopback} -o lo -j ACCEPT\n\
             -A OUTPUT ! -d {loopback} -p tcp {other} -j REDIRECT --to-ports 15001\n\
             COMMIT\n"
        );
        namespace::run_with_input(pod.netns(), program, &[], &rules);
        pod.ip(&format!("route replace local {any} dev lo table 100\n"));
        let rule = "rule add fwmark 0x111/0xfff pref 32764 lookup 100";
        let added = pod.netns().run(|| {
            let mut ip = Command::new("ip");
            ip.arg(family).args(rule.split(' ')).status()
        });
        let added = added.expect("the namespace").expect("start ip");
        assert!(added.success(), "ip {family} {rule}");
    }
}

/// The agent of a node, played by the test.
struct Agent {
    listener: ZdsListener,
}

impl Agent {
    fn new(node: &Node) -> Self {
        Self {
            listener: ZdsListener::bind(&socket(node)),
        }
    }

    /// Names these pods to the next proxy that connects.
    #[track_caller]
    fn name(&self, pods: &[&Pod]) -> ZdsSocket {
        let proxy = self.listener.accept();
        assert_eq!(proxy.packet(), HELLO);
        for pod in pods {
            let named = add(
                pod.name(),
                pod.name(),
                pod.namespace(),
                pod.service_account(),
            );
            assert_eq!(proxy.ask(&named, &[netns_fd(pod.netns()).as_fd()]), Ok(()));
        }
        assert_eq!(proxy.ask(SNAPSHOT_SENT, &[]), Ok(()));
        proxy
    }
}

/// A connection is carried, and the app sees who made it.
#[track_caller]
fn carried(client: &Pod, server: &Pod, app: &App) {
    for (dst, source) in [
        (server.at(8080), client.ipv4()),
        (server.at6(8080), client.ipv6()),
    ] {
        let connected = greeted(client, dst, &[]);
        let accepted = app.event("accepted");
        let (peer, own): (_, IpAddr) = (accepted.addr("peer"), connected.addr("sockname").ip());
        assert_eq!((peer.ip(), own), (source, source));
        assert_ne!(peer, connected.addr("sockname"), "a direct connection");
        assert_eq!(accepted.addr("local"), dst);
    }
}

#[test]
fn our_proxy_carries_pods_that_another_agent_captures() {
    let bed = Testbed::new();
    let (a, b) = (bed.node("a"), bed.node("b"));
    // Between the nodes only HBONE passes.
    let wall = Wall::around(&a);
    let (client, server, outsider) = (a.pod("client"), b.pod("server"), b.pod("outsider"));
    bed.workloads().hbone(&client).hbone(&server).write();
    redirect_as_istio_does(&client);
    redirect_as_istio_does(&server);
    let (agent_a, agent_b) = (Agent::new(&a), Agent::new(&b));
    let (daemon_a, mut daemon_b) = (carrier(&a).start(), carrier(&b).start());
    let (told_a, told_b) = (agent_a.name(&[&client]), agent_b.name(&[&server]));
    let app = greeter(&server, 8080);
    carried(&client, &server, &app);
    // In plaintext, from outside the mesh.
    carried(&outsider, &server, &app);
    assert_eq!(wall.leaked(), 0);

    // While the agent is away, all goes on; when it comes again, what it names goes on, too.
    let mut held = Held::open(&client, server.at(8080));
    app.event("accepted");
    drop((told_a, told_b));
    carried(&client, &server, &app);
    let (told_a, _told_b) = (agent_a.name(&[&client]), agent_b.name(&[&server]));
    assert_eq!(held.echo("still there"), Ok(()));
    carried(&client, &server, &app);

    // A proxy that is started again is told again.
    daemon_b.sigkill();
    let _daemon_b = carrier(&b).start();
    let _told_b = agent_b.name(&[&server]);
    carried(&client, &server, &app);

    // What goes is not listened for any more; what others made in the pod is as it was.
    assert_eq!(told_a.ask(&del(client.name()), &[]), Ok(()));
    let rules = client.netns().run(|| {
        let shown = Command::new("ip").arg("rule").output();
        String::from_utf8_lossy(&shown.expect("ip").stdout).into_owned()
    });
    let rules = rules.expect("the namespace");
    assert!(rules.contains("fwmark 0x111/0xfff lookup 100"), "{rules}");
    let asked = server.at(8080).to_string();
    let refused = client.app(["connect", &asked, "recv-line"]);
    assert_eq!(refused.event("error").str("name"), "ECONNREFUSED");
    drop(daemon_a);
}

#[test]
fn each_half_of_this_project_drives_the_other() {
    let bed = Testbed::new();
    let (a, b) = (bed.node("a"), bed.node("b"));
    let wall = Wall::around(&a);
    let (client, server) = (a.pod("client"), b.pod("server"));
    bed.workloads().hbone(&client).hbone(&server).write();
    let by_rules = json!({ "capture": { "backend": "nftables" } });
    let _daemon_b = b.daemon().config(by_rules).capture(&server).start();
    let captures = a.daemon().capture(&client).config(json!({
        "capture": { "backend": "nftables", "verifyInterval": "100ms" },
        "agent": { "zds": { "serve": socket(&a) } },
    }));
    let capturer = captures.start();
    let state = a.directory().join("carrier");
    let carrier = carrier(&a).config(json!({
        "stateDir": state,
        "admin": { "metrics": "127.0.0.1:15030", "readiness": "127.0.0.1:15031" },
    }));
    let mut carries = carrier.start();
    capturer.wait_log("line that says that the pod is captured", |line| {
        line.contains("steps: captured")
    });
    let (app, own) = (greeter(&server, 8080), greeter(&client, 9090));
    carried(&client, &server, &app);
    // The other way: HBONE to the captured pod.
    let connected = greeted(&server, client.at(9090), &[]);
    let accepted = own.event("accepted");
    assert_eq!(accepted.addr("peer").ip(), connected.addr("sockname").ip());
    assert_eq!(wall.leaked(), 0);

    let from = capturer.process().line_count();
    carries.sigkill();
    capturer.wait_log_from(from, "line that says that no proxy is there", |line| {
        line.contains("no proxy is connected")
    });
    let _carries = carrier.start();
    eventually("it is carried again", PATIENCE, || {
        let asked = server.at(8080).to_string();
        let app = client.app(["connect", &asked, "recv-line"]);
        let connected = app.next_event();
        if connected.name() != "connected" {
            return Err(format!("{connected:?}"));
        }
        match app.next_event() {
            received if received.name() == "received" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

#[test]
fn queries_of_a_driven_pod_go_through_our_proxy_and_out() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let (client, nameserver) = (node.pod("client"), node.pod("nameserver"));
    bed.workloads().hbone(&client).write();
    redirect_as_istio_does(&client);
    let agent = Agent::new(&node);
    let daemon = carrier(&node).start();
    let _told = agent.name(&[&client]);
    let (v4, v6) = (nameserver.at(53), nameserver.at6(53));
    let serving = nameserver.app([
        "dns-serve",
        "--listen",
        &v4.to_string(),
        "--listen",
        &v6.to_string(),
    ]);
    serving.event("listening");
    for server in [v4, v6] {
        let server = server.to_string();
        for by_tcp in [&[][..], &["--pipelined", "1"]] {
            let args = ["dns-ask", "whoami.test.", "--type", "TXT", "--server"];
            let app = client.app([&args[..], &[&server], by_tcp].concat());
            let answer = app.event("answer");
            assert_eq!(answer.json()["data"][0], "server", "{server} {by_tcp:?}");
        }
    }
    eventually("the queries are counted", PATIENCE, || {
        let labels = [("by", "server"), ("result", "answered")];
        let metrics = daemon.metrics();
        match metrics.sum("redirect_dns_queries_total", &labels) {
            counted if counted >= 2.0 => Ok(()),
            _ => Err(metrics.text().to_owned()),
        }
    });
}
