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
         containerCgroup: 'machine.slice/libpod-{containerId}.scope'}, kubernetes: {kubeconfig: /k}, \
         cni: {enroll: true, namespace: a, serviceAccount: b}, zds: {serve: /z}}\ncapture: {backend: nftables}",
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
            workloads: false,
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
fn the_mesh_is_what_a_file_says_or_what_the_api_says() {
    let identity = "identity: {source: devCa, dir: /ca}";
    for (agent, file, expected) in [
        ("{}", "workloads: /w", Ok(Some("/w"))),
        ("{kubernetes: {}}", "workloads: /w", Ok(Some("/w"))),
        ("{kubernetes: {workloads: true}}", "", Ok(None)),
        ("{kubernetes: {}}", "", Err("workloads: is missing")),
        (
            "{kubernetes: {workloads: true}}",
            "workloads: /w",
            Err("exclude each other"),
        ),
    ] {
        let config = parse(&format!("{file}\n{identity}\nagent: {agent}"));
        match (config, expected) {
            (Ok(config), Ok(expected)) => {
                assert_eq!(
                    config.workloads,
                    expected.map(PathBuf::from),
                    "{agent} {file}"
                );
            }
            (Err(error), Err(expected)) => {
                assert!(
                    error.to_string().contains(expected),
                    "{agent} {file}: {error}"
                );
            }
            (config, _) => panic!("{agent} {file}: {config:?}"),
        }
    }
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
