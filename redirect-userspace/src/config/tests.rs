mod agent;
mod modes;
mod properties;

use std::net::IpAddr;

use super::*;
use crate::{identity::Identity, pod::PodUid};

fn host() -> Host {
    Host {
        environment: BTreeMap::new(),
        hostname: "node-a".to_owned(),
        cores: 8,
    }
}

fn flags() -> Flags {
    Flags {
        dev_ca: true,
        ..Flags::default()
    }
}

fn parse_with(text: &str, host: &Host, flags: &Flags) -> Result<Config, ConfigError> {
    Config::parse(Path::new("redirect.yaml"), text, Format::Yaml, host, flags)
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    parse_with(text, &host(), &flags())
}

const LEAST: &str = "workloads: /w.yaml\nidentity: {source: devCa, dir: /ca}\n";

fn mistakes(text: &str) -> Vec<String> {
    match parse(text) {
        Err(ConfigError::Invalid { mistakes, .. }) => {
            mistakes.iter().map(ToString::to_string).collect()
        }
        other => panic!("expected mistakes, found {other:?}"),
    }
}

/// The mistakes of a file that is right but for these lines.
fn mistakes_of(lines: &str) -> Vec<String> {
    mistakes(&format!("{LEAST}{lines}"))
}

#[test]
fn the_defaults_are_those_of_the_manual() {
    let config = parse(LEAST).unwrap();
    let expected = Config {
        node: "node-a".into(),
        trust_domain: "cluster.local".into(),
        cluster_id: "Kubernetes".into(),
        network: String::new(),
        workers: NonZeroUsize::new(4).unwrap(),
        state_dir: "/run/redirect".into(),
        workloads: Some("/w.yaml".into()),
        capture: CaptureConfig {
            part: Part::Whole,
            backend: Backend::Auto,
            mode: Mode::Shared,
            iptables: IptablesVariant::Auto,
            leak_guard: true,
            probers: ProberCgroups::Auto,
            bpffs: "/sys/fs/bpf".into(),
            abi: redirect_common::ABI_VERSION,
            mount_bpffs: true,
            cgroup: None,
            exempt_uid: None,
            events: false,
            detach_on_exit: false,
            verify_interval: Duration::from_secs(10),
        },
        proxy: ProxyConfig {
            hold: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            drain: Duration::from_secs(30),
            max_connections_per_pod: 20_000,
        },
        hbone: HboneConfig {
            stream_window: 2 << 20,
            max_streams_per_tunnel: 100,
            max_tunnels_per_peer: 64,
            max_inbound_tunnels: 1024,
            max_handshakes_per_source: 64,
            handshake_timeout: Duration::from_secs(10),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_secs(300),
        },
        dns: DnsConfig {
            enabled: true,
            domain: "cluster.local".into(),
            ttl: Duration::from_secs(30),
            timeout: Duration::from_secs(4),
            cache_size: 1000,
            max_in_flight_per_pod: 512,
            upstream: None,
        },
        identity: IdentityConfig::DevCa {
            dir: "/ca".into(),
            ttl: Duration::from_secs(86_400),
        },
        admin: AdminConfig {
            metrics: Some(([127, 0, 0, 1], 15020).into()),
            readiness: Some(([127, 0, 0, 1], 15021).into()),
        },
        log: LogConfig {
            filter: "info".into(),
            format: LogFormat::Text,
        },
        agent: agent::without_settings(Some("/run/redirect/agent.sock".into())),
        pods: Vec::new(),
    };
    assert_eq!(config, expected);
}

const EVERYTHING: &str = r#"
node: from-file
trustDomain: example.org
clusterId: west
network: net-1
workers: 3
stateDir: /run/other
workloads: /etc/w.yaml
capture: {backend: none, iptables: legacy, bpffs: /bpf, mountBpffs: false, abi: 7, cgroup: /cg/me, events: true, detachOnExit: true, verifyInterval: 1m,
  probes: {cgroups: [/cg/kubelet]}}
proxy: {hold: 0s, connectTimeout: 500ms, drain: 2m, maxConnectionsPerPod: 10}
hbone: {streamWindow: 64KiB, maxStreamsPerTunnel: 7, maxTunnelsPerPeer: 8, maxInboundTunnels: 9, maxHandshakesPerSource: 10,
  handshakeTimeout: 1s, pingInterval: 2s, pingTimeout: 3s, idleTimeout: 1h}
dns: {enabled: true, domain: Example.ORG., ttl: 0s, timeout: 1s, cacheSize: 0, maxInFlightPerPod: 3, upstream: "[fd00::a]:53"}
identity: {source: devCa, dir: /ca, ttl: 2s}
admin: {metrics: null, readiness: "[::1]:9000"}
pods:
- name: client
  namespace: default
  serviceAccount: caller
  netns: /run/netns/x
  cgroup: /cg//pod1/
  ips: [10.1.0.2, "fd00:1::2", "::ffff:10.1.0.3"]
- name: server
  namespace: default
  serviceAccount: server
  uid: 7f1c
  netns: /run/netns/y
  cgroup: /cg/pod2
  ips: [10.1.0.4]
  excludeOutboundPorts: [22, 25]
  excludeOutboundCidrs: [10.9.0.0/16, "fd00::/8"]
  exemptCgroups: [/cg/pod2/agent]
  captureMetadataAddress: true
  preserveClientIp: false
"#;

#[test]
fn every_field_is_read() {
    let config = parse(EVERYTHING).unwrap();
    assert_eq!(
        (config.node.as_str(), config.trust_domain.as_str()),
        ("from-file", "example.org")
    );
    assert_eq!(
        (config.cluster_id.as_str(), config.network.as_str()),
        ("west", "net-1")
    );
    assert_eq!(
        (config.workers.get(), config.state_dir),
        (3, "/run/other".into())
    );
    let capture = CaptureConfig {
        part: Part::Whole,
        backend: Backend::None,
        mode: Mode::Shared,
        iptables: IptablesVariant::Legacy,
        leak_guard: true,
        probers: ProberCgroups::Paths(vec!["/cg/kubelet".into()]),
        bpffs: "/bpf".into(),
        abi: 7,
        mount_bpffs: false,
        cgroup: Some("/cg/me".into()),
        exempt_uid: None,
        events: true,
        detach_on_exit: true,
        verify_interval: Duration::from_secs(60),
    };
    assert_eq!(config.capture, capture);
    let proxy = ProxyConfig {
        hold: Duration::ZERO,
        connect_timeout: Duration::from_millis(500),
        drain: Duration::from_secs(120),
        max_connections_per_pod: 10,
    };
    assert_eq!(config.proxy, proxy);
    let hbone = HboneConfig {
        stream_window: 65_536,
        max_streams_per_tunnel: 7,
        max_tunnels_per_peer: 8,
        max_inbound_tunnels: 9,
        max_handshakes_per_source: 10,
        handshake_timeout: Duration::from_secs(1),
        ping_interval: Duration::from_secs(2),
        ping_timeout: Duration::from_secs(3),
        idle_timeout: Duration::from_secs(3600),
    };
    assert_eq!(config.hbone, hbone);
    let dns = DnsConfig {
        enabled: true,
        domain: "example.org".into(),
        ttl: Duration::ZERO,
        timeout: Duration::from_secs(1),
        cache_size: 0,
        max_in_flight_per_pod: 3,
        upstream: Some("[fd00::a]:53".parse().unwrap()),
    };
    assert_eq!(config.dns, dns);
    assert_eq!(
        config.identity,
        IdentityConfig::DevCa {
            dir: "/ca".into(),
            ttl: Duration::from_secs(2)
        }
    );
    assert_eq!(
        config.admin,
        AdminConfig {
            metrics: None,
            readiness: Some("[::1]:9000".parse().unwrap())
        }
    );
    let [client, server] = config.pods.as_slice() else {
        panic!("two pods")
    };
    assert_eq!(client.uid, PodUid::new("default/client"));
    assert_eq!(
        client.identity,
        Identity::new("example.org", "default", "caller").unwrap()
    );
    assert_eq!(client.cgroup, Path::new("/cg/pod1"));
    let ips: Vec<IpAddr> = ["10.1.0.2", "fd00:1::2", "10.1.0.3"]
        .map(|ip| ip.parse().unwrap())
        .into();
    assert_eq!(client.ips, ips);
    assert_eq!(client.options, Default::default());
    assert_eq!(server.uid, PodUid::new("7f1c"));
    assert_eq!(server.options.exclude_outbound_ports, [22, 25]);
    assert_eq!(server.options.exclude_outbound_cidrs.len(), 2);
    assert_eq!(server.options.exempt_cgroups, [Path::new("/cg/pod2/agent")]);
    assert!(server.options.capture_metadata_address && !server.options.preserve_client_ip);
}

#[test]
fn toml_says_the_same() {
    let text = r#"
        workloads = "/w.yaml"
        workers = 4
        [identity]
        source = "devCa"
        dir = "/ca"
        [[pods]]
        name = "a"
        namespace = "b"
        serviceAccount = "c"
        netns = "/n"
        cgroup = "/c"
        ips = ["10.0.0.1"]
    "#;
    let toml = Config::parse(Path::new("x.toml"), text, Format::Toml, &host(), &flags()).unwrap();
    let pod = "pods: [{name: a, namespace: b, serviceAccount: c, netns: /n, cgroup: /c, ips: [10.0.0.1]}]";
    assert_eq!(toml, parse(&format!("{LEAST}{pod}")).unwrap());
    assert_eq!(
        (Format::of(Path::new("a.TOML")), Format::of(Path::new("a"))),
        (Format::Toml, Format::Yaml)
    );
}

#[test]
fn flags_win_over_environment_which_wins_over_the_file() {
    let text = format!("{LEAST}node: file\nworkers: 2\n");
    let environment = [
        ("REDIRECT_NODE", "environment"),
        ("REDIRECT_WORKERS", "5"),
        ("REDIRECT_TRUST_DOMAIN", "example.org"),
        ("REDIRECT_CLUSTER_ID", "c"),
        ("REDIRECT_NETWORK", "n"),
        ("REDIRECT_STATE_DIR", "/s"),
        ("REDIRECT_WORKLOADS", "/x"),
        ("REDIRECT_LOG", "debug"),
        ("REDIRECT_LOG_FORMAT", "json"),
    ];
    let environment = environment
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let host = Host {
        environment,
        ..host()
    };
    let config = parse_with(&text, &host, &flags()).unwrap();
    assert_eq!(
        (config.node.as_str(), config.workers.get()),
        ("environment", 5)
    );
    assert_eq!(
        (config.trust_domain.as_str(), config.cluster_id.as_str()),
        ("example.org", "c")
    );
    assert_eq!(
        (config.network.as_str(), config.state_dir),
        ("n", "/s".into())
    );
    assert_eq!(config.workloads.as_deref(), Some(Path::new("/x")));
    assert_eq!(
        config.log,
        LogConfig {
            filter: "debug".into(),
            format: LogFormat::Json
        }
    );

    let flags = Flags {
        node: Some("flag".into()),
        workers: NonZeroUsize::new(7),
        log: Some("trace".into()),
        log_format: Some(LogFormat::Text),
        detach_on_exit: true,
        ..flags()
    };
    let config = parse_with(&text, &host, &flags).unwrap();
    assert_eq!((config.node.as_str(), config.workers.get()), ("flag", 7));
    assert_eq!(
        config.log,
        LogConfig {
            filter: "trace".into(),
            format: LogFormat::Text
        }
    );
    assert!(config.capture.detach_on_exit);
}

#[test]
fn bad_environment_and_flags_are_named() {
    let environment = [
        ("REDIRECT_WORKERS", "many"),
        ("REDIRECT_TRUST_DOMAIN", "Example.org"),
        ("REDIRECT_STATE_DIR", "run"),
        ("REDIRECT_LOG_FORMAT", "xml"),
        ("REDIRECT_NODE", "with blank"),
        // Kubernetes makes such variables for a service called `redirect`.
        ("REDIRECT_SERVICE_HOST", "10.0.0.1"),
        ("REDIRECT_NETWORK", ""),
    ];
    let environment = environment
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let flags = Flags {
        log: Some("a=b=c".into()),
        ..flags()
    };
    let error = parse_with(
        LEAST,
        &Host {
            environment,
            ..host()
        },
        &flags,
    )
    .unwrap_err()
    .to_string();
    for name in [
        "REDIRECT_WORKERS: ",
        "REDIRECT_TRUST_DOMAIN: ",
        "REDIRECT_STATE_DIR: ",
        "REDIRECT_NODE: ",
        "--log: ",
    ] {
        assert!(error.contains(&format!("\n  {name}")), "{name} in {error}");
    }
    assert!(
        !error.contains("SERVICE_HOST") && !error.contains("NETWORK"),
        "{error}"
    );
}

#[test]
fn all_mistakes_are_reported_together_with_their_fields() {
    let text = r#"
node: 7
trustDomain: Cluster.local
worker: 2
workers: 0
capture: {backend: ipfw, events: maybe}
proxy: {hold: 5, drain: 5 parsecs, connectTimeout: 0s}
hbone: {streamWindow: 2MB, maxStreamsPerTunnel: 0}
admin: {metrics: here}
pods:
- name: a
  namespace: default
  serviceAccount: a
  netns: run/netns/a
  cgroup: /cg/a
  ips: [10.0.0.300]
- namespace: ..
  ips: []
  excludeOutboundPorts: [70000, http]
  excludeOutboundCidrs: [10.9.1.0/16]
  ipz: []
- 5
"#;
    let expected = [
        "node: expected text, found the number 7 (put it in quotes)",
        "trustDomain: \"Cluster.local\" cannot be a trust domain: lower-case letters, digits, `.`, `-` and `_`, at most 255",
        "workers: 0 is not between 1 and 1024",
        "workloads: is missing",
        "capture.backend: \"ipfw\" is not one of auto, ebpf, iptables, nftables, none",
        "capture.events: expected true or false, found \"maybe\"",
        "proxy.hold: expected text, found the number 5 (put it in quotes)",
        "proxy.connectTimeout: must be more than nothing",
        "proxy.drain: \"5 parsecs\" is not a duration such as 500ms, 5s, 10m or 24h",
        "hbone.streamWindow: \"2MB\" is not a size such as 65536, 64KiB or 2MiB",
        "hbone.maxStreamsPerTunnel: 0 is not between 1 and 10000",
        "identity: is missing",
        "admin.metrics: \"here\" is not an address such as 127.0.0.1:15020",
        "pods[0].netns: \"run/netns/a\" is not an absolute path",
        "pods[0].ips[0]: \"10.0.0.300\" is not an IP address",
        "pods[1].name: is missing",
        "pods[1].namespace: \"..\" cannot be a namespace: letters, digits, `.`, `-` and `_`, at most 253, not `.` or `..`",
        "pods[1].serviceAccount: is missing",
        "pods[1].netns: is missing",
        "pods[1].cgroup: is missing",
        "pods[1].ips: a pod needs at least one address",
        "pods[1].excludeOutboundPorts[0]: 70000 is not between 1 and 65535",
        "pods[1].excludeOutboundPorts[1]: expected a number between 1 and 65535, found \"http\"",
        "pods[1].excludeOutboundCidrs[0]: 10.9.1.0/16 has bits set after its prefix; 10.9.0.0/16 is meant?",
        "pods[1].ipz: unknown field; did you mean ips?",
        "pods[2]: expected a map, found the number 5",
        "worker: unknown field; did you mean workers?",
    ];
    assert_eq!(mistakes(text), expected);
}

#[test]
fn what_pods_must_not_share_is_named() {
    let pod = |more: &str| format!("{{namespace: d, serviceAccount: s, {more}}}");
    let list = [
        pod("name: a, netns: /n/a, cgroup: /cg/a, ips: [10.0.0.1]"),
        pod("name: a, netns: /n/b, cgroup: /cg/b, ips: [10.0.0.2]"),
        pod("name: c, netns: /n/a, cgroup: /cg/c, ips: [10.0.0.3]"),
        pod("name: d, netns: /n/d, cgroup: /cg/a, ips: [10.0.0.4]"),
        pod("name: e, netns: /n/e, cgroup: /cg/c/inner, ips: [10.0.0.5]"),
        pod("name: f, netns: /n/f, cgroup: /cg/f, ips: [\"::ffff:10.0.0.1\"]"),
        pod("name: g, netns: /n/g, cgroup: /cg/g, ips: [10.0.0.7, 10.0.0.7]"),
        pod(
            "name: h, netns: /n/h, cgroup: /cg/h, ips: [127.0.0.1, 0.0.0.0, 224.0.0.1, 255.255.255.255, \"fe80::1\"]",
        ),
        pod(
            "name: i, netns: /n/i, cgroup: /cg/i, ips: [10.0.0.9], exemptCgroups: [/cg/i, /cg/other]",
        ),
        pod("name: j, uid: ../j, netns: /n/../j, cgroup: /cg/j, ips: [10.0.0.10]"),
    ];
    let expected = [
        "pods[1].uid: d/a is that of pods[0], too",
        "pods[2].netns: /n/a is that of pods[0], too",
        "pods[3].cgroup: /cg/a is that of pods[0], too",
        "pods[4].cgroup: /cg/c/inner is inside, or around, that of pods[2], too",
        "pods[5].ips: 10.0.0.1 is that of pods[0], too",
        "pods[6].ips: 10.0.0.7 is given twice",
        "pods[7].ips[0]: 127.0.0.1 is a loopback address, which cannot be a pod's",
        "pods[7].ips[1]: 0.0.0.0 is the unspecified address, which cannot be a pod's",
        "pods[7].ips[2]: 224.0.0.1 is a multicast address, which cannot be a pod's",
        "pods[7].ips[3]: 255.255.255.255 is the broadcast address, which cannot be a pod's",
        "pods[7].ips[4]: fe80::1 is a link-local address, which cannot be a pod's",
        "pods[8].exemptCgroups[0]: /cg/i is not below the pod's cgroup /cg/i",
        "pods[8].exemptCgroups[1]: /cg/other is not below the pod's cgroup /cg/i",
        "pods[9].uid: \"../j\" cannot be a uid: letters, digits, `.`, `-`, `_`, in parts separated by `/`",
        "pods[9].netns: \"/n/../j\" has a part `..` or a zero byte",
    ];
    assert_eq!(
        mistakes_of(&format!("pods: [{}]", list.join(", "))),
        expected
    );
}

#[test]
fn values_that_do_not_fit_together_are_refused() {
    let table = [
        (
            "hbone: {streamWindow: 1GiB, maxStreamsPerTunnel: 2}",
            "hbone: streamWindow (1073741824) times maxStreamsPerTunnel (2)",
        ),
        (
            "admin: {metrics: '127.0.0.1:1', readiness: '127.0.0.1:1'}",
            "admin: metrics and readiness are both at 127.0.0.1:1",
        ),
        (
            "proxy: {drain: 100000d}",
            "proxy.drain: \"100000d\" is longer than ten years",
        ),
        (
            "hbone: {streamWindow: 1KiB}",
            "hbone.streamWindow: \"1KiB\" is not between 65535 and 2147483647 bytes",
        ),
        ("pods: {}", "pods: expected a list, found a map"),
        ("capture: []", "capture: expected a map, found a list"),
        (
            "capture: {probes: {cgroups: kubelet}}",
            "capture.probes.cgroups: expected a list",
        ),
        (
            "capture: {probes: {cgroups: [kubelet]}}",
            "capture.probes.cgroups[0]: \"kubelet\" is not an absolute path",
        ),
        (
            "network: a/b",
            "network: \"a/b\" cannot be a network: it has a slash",
        ),
    ];
    for (lines, expected) in table {
        let found = mistakes_of(lines);
        assert!(
            found.len() == 1 && found[0].starts_with(expected),
            "{lines}: {found:?}"
        );
    }
}

#[test]
fn a_development_authority_needs_the_flag_and_files_have_no_ttl() {
    let error = parse_with(LEAST, &host(), &Flags::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("identity: source: devCa signs with the root key")
            && error.contains("--dev-ca"),
        "{error}"
    );
    let files = "workloads: /w\nidentity: {source: files, dir: /certs}";
    let config = parse_with(files, &host(), &Flags::default()).unwrap();
    assert_eq!(
        config.identity,
        IdentityConfig::Files {
            dir: "/certs".into()
        }
    );
    let found = mistakes("workloads: /w\nidentity: {source: files, dir: /certs, ttl: 1h}");
    assert_eq!(
        found,
        ["identity.ttl: only with source: devCa; certificate files have their own time"]
    );
    let found = mistakes("workloads: /w\nidentity: {source: devCa, dir: /certs, ttl: 1ms}");
    assert_eq!(found, ["identity.ttl: must be at least 1s"]);
}

#[test]
fn what_is_no_document_is_reported_with_its_place() {
    for text in [
        "a: [",
        "a: 1\na: 2",
        "%",
        "- a\nb: c",
        "\t- x: : y",
        "a: *nowhere",
    ] {
        let error = parse(text).unwrap_err();
        assert!(
            matches!(error, ConfigError::Syntax { .. }),
            "{text:?}: {error:?}"
        );
        assert!(error.to_string().contains("line"), "{text:?}: {error}");
    }
    assert_eq!(mistakes("[]"), ["expected a map, found a list"]);
    assert_eq!(
        mistakes(""),
        ["workloads: is missing", "identity: is missing"]
    );
    let toml =
        Config::parse(Path::new("x.toml"), "a = ", Format::Toml, &host(), &flags()).unwrap_err();
    assert!(matches!(toml, ConfigError::Syntax { .. }));
    let missing = Config::load(Path::new("/nowhere/redirect.yaml"), &host(), &flags()).unwrap_err();
    assert_eq!(
        missing.to_string(),
        "read /nowhere/redirect.yaml: No such file or directory (os error 2)"
    );
}

#[test]
fn a_hopeless_file_gets_a_bounded_answer() {
    let text: String = (0..10_000).map(|n| format!("x{n}: 1\n")).collect();
    let found = mistakes(&text);
    assert_eq!(
        (found.len(), found.last().unwrap().as_str()),
        (201, "and more; these were enough")
    );
}

#[test]
fn dns_can_be_switched_off_for_all_pods_and_its_domain_is_a_domain() {
    let pod = "pods: [{name: a, namespace: b, serviceAccount: c, netns: /n, cgroup: /c, ips: [10.0.0.1]}]";
    for (dns, captured) in [("{}", true), ("{enabled: false}", false)] {
        let config = parse(&format!("{LEAST}dns: {dns}\n{pod}")).unwrap();
        assert_eq!(config.pods[0].options.capture_dns, captured);
    }
    for domain in ["\"\"", ".", "a..b", "a b", "ä.example"] {
        let found = mistakes_of(&format!("dns: {{domain: {domain}}}"));
        assert!(
            found.len() == 1 && found[0].contains("dns.domain"),
            "{found:?}"
        );
    }
    let found = mistakes_of("dns: {cacheSize: -1, upstream: 10.0.0.1, timeout: 0s}");
    assert_eq!(found.len(), 3, "{found:?}");
}
