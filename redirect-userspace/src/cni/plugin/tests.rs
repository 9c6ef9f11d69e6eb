//! Calls as a runtime makes them, against an agent that answers as it is told.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixListener,
    path::Path,
    thread,
};

use serde_json::{Value, json};

use super::*;
use crate::cni::protocol::Answer;

/// Serves one request with `answer`, and returns it.
fn agent(socket: &Path, answer: &'static str) -> thread::JoinHandle<Request> {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
        serde_json::from_str(&line).unwrap()
    })
}

fn environment(command: &str) -> Environment {
    Environment {
        command: command.to_owned(),
        container_id: "0a1b".to_owned(),
        netns: "/run/netns/cni-1".to_owned(),
        args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=u-1"
            .to_owned(),
    }
}

/// The text matters: what is passed on has to be the same byte for byte.
const PREVIOUS: &str = r#"{"cniVersion": "1.0.0",  "ips": [{"address":"10.1.0.5/24","interface":1},
  {"address":"fd00::5/64","interface":1}, {"address": "10.9.9.9/32", "interface": 0}],
  "interfaces": [{"name":"veth0"},{"name":"eth0","sandbox":"/run/netns/cni-1"}], "dns": {}}"#;

fn config(socket: &Path, more: &str) -> String {
    format!(
        r#"{{"cniVersion": "1.0.0", "name": "n", "type": "redirect-cni", "socket": {socket:?}, "timeoutSeconds": 5,
            "excludeNamespaces": ["kube-system"]{more}}}"#
    )
}

fn with_previous(socket: &Path) -> String {
    config(socket, &format!(r#", "prevResult": {PREVIOUS}"#))
}

fn failure(outcome: &Outcome) -> (u64, String) {
    assert!(!outcome.success);
    let error: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let text = error["msg"].as_str().unwrap().to_owned();
    (error["code"].as_u64().unwrap(), text)
}

#[test]
fn a_pod_is_told_to_the_agent_and_the_result_before_us_is_passed_on() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let agent = agent(&socket, "{\"answer\":\"done\"}\n");
    let outcome = run(&environment("ADD"), with_previous(&socket).as_bytes());
    assert_eq!((outcome.success, outcome.stdout.as_str()), (true, PREVIOUS));
    let expected = Attachment {
        container_id: "0a1b".into(),
        netns: "/run/netns/cni-1".into(),
        network: "n".into(),
        pod: Some(PodName {
            namespace: "default".into(),
            name: "web-0".into(),
            uid: Some("u-1".into()),
        }),
        ips: vec!["10.1.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
    };
    assert_eq!(agent.join().unwrap(), Request::Add(expected));
}

#[test]
fn a_pod_that_cannot_be_captured_does_not_start() {
    for (answer, code, expected) in [
        (
            r#"{"answer":"failed","error":"no cgroup","hint":"look"}"#,
            100,
            "the pod cannot be captured: no cgroup",
        ),
        ("rubbish", 11, "answer cannot be read"),
        ("", 11, "ended before it had answered"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        let line = if answer.is_empty() {
            String::new()
        } else {
            format!("{answer}\n")
        };
        let agent = agent(&socket, line.leak());
        let outcome = run(&environment("ADD"), with_previous(&socket).as_bytes());
        let (found, text) = failure(&outcome);
        assert_eq!(found, code, "{answer}");
        assert!(text.contains(expected), "{answer}: {text}");
        agent.join().unwrap();
    }
}

#[test]
fn without_an_agent() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let input = with_previous(&socket);
    let ask = |command: &str| run(&environment(command), input.as_bytes());
    assert_eq!(failure(&ask("ADD")).0, 11);
    assert_eq!(failure(&ask("CHECK")).0, 11);
    assert_eq!(failure(&ask("STATUS")).0, 50);
    // Any number of times.
    for _ in 0..3 {
        let outcome = ask("DEL");
        assert_eq!((outcome.success, outcome.stdout.as_str()), (true, ""));
    }
    let mut excluded = environment("ADD");
    excluded.args = "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns".into();
    assert_eq!(run(&excluded, input.as_bytes()).stdout, PREVIOUS);
    let mut bare = environment("DEL");
    bare.netns = String::new();
    bare.args = "K8S_POD_NAME;=;../x".into();
    assert!(run(&bare, config(&socket, "").as_bytes()).success);
}

#[test]
fn an_agent_that_never_answers_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let input = with_previous(&socket).replace("\"timeoutSeconds\": 5", "\"timeoutSeconds\": 1");
    assert_eq!(failure(&run(&environment("ADD"), input.as_bytes())).0, 11);
}

#[test]
fn a_full_queue_before_the_agent_holds_up_no_longer_than_the_timeout() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let listener = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None);
    let listener = listener.unwrap();
    let address = socket2::SockAddr::unix(&socket).unwrap();
    listener.bind(&address).unwrap();
    listener.listen(0).unwrap();
    let _queued = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    let input = with_previous(&socket).replace("\"timeoutSeconds\": 5", "\"timeoutSeconds\": 1");
    let begun = std::time::Instant::now();
    assert_eq!(failure(&run(&environment("ADD"), input.as_bytes())).0, 11);
    assert!(run(&environment("DEL"), input.as_bytes()).success);
    assert!(begun.elapsed() >= std::time::Duration::from_secs(2));
}

#[test]
fn what_is_still_there_is_told_at_garbage_collection() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let agent = agent(&socket, "{\"answer\":\"done\"}\n");
    let valid = r#", "cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}]"#;
    assert!(run(&environment("GC"), config(&socket, valid).as_bytes()).success);
    let container_ids = vec!["a".to_owned()];
    let network = "n".to_owned();
    let expected = Request::Gc {
        network,
        container_ids,
    };
    assert_eq!(agent.join().unwrap(), expected);
}

#[test]
fn versions_are_told() {
    let asked = run(
        &environment("VERSION"),
        br#"{"cniVersion": "0.4.0"}"#.as_slice(),
    );
    let answer: Value = serde_json::from_str(&asked.stdout).unwrap();
    assert_eq!(
        answer,
        json!({"cniVersion": "0.4.0", "supportedVersions": VERSIONS})
    );
    // A version that we do not speak is answered in one that we do.
    let asked = run(
        &environment("VERSION"),
        br#"{"cniVersion": "9.0.0"}"#.as_slice(),
    );
    assert!(asked.success && asked.stdout.contains(r#""cniVersion":"1.1.0""#));
}

#[test]
fn bad_calls_have_clear_errors() {
    let socket = Path::new("/nowhere.sock");
    let good = with_previous(socket);
    let long = "x".repeat(2 << 20);
    let args = |args: &str| Environment {
        args: args.into(),
        ..environment("ADD")
    };
    let id = |id: &str| Environment {
        container_id: id.into(),
        ..environment("ADD")
    };
    for (environment, input, code, expected) in [
        (environment(""), good.as_str(), 4, "CNI_COMMAND is not set"),
        (environment("HELP"), &good, 4, "\"HELP\" is none of"),
        (environment("ADD"), "", 6, "cannot be read"),
        (environment("ADD"), "{]", 6, "cannot be read"),
        (environment("ADD"), &long, 6, "longer than a mebibyte"),
        (
            environment("ADD"),
            r#"{"cniVersion": "2.0.0"}"#,
            1,
            "\"2.0.0\" is none of",
        ),
        (
            environment("ADD"),
            &config(socket, ""),
            7,
            "has no prevResult",
        ),
        (
            environment("ADD"),
            &config(socket, r#", "prevResult": {"ips": [{"address": "x"}]}"#),
            6,
            "\"x\" is no address",
        ),
        (
            environment("ADD"),
            r#"{"cniVersion": "1.0.0", "prevResult": {}}"#,
            6,
            "missing field",
        ),
        (args("K8S_POD_NAME"), &good, 4, "is not KEY=VALUE"),
        (
            args("K8S_POD_NAME=../x"),
            &good,
            4,
            "cannot be K8S_POD_NAME",
        ),
        (id(""), &good, 4, "CNI_CONTAINERID is not set"),
        (id("../../etc"), &good, 4, "has other characters"),
        (
            Environment {
                netns: String::new(),
                ..environment("ADD")
            },
            &good,
            4,
            "CNI_NETNS is not set",
        ),
    ] {
        let (found, text) = failure(&run(&environment, input.as_bytes()));
        assert!(text.contains(expected), "{text}");
        assert_eq!(found, code, "{text}");
    }
}

#[test]
fn answers_look_like_this_on_the_wire() {
    let failed = Answer::Failed {
        error: "e".into(),
        hint: "h".into(),
    };
    for (answer, expected) in [
        (Answer::Done, r#"{"answer":"done"}"#),
        (Answer::NotEnrolled, r#"{"answer":"notEnrolled"}"#),
        (failed, r#"{"answer":"failed","error":"e","hint":"h"}"#),
    ] {
        assert_eq!(serde_json::to_string(&answer).unwrap(), expected);
    }
}
