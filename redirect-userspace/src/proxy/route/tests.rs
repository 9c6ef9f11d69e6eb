use std::collections::{BTreeMap, HashMap};

use super::*;
use crate::{document::Format, workload::Defaults};

const MESH: &str = r#"
workloads:
- {name: a, namespace: default, serviceAccount: sa-a, workloadIps: [10.0.0.1, "fd00::1"], protocol: HBONE,
   services: {default/web: {80: 8080}, default/six: {80: 8080}, default/named: {80: 7070}, default/own: {80: 80}}}
- {name: b, namespace: default, serviceAccount: sa-b, workloadIps: [10.0.0.2], protocol: HBONE,
   services: {default/web: {}, default/six: {}, default/named: {}}}
- {name: sick, namespace: default, workloadIps: [10.0.0.3], protocol: HBONE, status: Unhealthy,
   services: {default/web: {}, default/sick: {}, default/all: {}}}
- {name: plain, namespace: default, workloadIps: [10.0.0.4], services: {default/plain: {}}}
- {name: behind, namespace: default, workloadIps: [10.0.0.5], protocol: HBONE, services: {default/behind: {}},
   waypoint: {destination: "/10.0.0.9", hboneMtlsPort: 15008}}
- {name: far, namespace: default, workloadIps: [10.0.0.6], protocol: HBONE, network: far, services: {default/far: {}}}
- {name: nameonly, namespace: default, workloadIps: [], hostname: db.example, services: {default/nameonly: {}}}
- {name: onhost, namespace: default, workloadIps: [192.0.2.1], networkMode: HostNetwork, protocol: HBONE,
   services: {default/onhost: {}}}
- {name: heavy, namespace: default, workloadIps: [10.0.0.7], capacity: 3, services: {default/heavy: {}}}
- {name: light, namespace: default, workloadIps: [10.0.0.8], services: {default/heavy: {}}}
- {name: none, namespace: default, workloadIps: [10.0.0.10], capacity: 0, services: {default/heavy: {}}}
services:
- {name: web, namespace: default, hostname: web, vips: [/10.96.0.1], ports: {80: 80}, subjectAltNames: ["spiffe://x/y"]}
- {name: six, namespace: default, hostname: six, vips: ["/fd00:96::1"], ports: {80: 80}}
- {name: named, namespace: default, hostname: named, vips: [/10.96.0.2], ports: {80: 0}}
- {name: sick, namespace: default, hostname: sick, vips: [/10.96.0.3], ports: {80: 80}}
- {name: all, namespace: default, hostname: all, vips: [/10.96.0.4], ports: {80: 80},
   loadBalancer: {routingPreferences: [], mode: Standard, healthPolicy: AllowAll}}
- {name: plain, namespace: default, hostname: plain, vips: [/10.96.0.5], ports: {80: 8080}}
- {name: behind, namespace: default, hostname: behind, vips: [/10.96.0.6], ports: {80: 80}}
- {name: guarded, namespace: default, hostname: guarded, vips: [/10.96.0.7], ports: {80: 80},
   waypoint: {destination: "/10.0.0.9", hboneMtlsPort: 15008}}
- {name: far, namespace: default, hostname: far, vips: [/10.96.0.8], ports: {80: 80}}
- {name: nameonly, namespace: default, hostname: nameonly, vips: [/10.96.0.9], ports: {80: 80}}
- {name: onhost, namespace: default, hostname: onhost, vips: [/10.96.0.10], ports: {80: 80}}
- {name: through, namespace: default, hostname: through, vips: [/10.96.0.11], ports: {80: 80},
   loadBalancer: {routingPreferences: [], mode: Passthrough, healthPolicy: OnlyHealthy}}
- {name: heavy, namespace: default, hostname: heavy, vips: [/10.96.0.12], ports: {80: 80}}
- {name: empty, namespace: default, hostname: empty, vips: [/10.96.0.13], ports: {80: 80}}
- {name: own, namespace: default, hostname: own, vips: [/10.96.0.14], ports: {80: 15008}, endpoints:
   {x: {workloadUid: "//Pod/default/a", port: {80: 15008}, status: Healthy}}}
- {name: shared, namespace: one, hostname: shared.one, vips: [/10.96.1.1], ports: {1: 1}}
- {name: shared, namespace: two, hostname: shared.two, vips: [/10.96.1.1], ports: {2: 2}, canonical: true}
- {name: hidden, namespace: three, hostname: hidden, vips: [/10.96.1.2], ports: {3: 3}, visibility: Namespace}
- {name: range, namespace: one, hostname: range, vips: [], cidrVips: [/10.97.0.0/16], ports: {1: 1}}
- {name: narrow, namespace: two, hostname: narrow, vips: [], cidrVips: [/10.97.1.0/24], ports: {2: 2}}
"#;

fn mesh() -> Workloads {
    let defaults = Defaults {
        trust_domain: "cluster.local".to_owned(),
    };
    Workloads::parse("mesh", MESH, Format::Yaml, &defaults).unwrap()
}

const HERE: Source<'static> = Source {
    network: "",
    namespace: "default",
};

fn go(workloads: &Workloads, dst: &str, pick: u64) -> Route {
    route(workloads, HERE, dst.parse().unwrap(), pick)
}

/// One line for a table.
fn line(route: &Route) -> String {
    match route {
        Route::Hbone(hbone) => {
            let service = hbone
                .service
                .as_ref()
                .map_or(String::new(), |service| format!(" for {}", service.name));
            format!(
                "hbone {} {} to {}{service}",
                hbone.peer, hbone.authority, hbone.workload.name
            )
        }
        Route::Passthrough(through) => {
            let workload = through
                .workload
                .as_ref()
                .map_or(String::new(), |workload| format!(" to {}", workload.name));
            let service = through
                .service
                .as_ref()
                .map_or(String::new(), |service| format!(" for {}", service.name));
            format!("passthrough {}{workload}{service}", through.dst)
        }
        Route::Refuse(reason) => format!("refuse {}", reason.as_str()),
    }
}

#[test]
fn table() {
    let workloads = mesh();
    let table = [
        // By address.
        ("10.0.0.1:80", 0, "hbone 10.0.0.1:15008 10.0.0.1:80 to a"),
        ("[fd00::1]:80", 0, "hbone [fd00::1]:15008 [fd00::1]:80 to a"),
        (
            "[::ffff:10.0.0.1]:80",
            0,
            "hbone 10.0.0.1:15008 10.0.0.1:80 to a",
        ),
        ("10.0.0.3:80", 0, "hbone 10.0.0.3:15008 10.0.0.3:80 to sick"),
        ("10.0.0.4:80", 0, "passthrough 10.0.0.4:80 to plain"),
        ("10.0.0.5:80", 0, "refuse waypoint_unsupported"),
        ("10.0.0.1:15001", 0, "refuse own_port"),
        ("10.0.0.1:15006", 0, "refuse own_port"),
        ("10.0.0.1:15008", 0, "refuse own_port"),
        ("10.0.0.1:15053", 0, "refuse own_port"),
        ("10.0.0.4:15008", 0, "passthrough 10.0.0.4:15008 to plain"),
        // Not in the mesh: unknown, in another network, or an address that its node has, too.
        ("203.0.113.1:443", 0, "passthrough 203.0.113.1:443"),
        ("[::ffff:203.0.113.1]:443", 0, "passthrough 203.0.113.1:443"),
        ("203.0.113.1:15008", 0, "passthrough 203.0.113.1:15008"),
        ("10.0.0.6:80", 0, "passthrough 10.0.0.6:80"),
        ("192.0.2.1:80", 0, "passthrough 192.0.2.1:80"),
        // By virtual address.
        (
            "10.96.0.1:80",
            0,
            "hbone 10.0.0.1:15008 10.0.0.1:8080 to a for web",
        ),
        (
            "10.96.0.1:80",
            1,
            "hbone 10.0.0.2:15008 10.0.0.2:80 to b for web",
        ),
        (
            "10.96.0.1:80",
            2,
            "hbone 10.0.0.1:15008 10.0.0.1:8080 to a for web",
        ),
        ("10.96.0.1:81", 0, "refuse unknown_service_port"),
        ("10.96.0.1:15008", 0, "refuse unknown_service_port"),
        (
            "[fd00:96::1]:80",
            0,
            "hbone [fd00::1]:15008 [fd00::1]:8080 to a for six",
        ),
        (
            "[fd00:96::1]:80",
            1,
            "hbone 10.0.0.2:15008 10.0.0.2:80 to b for six",
        ),
        (
            "10.96.0.2:80",
            0,
            "hbone 10.0.0.1:15008 10.0.0.1:7070 to a for named",
        ),
        (
            "10.96.0.2:80",
            1,
            "hbone 10.0.0.1:15008 10.0.0.1:7070 to a for named",
        ),
        ("10.96.0.3:80", 0, "refuse no_healthy_endpoint"),
        (
            "10.96.0.4:80",
            0,
            "hbone 10.0.0.3:15008 10.0.0.3:80 to sick for all",
        ),
        (
            "10.96.0.5:80",
            0,
            "passthrough 10.0.0.4:8080 to plain for plain",
        ),
        // Its own waypoint is for those who call it by its address.
        (
            "10.96.0.6:80",
            0,
            "hbone 10.0.0.5:15008 10.0.0.5:80 to behind for behind",
        ),
        ("10.96.0.7:80", 0, "refuse waypoint_unsupported"),
        ("10.96.0.8:80", 0, "refuse other_network"),
        ("10.96.0.9:80", 0, "refuse endpoint_without_address"),
        (
            "10.96.0.10:80",
            0,
            "hbone 192.0.2.1:15008 192.0.2.1:80 to onhost for onhost",
        ),
        ("10.96.0.11:80", 0, "passthrough 10.96.0.11:80 for through"),
        ("10.96.0.13:80", 0, "refuse no_healthy_endpoint"),
        ("10.96.0.14:80", 0, "refuse own_port"),
    ];
    for (dst, pick, expected) in table {
        assert_eq!(
            line(&go(&workloads, dst, pick)),
            expected,
            "{dst}, pick {pick}"
        );
    }
}

#[test]
fn the_namespace_of_the_client_decides_between_services() {
    let workloads = mesh();
    let table = [
        // Its own namespace, else the canonical one.
        ("10.96.1.1", "one", Some("shared.one")),
        ("10.96.1.1", "two", Some("shared.two")),
        ("10.96.1.1", "default", Some("shared.two")),
        // Seen in its own namespace only.
        ("10.96.1.2", "three", Some("hidden")),
        ("10.96.1.2", "default", None),
        // Its own namespace, else the longer range.
        ("10.97.1.1", "one", Some("range")),
        ("10.97.1.1", "default", Some("narrow")),
        ("10.97.2.1", "default", Some("range")),
        ("10.98.0.1", "default", None),
    ];
    for (vip, namespace, expected) in table {
        let found = workloads.service("", vip.parse().unwrap(), namespace);
        assert_eq!(
            found.map(|service| &*service.hostname),
            expected,
            "{vip} from {namespace}"
        );
        assert_eq!(
            workloads.service("other", vip.parse().unwrap(), namespace),
            None
        );
    }
}

#[test]
fn the_peer_must_be_the_workload_or_a_name_of_the_service() {
    let workloads = mesh();
    let accepted = |dst| match go(&workloads, dst, 0) {
        Route::Hbone(hbone) => hbone.accepted.to_vec(),
        other => panic!("{other:?}"),
    };
    let own: Arc<str> = "spiffe://cluster.local/ns/default/sa/sa-a".into();
    assert_eq!(accepted("10.0.0.1:80"), std::slice::from_ref(&own));
    assert_eq!(accepted("10.96.0.1:80"), [own, "spiffe://x/y".into()]);
}

#[test]
fn picks_are_spread_by_capacity() {
    let workloads = mesh();
    let mut counts = BTreeMap::new();
    for pick in 0..4000 {
        let Route::Passthrough(through) = go(&workloads, "10.96.0.12:80", pick) else {
            panic!("passthrough")
        };
        *counts.entry(through.dst.ip().to_string()).or_insert(0) += 1;
    }
    assert_eq!(
        counts,
        BTreeMap::from([("10.0.0.7".to_owned(), 3000), ("10.0.0.8".to_owned(), 1000)])
    );
    // The last pick of a counter that is about to wrap.
    assert!(matches!(
        go(&workloads, "10.96.0.12:80", u64::MAX),
        Route::Passthrough(_)
    ));
}

#[test]
fn seen_from_another_network_the_near_is_far() {
    let workloads = mesh();
    let there = Source {
        network: "far",
        namespace: "default",
    };
    let to = |dst: &str| line(&route(&workloads, there, dst.parse().unwrap(), 0));
    assert_eq!(to("10.0.0.6:80"), "hbone 10.0.0.6:15008 10.0.0.6:80 to far");
    assert_eq!(to("10.0.0.1:80"), "passthrough 10.0.0.1:80");
}

#[test]
fn reasons_have_names_of_their_own() {
    let names: HashMap<_, _> = RefuseReason::ALL
        .map(|reason| (reason.as_str(), reason))
        .into();
    assert_eq!(names.len(), RefuseReason::ALL.len());
    assert!(
        names
            .keys()
            .all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
    );
}
