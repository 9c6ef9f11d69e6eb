//! `redirect pod add|remove|list`.

use std::time::Duration;

use redirect_tests::{eventually, exchange::Held};
use serde_json::json;

use crate::stage::{Fate, Stage, failed_with, told};

#[test]
fn a_pod_is_captured_when_it_is_added_and_as_before_when_it_is_removed() {
    let stage = Stage::set();
    let before = stage.state_of(&stage.client);
    assert_eq!(stage.fate(), Fate::Direct);
    for _ in 0..3 {
        stage.add(&stage.client, &[]);
        // At once: the command has returned.
        assert_eq!(stage.fate(), Fate::Captured);
        let listed = stage.list();
        assert_eq!(listed.len(), 1, "{listed:?}");
        assert_eq!(listed[0]["pod"]["uid"], "default/client");
        assert_eq!(listed[0]["sources"], json!(["command"]));
        assert!(listed[0].get("error").is_none(), "{listed:?}");
        let metrics = stage.daemon.metrics();
        assert_eq!(metrics.sum("redirect_pods_captured", &[]), 1.0);
        stage.remove("default/client");
        assert_eq!(stage.fate(), Fate::Direct);
        assert!(stage.list().is_empty());
    }
    let left = before.differences(&stage.state_of(&stage.client));
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn a_pod_that_was_added_outlives_the_daemon_until_it_is_removed() {
    let mut stage = Stage::set();
    stage.add(&stage.client, &["--exclude-outbound-ports", "9"]);
    for end in ["SIGKILL", "SIGTERM"] {
        match end {
            "SIGKILL" => stage.daemon.sigkill(),
            _ => assert!(stage.daemon.stop().success()),
        }
        assert_eq!(stage.fate(), Fate::Refused, "{end}");
        stage.daemon = stage.daemon.spec().start();
        assert_eq!(stage.fate(), Fate::Captured, "{end}");
        let listed = stage.list();
        assert_eq!(listed[0]["pod"]["excludeOutboundPorts"], json!([9]));
    }
    stage.remove("default/client");
    assert!(stage.daemon.stop().success());
    stage.daemon = stage.daemon.spec().start();
    assert_eq!(stage.fate(), Fate::Direct);
    assert!(stage.list().is_empty());
}

#[test]
fn what_cannot_be_captured_is_refused_and_leaves_nothing() {
    let stage = Stage::set();
    let mut holder = stage.client.app(["serve", "--listen", "[::]:15001"]);
    holder.event("listening");
    let before = stage.state_of(&stage.client);
    failed_with(&stage.try_add(&stage.client, &[]), "15001");
    let left = before.differences(&stage.state_of(&stage.client));
    assert_eq!(left, Vec::<String>::new());
    holder.kill();
    let before = stage.state_of(&stage.client);
    let (netns, cgroup) = (stage.client.netns().path(), stage.client.cgroup());
    let entry = |fields: serde_json::Value| {
        let mut entry = json!({
            "name": "client", "namespace": "default", "serviceAccount": "client", "netns": netns, "cgroup": cgroup,
            "ips": [stage.client.ipv4()],
        });
        for (field, value) in fields.as_object().expect("a map") {
            entry[field] = value.clone();
        }
        let file = stage.bed.directory().join("entry.yaml");
        std::fs::write(&file, entry.to_string()).expect("write the entry");
        stage.pod(&["add", "--file", &file.to_string_lossy()])
    };
    for (fields, expected) in [
        (json!({ "netns": "/run/netns/rdt-nowhere" }), "rdt-nowhere"),
        (
            json!({ "cgroup": "/sys/fs/cgroup/rdt-nowhere" }),
            "rdt-nowhere",
        ),
        (
            json!({ "ips": [] }),
            "ips: a pod needs at least one address",
        ),
        (json!({ "ips": ["127.0.0.1"] }), "loopback"),
        (json!({ "colour": 1 }), "colour"),
        (json!({ "name": "a/b" }), "name"),
    ] {
        failed_with(&entry(fields), expected);
    }
    failed_with(&stage.pod(&["remove", "default/client"]), "nobody wants it");
    assert!(stage.list().is_empty());
    assert_eq!(stage.fate(), Fate::Direct);
    assert_eq!(stage.daemon.readiness(), 200);
    let left = before.differences(&stage.state_of(&stage.client));
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn one_pods_failure_is_its_status_and_it_is_captured_when_it_can_be() {
    let bed = redirect_tests::Testbed::new();
    let node = bed.node("a");
    let (client, outside) = (node.pod("client"), node.pod("outside"));
    bed.workloads().hbone(&client).write();
    let mut holder = client.app(["serve", "--listen", "[::]:15006"]);
    holder.event("listening");
    let daemon = node.daemon().capture(&client).start();
    let stage = Stage {
        server: redirect_tests::exchange::greeter(&outside, 8080),
        daemon,
        client,
        outside,
        node,
        bed,
    };
    let listed = stage.list();
    assert_eq!(listed[0]["sources"], json!(["config"]));
    let error = listed[0]["error"].as_str().expect("an error");
    assert!(error.contains("15006"), "{error}");
    let table = stage.pod(&["list"]);
    failed_with(&table, "failed: listen on port 15006");
    assert_eq!(stage.daemon.readiness(), 200);
    let metrics = stage.daemon.metrics();
    assert_eq!(metrics.sum("redirect_pods_failed", &[]), 1.0);
    holder.kill();
    eventually("captured", Duration::from_secs(20), || {
        match stage.list()[0].get("error") {
            None => Ok(()),
            Some(error) => Err(error.to_string()),
        }
    });
    assert_eq!(stage.fate(), Fate::Captured);
    let metrics = stage.daemon.metrics();
    assert_eq!(metrics.sum("redirect_pods_failed", &[]), 0.0);
    // What the configuration wants goes on being wanted.
    failed_with(&stage.pod(&["remove", "default/client"]), "others want it");
    stage.add(&stage.client, &[]);
    stage.remove("default/client");
    assert_eq!(stage.fate(), Fate::Captured);
}

#[test]
fn other_options_take_the_place_of_the_former_without_letting_go() {
    let stage = Stage::set();
    stage.add(&stage.client, &[]);
    assert_eq!(stage.fate(), Fate::Captured);
    stage.add(&stage.client, &["--exclude-outbound-ports", "8080"]);
    assert_eq!(stage.fate(), Fate::Direct);
    stage.add(&stage.client, &["--capture-dns", "false"]);
    assert_eq!(stage.fate(), Fate::Captured);
    assert_eq!(stage.list().len(), 1);
}

#[test]
fn connections_of_a_pod_that_is_removed_drain_and_are_cut_at_the_limit() {
    let stage = Stage::with(json!({ "proxy": { "drain": "1s" } }));
    stage.add(&stage.client, &[]);
    let mut held = Held::open(&stage.client, stage.outside.at(8080));
    stage.server.event("accepted");
    stage.remove("default/client");
    assert_eq!(held.echo("after"), Ok(()));
    assert_eq!(stage.fate(), Fate::Direct);
    assert_eq!(held.app().event("error").str("name"), "ECONNRESET");
}

#[test]
fn a_second_daemon_is_refused_and_changes_nothing() {
    let stage = Stage::set();
    stage.add(&stage.client, &[]);
    let spec = stage.daemon.spec();
    let mut command = spec.command();
    let config = spec.write_config();
    let second = command.args(["run", "--dev-ca", "--config"]).arg(config);
    let output = second.output().expect("start redirect");
    failed_with(&output, &format!("pid {}", stage.daemon.pid()));
    assert_eq!(stage.fate(), Fate::Captured);
    assert_eq!(stage.list().len(), 1, "{}", told(&stage.pod(&["list"])));
}

#[test]
fn uninstall_forgets_what_was_added() {
    let mut stage = Stage::set();
    stage.add(&stage.client, &[]);
    stage.daemon.sigkill();
    stage.daemon.spec().uninstall();
    assert_eq!(stage.fate(), Fate::Direct);
    assert!(!stage.daemon.spec().state_dir().exists());
    stage.daemon = stage.daemon.spec().start();
    assert!(stage.list().is_empty());
}
