//! What an operator is told: events, the programs' log, and why capture cannot be had.

use redirect_tests::{Process, Testbed};
use serde_json::json;

#[test]
fn each_decision_is_an_event() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let client = node.pod("client");
    bed.workloads().hbone(&client).write();
    let daemon = node
        .daemon()
        .capture_with(&client, json!({ "excludeOutboundPorts": [9] }))
        .config(json!({ "capture": { "events": true } }))
        .start();
    for target in ["192.0.2.7:80", "192.0.2.7:9", "[2001:db8::7]:80"] {
        let app = client.app(["connect", "--nonblocking", target]);
        app.next_event();
    }
    for fields in [
        &[
            "hook=\"connect4\"",
            "verdict=\"redirect\"",
            "reason=\"captured\"",
            "dst=192.0.2.7:80",
            "to=\"127.",
        ][..],
        &[
            "hook=\"connect4\"",
            "verdict=\"pass\"",
            "reason=\"excluded_port\"",
            "dst=192.0.2.7:9",
            "to=\"\"",
        ],
        &[
            "hook=\"connect6\"",
            "verdict=\"redirect\"",
            "dst=[2001:db8::7]:80",
            "to=\"[fd72:6472:6374:",
        ],
    ] {
        let line = daemon.wait_log("event", |line| {
            fields.iter().all(|field| line.contains(field))
        });
        assert!(line.contains("redirect::capture::event"), "{line}");
        assert!(line.contains("pod=\"default/client\""), "{line}");
    }
}

#[test]
fn events_can_be_switched_off() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let client = node.pod("client");
    bed.workloads().hbone(&client).write();
    let mut daemon = node
        .daemon()
        .capture(&client)
        .config(json!({ "capture": { "events": false } }))
        .start();
    client
        .app(["connect", "--nonblocking", "192.0.2.7:80"])
        .next_event();
    daemon.stop();
    assert!(
        !daemon
            .log()
            .iter()
            .any(|line| line.contains("capture::event"))
    );
}

/// With logging on, the verifier judges code that it otherwise leaves out.
#[test]
fn the_programs_log_when_asked_to() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let client = node.pod("client");
    bed.workloads().hbone(&client).write();
    let daemon = node
        .daemon()
        .capture(&client)
        .env("REDIRECT_LOG", "info,redirect_ebpf=debug")
        .start();
    for (target, shown) in [
        ("192.0.2.7:80", "[::ffff:192.0.2.7]:80 to [::ffff:127."),
        ("[2001:db8::7]:80", "[2001:db8::7]:80 to [fd72:"),
    ] {
        client
            .app(["connect", "--nonblocking", target])
            .next_event();
        daemon.wait_log("line of the program", |line| {
            line.contains("redirect_ebpf") && line.contains(shown)
        });
    }
}

#[test]
fn a_daemon_that_may_not_use_bpf_says_what_it_needs() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let client = node.pod("client");
    bed.workloads().hbone(&client).write();
    let spec = node.daemon().capture(&client);
    let whole = spec.ready_command();
    let mut command = node.command_in(&spec.cgroup(), "setpriv");
    command.args([
        "--bounding-set",
        "-bpf,-sys_admin,-perfmon",
        "--inh-caps",
        "-all",
    ]);
    // Behind `enter CGROUP NETNS` comes the daemon with its arguments.
    command.args(whole.get_args().skip(3)).env("NO_COLOR", "1");
    let mut daemon = Process::spawn("daemon without capabilities", command);
    assert!(!daemon.wait().success());
    let said = daemon.stderr().join("\n");
    assert!(
        said.contains(
            "run as root, or with the capabilities BPF, PERFMON, NET_ADMIN and SYS_ADMIN"
        ),
        "{said}"
    );
}
