//! Where pods are found: real cgroups, real namespaces, real processes.

use std::{fs, net::IpAddr, path::Path, process::Command};

use redirect::{
    config::HostPaths,
    node::location::{self, LocationError, Sandbox, Wanted},
};
use redirect_tests::{Node, Pod, Testbed, app_binary};

fn host(node: &Node) -> HostPaths {
    HostPaths {
        proc: "/proc".into(),
        cgroup: Some(node.cgroup()),
        container_cgroup: None,
    }
}

fn uid(pod: &Pod) -> String {
    let name = pod
        .cgroup()
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    name.strip_prefix("pod").unwrap().to_owned()
}

fn wanted(pod: &Pod) -> Wanted {
    Wanted {
        uid: uid(pod),
        config_hash: None,
        ips: vec![pod.ipv4()],
    }
}

fn inode(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap())
}

#[test]
fn a_pods_cgroup_is_found_before_it_has_a_process() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let (pod, host) = (node.pod("web"), host(&node));
    let netns = pod.netns().path();
    let found = location::cgroup_of(&host, Some(&uid(&pod)), None, "c", &netns).unwrap();
    assert_eq!(found, pod.cgroup());
    // A static pod: kubelet calls it by its manifest's hash, and the API by a uid of its own.
    let hash = uid(&pod);
    let found = location::cgroup_of(&host, Some("mirror"), Some(&hash), "c", &netns);
    assert_eq!(found.unwrap(), pod.cgroup());
    let error = location::cgroup_of(&host, Some("other"), None, "c", &netns).unwrap_err();
    assert!(
        matches!(error, LocationError::NoPodCgroup { .. }),
        "{error}"
    );
    // Without being told where the hierarchy is.
    let anywhere = HostPaths {
        cgroup: None,
        ..host
    };
    let found = location::cgroup_of(&anywhere, Some(&uid(&pod)), None, "c", &netns);
    assert_eq!(found.unwrap(), pod.cgroup());
}

#[test]
fn running_pods_are_found_by_their_processes() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let pods = ["a", "b", "idle"].map(|name| node.pod(name));
    let _apps = [&pods[0], &pods[1]].map(|pod| {
        let app = pod.app(["serve", "--listen", "[::]:80"]);
        app.event("listening");
        app
    });
    // Docker in docker: a younger process of the pod in a namespace of its own.
    let mut inner = pods[0].command("unshare");
    inner.args(["--net", "sleep", "1000"]);
    let mut inner = inner.spawn().unwrap();
    let wrong_address = Wanted {
        uid: uid(&pods[1]),
        config_hash: None,
        ips: vec!["192.0.2.1".parse().unwrap()],
    };
    let found = location::scan(&host(&node), &pods.each_ref().map(wanted)).unwrap();
    for pod in &pods[..2] {
        let location = found[&uid(pod)].as_ref().unwrap();
        assert_eq!(inode(&location.netns), pod.netns().inode(), "{location:?}");
        assert_eq!(location.cgroup, pod.cgroup());
        assert_eq!(location.container_id.as_deref(), Some("app"));
        assert_eq!(location.ips, [pod.ipv4()]);
    }
    let idle = found[&uid(&pods[2])].as_ref().unwrap_err();
    assert!(matches!(idle, LocationError::NoProcess(_)), "{idle}");
    let found = location::scan(&host(&node), &[wrong_address]).unwrap();
    let error = found[&uid(&pods[1])].as_ref().unwrap_err();
    assert!(matches!(error, LocationError::NoNetns(_)), "{error}");
    inner.kill().unwrap();
    inner.wait().unwrap();
}

#[test]
fn a_pod_of_the_hosts_namespace_is_not_found() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let pod = node.pod("host-network");
    let cgroup = pod.container("app");
    // In the namespace of this test, which stands for the host's.
    let mut app = Command::new(app_binary());
    app.arg("enter").arg(&cgroup).arg("/proc/self/ns/net");
    let mut app = app.args(["sleep", "1000"]).spawn().unwrap();
    let ready = || fs::read_to_string(cgroup.join("cgroup.procs")).is_ok_and(|p| !p.is_empty());
    assert!(redirect_tests::wait_until(
        std::time::Duration::from_secs(20),
        ready
    ));
    let ips: Vec<IpAddr> = vec!["127.0.0.1".parse().unwrap()];
    let pod = Wanted {
        ips,
        ..wanted(&pod)
    };
    let found = location::scan(&host(&node), std::slice::from_ref(&pod)).unwrap();
    let error = found[&pod.uid].as_ref().unwrap_err();
    assert!(matches!(error, LocationError::NoNetns(_)), "{error}");
    app.kill().unwrap();
    app.wait().unwrap();
}

#[test]
fn a_sandbox_with_its_own_network_stack_is_refused() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let (pod, host) = (node.pod("sandboxed"), host(&node));
    // What gVisor's processes look like from outside.
    let runsc = bed.directory().join("runsc");
    fs::copy("/bin/sleep", &runsc).unwrap();
    let mut app = pod.command(&runsc);
    let mut app = app.arg("1000").spawn().unwrap();
    let seen =
        || location::sandbox_in(&host, &pod.netns().path()).unwrap() == Some(Sandbox::Gvisor);
    assert!(redirect_tests::wait_until(
        std::time::Duration::from_secs(20),
        seen
    ));
    let found = location::scan(&host, &[wanted(&pod)]).unwrap();
    let error = found[&uid(&pod)].as_ref().unwrap_err().to_string();
    assert!(
        error.contains("gVisor") && error.contains("cannot be captured"),
        "{error}"
    );
    let bare = location::cgroup_of(&host, None, None, "none", &pod.netns().path());
    assert!(
        matches!(bare, Err(LocationError::ForeignStack { .. })),
        "{bare:?}"
    );
    app.kill().unwrap();
    app.wait().unwrap();
    assert_eq!(
        location::sandbox_in(&host, &pod.netns().path()).unwrap(),
        None
    );
}

#[test]
fn a_bare_containers_cgroup() {
    let bed = Testbed::new();
    let node = bed.node("a");
    let (pod, host) = (node.pod("bare"), host(&node));
    let netns = pod.netns().path();
    let of = |host: &HostPaths, id: &str| location::cgroup_of(host, None, None, id, &netns);
    // Made before the network, by a name that has the id in it.
    let scope = node.cgroup().join("machine.slice/libpod-abc.scope");
    fs::create_dir_all(&scope).unwrap();
    assert_eq!(of(&host, "abc").unwrap(), scope);
    // Not made yet, and nobody knows where it will be.
    let error = of(&host, "def").unwrap_err();
    assert!(
        matches!(error, LocationError::NoContainerCgroup { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("agent.host.containerCgroup"));
    // Known: it is made, and goes again if nobody used it.
    let told = HostPaths {
        container_cgroup: Some("machine.slice/libpod-{containerId}.scope".to_owned()),
        ..host.clone()
    };
    let made = of(&told, "def").unwrap();
    assert_eq!(made, node.cgroup().join("machine.slice/libpod-def.scope"));
    assert!(made.join("cgroup.procs").exists());
    location::forget(&told, "def");
    assert!(!made.exists());
    // The runtime made it before, by another name: its process is in the namespace already.
    let app = pod.app(["serve", "--listen", "[::]:80"]);
    app.event("listening");
    assert_eq!(of(&host, "def").unwrap(), pod.container("app"));
}
