use std::{
    os::unix::net::UnixStream as Client,
    sync::atomic::{AtomicUsize, Ordering},
};

use std::io::{Read, Write};

use super::*;

const LIMITS: Limits = Limits {
    connections: 4,
    patience: Duration::from_millis(300),
};

/// A server that counts what it answers.
fn serve(path: &Path) -> Arc<AtomicUsize> {
    let answered = Arc::new(AtomicUsize::new(0));
    let (path, count) = (path.to_owned(), answered.clone());
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let socket = Socket::bind(&path).unwrap();
            ready.send(()).unwrap();
            let handle = move |request| {
                let count = count.clone();
                async move {
                    count.fetch_add(1, Ordering::SeqCst);
                    match request {
                        Request::Status => Answer::Done,
                        _ => Answer::NotEnrolled,
                    }
                }
            };
            socket.serve(LIMITS, handle).await;
        });
    });
    is_ready.recv().unwrap();
    answered
}

fn talk(path: &Path, text: &[u8]) -> String {
    let mut client = Client::connect(path).unwrap();
    // Whoever wrote too much is answered before it has written all.
    _ = client.write_all(text);
    let mut answer = String::new();
    _ = client.read_to_string(&mut answer);
    answer
}

#[test]
fn requests_are_answered_and_nonsense_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("below/agent.sock");
    serve(&path);
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for (text, expected) in [
        ("{\"request\":\"status\"}\n", "done"),
        (
            "{\"request\":\"del\",\"containerId\":\"a\"}\n",
            "notEnrolled",
        ),
        ("{\"request\":\"dance\"}\n", "unknown variant"),
        ("\n", "not a request"),
        ("{\"request\":\n", "not a request"),
        ("\u{0}\u{1}\n", "not a request"),
    ] {
        let answer = talk(&path, text.as_bytes());
        assert!(answer.contains(expected), "{text:?}: {answer}");
    }
    let long = vec![b'a'; 2 * MAX_LINE];
    let answer = talk(&path, &long);
    assert!(answer.is_empty() || answer.contains("at most"), "{answer}");
    assert!(matches!(ask(&path, &Request::Status), Ok(Answer::Done)));
}

#[test]
fn clients_that_do_nothing_hold_up_others_only_for_a_while() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let answered = serve(&path);
    let idle: Vec<_> = (0..3 * LIMITS.connections)
        .map(|_| Client::connect(&path).unwrap())
        .collect();
    let mut half = Client::connect(&path).unwrap();
    half.write_all(b"{\"request\"").unwrap();
    assert!(matches!(ask(&path, &Request::Status), Ok(Answer::Done)));
    assert_eq!(answered.load(Ordering::SeqCst), 1);
    // They were all sent away.
    for mut client in idle.into_iter().chain([half]) {
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
}

#[tokio::test]
async fn a_successor_takes_the_place_and_the_predecessor_leaves_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let first = Socket::bind(&path).unwrap();
    let second = Socket::bind(&path).unwrap();
    drop(first);
    Client::connect(&path).unwrap();
    drop(second);
    assert!(!path.exists());
    let too_long = dir.path().join("a".repeat(200));
    let error = Socket::bind(&too_long).unwrap_err().to_string();
    assert!(error.contains("agent.socket"), "{error}");
}
