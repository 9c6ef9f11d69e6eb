//! Queries while no proxy is there, after it came back, and in pods that do not want it.

use serde_json::json;

use crate::fixture::{Fixture, lines};

#[test]
fn without_the_daemon_nothing_is_answered_and_nothing_leaks() {
    let mut fixture = Fixture::new();
    let spec = fixture.daemon.spec().clone();
    fixture.dig(&["a.test"]);
    fixture.daemon.sigkill();
    let server = fixture.server().to_string();
    let app = fixture.ask(&["leak.test.", "--connected", "--server", &server]);
    assert_eq!(app.event("error").str("name"), "ECONNREFUSED");
    let app = fixture.ask(&["leak.test.", "--server", &server, "--timeout", "0.5"]);
    app.event("error");
    let app = fixture.ask(&["leak.test.", "--pipelined", "1", "--server", &server]);
    assert_eq!(app.event("error").str("name"), "ECONNREFUSED");
    assert_eq!(fixture.seen("leak.test.").len(), 0);
    fixture.daemon = spec.start();
    assert_eq!(lines(&fixture.dig(&["+short", "a.test"])), ["192.0.2.1"]);
    assert_eq!(
        lines(&fixture.dig(&["+short", "web.default.svc.cluster.local"])),
        ["10.96.0.20"]
    );
}

#[test]
fn a_pod_that_does_not_want_it_is_left_alone() {
    for (config, options) in [
        (json!({}), json!({ "captureDns": false })),
        (json!({ "dns": { "enabled": false } }), json!({})),
    ] {
        let fixture = Fixture::with(config, options);
        let all = fixture.dig(&["web.default.svc.cluster.local"]);
        assert!(all.contains("status: NXDOMAIN"), "{all}");
        let seen = fixture.seen("web.default.svc.cluster.local.");
        assert_eq!(seen.len(), 1);
        let sockets = fixture.run("ss", &["-Hlnu", "sport", "=", ":15053"]);
        assert_eq!(String::from_utf8_lossy(&sockets.stdout), "");
    }
}
