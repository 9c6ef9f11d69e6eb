//! DNS where rules of iptables capture it: the proxy learns the server from connection tracking.

use std::net::SocketAddr;

use serde_json::json;

use crate::fixture::{Fixture, lines};

#[test]
fn both_servers_are_asked_and_seen_in_both_families() {
    let mut fixture = Fixture::with(json!({ "capture": { "backend": "iptables" } }), json!({}));
    let servers = &fixture.servers;
    for (server, name) in [
        (servers[0].at(53), "dns1"),
        (servers[1].at(53), "dns2"),
        (servers[0].at6(53), "dns1"),
        (servers[1].at6(53), "dns2"),
    ] {
        let asked: SocketAddr = server;
        let text = asked.to_string();
        for options in [&[][..], &["--connected"]] {
            let mut args = vec!["whoami.test.", "--type", "TXT", "--server", &text];
            args.extend(options);
            let answer = fixture.ask(&args).event("answer");
            assert_eq!(answer.addr("from"), asked, "{options:?}");
            assert_eq!(answer.json()["data"][0], name, "{asked} {options:?}");
        }
        let app = fixture.ask(&[
            "whoami.test.",
            "--type",
            "TXT",
            "--server",
            &text,
            "--pipelined",
            "2",
        ]);
        assert_eq!(
            app.event("answer").json()["data"][0],
            name,
            "{asked} over TCP"
        );
    }
    fixture.wait_counted("server", "answered", 4.0);
    assert_eq!(
        lines(&fixture.dig(&["+short", "web.default.svc.cluster.local"])),
        ["10.96.0.20"]
    );
    assert_eq!(
        lines(&fixture.dig(&["+short", "+tcp", "web.default.svc.cluster.local"])),
        ["10.96.0.20"]
    );
    assert_eq!(fixture.seen("web.default.svc.cluster.local.").len(), 0);

    fixture.daemon.sigkill();
    let server = fixture.server().to_string();
    for options in [
        &["--connected"][..],
        &["--pipelined", "1"],
        &["--timeout", "0.5"],
    ] {
        let mut args = vec!["leak.test.", "--server", &server];
        args.extend(options);
        fixture.ask(&args).event("error");
    }
    assert_eq!(fixture.seen("leak.test.").len(), 0);
}
