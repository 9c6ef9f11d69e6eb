//! A Kubernetes API for tests: objects with real versions, lists in pages, watches with bookmarks, 410 for what is forgotten; and
//! the faults of one, at the test's word.

mod http;
mod store;

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use redirect::sys::netns::Netns;
use serde_json::{Value, json};

use self::store::Store;
pub use self::store::WatchEvent;
use crate::wait::stretched;

const PATIENCE: Duration = Duration::from_secs(20);

/// A server that listens on loopback. Ends when dropped.
pub struct FakeApi {
    shared: Arc<Shared>,
    addr: SocketAddr,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    store: Store,
    faults: Faults,
    /// `METHOD PATH?QUERY` of all requests.
    requests: Vec<String>,
    /// Bodies of events that were posted.
    events: Vec<Value>,
    /// Raised to end the watches that are open.
    epoch: u64,
    is_over: bool,
}

/// How the server fails.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Closes each connection without an answer, as a server does that is starting.
    pub down: bool,
    /// Accepts, and never answers.
    pub silent: bool,
    /// Waits before each answer.
    pub slow: Duration,
    /// Ends each list in the middle.
    pub broken: bool,
    /// Answers everything with this status.
    pub status: Option<u16>,
    /// Of this kind only; of all, if empty.
    pub only: String,
    /// Objects in a page, however many are asked for.
    pub page: Option<usize>,
    /// Only `v1beta1` of EndpointSlice, as before 1.21.
    pub old: bool,
}

impl FakeApi {
    /// On loopback of the calling thread's namespace.
    pub fn start() -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").expect("listen on loopback"))
    }

    /// On loopback of `netns`.
    pub fn start_in(netns: &Netns) -> Self {
        let listener = netns.run(|| TcpListener::bind("127.0.0.1:0"));
        Self::on(
            listener
                .expect("enter the namespace")
                .expect("listen on loopback"),
        )
    }

    fn on(listener: TcpListener) -> Self {
        let addr = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let server = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let server = server.clone();
                if server.lock().is_over {
                    return;
                }
                if let Ok(stream) = stream {
                    thread::spawn(move || http::serve(&server, stream));
                }
            }
        });
        Self { shared, addr }
    }

    /// Writes a kubeconfig for this server to `dir`.
    pub fn kubeconfig(&self, dir: &Path) -> PathBuf {
        let path = dir.join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": format!("http://{}", self.addr)}}],
            "users": [{"name": "agent", "user": {"token": "secret"}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "agent"}}],
        });
        fs::write(&path, config.to_string()).expect("write a kubeconfig");
        path
    }

    /// Adds or replaces an object of a kind (`pods`, …), and tells watches; gives it as it is then.
    pub fn put(&self, kind: &str, object: Value) -> Value {
        let object = self.shared.lock().store.put(kind, object);
        self.shared.changed.notify_all();
        object
    }

    /// Merges `patch` into an object.
    #[track_caller]
    pub fn patch(&self, kind: &str, namespace: &str, name: &str, patch: &Value) {
        let patched = self.shared.lock().store.patch(kind, namespace, name, patch);
        assert!(patched.is_ok(), "{kind} {namespace}/{name}: {patched:?}");
        self.shared.changed.notify_all();
    }

    #[track_caller]
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) {
        let deleted = self.shared.lock().store.delete(kind, namespace, name);
        assert!(deleted, "there is no {kind} {namespace}/{name}");
        self.shared.changed.notify_all();
    }

    /// Removes an object behind the back of all watches: they have missed it, and the next list shows it.
    pub fn delete_unseen(&self, kind: &str, namespace: &str, name: &str) {
        {
            let mut state = self.shared.lock();
            state.store.delete(kind, namespace, name);
            state.store.forget();
            state.epoch += 1;
        }
        self.shared.changed.notify_all();
    }

    /// Tells watches something as it is, true or not.
    pub fn tell(&self, kind: &str, event: WatchEvent, object: Value) {
        self.shared.lock().store.tell(kind, event, object);
        self.shared.changed.notify_all();
    }

    pub fn bookmark(&self) {
        self.shared.lock().store.bookmark();
        self.shared.changed.notify_all();
    }

    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        self.shared.lock().store.get(kind, namespace, name).cloned()
    }

    /// Forgets all changes until now: who goes on from before is told 410. Open watches end.
    pub fn forget(&self) {
        self.shared.lock().store.forget();
        self.end_watches();
    }

    /// Ends the watches that are open, as a server does from time to time.
    pub fn end_watches(&self) {
        self.shared.lock().epoch += 1;
        self.shared.changed.notify_all();
    }

    /// Fails in this way from now on; with a fault of the server itself, also the watches that are open.
    pub fn fail(&self, faults: Faults) {
        let ends = faults.down || faults.silent || faults.status.is_some();
        self.shared.lock().faults = faults;
        if ends {
            self.end_watches();
        }
    }

    pub fn heal(&self) {
        self.fail(Faults::default());
    }

    /// `METHOD PATH?QUERY` of the requests until now.
    pub fn requests(&self) -> Vec<String> {
        self.shared.lock().requests.clone()
    }

    /// Waits for a request after the first `from`.
    #[track_caller]
    pub fn wait_request(&self, from: usize, what: &str, is_it: impl Fn(&str) -> bool) {
        self.wait(what, |state| {
            state.requests.iter().skip(from).any(|r| is_it(r))
        });
    }

    /// The events that were posted until now.
    pub fn events(&self) -> Vec<Value> {
        self.shared.lock().events.clone()
    }

    /// Waits until an object is as `is_it` says.
    #[track_caller]
    pub fn wait_object(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        is_it: impl Fn(&Value) -> bool,
    ) {
        self.wait(&format!("{kind} {namespace}/{name} as wanted"), |state| {
            state.store.get(kind, namespace, name).is_some_and(&is_it)
        });
    }

    /// Waits for an event of this reason whose message has `text`.
    #[track_caller]
    pub fn wait_event(&self, reason: &str, text: &str) {
        self.wait(&format!("event {reason} with {text:?}"), |state| {
            state.events.iter().any(|event| {
                let message = event["message"].as_str().unwrap_or_default();
                event["reason"] == reason && message.contains(text)
            })
        });
    }

    #[track_caller]
    fn wait(&self, what: &str, is_it: impl Fn(&State) -> bool) {
        let limit = stretched(PATIENCE);
        let state = self.shared.lock();
        let (state, timed_out) = self
            .shared
            .changed
            .wait_timeout_while(state, limit, |state| !is_it(state))
            .unwrap_or_else(PoisonError::into_inner);
        assert!(
            !timed_out.timed_out(),
            "{what}: not within {limit:?}; requests: {:#?}, events: {:#?}",
            state.requests,
            state.events
        );
    }
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.end_watches();
        // The thread that accepts goes with the process, or at its next connection.
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
