//! Dedicated mode, and workloads that are cgroups only.

use super::*;

const POD: &str = "{name: a, namespace: d, serviceAccount: s, cgroup: /cg/a, ips: [10.0.0.1]}";

#[test]
fn a_dedicated_proxy_is_in_its_pods_namespace_and_answers_from_outside() {
    let config = parse(&format!(
        "{LEAST}capture: {{mode: dedicated}}\npods: [{POD}]"
    ))
    .unwrap();
    assert_eq!(config.capture.mode, Mode::Dedicated);
    assert_eq!(config.pods[0].netns, Path::new("/proc/self/ns/net"));
    assert_eq!(config.admin.metrics, "[::]:15020".parse().ok());
    assert_eq!(config.admin.readiness, "[::]:15021".parse().ok());
    let shared = parse(LEAST).unwrap();
    assert_eq!(shared.admin.metrics, "127.0.0.1:15020".parse().ok());
}

#[test]
fn mistakes_in_dedicated_mode() {
    let dedicated = |lines: &str| mistakes_of(&format!("capture: {{mode: dedicated}}\n{lines}"));
    assert_eq!(
        dedicated(""),
        ["pods: is missing: dedicated mode captures exactly one"]
    );
    let one = "pods: in dedicated mode there is exactly one pod: the one that the daemon runs in";
    assert_eq!(dedicated("pods: []"), [one]);
    let other = POD.replace("name: a", "name: b").replace("/a", "/b");
    let other = other.replace("ips: [10.0.0.1]", "ips: [10.0.0.2], netns: /n");
    assert_eq!(dedicated(&format!("pods: [{POD}, {other}]")), [one]);
    assert_eq!(
        dedicated(
            "pods: [{name: a, namespace: d, serviceAccount: s, cgroup: /a, ips: [10.0.0.1], cgroupOnly: {}}]"
        ),
        [
            "pods[0]: cgroupOnly is not for dedicated mode, in which the daemon is in the pod's own namespace"
        ]
    );
}

#[test]
fn an_exempt_user_is_for_rules_in_dedicated_mode() {
    let read = |mode, backend| {
        let capture = format!("capture: {{mode: {mode}, backend: {backend}, exemptUid: 1337}}");
        parse(&format!("{LEAST}{capture}\npods: [{POD}]"))
    };
    let config = read("dedicated", "iptables").unwrap();
    assert_eq!(config.capture.exempt_uid, Some(1337));
    for (mode, backend) in [("dedicated", "ebpf"), ("node", "nftables")] {
        let error = read(mode, backend).unwrap_err().to_string();
        assert!(
            error.contains("capture.exemptUid: only in dedicated mode and with rules"),
            "{error}"
        );
    }
}

#[test]
fn cgroups_may_share_a_namespace_and_addresses() {
    let config = parse(&format!(
        "{LEAST}pods:\n\
         - {{name: a, namespace: d, serviceAccount: s, cgroup: /cg/a, ips: [10.0.0.1, fd00::1], \
             cgroupOnly: {{inbound: [\"10.0.0.1:80\", \"[fd00::1]:80\"]}}}}\n\
         - {{name: b, namespace: d, serviceAccount: s, cgroup: /cg/b, ips: [10.0.0.1], \
             cgroupOnly: {{inbound: [\"[::ffff:10.0.0.1]:81\"]}}}}\n\
         - {{name: client, namespace: d, serviceAccount: other, cgroup: /cg/c, ips: [10.0.0.1], cgroupOnly: {{}}}}\n\
         - {{name: e, namespace: d, serviceAccount: s, netns: /n, cgroup: /cg/e, ips: [10.0.0.1], cgroupOnly: {{}}}}\n"
    ))
    .unwrap();
    let services: Vec<Vec<String>> = config
        .pods
        .iter()
        .map(|pod| pod.cgroup_only.as_ref().unwrap())
        .map(|only| only.inbound.iter().map(ToString::to_string).collect())
        .collect();
    let expected: [&[&str]; 4] = [&["10.0.0.1:80", "[fd00::1]:80"], &["10.0.0.1:81"], &[], &[]];
    assert_eq!(services, expected);
    assert_eq!(config.pods[0].netns, Path::new("/proc/self/ns/net"));
    assert_eq!(config.pods[3].netns, Path::new("/n"));
}

#[test]
fn mistakes_about_cgroups_that_share() {
    let pod = |more: &str| format!("{{namespace: d, {more}}}");
    let list = [
        pod(
            "name: a, serviceAccount: s, cgroup: /cg/a, ips: [10.0.0.1], cgroupOnly: {inbound: [\"10.0.0.1:80\"]}",
        ),
        pod(
            "name: b, serviceAccount: s, cgroup: /cg/b, ips: [10.0.0.1], cgroupOnly: {inbound: [\"10.0.0.1:80\"]}",
        ),
        pod(
            "name: c, serviceAccount: t, cgroup: /cg/c, ips: [10.0.0.1], cgroupOnly: {inbound: [\"10.0.0.1:82\"]}",
        ),
        pod(
            "name: e, serviceAccount: s, cgroup: /cg/e, ips: [10.0.0.5], \
             cgroupOnly: {inbound: [\"10.0.0.1:83\", \"10.0.0.5:15008\", \"10.0.0.5:0\", \"10.0.0.5\"]}",
        ),
        pod(
            "name: f, serviceAccount: s, cgroup: /cg/f, ips: [10.0.0.6], cgroupOnly: {}, bypassInbound: true, probePorts: [1]",
        ),
        pod("name: g, serviceAccount: s, cgroup: /cg/g, ips: [10.0.0.1], netns: /n"),
        pod(
            "name: h, serviceAccount: s, cgroup: /cg/h, ips: [10.0.0.8], netns: /n, cgroupOnly: {}",
        ),
        pod(
            "name: i, serviceAccount: s, cgroup: /cg/i, ips: [10.0.0.9], cgroupOnly: {outbound: []}",
        ),
    ];
    let namespace =
        "is not for a workload with cgroupOnly: it needs a network namespace of its own";
    let expected = [
        "pods[1].cgroupOnly.inbound: 10.0.0.1:80 is served by pods[0], too".to_owned(),
        "pods[2].cgroupOnly.inbound: 10.0.0.1 is an address of pods[0], whose identity is another; workloads that \
         serve at one address need one identity"
            .to_owned(),
        "pods[3].cgroupOnly.inbound[0]: 10.0.0.1 is not among the workload's ips".to_owned(),
        "pods[3].cgroupOnly.inbound[1]: port 15008 is not one to serve on".to_owned(),
        "pods[3].cgroupOnly.inbound[2]: port 0 is not one to serve on".to_owned(),
        "pods[3].cgroupOnly.inbound[3]: \"10.0.0.5\" is not an address such as 10.0.0.1:8080"
            .to_owned(),
        format!("pods[4].bypassInbound: {namespace}"),
        format!("pods[4].probePorts: {namespace}"),
        "pods[5].ips: 10.0.0.1 is that of pods[2], too".to_owned(),
        "pods[6].netns: /n is that of pods[5], too".to_owned(),
        "pods[7].cgroupOnly.outbound: unknown field".to_owned(),
    ];
    assert_eq!(
        mistakes_of(&format!("pods: [{}]", list.join(", "))),
        expected
    );
}
