//! What the CNI plugin asks, asked without it.

use redirect::{
    cni::protocol::{Answer, Attachment, PodName, Request},
    node::socket::{ClientError, ask},
};
use redirect_tests::{Pod, namespace};
use serde_json::{Value, json};

use crate::stage::{Fate, Stage};

fn stage() -> Stage {
    // Only for its name.
    let cgroups = redirect_tests::cgroup::mount_point();
    Stage::with(json!({ "agent": { "cni": { "enroll": true }, "host": { "cgroup": cgroups } } }))
}

fn uid(pod: &Pod) -> String {
    let cgroup = pod.cgroup();
    let name = cgroup.file_name().expect("a name").to_string_lossy();
    name.strip_prefix("pod").expect("kubelet's name").to_owned()
}

fn attachment(container: &str, pod: &Pod) -> Attachment {
    Attachment {
        container_id: container.to_owned(),
        netns: pod.netns().path(),
        network: "n".to_owned(),
        pod: Some(PodName {
            namespace: "default".to_owned(),
            name: pod.name().to_owned(),
            uid: Some(uid(pod)),
        }),
        ips: vec![pod.ipv4(), pod.ipv6()],
    }
}

impl Stage {
    fn ask(&self, request: Request) -> Result<Answer, String> {
        ask(&self.socket(), &request).map_err(|error| match error {
            ClientError::Failed { error, hint } => format!("{error}; {hint}"),
            other => other.to_string(),
        })
    }

    fn done(&self, request: Request) {
        assert_eq!(self.ask(request), Ok(Answer::Done));
    }

    fn del(&self, container: &str) {
        let container_id = container.to_owned();
        self.done(Request::Del { container_id });
    }

    fn uids(&self) -> Vec<Value> {
        let listed = self.list().into_iter();
        listed.map(|listed| listed["pod"]["uid"].clone()).collect()
    }
}

#[test]
fn a_sandbox_is_captured_from_add_to_del() {
    let mut stage = stage();
    let before = stage.state_of(&stage.client);
    stage.done(Request::Status);
    let sandbox = attachment("c0ffee", &stage.client);
    stage.done(Request::Add(sandbox.clone()));
    assert_eq!(stage.fate(), Fate::Captured);
    // Again: nothing changes.
    stage.done(Request::Add(sandbox.clone()));
    stage.done(Request::Check(sandbox.clone()));
    assert_eq!(stage.list()[0]["sources"], json!(["cni"]));
    // A restarted agent knows it.
    stage.daemon.sigkill();
    assert_eq!(stage.fate(), Fate::Refused);
    stage.daemon = stage.daemon.spec().start();
    assert_eq!(stage.fate(), Fate::Captured);
    stage.done(Request::Check(sandbox.clone()));
    for _ in 0..2 {
        stage.del("c0ffee");
        assert_eq!(stage.fate(), Fate::Direct);
    }
    let checked = stage.ask(Request::Check(sandbox));
    assert!(checked.is_err_and(|error| error.contains("c0ffee")));
    let left = before.differences(&stage.state_of(&stage.client));
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn a_sandbox_that_was_made_anew_is_not_let_go_by_the_old_ones_end() {
    let stage = stage();
    stage.done(Request::Add(attachment("old", &stage.client)));
    stage.done(Request::Add(attachment("new", &stage.client)));
    stage.del("old");
    assert_eq!(stage.fate(), Fate::Captured);
    stage.del("new");
    assert_eq!(stage.fate(), Fate::Direct);
}

#[test]
fn what_the_runtime_does_not_know_any_more_is_let_go() {
    let stage = stage();
    let other = stage.node.pod("other");
    stage.done(Request::Add(attachment("one", &stage.client)));
    stage.done(Request::Add(attachment("two", &other)));
    let gc = |network: &str, container: &str| Request::Gc {
        network: network.to_owned(),
        container_ids: vec![container.to_owned()],
    };
    // Another network's runtime knows none of these.
    stage.done(gc("other", "x"));
    assert_eq!(stage.fate_of(&other), Fate::Captured);
    stage.done(gc("n", "two"));
    assert_eq!(stage.uids(), [uid(&other)]);
    assert_eq!(stage.fate(), Fate::Direct);
    assert_eq!(stage.fate_of(&other), Fate::Captured);
}

#[test]
fn a_sandbox_that_cannot_be_captured_is_an_error_and_leaves_nothing() {
    let stage = stage();
    let sandbox = attachment("c0ffee", &stage.client);
    let nowhere = Attachment {
        netns: "/run/netns/rdt-nowhere".into(),
        ..sandbox.clone()
    };
    let no_address = Attachment {
        ips: Vec::new(),
        ..sandbox.clone()
    };
    let no_id = Attachment {
        container_id: "../c0ffee".to_owned(),
        ..sandbox
    };
    for (sandbox, expected) in [
        (nowhere, "rdt-nowhere"),
        (no_address, "no address"),
        (no_id, "no container id"),
    ] {
        let answer = stage.ask(Request::Add(sandbox));
        let error = answer.expect_err(expected);
        assert!(error.contains(expected), "{error}");
        assert!(stage.uids().is_empty());
    }
    let attachments = stage.daemon.spec().state_dir().join("attachments");
    let left = std::fs::read_dir(attachments).map_or(0, Iterator::count);
    assert_eq!(left, 0);
    assert_eq!(stage.fate(), Fate::Direct);
}

#[test]
fn a_pod_whose_namespace_and_cgroup_are_gone_is_let_go() {
    let stage = stage();
    let short = stage.node.pod("short");
    stage.done(Request::Add(attachment("c0ffee", &short)));
    assert_eq!(stage.uids(), [uid(&short)]);
    namespace::delete(short.netns_name()).expect("deleted");
    redirect_tests::cgroup::remove(&short.cgroup()).expect("removed");
    redirect_tests::eventually("let go", std::time::Duration::from_secs(20), || match stage
        .uids()
        .is_empty()
    {
        true => Ok(()),
        false => Err("still wanted"),
    });
    stage.del("c0ffee");
}

#[test]
fn a_daemon_that_enrols_nobody_says_so() {
    let stage = Stage::set();
    let answer = stage.ask(Request::Add(attachment("c0ffee", &stage.client)));
    assert_eq!(answer, Ok(Answer::NotEnrolled));
    assert_eq!(stage.fate(), Fate::Direct);
    stage.del("c0ffee");
}
