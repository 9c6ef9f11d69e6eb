//! Names that the mesh does not know: the server's answers, as if nobody were in between.

use redirect_tests::process::PATIENCE;
use redirect_tests::wait_until;
use serde_json::json;

use crate::fixture::{Fixture, lines};

#[test]
fn all_types_are_forwarded() {
    let fixture = Fixture::new();
    for (kind, expected) in [
        ("A", "192.0.2.1"),
        ("AAAA", "2001:db8::1"),
        ("TXT", "\"text\""),
        ("SRV", "1 2 8080 a.test."),
        ("MX", "10 a.test."),
    ] {
        for transport in ["+notcp", "+tcp"] {
            let found = fixture.dig(&["+short", transport, "x.test", kind]);
            assert_eq!(lines(&found), [expected], "{kind} {transport}");
        }
    }
    let seen = fixture.seen("x.test.");
    let by_tcp: Vec<_> = seen
        .iter()
        .map(|event| event.json()["tcp"] == true)
        .collect();
    assert_eq!(by_tcp, [false, true].repeat(5));
    // From the pod, and not from the node.
    let ip = fixture.client.ipv4();
    assert!(
        seen.iter().all(|event| event.addr("from").ip() == ip),
        "{seen:?}"
    );
}

#[test]
fn flags_extensions_and_spelling_are_kept() {
    let fixture = Fixture::new();
    let all = fixture.dig(&["+dnssec", "+bufsize=1400", "MiXeD.TeSt"]);
    assert!(
        all.contains(";MiXeD.TeSt.") && all.contains("flags: do; udp: 1232"),
        "{all}"
    );
    let seen = &fixture.seen("mixed.test.")[0];
    assert_eq!(seen.str("name"), "MiXeD.TeSt.");
    assert_eq!(seen.json()["payload"], 1400);
    assert_eq!(seen.json()["dnssec"], true);
    // dig's cookie.
    assert_eq!(seen.json()["options"], 1);
    assert_eq!(
        fixture
            .dig(&["+noedns", "plain.test"])
            .matches("EDNS")
            .count(),
        0
    );
    assert!(fixture.seen("plain.test.")[0].json()["payload"].is_null());
}

#[test]
fn a_truncated_answer_is_the_apps_to_ask_again_for() {
    let fixture = Fixture::new();
    let cut = fixture.dig(&["+ignore", "big.test", "TXT"]);
    assert!(cut.contains("flags: qr tc rd ra;"), "{cut}");
    let whole = fixture.dig(&["big.test", "TXT"]);
    assert!(whole.contains("ANSWER: 30"), "{whole}");
    let transports: Vec<_> = fixture
        .seen("big.test.")
        .iter()
        .map(|event| event.json()["tcp"] == true)
        .collect();
    assert_eq!(transports, [false, false, true]);
}

#[test]
fn errors_of_the_server_are_the_apps_errors() {
    let fixture = Fixture::new();
    for (name, kind, expected) in [
        ("missing.test", "A", "status: NXDOMAIN"),
        ("v4only.test", "AAAA", "ANSWER: 0"),
        ("refused.test", "A", "status: REFUSED"),
    ] {
        let all = fixture.dig(&[name, kind]);
        assert!(all.contains(expected), "{name}: {all}");
    }
}

#[test]
fn answers_are_kept_for_as_long_as_they_say() {
    let fixture = Fixture::new();
    let ask = |name: &str, kind: &str| fixture.dig(&["+nocookie", name, kind]);
    for _ in 0..3 {
        assert!(ask("kept.test", "A").contains("192.0.2.1"));
        assert!(ask("missing.test", "A").contains("status: NXDOMAIN"));
        assert!(ask("v4only.test", "AAAA").contains("ANSWER: 0"));
    }
    for name in ["kept.test.", "missing.test.", "v4only.test."] {
        assert_eq!(fixture.seen(name).len(), 1, "{name}");
    }
    // Asked in another way, and asked with what is between the client and the server alone.
    ask("kept.test", "AAAA");
    fixture.dig(&["+nocookie", "+dnssec", "kept.test", "A"]);
    fixture.dig(&["kept.test", "A"]);
    fixture.dig(&["kept.test", "A"]);
    assert_eq!(fixture.seen("kept.test.").len(), 5);
    fixture.wait_counted("cache", "answered", 6.0);
}

#[test]
fn a_cache_of_no_size_keeps_nothing() {
    let fixture = Fixture::with(json!({ "dns": { "cacheSize": 0 } }), json!({}));
    for _ in 0..2 {
        fixture.dig(&["+nocookie", "kept.test"]);
    }
    assert_eq!(fixture.seen("kept.test.").len(), 2);
}

#[test]
fn a_server_that_does_not_answer_and_one_that_is_not_there() {
    let fixture = Fixture::with(json!({ "dns": { "timeout": "300ms" } }), json!({}));
    for name in ["silent.test", "garbage.test", "cut.test"] {
        let all = fixture.dig(&[name]);
        assert!(all.contains("status: SERVFAIL"), "{name}: {all}");
    }
    fixture.wait_counted("proxy", "timeout", 3.0);
    let nobody = format!("@{}", fixture.client.node().pod("nobody").ipv4());
    let output = fixture.run("dig", &[&nobody, "+tries=1", "a.test"]);
    let all = String::from_utf8_lossy(&output.stdout);
    assert!(all.contains("status: SERVFAIL"), "{all}");
    fixture.wait_counted("proxy", "refused", 1.0);
    let over_tcp = fixture.dig(&["+tcp", "cut.test"]);
    assert!(over_tcp.contains("status: SERVFAIL"), "{over_tcp}");
    fixture.wait_counted("proxy", "unfit", 1.0);
}

#[test]
fn what_is_not_the_answer_is_not_taken_for_it() {
    let fixture = Fixture::new();
    let all = fixture.dig(&["+short", "forged.test"]);
    assert_eq!(lines(&all), ["192.0.2.1"]);
    // The ids are not the app's, which counts them up from zero.
    let fixture = Fixture::with(json!({ "dns": { "cacheSize": 0 } }), json!({}));
    for _ in 0..4 {
        fixture
            .ask(&[
                "id.test.",
                "--server",
                &fixture.server().to_string(),
                "--type",
                "SRV",
                "--pipelined",
                "4",
            ])
            .event("pipelined");
    }
    let mut ids: Vec<_> = fixture
        .seen("id.test.")
        .iter()
        .map(|event| event.u64("id"))
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert!(ids.len() > 8, "{ids:?}");
}

#[test]
fn what_is_no_query_gets_an_error_or_nothing() {
    let fixture = Fixture::with(json!({}), json!({}));
    let server = fixture.server().to_string();
    // A question that ends in the middle of a name; names that are too long, or point to themselves.
    let long = format!("0102010000010000000000003f{}", "61".repeat(63).repeat(5));
    for raw in [
        "010201000001000000000000036162",
        "010201000001000000000000c00c00010001",
        &long,
    ] {
        let app = fixture.ask(&["x", "--server", &server, "--raw", raw]);
        let answer = app.event("answer");
        assert_eq!((answer.u64("code"), answer.u64("id")), (1, 0x0102), "{raw}");
    }
    // An answer, and less than a header.
    for raw in ["010281000001000000000000016100", "0102"] {
        let app = fixture.ask(&["x", "--server", &server, "--raw", raw, "--timeout", "0.3"]);
        assert_eq!(app.event("error").str("name"), "EAGAIN", "{raw}");
    }
    fixture.wait_counted("proxy", "malformed", 3.0);
    fixture.wait_counted("proxy", "not_a_query", 2.0);
    assert_eq!(
        fixture.upstreams[0].events("query").len() + fixture.upstreams[0].events("malformed").len(),
        0
    );
}

#[test]
fn one_pod_has_so_many_queries_under_way() {
    let fixture = Fixture::with(
        json!({ "dns": { "maxInFlightPerPod": 2, "timeout": "20s" } }),
        json!({}),
    );
    let server = fixture.server().to_string();
    let waiting = fixture.ask(&["silent.test.", "--server", &server, "--pipelined", "2"]);
    assert!(wait_until(PATIENCE, || fixture.seen("silent.test.").len() == 2));
    let all = fixture.dig(&["a.test"]);
    assert!(all.contains("status: SERVFAIL"), "{all}");
    // What needs no server is answered.
    assert_eq!(
        lines(&fixture.dig(&["+short", "web.default.svc.cluster.local"])),
        ["10.96.0.20"]
    );
    drop(waiting);
}
