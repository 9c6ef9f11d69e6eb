//! Where the daemon cannot do its work it says what is missing and what to do, and leaves nothing behind.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Output,
};

use redirect_tests::{Node, Pod, Testbed, redirect_binary};
use serde_json::json;

/// A node with one pod, and the daemon's configuration for it.
struct Stage {
    node: Node,
    pod: Pod,
    bed: Testbed,
}

impl Stage {
    fn new() -> Self {
        let bed = Testbed::new();
        let node = bed.node("a");
        let pod = node.pod("client");
        bed.workloads().hbone(&pod).write();
        Self { node, pod, bed }
    }

    /// Runs the daemon below `wrapper`, a program that changes the environment and runs its arguments.
    fn run_below(&self, wrapper: &[&str]) -> Output {
        let spec = self.node.daemon().capture(&self.pod);
        std::fs::create_dir_all(spec.cgroup()).expect("make the daemon's cgroup");
        let mut command = self.node.command_in(&spec.cgroup(), wrapper[0]);
        command.args(&wrapper[1..]).arg(redirect_binary());
        command
            .arg("run")
            .arg("--config")
            .arg(spec.write_config())
            .arg("--dev-ca");
        command.output().expect("start redirect")
    }

    fn pins(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.node.daemon().bpffs()).expect("list the bpffs");
        entries
            .map(|entry| entry.expect("an entry").path())
            .collect()
    }
}

fn expect_failure(output: &Output, words: &[&str]) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{errors}");
    for word in words {
        assert!(errors.contains(word), "no {word:?} in\n{errors}");
    }
}

#[test]
fn without_the_capability_for_bpf() {
    let stage = Stage::new();
    let output = stage.run_below(&[
        "setpriv",
        "--bounding-set=-bpf,-perfmon,-sys_admin",
        "--inh-caps=-bpf,-perfmon,-sys_admin",
        "--",
    ]);
    expect_failure(&output, &["Operation not permitted", "capabilities"]);
    let left: Vec<_> = stage
        .pins()
        .into_iter()
        .filter(|path| path.join("v1/pods").exists())
        .collect();
    assert!(
        left.iter()
            .all(|path| std::fs::read_dir(path.join("v1/pods"))
                .unwrap()
                .next()
                .is_none()),
        "{left:?}"
    );
}

#[test]
fn without_cgroup_v2() {
    let stage = Stage::new();
    // In a mount namespace of its own, where every cgroup2 mount is taken away.
    let script = r#"while read -r _ _ _ _ at _ rest; do case " $rest" in *" - cgroup2 "*) umount "$at";; esac; done </proc/self/mountinfo; exec "$@""#;
    let output = stage.run_below(&["unshare", "--mount", "--", "sh", "-c", script, "sh"]);
    expect_failure(&output, &["cgroup"]);
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("v2"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn without_a_mounted_bpffs_where_none_may_be_mounted() {
    let stage = Stage::new();
    let spec = stage.node.daemon().capture(&stage.pod);
    let nowhere = stage.bed.directory().join("no-bpffs");
    let capture = json!({ "capture": { "bpffs": nowhere, "mountBpffs": false } });
    let output = spec.config(capture).ready_command().output();
    let output = output.expect("start redirect");
    expect_failure(
        &output,
        &["find a BPF file system at", "mountBpffs is false"],
    );
    assert!(!nowhere.exists(), "nothing was made");
}

/// As in a container that is not privileged.
#[test]
fn where_kernel_parameters_are_mounted_read_only() {
    let stage = Stage::new();
    let script = stage.bed.directory().join("redirect-in-a-container");
    let text = format!(
        "#!/bin/sh\nexec unshare --mount sh -c 'mount --bind /proc/sys /proc/sys && \
         mount -o remount,bind,ro /proc/sys && exec {} \"$@\"' sh \"$@\"\n",
        redirect_binary().display()
    );
    fs::write(&script, text).expect("write a script");
    fs::set_permissions(&script, Permissions::from_mode(0o755)).expect("make it executable");
    let _daemon = stage
        .node
        .daemon()
        .capture(&stage.pod)
        .binary(&script)
        .start();
    let mut look = stage.pod.command("cat");
    look.arg("/proc/sys/net/ipv4/tcp_fwmark_accept");
    let seen = look.output().expect("run cat");
    assert_eq!(String::from_utf8_lossy(&seen.stdout).trim(), "1");
}

#[test]
fn a_second_daemon_is_told_about_the_first() {
    let stage = Stage::new();
    let spec = stage.node.daemon().capture(&stage.pod);
    let first = spec.start();
    let output = spec.ready_command().output().expect("start redirect");
    expect_failure(
        &output,
        &["another daemon", &format!("pid {}", first.pid())],
    );
    assert_eq!(first.readiness(), 200, "the first goes on");
}
