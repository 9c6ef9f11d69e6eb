//! Names that the mesh knows: answered without the server.

use serde_json::json;

use crate::fixture::{Fixture, has_record, lines};

#[test]
fn a_service_is_answered_and_the_server_does_not_hear_of_it() {
    let fixture = Fixture::new();
    let name = "web.default.svc.cluster.local";
    assert_eq!(lines(&fixture.dig(&["+short", name])), ["10.96.0.20"]);
    assert_eq!(
        lines(&fixture.dig(&["+short", name, "AAAA"])),
        ["fd00:96::20"]
    );
    assert_eq!(
        lines(&fixture.dig(&["+short", "+tcp", name])),
        ["10.96.0.20"]
    );
    let all = fixture.dig(&["WeB.default.SVC.cluster.local"]);
    // The name as it was asked, a flag for who knows best, and the configured time.
    for expected in [
        "status: NOERROR",
        "flags: qr aa rd ra;",
        ";WeB.default.SVC.cluster.local.",
    ] {
        assert!(all.contains(expected), "no {expected} in {all}");
    }
    assert!(has_record(&all, "30 IN A 10.96.0.20"), "{all}");
    assert_eq!(fixture.seen("web.default.svc.cluster.local.").len(), 0);
    fixture.wait_counted("mesh", "answered", 4.0);
}

#[test]
fn a_name_without_addresses_of_the_family_is_known_all_the_same() {
    let fixture = Fixture::new();
    let all = fixture.dig(&["v4.default.svc.cluster.local", "AAAA"]);
    assert!(
        all.contains("status: NOERROR") && all.contains("ANSWER: 0"),
        "{all}"
    );
    assert!(all.contains("SOA"), "{all}");
    assert_eq!(fixture.seen("v4.default.svc.cluster.local.").len(), 0);
}

#[test]
fn a_service_without_virtual_addresses_is_its_members() {
    let fixture = Fixture::new();
    let mut found: Vec<String> =
        lines(&fixture.dig(&["+short", "members.default.svc.cluster.local"]))
            .into_iter()
            .map(str::to_owned)
            .collect();
    found.sort();
    assert_eq!(found, ["10.244.1.14", "10.244.1.15"]);
    let one = fixture.dig(&["+short", "other.members.default.svc.cluster.local"]);
    assert_eq!(lines(&one), ["10.244.1.15"]);
}

#[test]
fn what_clients_make_of_a_name_with_search_domains_is_an_alias() {
    let fixture = Fixture::new();
    let alias = "web.default.svc.cluster.local.default.svc.cluster.local";
    let found = fixture.dig(&["+short", alias]);
    assert_eq!(
        lines(&found),
        ["web.default.svc.cluster.local.", "10.96.0.20"]
    );
    // Short names, from a client that appends nothing.
    for short in ["web", "web.default", "web.default.svc"] {
        assert_eq!(
            lines(&fixture.dig(&["+short", short])),
            ["10.96.0.20"],
            "{short}"
        );
    }
}

#[test]
fn other_types_of_a_known_name_go_to_the_server() {
    let fixture = Fixture::new();
    let name = "web.default.svc.cluster.local.";
    let all = fixture.dig(&[name, "SRV"]);
    assert!(all.contains("status: NXDOMAIN"), "{all}");
    assert_eq!(fixture.seen(name).len(), 1);
}

#[test]
fn the_c_library_resolves_with_search_domains() {
    let fixture = Fixture::new();
    let resolv = format!(
        "nameserver {}\nsearch default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n",
        fixture.servers[0].ipv4()
    );
    for name in ["web", "web.default", "web.default.svc.cluster.local"] {
        let app = fixture.getaddrinfo(&resolv, name);
        let found = app.event("resolved");
        assert_eq!(
            found.json()["addresses"],
            json!(["10.96.0.20", "fd00:96::20"]),
            "{name}"
        );
    }
    let app = fixture.getaddrinfo(&resolv, "a.test");
    assert_eq!(
        app.event("resolved").json()["addresses"],
        json!(["192.0.2.1", "2001:db8::1"])
    );
}

#[test]
fn the_domain_and_the_time_to_live_are_configured() {
    let fixture = Fixture::with(
        json!({ "dns": { "domain": "svc.example", "ttl": "7s" } }),
        json!({}),
    );
    let all = fixture.dig(&["web.default.svc.cluster.local.svc.example"]);
    assert!(has_record(&all, "7 IN A 10.96.0.20"), "{all}");
}
