//! What the programs keep and tell of their decisions.

use std::process::Command;

use redirect_tests::{
    Mesh,
    exchange::{greeted, greeter},
};
use serde_json::json;

use super::mapped;

#[test]
fn failed_connects_leave_nothing_in_the_table_of_flows() {
    let mut mesh = Mesh::start();
    let _server = greeter(&mesh.server, 8080);
    greeted(&mesh.client, mesh.server.at(8080), &[]);
    assert_eq!(flows(&mesh), 0, "after a connection that worked");
    mesh.daemon_a.sigkill();
    for dst in [
        mesh.server.at(8080),
        mesh.server.at6(8080),
        mapped(mesh.server.at(8080)),
    ] {
        for options in [
            &[][..],
            &["--nonblocking"],
            &["--fastopen", "x"],
            &["--device", "eth0"],
        ] {
            let dst = dst.to_string();
            let app = mesh
                .client
                .app([&["connect", &dst, "recv-all"], options].concat());
            let error = app.event("error");
            assert!(
                ["ECONNREFUSED", "ECONNRESET"].contains(&error.str("name")),
                "{options:?}: {error:?}"
            );
        }
    }
    assert_eq!(flows(&mesh), 0, "after connects that failed");
}

#[test]
fn every_decision_is_counted_and_told_with_its_reason() {
    let mesh = Mesh::builder()
        .config_a(json!({ "capture": { "events": true } }))
        .client(json!({ "excludeOutboundPorts": [2222] }))
        .start();
    let _server = greeter(&mesh.server, 8080);
    let own = mesh
        .client
        .app(["serve", "--mode", "greet", "--listen", "[::]:8080"]);
    own.event("listening");
    let excluded = greeter(&mesh.outsider, 2222);
    greeted(&mesh.client, mesh.server.at(8080), &[]);
    greeted(&mesh.client, mesh.server.at6(8080), &[]);
    greeted(
        &mesh.client,
        "127.0.0.1:8080".parse().expect("an address"),
        &[],
    );
    greeted(&mesh.client, mesh.client.at6(8080), &[]);
    greeted(&mesh.client, mesh.outsider.at(2222), &[]);
    drop(excluded);
    let metrics = mesh.daemon_a.metrics();
    for (hook, verdict, reason) in [
        ("connect4", "redirect", "captured"),
        ("connect6", "redirect", "captured"),
        ("connect4", "pass", "loopback"),
        ("connect6", "pass", "own_address"),
        ("connect4", "pass", "excluded_port"),
    ] {
        let labels = [("hook", hook), ("verdict", verdict), ("reason", reason)];
        let count = metrics.sum("redirect_capture_verdicts_total", &labels);
        assert_eq!(count, 1.0, "{labels:?} in\n{}", metrics.text());
        mesh.daemon_a
            .wait_log(&format!("event of {labels:?}"), |line| {
                line.contains("redirect::capture::event")
                    && [hook, verdict, reason]
                        .iter()
                        .all(|word| line.contains(&format!("\"{word}\"")))
            });
    }
}

/// Entries of the map of flows, by the pins that the daemon left.
fn flows(mesh: &Mesh) -> usize {
    let mut found = Vec::new();
    let mut dirs = vec![mesh.daemon_a.spec().bpffs()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir)
            .expect("bpffs is readable")
            .flatten()
        {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().to_lowercase().ends_with("flows"))
            {
                found.push(path);
            }
        }
    }
    assert_eq!(found.len(), 1, "pinned maps of flows: {found:?}");
    let mut command = Command::new("bpftool");
    command.args(["-j", "map", "dump", "pinned"]).arg(&found[0]);
    let output = command
        .output()
        .expect("bpftool is installed (`cargo xtask setup`)");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice::<Vec<serde_json::Value>>(&output.stdout)
        .expect("JSON")
        .len()
}
