use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::{
    document::Format,
    identity::Identity,
    pod::{PodOptions, PodUid},
    workload::Defaults,
};

const MESH: &str = r#"
workloads:
- {name: server, namespace: default, workloadIps: [10.0.0.1, "fd00::1"], protocol: HBONE,
   services: {default/web.example: {80: 8080}, other/web.example: {80: 9090}, other/only.other: {}, default/named: {80: 7070},
              default/own: {80: 15008}}}
- {name: another, namespace: default, workloadIps: [10.0.0.2], protocol: HBONE, services: {default/foreign.example: {80: 80}}}
services:
- {name: other, namespace: other, hostname: web.example, vips: [/10.96.0.2], ports: {80: 80}}
- {name: web, namespace: default, hostname: web.example, vips: [/10.96.0.1], ports: {80: 80, 81: 0}}
- {name: only, namespace: other, hostname: only.other, vips: [], ports: {80: 8081}}
- {name: named, namespace: default, hostname: named, vips: [], ports: {80: 0}}
- {name: own, namespace: default, hostname: own, vips: [], ports: {80: 80}}
- {name: foreign, namespace: default, hostname: foreign.example, vips: [], ports: {80: 80}}
"#;

fn pod() -> Pod {
    Pod {
        uid: PodUid::new("default/server"),
        name: "server".into(),
        namespace: "default".into(),
        identity: Identity::new("cluster.local", "default", "server").unwrap(),
        netns: PathBuf::new(),
        cgroup: PathBuf::new(),
        ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        cgroup_only: None,
        options: PodOptions::default(),
    }
}

fn target(authority: &str) -> Result<SocketAddr, AuthorityError> {
    let defaults = Defaults {
        trust_domain: "cluster.local".to_owned(),
    };
    let workloads = Workloads::parse("mesh", MESH, Format::Yaml, &defaults).unwrap();
    inbound_target(Some(&workloads), &pod(), authority)
}

#[test]
fn the_pods_own_addresses_and_services() {
    let table = [
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("10.0.0.1:65535", "10.0.0.1:65535"),
        ("[fd00::1]:80", "[fd00::1]:80"),
        ("[FD00:0:0::1]:80", "[fd00::1]:80"),
        ("[fd00::0.0.0.1]:80", "[fd00::1]:80"),
        ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
        ("[::ffff:a00:1]:80", "10.0.0.1:80"),
        // Ports that are ours elsewhere, but not in a pod.
        ("10.0.0.1:15020", "10.0.0.1:15020"),
        ("web.example:80", "10.0.0.1:8080"),
        ("WEB.example:80", "10.0.0.1:8080"),
        ("only.other:80", "10.0.0.1:8081"),
        ("named:80", "10.0.0.1:7070"),
    ];
    for (authority, expected) in table {
        assert_eq!(
            target(authority),
            Ok(expected.parse().unwrap()),
            "{authority}"
        );
    }
}

#[test]
fn everything_else_is_refused_with_its_status() {
    use AuthorityError::*;
    let table = [
        (
            400,
            WrongAddress,
            &[
                "10.0.0.2:80",
                "10.96.0.1:80",
                "[fd00::2]:80",
                "0.0.0.0:80",
                "[::]:80",
                "169.254.169.254:80",
            ][..],
        ),
        (
            400,
            Loopback,
            &[
                "127.0.0.1:80",
                "127.1.2.3:80",
                "[::1]:80",
                "[::ffff:127.0.0.1]:80",
            ],
        ),
        (
            400,
            OwnPort,
            &[
                "10.0.0.1:15001",
                "10.0.0.1:15006",
                "10.0.0.1:15008",
                "[fd00::1]:15053",
                "own:80",
            ],
        ),
        (
            400,
            NoPort,
            &[
                "10.0.0.1",
                "10.0.0.1:",
                "web.example",
                "web.example:",
                "[fd00::1]",
                "[fd00::1]:",
            ],
        ),
        (
            400,
            Malformed,
            &[
                "",
                ":",
                ":80",
                "10.0.0.1:0",
                "10.0.0.1:65536",
                "10.0.0.1:-1",
                "10.0.0.1:+80",
                "10.0.0.1: 80",
                "10.0.0.1:80 ",
                " 10.0.0.1:80",
                "10.0.0.1:80/",
                "user@10.0.0.1:80",
                "user:pw@web.example:80",
                "@10.0.0.1:80",
                "http://10.0.0.1:80",
                "10.0.0.300:80",
                "10.0.0.1.:80",
                "10.0.1:80",
                "1:80",
                "0x0a000001:80",
                "010.0.0.1:80",
                "fd00::1:80",
                "fd00::1",
                "[fd00::1:80",
                "fd00::1]:80",
                "[fd00::1]80",
                "[[fd00::1]]:80",
                "[fd00::1%eth0]:80",
                "[10.0.0.1]:80",
                "[web.example]:80",
                "[v1.x]:80",
                "web.example:http",
                "web example:80",
                "web\0:80",
                "wéb:80",
                "web%2e:80",
                "a:b:80",
            ],
        ),
        (
            503,
            UnknownHost,
            &[
                "unknown.example:80",
                "foreign.example:80",
                "localhost:80",
                "-:80",
                "_:80",
            ],
        ),
        (
            503,
            UnknownServicePort,
            &["web.example:82", "web.example:81", "web.example:15008"],
        ),
    ];
    for (status, expected, authorities) in table {
        for authority in authorities {
            let error = target(authority).expect_err(authority);
            assert_eq!(
                (error, error.status().as_u16()),
                (expected, status),
                "{authority}"
            );
        }
    }
}

#[test]
fn without_workload_data_addresses_work_and_names_wait() {
    assert_eq!(
        inbound_target(None, &pod(), "10.0.0.1:80"),
        Ok("10.0.0.1:80".parse().unwrap())
    );
    let error = inbound_target(None, &pod(), "web.example:80").unwrap_err();
    assert_eq!(
        (error, error.status().as_u16()),
        (AuthorityError::NoWorkloads, 503)
    );
}

#[test]
fn the_service_in_the_pods_own_namespace_comes_first() {
    // other/web.example is earlier in the file, and says 9090.
    assert_eq!(target("web.example:80").unwrap().port(), 8080);
}

proptest! {
    #[test]
    fn nothing_panics_and_only_the_pods_addresses_come_out(authority in "\\PC{0,40}") {
        if let Ok(found) = target(&authority) {
            prop_assert!(pod().ips.contains(&found.ip()));
        }
    }

    #[test]
    fn near_misses_do_not_panic(authority in "\\[?[0-9a-f:.]{0,30}(%[a-z0-9]{1,4})?\\]?:?[0-9]{0,6}") {
        if let Ok(found) = target(&authority) {
            prop_assert!(pod().ips.contains(&found.ip()) && found.port() != 0);
        }
    }

    /// The form that every client writes is the form that is read.
    #[test]
    fn every_address_form_is_understood(ip: std::net::IpAddr, port in 1u16..) {
        let written = SocketAddr::new(ip, port).to_string();
        prop_assert_eq!(split(&written), Ok((Host::Ip(ip), port)));
        let mut pod = pod();
        pod.ips = vec![ip.to_canonical()];
        let expected = match ip.to_canonical() {
            ip if ip.is_loopback() => Err(AuthorityError::Loopback),
            _ if ports::is_own(port) => Err(AuthorityError::OwnPort),
            ip => Ok(SocketAddr::new(ip, port)),
        };
        prop_assert_eq!(inbound_target(None, &pod, &written), expected);
    }
}
