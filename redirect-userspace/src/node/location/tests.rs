//! Names of cgroups as runtimes write them, and processes of a real /proc.

use std::fs;

use super::{
    choose::{Candidate, oldest},
    hierarchy::{Hierarchy, Look},
    *,
};

const UID: &str = "0b7e1f6a-52c3-4d6b-9d0e-0123456789ab";
const HASH: &str = "0123456789abcdef0123456789abcdef";
const ID: &str = "4fa6e0f0c6786287e131c3852c58a2e01cc697a68231826813597e4994f1d6e2";

/// Paths of kubelets and runtimes as they are on nodes: the pod's, and below it the container's.
fn pods() -> Vec<(String, &'static str, String)> {
    let slice = UID.replace('-', "_");
    vec![
        (format!("/kubepods/burstable/pod{UID}"), UID, ID.to_owned()),
        (format!("/kubepods/pod{UID}"), UID, format!("crio-{ID}")),
        (
            format!("/kubepods/besteffort/pod{HASH}"),
            HASH,
            ID.to_owned(),
        ),
        (
            format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice"),
            UID,
            format!("cri-containerd-{ID}.scope"),
        ),
        (
            format!("/kubepods.slice/kubepods-pod{slice}.slice"),
            UID,
            format!("docker-{ID}.scope"),
        ),
        (
            format!(
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{HASH}.slice"
            ),
            HASH,
            format!("crio-{ID}.scope"),
        ),
        (
            format!(
                "/system.slice/docker-{ID}.scope/kubelet.slice/kubelet-kubepods.slice/\
                 kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{slice}.slice"
            ),
            UID,
            format!("cri-containerd-{ID}.scope"),
        ),
        (
            format!("/docker/{ID}/kubelet/kubepods/besteffort/pod{UID}"),
            UID,
            ID.to_owned(),
        ),
        // Seen from a cgroup namespace beside it.
        (
            format!("/../../../kubepods/besteffort/pod{UID}"),
            UID,
            ID.to_owned(),
        ),
    ]
}

#[test]
fn a_path_tells_whose_it_is() {
    for (pod, key, container) in pods() {
        assert_eq!(name::pod_key(&pod).as_deref(), Some(key), "{pod}");
        for below in ["", "/init"] {
            let path = format!("{pod}/{container}{below}");
            let owner = name::owner(&path).unwrap_or_else(|| panic!("{path}"));
            assert_eq!(owner.pod, key, "{path}");
            assert_eq!(owner.container_id.as_deref(), Some(ID), "{path}");
        }
        assert!(name::is_container(&container, ID), "{container}");
        assert_eq!(name::pod_key(&format!("{pod}/{container}")), None);
    }
    for nobodys in [
        "/".to_owned(),
        "/system.slice/containerd.service".to_owned(),
        "/kubepods.slice/kubepods-besteffort.slice".to_owned(),
        "/machine.slice/podman-1.slice".to_owned(),
        format!("/user.slice/pod{UID}/x"),
        // Kubelet thinks that the runtime has the systemd driver, which it has not: no cgroup of the pod's is above this.
        format!(
            "/system.slice/containerd.service/kubepods-besteffort-pod{UID}.slice:cri-containerd:{ID}"
        ),
    ] {
        assert_eq!(name::owner(&nobodys), None, "{nobodys}");
        assert_eq!(name::pod_key(&nobodys), None, "{nobodys}");
    }
}

#[test]
fn a_containers_cgroup_has_its_id_and_a_runtimes_name() {
    for (cgroup, expected) in [
        ("abc", true),
        ("libpod-abc.scope", true),
        ("libpod-abc", true),
        ("libpod-conmon-abc.scope", false),
        ("crio-conmon-abc.scope", false),
        ("xabc", false),
        ("abcd", false),
        ("", false),
    ] {
        assert_eq!(name::is_container(cgroup, "abc"), expected, "{cgroup}");
    }
}

#[test]
fn what_is_at_the_level_of_the_pod_is_found() {
    for (pod, key, container) in pods() {
        let Some(below) = pod.strip_prefix('/').filter(|path| !path.starts_with("..")) else {
            continue;
        };
        let root = tempfile::tempdir().unwrap();
        let leaf = root.path().join(below).join(&container);
        fs::create_dir_all(&leaf).unwrap();
        for other in [
            "kubepods/burstable/podx/c",
            "system.slice/a.service",
            "z/pod",
        ] {
            fs::create_dir_all(root.path().join(other)).unwrap();
        }
        let hierarchy = Hierarchy::at(root.path());
        let mut looked_at = Vec::new();
        let found = hierarchy.find(Look::AtPods, &mut |path| {
            looked_at.push(path.to_owned());
            name::pod_key(path).as_deref() == Some(key)
        });
        assert_eq!(found.as_deref(), leaf.parent(), "{pod}");
        let inside = looked_at
            .iter()
            .filter(|path| path.contains(&format!("{below}/")));
        assert_eq!(inside.count(), 0, "pods' own cgroups are not looked into");
        let by_id = hierarchy.find(Look::Everywhere, &mut |path| {
            name::last(path).is_some_and(|last| name::is_container(last, ID))
        });
        // Where a node is itself a container, that is found first, and it has the same id here.
        assert!(by_id.is_some_and(|found| leaf.starts_with(found)), "{pod}");
    }
}

#[test]
fn a_bare_containers_cgroup_is_made_where_it_is_known_and_goes_again() {
    let root = tempfile::tempdir().unwrap();
    let hierarchy = Hierarchy::at(root.path());
    let host = HostPaths {
        proc: "/proc".into(),
        cgroup: None,
        container_cgroup: Some("/machine.slice/libpod-{containerId}.scope".to_owned()),
    };
    let made = hierarchy.make_for(&host, "abc").unwrap().unwrap();
    assert_eq!(made, root.path().join("machine.slice/libpod-abc.scope"));
    assert!(made.is_dir());
    assert_eq!(hierarchy.make_for(&host, "abc").unwrap(), Some(made));
    for outside in ["", "..", "../../x", "a/b"] {
        assert_eq!(hierarchy.expected(&host, outside), None, "{outside}");
    }
    let unknown = HostPaths {
        container_cgroup: None,
        ..host
    };
    assert_eq!(hierarchy.make_for(&unknown, "abc").unwrap(), None);
}

#[test]
fn the_namespace_is_the_oldest_that_holds_an_address_and_not_the_hosts() {
    // What the processes are: namespace, age, whether it holds the address.
    for (processes, expected) in [
        (vec![(7, 30, true), (7, 10, true), (7, 20, true)], Some(1)),
        (vec![(1, 5, true), (7, 10, true)], Some(1)),
        (vec![(7, 10, false), (8, 20, true)], Some(1)),
        (vec![(8, 20, true), (7, 10, true)], Some(1)),
        (vec![(1, 5, true)], None),
        (vec![(7, 10, false)], None),
        (vec![], None),
    ] {
        let candidates = processes.iter().enumerate();
        let candidates = candidates
            .map(|(index, (netns, started, _))| Candidate {
                netns: *netns,
                started: *started,
                what: index,
            })
            .collect();
        let found = oldest(candidates, &[1], |candidate| processes[candidate.what].2);
        assert_eq!(found, expected, "{processes:?}");
    }
}

#[test]
fn sandboxes_with_their_own_stack_are_known() {
    for (command, executable, expected) in [
        ("runsc-sandbox", "/proc/self/exe", Some(Sandbox::Gvisor)),
        ("/usr/local/bin/runsc", "", Some(Sandbox::Gvisor)),
        (
            "exe",
            "/usr/local/bin/runsc (deleted)",
            Some(Sandbox::Gvisor),
        ),
        ("/opt/kata/bin/qemu-system-x86_64", "", Some(Sandbox::Kata)),
        ("/opt/kata/bin/cloud-hypervisor", "", Some(Sandbox::Kata)),
        ("firecracker", "/firecracker", Some(Sandbox::Kata)),
        ("/pause", "/pause", None),
        ("", "", None),
        ("my-runsc-tool", "/app", None),
    ] {
        assert_eq!(
            sandbox::of(command, executable),
            expected,
            "{command} {executable}"
        );
    }
}

#[test]
fn when_a_process_was_started() {
    let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 98765 1000 10";
    assert_eq!(processes::started(stat), Some(98765));
    assert_eq!(processes::started("42 (a"), None);
    assert!(processes::started(&fs::read_to_string("/proc/self/stat").unwrap()).is_some());
}

#[test]
fn processes_of_this_machine() {
    let own = std::process::id().to_string();
    let all = processes::all(Path::new("/proc")).unwrap();
    let this = all
        .iter()
        .find(|process| process.netns_path().ends_with(format!("{own}/ns/net")));
    let this = this.expect("this process is there");
    assert!(processes::hosts(Path::new("/proc")).contains(&this.netns().unwrap()));
    assert!(name::version_2(&this.cgroups().unwrap()).is_some());
    assert_eq!(this.sandbox(), None);
    assert!(processes::all(Path::new("/nowhere")).is_err());
}

#[test]
fn a_namespace_of_a_process_is_found_below_the_hosts_proc() {
    let host = HostPaths {
        proc: "/host/proc".into(),
        cgroup: None,
        container_cgroup: None,
    };
    for (told, here) in [
        ("/proc/7/ns/net", "/host/proc/7/ns/net"),
        ("/run/netns/cni-1", "/run/netns/cni-1"),
    ] {
        assert_eq!(netns_here(&host, Path::new(told)), Path::new(here));
    }
}
