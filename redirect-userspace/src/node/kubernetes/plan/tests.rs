use serde_json::{Value, json};

use super::{super::watch::Change, *};

const NODE: &str = "n1";

fn common() -> Common {
    Common {
        trust_domain: "td".to_owned(),
        dns: true,
    }
}

/// In an enrolled namespace.
fn pod(name: &str, spec: Value) -> Pod {
    let mut json = json!({
        "metadata": {"name": name, "namespace": "in", "uid": format!("uid-{name}"), "resourceVersion": "1"},
        "spec": {"nodeName": NODE},
        "status": {"phase": "Running", "podIP": "10.0.0.1"},
    });
    merge(&mut json, spec);
    serde_json::from_value(json).unwrap()
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn known(pods: Vec<Pod>) -> Known {
    let mut known = Known::default();
    let namespace = |name: &str, labels: Value| {
        serde_json::from_value(json!({"metadata": {"name": name, "uid": name, "labels": labels}}))
            .unwrap()
    };
    known.namespaces.apply(Change::All(vec![
        namespace("in", json!({"istio.io/dataplane-mode": "ambient"})),
        namespace("out", json!({})),
    ]));
    known.pods.apply(Change::All(pods));
    known
}

fn status(pod: &Pod, sources: &[Source]) -> PodStatus {
    let description = describe(pod, &common()).unwrap().description;
    let place = ("/netns".into(), "/cgroup".into());
    PodStatus {
        pod: at(description, place, vec!["10.0.0.1".parse().unwrap()]),
        sources: sources.to_vec(),
        state: Ok(()),
    }
}

fn of(known: &Known, listed: &[PodStatus]) -> Plan {
    plan(
        known,
        NODE,
        &common(),
        listed,
        &HashMap::new(),
        &HashMap::new(),
    )
}

fn uid(name: &str) -> PodUid {
    PodUid::new(format!("uid-{name}"))
}

#[test]
fn running_pods_that_nobody_told_of_are_looked_for() {
    let found = |spec: Value| {
        let plan = of(&known(vec![pod("a", spec)]), &[]);
        assert_eq!((plan.want, plan.drop), (vec![], vec![]));
        plan.find.len()
    };
    for (name, spec, expected) in [
        ("it runs", json!({}), 1),
        ("it starts", json!({"status": {"phase": "Pending"}}), 0),
        ("without address", json!({"status": {"podIP": ""}}), 0),
        (
            "it is ending",
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            0,
        ),
        ("it is over", json!({"status": {"phase": "Failed"}}), 0),
        ("elsewhere", json!({"spec": {"nodeName": "n2"}}), 0),
        ("not enrolled", json!({"metadata": {"namespace": "out"}}), 0),
        (
            "in a namespace that is not known",
            json!({"metadata": {"namespace": "new"}}),
            0,
        ),
    ] {
        assert_eq!(found(spec), expected, "{name}");
    }
}

#[test]
fn captured_pods_are_wanted_as_they_are_now_and_once() {
    let before = pod("a", json!({}));
    let now = pod(
        "a",
        json!({"metadata": {"annotations": {"redirect.dev/exclude-outbound-ports": "22"}}}),
    );
    let listed = [status(&before, &[Source::Kubernetes])];
    let known = known(vec![now]);
    let first = of(&known, &listed);
    assert_eq!(first.find.len(), 0);
    assert_eq!(first.want[0].options.exclude_outbound_ports, [22]);
    assert_eq!(first.want[0].netns.to_str(), Some("/netns"));
    let told = HashMap::from([(uid("a"), first.want[0].clone())]);
    let second = plan(&known, NODE, &common(), &listed, &HashMap::new(), &told);
    assert_eq!(second.want, []);
    // Somebody else's wish is not ours.
    let listed = [status(&pod("a", json!({})), &[Source::Command])];
    let third = plan(&known, NODE, &common(), &listed, &HashMap::new(), &told);
    assert_eq!(third.want.len(), 1);
}

#[test]
fn pods_that_are_not_enrolled_any_more_are_dropped() {
    for (name, spec, sources, expected) in [
        (
            "its label says no",
            json!({"metadata": {"labels": {"istio.io/dataplane-mode": "none"}}}),
            [Source::Kubernetes],
            1,
        ),
        (
            "it is over",
            json!({"status": {"phase": "Succeeded"}}),
            [Source::Kubernetes],
            1,
        ),
        (
            "somebody else wants it",
            json!({"metadata": {"namespace": "out"}}),
            [Source::Command],
            0,
        ),
        (
            "its namespace is not known yet",
            json!({"metadata": {"namespace": "new"}}),
            [Source::Kubernetes],
            0,
        ),
    ] {
        let pod = pod("a", spec);
        let plan = of(&known(vec![pod.clone()]), &[status(&pod, &sources)]);
        assert_eq!(plan.drop.len(), expected, "{name}");
        assert_eq!(plan.confirm, [], "{name}");
        assert_eq!(plan.want, [], "{name}");
    }
}

#[test]
fn pods_that_the_list_does_not_have_are_asked_for() {
    let (ours, others) = (pod("a", json!({})), pod("b", json!({})));
    let listed = [
        status(&ours, &[Source::Kubernetes, Source::Cni]),
        status(&others, &[Source::Config]),
    ];
    let plan = of(&known(vec![]), &listed);
    let expected = (uid("a"), "in".to_owned(), "a".to_owned());
    assert_eq!(plan.confirm, [expected]);
    assert_eq!(plan.drop, []);
}

#[test]
fn the_annotation_follows_what_was_verified_and_nothing_else() {
    let enabled = json!({"metadata": {"annotations": {REDIRECTION: ENABLED}}});
    let out = json!({"metadata": {"namespace": "out", "annotations": {REDIRECTION: ENABLED}}});
    for (name, spec, verified, expected) in [
        ("captured", json!({}), Some(true), Some(true)),
        ("captured and said", enabled.clone(), Some(true), None),
        (
            "failed, but said",
            enabled.clone(),
            Some(false),
            Some(false),
        ),
        ("failed and not said", json!({}), Some(false), None),
        ("nothing known yet, said", enabled, None, None),
        ("nothing known yet", json!({}), None, None),
        ("not enrolled, but said", out, None, Some(false)),
    ] {
        let pod = pod("a", spec);
        let verified = verified.map(|verified| (uid("a"), verified));
        let verified = verified.into_iter().collect();
        let known = known(vec![pod]);
        let plan = plan(&known, NODE, &common(), &[], &verified, &HashMap::new());
        let annotate = plan.annotate.first().map(|(_, value)| *value);
        assert_eq!(annotate, expected, "{name}");
    }
}

#[test]
fn what_is_wrong_with_a_pod_is_told_and_it_is_captured_all_the_same() {
    let odd = pod(
        "a",
        json!({"metadata": {"annotations": {"redirect.dev/exclude-outbound-cidrs": "x"}}}),
    );
    let plan = of(&known(vec![odd]), &[]);
    assert_eq!(plan.find.len(), 1);
    assert_eq!(plan.complaints.len(), 1);
}
