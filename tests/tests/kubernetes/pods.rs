//! Which pods are wanted, and what is said of them.

use redirect::node::source::{Enrolled, Source};
use serde_json::{Value, json};

use super::stage::{PATIENCE, Stage, uid};
use redirect_tests::eventually;

const ANNOTATION: &str = "ambient.istio.io/redirection";

fn annotation(pod: &Value) -> Option<&str> {
    pod["metadata"]["annotations"][ANNOTATION].as_str()
}

#[track_caller]
fn is_yes(enrolled: &Enrolled) {
    assert!(
        matches!(enrolled, Enrolled::Yes(Source::Kubernetes, _)),
        "{enrolled:?}"
    );
}

#[track_caller]
fn is_no(enrolled: &Enrolled, why: &str) {
    assert!(
        matches!(enrolled, Enrolled::No(reason) if reason.contains(why)),
        "{enrolled:?}"
    );
}

#[track_caller]
fn is_unknown(enrolled: &Enrolled, why: &str) {
    assert!(
        matches!(enrolled, Enrolled::Unknown(reason) if reason.contains(why)),
        "{enrolled:?}"
    );
}

#[test]
fn a_pod_that_starts_is_known_by_name_and_uid() {
    let stage = Stage::set();
    stage.pod("shop", "web", json!({"status": {"phase": "Pending"}}));
    stage.pod("plain", "old", json!({}));
    stage.pod(
        "plain",
        "own",
        json!({"metadata": {"labels": {"istio.io/dataplane-mode": "ambient"}}}),
    );
    stage.pod("shop", "abroad", json!({"spec": {"nodeName": "node-b"}}));
    is_yes(&stage.asked("shop", "web", Some("uid-of-web")));
    is_yes(&stage.asked("shop", "web", None));
    is_yes(&stage.asked("plain", "own", None));
    is_no(
        &stage.asked("plain", "old", None),
        "istio.io/dataplane-mode",
    );
    is_unknown(
        &stage.asked("shop", "web", Some("another")),
        "another pod of this name",
    );
    is_unknown(&stage.asked("shop", "nobody", None), "no such pod");
    is_unknown(&stage.asked("shop", "../web", None), "pod name");
    is_unknown(&stage.asked("shop", "abroad", None), "node-b");
    let nobody = stage.runtime.block_on(async {
        use redirect::node::source::Enrolment as _;
        stage.kubernetes.of(None, "container").await
    });
    is_no(&nobody, "Kubernetes");
    // A static pod is called by its hash there, and by its mirror's uid here.
    stage.pod(
        "shop",
        "static",
        json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "abcdef"}}}),
    );
    let Enrolled::Yes(_, description) = stage.asked("shop", "static", Some("abcdef")) else {
        panic!("a static pod is not known by its hash");
    };
    assert_eq!(description.uid.as_str(), uid("static"));
    assert_eq!(description.config_hash.as_deref(), Some("abcdef"));
}

#[test]
fn the_annotation_says_what_was_verified() {
    let stage = Stage::set();
    stage.pod("shop", "web", json!({}));
    stage.agent.fail("bad", "its port 15001 is taken");
    stage.pod(
        "shop",
        "bad",
        json!({"metadata": {"annotations": {ANNOTATION: "enabled"}}}),
    );
    stage.pod(
        "plain",
        "liar",
        json!({"metadata": {"annotations": {ANNOTATION: "enabled"}}}),
    );
    // Nobody has captured it.
    stage
        .api
        .wait_object("pods", "plain", "liar", |pod| annotation(pod).is_none());
    assert_eq!(
        annotation(&stage.api.get("pods", "shop", "web").unwrap()),
        None
    );
    is_yes(&stage.add("shop", "web"));
    stage.api.wait_object("pods", "shop", "web", |pod| {
        annotation(pod) == Some("enabled")
    });
    is_yes(&stage.add("shop", "bad"));
    stage
        .api
        .wait_object("pods", "shop", "bad", |pod| annotation(pod).is_none());
    stage
        .api
        .wait_event("CaptureFailed", "its port 15001 is taken");
    let event = &stage.api.events()[0];
    assert_eq!(event["involvedObject"]["uid"], uid("bad"));
    assert_eq!(event["source"]["host"], "node-a");
    // Somebody takes it off; it is still true.
    stage.api.patch(
        "pods",
        "shop",
        "web",
        &json!({"metadata": {"annotations": {ANNOTATION: null}}}),
    );
    stage.api.wait_object("pods", "shop", "web", |pod| {
        annotation(pod) == Some("enabled")
    });
    stage.api.patch(
        "namespaces",
        "",
        "shop",
        &json!({"metadata": {"labels": {"istio.io/dataplane-mode": null}}}),
    );
    stage.wait_wanted(&[]);
    stage
        .api
        .wait_object("pods", "shop", "web", |pod| annotation(pod).is_none());
}

#[test]
fn labels_of_pods_and_namespaces_take_pods_in_and_out() {
    let stage = Stage::set();
    stage.pod("shop", "web", json!({}));
    stage.pod("shop", "db", json!({}));
    is_yes(&stage.add("shop", "web"));
    is_yes(&stage.add("shop", "db"));
    stage.wait_wanted(&["web", "db"]);
    let none = json!({"metadata": {"labels": {"istio.io/dataplane-mode": "none"}}});
    stage.api.patch("pods", "shop", "db", &none);
    stage.wait_wanted(&["web"]);
    is_no(&stage.add("shop", "db"), "none");
    stage.api.delete("pods", "shop", "web");
    stage.wait_wanted(&[]);
    // Nobody has looked for pods but once, at the start.
    let replaced = stage.agent.orders();
    let replaced = replaced.iter().filter(|order| order.starts_with("replace"));
    assert_eq!(replaced.count(), 1);
}

#[test]
fn options_follow_the_annotations_of_a_running_pod() {
    let stage = Stage::set();
    stage.pod("shop", "web", json!({}));
    is_yes(&stage.add("shop", "web"));
    let set = |ports: &str| {
        let patch =
            json!({"metadata": {"annotations": {"redirect.dev/exclude-outbound-ports": ports}}});
        stage.api.patch("pods", "shop", "web", &patch);
    };
    let wait_excluded = |ports: &[u16]| {
        eventually("options", PATIENCE, || {
            let pod = stage.agent.pod("web").unwrap();
            assert_eq!(pod.netns.to_str(), Some("/netns/uid-of-web"));
            match pod.options.exclude_outbound_ports == ports {
                true => Ok(()),
                false => Err(format!("{:?}", pod.options)),
            }
        });
    };
    set("22,3306");
    wait_excluded(&[22, 3306]);
    // What cannot be understood captures more, and is told.
    set("22,mysql");
    wait_excluded(&[]);
    stage.api.wait_event("InvalidAnnotation", "mysql");
    stage.wait_wanted(&["web"]);
}

#[test]
fn a_restarted_daemon_wants_what_is_enrolled_now_and_nothing_else() {
    let stage = Stage::set_with(|api, agent| {
        let earlier = Stage::set();
        for name in ["stays", "left", "gone"] {
            earlier.pod("shop", name, json!({}));
            match earlier.asked("shop", name, None) {
                Enrolled::Yes(_, description) => agent.remember(&description),
                other => panic!("{other:?}"),
            }
        }
        api.put("pods", super::stage::pod("shop", "stays", json!({})));
        let out = json!({"metadata": {"labels": {"istio.io/dataplane-mode": "none"}}});
        api.put("pods", super::stage::pod("shop", "left", out));
    });
    stage.wait_wanted(&["stays"]);
    assert_eq!(stage.agent.orders()[0], "replace with 1");
    let pod = stage.agent.pod("stays").unwrap();
    assert_eq!(pod.netns.to_str(), Some("/netns/uid-of-stays"));
    stage.api.wait_object("pods", "shop", "stays", |pod| {
        annotation(pod) == Some("enabled")
    });
}
