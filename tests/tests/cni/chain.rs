//! Every call of the specification, through a chain of Debian's plugins and ours, to a real daemon.

use std::{process::Command, time::Duration};

use redirect_tests::{
    cni::{OURS, Sandbox},
    wait_until,
};

use super::stage::{Fate, Stage};

/// Whether the pod's cgroup holds programs of ours.
fn is_attached(sandbox: &Sandbox) -> bool {
    let mut bpftool = Command::new("bpftool");
    let shown = bpftool
        .args(["cgroup", "show"])
        .arg(&sandbox.cgroup)
        .output();
    let shown = shown.expect("bpftool is installed (`cargo xtask setup`)");
    String::from_utf8_lossy(&shown.stdout).contains("rdr_")
}

#[test]
fn a_pod_is_captured_from_add_to_del() {
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let (stage, _daemon) = Stage::with_daemon();
        stage.chain.write(version);
        stage.chain.install(&stage.socket());
        let sandbox = stage.chain.sandbox("web");
        assert!(!is_attached(&sandbox));
        let answers = stage.chain.add(&sandbox).expect(version);
        let [.., before, ours] = answers.as_slice() else {
            panic!("{answers:?}");
        };
        assert_eq!(ours.plugin, OURS);
        assert_eq!(
            ours.stdout, before.stdout,
            "the result before us is passed on byte for byte"
        );
        assert!(is_attached(&sandbox));
        assert_eq!(stage.fate(&sandbox), Fate::Captured, "{version}");
        // 0.3.1 has no CHECK; libcni does not call it then.
        if version != "0.3.1" {
            stage.chain.check(&sandbox).expect(version);
        }
        for _ in 0..3 {
            stage.chain.del(&sandbox).expect(version);
        }
        let released = wait_until(Duration::from_secs(10), || !is_attached(&sandbox));
        assert!(released, "{version}: programs stay on the cgroup after DEL");
        sandbox.remove();
        // Kubelet asks again, when all is gone.
        stage
            .chain
            .ours("DEL", Some(&sandbox), None, "")
            .expect(version);
    }
}

#[test]
fn check_looks_into_the_kernel() {
    let (stage, daemon) = Stage::with_daemon();
    let (added, other) = (stage.chain.sandbox("a"), stage.chain.sandbox("b"));
    let result = stage
        .chain
        .add(&added)
        .expect("add")
        .pop()
        .expect("ours")
        .stdout;
    stage.chain.check(&added).expect("check");
    let unknown = stage.chain.ours("CHECK", Some(&other), Some(&result), "");
    let failure = unknown.expect_err("a pod that nobody told the agent of");
    assert_eq!(failure.code, 100, "{failure:?}");
    assert!(
        !failure.msg.is_empty() && !failure.details.is_empty(),
        "{failure:?}"
    );
    drop(daemon);
    let failure = stage.chain.check(&added).expect_err("no agent");
    assert_eq!(failure.code, 11, "{failure:?}");
}

#[test]
fn without_the_agent_no_pod_starts_that_needs_it() {
    let stage = Stage::set();
    let sandbox = stage.chain.sandbox("web");
    let failure = stage.chain.add(&sandbox).expect_err("there is no agent");
    assert_eq!(
        (failure.plugin.as_str(), failure.code),
        (OURS, 11),
        "{failure:?}"
    );
    assert!(failure.msg.contains("agent.sock"), "{failure:?}");
    assert!(failure.details.contains("excludeNamespaces"), "{failure:?}");
    assert_eq!(stage.chain.status().expect_err("no agent").code, 50);
    for _ in 0..3 {
        stage
            .chain
            .del(&sandbox)
            .expect("a pod ends without the agent");
    }
    // The node boots: what the agent needs starts before it.
    let _daemon = stage.daemon().start();
    stage.chain.status().expect("the agent is there");
    stage.chain.add(&sandbox).expect("the runtime tries again");
    assert_eq!(stage.fate(&sandbox), Fate::Captured);
}

#[test]
fn garbage_collection_takes_what_the_runtime_does_not_know() {
    let (stage, _daemon) = Stage::with_daemon();
    let sandboxes = ["a", "b", "c"].map(|name| stage.chain.sandbox(name));
    for sandbox in &sandboxes {
        stage.chain.add(sandbox).expect("add");
    }
    stage.chain.gc(&[&sandboxes[1]]).expect("gc");
    let only_b = || sandboxes.each_ref().map(is_attached) == [false, true, false];
    assert!(wait_until(Duration::from_secs(10), only_b));
    assert_eq!(stage.fate(&sandboxes[1]), Fate::Captured);
    stage.chain.check(&sandboxes[1]).expect("it is still known");
    assert!(stage.chain.check(&sandboxes[0]).is_err());
}

#[test]
fn a_namespace_that_is_gone_fails_its_pod_alone() {
    let (stage, daemon) = Stage::with_daemon();
    let (gone, good) = (stage.chain.sandbox("gone"), stage.chain.sandbox("good"));
    let result = stage
        .chain
        .add(&good)
        .expect("add")
        .pop()
        .expect("ours")
        .stdout;
    gone.remove();
    let failure = stage.chain.ours("ADD", Some(&gone), Some(&result), "");
    let failure = failure.expect_err("there is no such namespace");
    assert_eq!(failure.code, 100, "{failure:?}");
    stage.chain.ours("DEL", Some(&gone), None, "").expect("del");
    assert_eq!(stage.fate(&good), Fate::Captured);
    assert_eq!(daemon.readiness(), 200);
}
