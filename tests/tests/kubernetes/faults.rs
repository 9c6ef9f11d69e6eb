//! An API that is down, slow, broken, forgetful, or says things twice and late.

use std::{fs, time::Duration};

use redirect::node::{kubernetes::Connected, source::Enrolled};
use redirect_tests::kubernetes::{Faults, WatchEvent};
use serde_json::json;

use super::stage::{Directory, Stage, pod, settings};

fn down() -> Faults {
    Faults {
        down: true,
        ..Faults::default()
    }
}

#[track_caller]
fn is_yes(enrolled: &Enrolled) {
    assert!(matches!(enrolled, Enrolled::Yes(..)), "{enrolled:?}");
}

#[track_caller]
fn is_unknown(enrolled: &Enrolled) {
    assert!(matches!(enrolled, Enrolled::Unknown(_)), "{enrolled:?}");
}

#[test]
fn while_the_api_is_down_what_is_captured_stays_and_what_is_unknown_is_held() {
    let stage = Stage::set();
    for name in ["web", "known"] {
        stage.pod("shop", name, json!({}));
    }
    is_yes(&stage.add("shop", "web"));
    is_yes(&stage.asked("shop", "known", None));
    let orders = stage.agent.orders().len();
    stage.api.fail(down());
    let from = stage.api.requests().len();
    stage
        .api
        .wait_request(from, "the watch of pods anew", |request| {
            request.contains("/pods?")
        });
    stage.pod("shop", "new", json!({}));
    is_unknown(&stage.add("shop", "new"));
    // Its name, with no uid, might be another's by now.
    is_unknown(&stage.asked("shop", "known", None));
    is_yes(&stage.add("shop", "known"));
    stage.wait_wanted(&["web", "known"]);
    assert!(
        !stage.agent.orders()[orders..]
            .iter()
            .any(|order| order.starts_with("remove"))
    );
    stage.api.heal();
    is_yes(&stage.add("shop", "new"));
    stage.wait_wanted(&["web", "known", "new"]);
}

#[test]
fn a_daemon_that_starts_without_the_api_lets_go_of_nothing_and_holds_pods() {
    let stage = Stage::set_with(|api, agent| {
        let earlier = Stage::set();
        earlier.pod("shop", "web", json!({}));
        match earlier.asked("shop", "web", None) {
            Enrolled::Yes(_, description) => agent.remember(&description),
            other => panic!("{other:?}"),
        }
        api.put("pods", pod("shop", "web", json!({})));
        api.fail(down());
    });
    is_unknown(&stage.add("shop", "web"));
    assert_eq!(stage.agent.orders(), [] as [String; 0]);
    stage.wait_wanted(&["web"]);
    stage.api.heal();
    is_yes(&stage.add("shop", "web"));
    stage.wait_wanted(&["web"]);
}

#[test]
fn an_add_waits_for_one_slow_answer_and_not_for_the_watch() {
    let stage = Stage::set_with(|api, _| {
        api.fail(Faults {
            slow: Duration::from_millis(300),
            page: Some(1),
            ..Faults::default()
        });
        for name in ["a", "b", "c"] {
            api.put("pods", pod("shop", name, json!({})));
        }
    });
    is_yes(&stage.add("shop", "a"));
    // The watch says nothing of it.
    stage.pod("shop", "d", json!({}));
    is_yes(&stage.add("shop", "d"));
}

#[test]
fn what_was_missed_is_made_good_after_410() {
    let stage = Stage::set();
    for name in ["stays", "goes"] {
        stage.pod("shop", name, json!({}));
        is_yes(&stage.add("shop", name));
    }
    let from = stage.api.requests().len();
    stage.api.delete_unseen("pods", "shop", "goes");
    stage.wait_wanted(&["stays"]);
    let requests = stage.api.requests().split_off(from);
    let lists = |kind: &str| {
        let start = format!("GET /api/v1/{kind}?");
        let all = requests
            .iter()
            .filter(|r| r.starts_with(&start) && !r.contains("watch=true"));
        all.count()
    };
    assert_eq!(lists("pods"), 1, "{requests:#?}");
    // It is let go because the API says so, and not because a list was older than the pod.
    assert!(
        requests
            .iter()
            .any(|r| r.starts_with("GET /api/v1/namespaces/shop/pods/goes?"))
    );
    assert!(
        !stage
            .agent
            .orders()
            .contains(&"remove uid-of-stays".to_owned())
    );
}

#[test]
fn a_watch_goes_on_from_its_last_bookmark() {
    let stage = Stage::set();
    stage.pod("shop", "web", json!({}));
    is_yes(&stage.add("shop", "web"));
    stage.api.wait_object("pods", "shop", "web", |pod| {
        !pod["metadata"]["annotations"].is_null()
    });
    stage.api.bookmark();
    let version = {
        let last = stage
            .api
            .put("configmaps", json!({"metadata": {"name": "x"}}));
        let last: u64 = last["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        (last - 1).to_string()
    };
    let from = stage.api.requests().len();
    // The bookmark may still be on its way.
    redirect_tests::eventually("a watch from the bookmark", super::stage::PATIENCE, || {
        stage.api.end_watches();
        let requests = stage.api.requests().split_off(from);
        let goes_on = |kind: &str| {
            let version = format!("resourceVersion={version}&");
            requests
                .iter()
                .any(|r| r.contains(&format!("/{kind}?")) && format!("{r}&").contains(&version))
        };
        match goes_on("pods") && goes_on("namespaces") {
            true => Ok(()),
            false => Err(format!("{requests:#?}")),
        }
    });
    let lists = stage.api.requests().split_off(from);
    assert!(
        lists
            .iter()
            .all(|r| r.contains("watch=true") || r.starts_with("PATCH")),
        "{lists:#?}"
    );
}

#[test]
fn events_that_come_twice_or_late_change_nothing() {
    let stage = Stage::set();
    stage.pod("shop", "web", json!({}));
    let old = stage.api.get("pods", "shop", "web").unwrap();
    is_yes(&stage.add("shop", "web"));
    stage.api.patch(
        "pods",
        "shop",
        "web",
        &json!({"metadata": {"labels": {"a": "b"}}}),
    );
    // An end of a pod that had the name before, and a state from before the label.
    let mut ended = old.clone();
    ended["metadata"]["uid"] = "another".into();
    let mut left = old.clone();
    left["metadata"]["labels"] = json!({"istio.io/dataplane-mode": "none"});
    for _ in 0..3 {
        stage.api.tell("pods", WatchEvent::Deleted, ended.clone());
        stage.api.tell("pods", WatchEvent::Modified, left.clone());
        stage.api.tell("pods", WatchEvent::Added, old.clone());
    }
    // What comes after these has been heard after these.
    stage.pod(
        "shop",
        "last",
        json!({"metadata": {"annotations": {"redirect.dev/refuse-udp": "perhaps"}}}),
    );
    stage.api.wait_event("InvalidAnnotation", "refuse-udp");
    stage.wait_wanted(&["web"]);
    assert!(
        !stage
            .agent
            .orders()
            .contains(&"remove uid-of-web".to_owned())
    );
    is_yes(&stage.add("shop", "web"));
}

#[test]
fn lists_that_break_off_are_asked_for_again() {
    let stage = Stage::set_with(|api, _| {
        api.put("pods", pod("shop", "web", json!({})));
        api.fail(Faults {
            broken: true,
            ..Faults::default()
        });
    });
    stage
        .api
        .wait_request(0, "a list", |request| request.contains("/pods?"));
    assert_eq!(stage.agent.orders(), [] as [String; 0]);
    stage.api.heal();
    is_yes(&stage.add("shop", "web"));
}

#[test]
fn what_the_api_refuses_is_said_with_a_hint() {
    let stage = Stage::set_with(|api, _| {
        api.fail(Faults {
            status: Some(403),
            ..Faults::default()
        });
    });
    let Enrolled::Unknown(why) = stage.add("shop", "web") else {
        panic!("it cannot be known");
    };
    assert!(why.contains("ClusterRole"), "{why}");
}

#[test]
fn a_kubeconfig_that_cannot_be_used_is_refused_with_its_path() {
    let dir = Directory::new();
    let path = dir.0.join("kubeconfig");
    let with = |cluster: &str, context: &str| {
        format!(
            "{{apiVersion: v1, kind: Config, current-context: {context}, users: [{{name: u, user: {{}}}}], \
             clusters: [{{name: c, cluster: {cluster}}}], contexts: [{{name: x, context: {{cluster: c, user: u}}}}]}}"
        )
    };
    for (name, text, expected) in [
        ("there is none", None, "No such file"),
        ("no YAML", Some("a: [".to_owned()), "parse"),
        (
            "no such context",
            Some(with("{server: 'http://h'}", "y")),
            "context",
        ),
        ("no server", Some(with("{}", "x")), "url"),
        (
            "no such CA",
            Some(with(
                "{server: 'https://h', certificate-authority: /no/such}",
                "x",
            )),
            "/no/such",
        ),
    ] {
        match text {
            Some(text) => fs::write(&path, text).unwrap(),
            None => assert!(!path.exists()),
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let connected = runtime.block_on(Connected::new(settings(path.clone(), &dir)));
        let error = connected
            .err()
            .unwrap_or_else(|| panic!("{name}: it is taken"))
            .to_string();
        assert!(error.contains(expected), "{name}: {error}");
        assert!(error.contains("kubeconfig"), "{name}: {error}");
    }
}
