use proptest::prelude::*;

use super::*;
use crate::identity::Identity;
use crate::workload::{
    Action, ApplicationTunnel, HealthPolicy, IpFamilies, LoadBalancerMode, LoadBalancerScope,
    Locality, Protocol, Scope, StringMatch, Visibility,
};

fn parse(text: &str) -> Result<Workloads, WorkloadFileError> {
    let defaults = Defaults {
        trust_domain: "cluster.local".to_owned(),
    };
    Workloads::parse("w.yaml", text, Format::Yaml, &defaults)
}

fn mistakes(text: &str) -> Vec<String> {
    match parse(text) {
        Err(WorkloadFileError::Invalid { mistakes, .. }) => {
            mistakes.iter().map(ToString::to_string).collect()
        }
        other => panic!("expected mistakes, found {other:?}"),
    }
}

/// Every field that ztunnel reads, under its name there.
const EVERYTHING: &str = r#"
workloads:
- uid: cluster1//v1/Pod/default/a
  name: a
  namespace: default
  trustDomain: example.org
  serviceAccount: caller
  workloadIps: ["10.0.0.1", "fd00::1"]
  protocol: HBONE
  networkMode: Standard
  node: node-1
  network: ""
  clusterId: Kubernetes
  workloadName: a-deployment
  workloadType: deployment
  canonicalName: a-app
  canonicalRevision: v1
  hostname: a.example.org
  nativeTunnel: true
  applicationTunnel: {protocol: PROXY, port: 15088}
  authorizationPolicies: [default/deny]
  status: Unhealthy
  locality: {region: r, zone: z, subzone: s}
  capacity: 3
  waypoint: {destination: "default/waypoint.example.org", hboneMtlsPort: 15008}
  networkGateway: {destination: "net2/192.0.2.1", hboneMtlsPort: 15009}
  services:
    "default/web.example.org": {80: 8080}
- namespace: default
  name: b
  workloadIps: [10.0.0.2]
services:
- name: web
  namespace: default
  hostname: Web.example.org
  vips: ["/10.96.0.1", "net2/10.96.0.1", "/fd00:96::1"]
  cidrVips: ["/198.51.100.0/24"]
  ports: {80: 80, 443: 0}
  endpoints:
    any-key: {workloadUid: "//Pod/default/b", port: {443: 8443}, status: Healthy}
  subjectAltNames: ["spiffe://cluster.local/ns/default/sa/web"]
  waypoint: {destination: "/10.96.0.9", hboneMtlsPort: 15008}
  weightedWaypoints: [{destination: {destination: "/10.96.0.8", hboneMtlsPort: 15008}, weight: 5}]
  loadBalancer: {routingPreferences: [Network, Region, Zone, Subzone, Node, Cluster], mode: Failover, healthPolicy: AllowAll}
  ipFamilies: Dual
  canonical: true
  visibility: Namespace
policies:
- name: deny
  namespace: default
  scope: WorkloadSelector
  action: Deny
  dryRun: true
  rules:
  - - - namespaces: [!Exact a, Prefix: b]
        notNamespaces: [Suffix: c, !Presence []]
        serviceAccounts: [{namespace: default, serviceAccount: caller}]
        notServiceAccounts: [{namespace: default, serviceAccount: other}]
        principals: [!Exact cluster.local/ns/default/sa/a]
        notPrincipals: [Prefix: x]
        sourceIps: [10.0.0.0/8]
        notSourceIps: ["fd00::/8"]
        destinationIps: [10.0.0.0/8]
        notDestinationIps: [10.1.0.0/16]
        destinationPorts: [80]
        notDestinationPorts: [9999]
"#;

#[test]
fn every_field_of_a_workload_is_read() {
    let workloads = parse(EVERYTHING).unwrap();
    let a = workloads.workload("", "10.0.0.1".parse().unwrap()).unwrap();
    assert!(Arc::ptr_eq(
        a,
        workloads.workload("", "fd00::1".parse().unwrap()).unwrap()
    ));
    let expected = Workload {
        uid: "cluster1//v1/Pod/default/a".into(),
        name: "a".into(),
        namespace: "default".into(),
        identity: Identity::new("example.org", "default", "caller").unwrap(),
        accepted: ["spiffe://example.org/ns/default/sa/caller".into()].into(),
        ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        hostname: "a.example.org".into(),
        protocol: Protocol::Hbone,
        network_mode: NetworkMode::Standard,
        status: Health::Unhealthy,
        node: "node-1".into(),
        network: "".into(),
        cluster_id: "Kubernetes".into(),
        workload_name: "a-deployment".into(),
        workload_type: "deployment".into(),
        canonical_name: "a-app".into(),
        canonical_revision: "v1".into(),
        locality: Locality {
            region: "r".into(),
            zone: "z".into(),
            subzone: "s".into(),
        },
        waypoint: Some(GatewayAddress {
            destination: GatewayDestination::Hostname(NamespacedHostname {
                namespace: "default".into(),
                hostname: "waypoint.example.org".into(),
            }),
            hbone_mtls_port: 15008,
        }),
        network_gateway: Some(GatewayAddress {
            destination: GatewayDestination::Address(NetworkAddress {
                network: "net2".into(),
                ip: "192.0.2.1".parse().unwrap(),
            }),
            hbone_mtls_port: 15009,
        }),
        native_tunnel: true,
        application_tunnel: Some(ApplicationTunnel {
            protocol: TunnelProtocol::Proxy,
            port: Some(15088),
        }),
        authorization_policies: vec!["default/deny".into()],
        capacity: 3,
    };
    assert_eq!(**a, expected);
}

#[test]
fn what_a_workload_leaves_out_has_a_default() {
    let workloads = parse(EVERYTHING).unwrap();
    let b = workloads.workload("", "10.0.0.2".parse().unwrap()).unwrap();
    assert_eq!(&*b.uid, "//Pod/default/b");
    assert_eq!(
        b.identity,
        Identity::new("cluster.local", "default", "default").unwrap()
    );
    assert_eq!(
        (b.protocol, b.status, b.capacity),
        (Protocol::Tcp, Health::Healthy, 1)
    );
    assert_eq!(b.network_mode, NetworkMode::Standard);
}

#[test]
fn every_field_of_a_service_is_read() {
    let workloads = parse(EVERYTHING).unwrap();
    let key = NamespacedHostname {
        namespace: "default".into(),
        hostname: "web.example.org".into(),
    };
    let web = workloads.service_by_key(&key).unwrap();
    assert_eq!((&*web.name, web.key(), web.vips.len()), ("web", key, 3));
    assert_eq!(
        web.cidr_vips,
        [("".into(), "198.51.100.0/24".parse().unwrap())]
    );
    assert_eq!(web.ports, BTreeMap::from([(80, 80), (443, 0)]));
    assert_eq!(
        web.subject_alt_names,
        ["spiffe://cluster.local/ns/default/sa/web".into()]
    );
    assert!(web.waypoint.is_some() && web.has_waypoint() && web.canonical);
    assert_eq!(web.weighted_waypoints[0].weight, 5);
    let balancer = web.load_balancer.as_ref().unwrap();
    assert_eq!(
        (balancer.mode, balancer.health_policy),
        (LoadBalancerMode::Failover, HealthPolicy::AllowAll)
    );
    assert_eq!(balancer.routing_preferences[0], LoadBalancerScope::Network);
    assert_eq!(
        (web.ip_families, web.visibility),
        (Some(IpFamilies::Dual), Visibility::Namespace)
    );

    // Endpoints come from the workload and from the service; named ports from the endpoint alone.
    let ports = |name: &str| {
        let endpoint = web
            .endpoints
            .iter()
            .find(|endpoint| *endpoint.workload.name == *name)
            .unwrap();
        [80, 443].map(|port| web.target_port(endpoint, port))
    };
    assert_eq!(ports("a"), [Some(8080), None]);
    assert_eq!(ports("b"), [Some(80), Some(8443)]);
}

#[test]
fn every_field_of_a_policy_is_read() {
    let workloads = parse(EVERYTHING).unwrap();
    let [policy] = workloads.policies() else {
        panic!("one policy")
    };
    assert_eq!(
        (policy.scope, policy.action, policy.dry_run),
        (Scope::WorkloadSelector, Action::Deny, true)
    );
    let found = &policy.rules[0][0][0];
    assert_eq!(
        found.namespaces,
        [
            StringMatch::Exact("a".into()),
            StringMatch::Prefix("b".into())
        ]
    );
    assert_eq!(
        found.not_namespaces,
        [StringMatch::Suffix("c".into()), StringMatch::Presence]
    );
    assert_eq!(
        found.principals,
        [StringMatch::Exact("cluster.local/ns/default/sa/a".into())]
    );
    assert_eq!(
        (
            found.destination_ports.as_slice(),
            found.not_destination_ports.as_slice()
        ),
        (&[80][..], &[9999][..])
    );
    assert_eq!(
        (
            &*found.service_accounts[0].service_account,
            found.not_service_accounts.len()
        ),
        ("caller", 1)
    );
    assert_eq!(found.source_ips, ["10.0.0.0/8".parse().unwrap()]);
    let rest = [
        &found.not_source_ips,
        &found.destination_ips,
        &found.not_destination_ips,
    ];
    assert!(rest.iter().all(|nets| nets.len() == 1) && found.not_principals.len() == 1);
}

#[test]
fn what_is_not_acted_on_is_said() {
    let mut warnings = parse(EVERYTHING).unwrap().warnings().to_vec();
    warnings.extend(
        parse("workloads: [{namespace: d, name: w, workloadIps: [10.0.0.1], services: {d/typo: {80: 80}}}]")
            .unwrap()
            .warnings()
            .to_vec(),
    );
    let expected = [
        "workloads[0]: applicationTunnel is read but not acted on",
        "services[0]: loadBalancer.mode is read, but endpoints are chosen without regard to locality",
        "//Pod/d/w: the service d/typo is not in the file",
    ];
    assert_eq!(warnings, expected);
}

#[test]
fn all_mistakes_are_reported_together_with_their_fields() {
    let text = r#"
workloads:
- uid: same
  name: a
  namespace: default
  workloadIps: [10.0.0.1, "10.0.0.300", 0.0.0.0]
  protocol: HBOEN
  workloadIPs: []
- uid: same
  name: 5
  namespace: default
  serviceAccount: a/b
  workloadIps: [10.0.0.1]
  services: {"no-slash": {80: 80}, "d/x": {0: 80, http: 80, 81: 70000}}
- name: c
  workloadIps: []
  capacity: -1
- namespace: d
  name: e
  workloadIps: [10.0.0.1]
- namespace: d
  name: f
  workloadIps: ["::ffff:10.0.0.1"]
services:
- {name: a, namespace: d, hostname: a/b, vips: [10.0.0.1], ports: {}}
- {name: a, namespace: d, hostname: a, vips: ["net/10.0.0.1/8"], ports: {}, cidrVips: ["net/10.0.0.1"]}
- {name: b, namespace: d, hostname: a, vips: [], ports: {}, vip: x}
- {name: b, namespace: d, hostname: A, vips: [], ports: {}}
- {}
policies:
- {name: p, namespace: d, scope: Namespace, action: Permit, rules: [[[{}]]]}
- {name: p, namespace: d, scope: Global, action: Deny, rules: [[[{principal: [x]}]]], dryRun: sure}
- {name: q, scope: Namespace, action: Deny, rules: [[[{principals: [x, {Exact: a, Prefix: b}, !Glob y], sourceIps: [10.0.0.1/99]}]]]}
extra: 1
"#;
    let expected = [
        "workloads[0].workloadIps[1]: \"10.0.0.300\" is not an IP address",
        "workloads[0].workloadIps[2]: 0.0.0.0 cannot be a workload's address",
        "workloads[0].protocol: \"HBOEN\" is not one of HBONE, TCP",
        "workloads[0].workloadIPs: unknown field; did you mean workloadIps?",
        "workloads[1].services[\"no-slash\"]: \"no-slash\" is not NAMESPACE/HOSTNAME",
        "workloads[1].services[\"d/x\"][\"0\"]: \"0\" is not a port between 1 and 65535",
        "workloads[1].services[\"d/x\"][\"http\"]: \"http\" is not a port between 1 and 65535",
        "workloads[1].services[\"d/x\"][\"81\"]: 70000 is not between 0 and 65535",
        "workloads[1].name: expected text, found the number 5 (put it in quotes)",
        "workloads[1].serviceAccount: \"a/b\" cannot be a service account: letters, digits, `.`, `-` and `_`, at most 253, not `.` or `..`",
        "workloads[2].namespace: is missing",
        "workloads[2].capacity: -1 is not between 0 and 4294967295",
        "workloads[2]: has neither workloadIps, nor a hostname, nor a networkGateway: it cannot be reached",
        "workloads[4].workloadIps[0]: 10.0.0.1 is the address of //Pod/d/e already",
        "services[0].hostname: \"a/b\" is not a host name",
        "services[0].vips[0]: \"10.0.0.1\" is not NETWORK/IP",
        "services[1].vips[0]: \"net/10.0.0.1/8\" is not NETWORK/IP",
        "services[1].cidrVips[0]: \"net/10.0.0.1\" is not NETWORK/IP/PREFIX",
        "services[2].vip: unknown field; did you mean vips?",
        "services[2]: the service d/a is in the file already",
        "services[3]: the service d/a is in the file already",
        "services[4].name: is missing",
        "services[4].namespace: is missing",
        "services[4].hostname: is missing",
        "services[4].vips: is missing",
        "services[4].ports: is missing",
        "policies[0].action: \"Permit\" is not one of Allow, Deny",
        "policies[1].dryRun: expected true or false, found \"sure\"",
        "policies[1].rules[0][0][0].principal: unknown field; did you mean principals?",
        "policies[2].rules[0][0][0].principals[0]: expected one of Exact, Prefix, Suffix or Presence, as in `Exact: NAME`",
        "policies[2].rules[0][0][0].principals[1]: expected exactly one of Exact, Prefix, Suffix or Presence",
        "policies[2].rules[0][0][0].principals[2]: \"Glob\" is not one of Exact, Prefix, Suffix or Presence",
        "policies[2].rules[0][0][0].sourceIps[0]: \"10.0.0.1/99\" is not a network such as 10.0.0.0/8",
        "policies[2]: the scope is Namespace, but namespace is empty",
        "extra: unknown field",
    ];
    let mut found = mistakes(text);
    let mut expected: Vec<String> = expected.map(str::to_owned).into();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn one_uid_or_address_names_one_workload() {
    let two = |a: &str, b: &str| {
        format!("workloads: [{{namespace: d, name: a, {a}}}, {{namespace: d, name: b, {b}}}]")
    };
    let ip = "workloadIps: [10.0.0.1]";
    assert_eq!(
        mistakes(&two(
            &format!("uid: x, {ip}"),
            "uid: x, workloadIps: [10.0.0.2]"
        )),
        ["workloads[1].uid: x is another workload's already"]
    );
    // The same address in another network, or on the host's network, is not the same.
    parse(&two(ip, &format!("{ip}, network: other"))).unwrap();
    let host = parse(&two(
        &format!("{ip}, networkMode: HostNetwork"),
        &format!("{ip}, networkMode: HostNetwork"),
    ))
    .unwrap();
    assert_eq!(host.workload("", "10.0.0.1".parse().unwrap()), None);
}

/// In the form of the example that comes with ztunnel: no trust domain, addresses on loopback, an empty network.
#[test]
fn a_file_in_the_style_of_ztunnels_example_loads() {
    let text = r#"
workloads:
- uid: cluster1//v1/Pod/default/here
  name: here
  namespace: default
  serviceAccount: default
  workloadIps: ["127.0.0.1"]
  protocol: HBONE
  node: local
  network: ""
  services:
    "default/one.example":
      80: 8080
policies:
  - action: Allow
    rules:
    - - - notDestinationPorts:
          - 9999
    name: deny-9999
    namespace: default
    scope: Namespace
    dryRun: false
services:
- name: one
  namespace: default
  hostname: one.example
  vips:
    - /127.10.0.1
  ports:
    80: 8080
  subjectAltNames:
   - spiffe://cluster.local/ns/default/sa/here
  canonical: true
"#;
    let workloads = parse(text).unwrap();
    assert_eq!(workloads.services()[0].endpoints.len(), 1);
    assert!(workloads.warnings().is_empty());
    assert_eq!(parse("workloads: []").unwrap(), Workloads::default());
    for empty in ["", "# nothing\n", "---\n", "{}"] {
        let error = parse(empty).unwrap_err();
        assert!(
            matches!(error, WorkloadFileError::Empty { .. }),
            "{empty:?}: {error}"
        );
    }
}

#[test]
fn toml_and_json_load_too() {
    let defaults = Defaults {
        trust_domain: "cluster.local".to_owned(),
    };
    let toml = "[[services]]\nname='a'\nnamespace='d'\nhostname='a'\nvips=['/10.0.0.1']\n[services.ports]\n80=8080\n";
    let json = r#"{"services": [{"name": "a", "namespace": "d", "hostname": "a", "vips": ["/10.0.0.1"], "ports": {"80": 8080}}]}"#;
    let toml = Workloads::parse("w", toml, Format::Toml, &defaults).unwrap();
    assert_eq!(toml, parse(json).unwrap());
}

proptest! {
    #[test]
    fn damaged_files_do_not_panic(start in 0usize..EVERYTHING.len(), len in 0usize..60, with in "[-\\[\\]{}:,a0!/.\n \"]{0,6}") {
        let end = (start + len).min(EVERYTHING.len());
        let text = format!("{}{with}{}", &EVERYTHING[..start], &EVERYTHING[end..]);
        if let Err(error) = parse(&text) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn rubbish_is_refused_or_read_without_a_panic(text in "\\PC*") {
        let _ = parse(&text);
    }
}
