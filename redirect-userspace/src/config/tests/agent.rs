//! The part `agent`.

use super::*;

/// What comes of a file that says nothing of the agent.
pub fn without_settings(socket: Option<PathBuf>) -> AgentConfig {
    AgentConfig {
        socket,
        host: HostPaths {
            proc: "/proc".into(),
            cgroup: None,
            container_cgroup: None,
        },
        kubernetes: None,
        cni: CniEnrolment {
            enroll: false,
            namespace: "default".to_owned(),
            service_account: "default".to_owned(),
        },
        zds: ZdsConfig {
            serve: None,
            connect: None,
        },
    }
}

fn with(agent: &str) -> Result<AgentConfig, String> {
    let text = format!("{LEAST}agent: {agent}");
    parse(&text)
        .map(|config| config.agent)
        .map_err(|error| error.to_string())
}

#[test]
fn everything_can_be_said() {
    let agent = with(
        "{socket: null, host: {proc: /host/proc, cgroup: /host/cgroup, \
         containerCgroup: 'machine.slice/libpod-{containerId}.scope'}, kubernetes: {kubeconfig: /k, workloads: true}, \
         cni: {enroll: true, namespace: a, serviceAccount: b}, zds: {serve: /z}}",
    );
    let expected = AgentConfig {
        socket: None,
        host: HostPaths {
            proc: "/host/proc".into(),
            cgroup: Some("/host/cgroup".into()),
            container_cgroup: Some("machine.slice/libpod-{containerId}.scope".to_owned()),
        },
        kubernetes: Some(KubernetesConfig {
            kubeconfig: Some("/k".into()),
            workloads: true,
        }),
        cni: CniEnrolment {
            enroll: true,
            namespace: "a".to_owned(),
            service_account: "b".to_owned(),
        },
        zds: ZdsConfig {
            serve: Some("/z".into()),
            connect: None,
        },
    };
    assert_eq!(agent.unwrap(), expected);
    let in_cluster = with("{kubernetes: {}}").unwrap().kubernetes.unwrap();
    assert_eq!((in_cluster.kubeconfig, in_cluster.workloads), (None, false));
}

#[test]
fn what_cannot_be_is_refused() {
    for (agent, mistake) in [
        ("{socket: a.sock}", "not an absolute path"),
        ("{zds: {serve: /a, connect: /b}}", "exclude each other"),
        ("{cni: {namespace: a/b}}", "namespace"),
        ("{host: {containerCgroup: a/b}}", "{containerId} in it"),
        (
            "{host: {containerCgroup: \"../{containerId}\"}}",
            "no path of a cgroup",
        ),
        ("{kubernetes: {token: x}}", "token"),
        ("{pods: []}", "pods"),
    ] {
        let error = with(agent).unwrap_err();
        assert!(error.contains(mistake), "{agent}: {error}");
    }
}
