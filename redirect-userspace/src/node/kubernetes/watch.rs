//! All objects of a kind, and each change of them, for ever: a list, then a watch from where it ends, and again when that breaks.

use std::{pin::pin, time::Duration};

use futures_util::TryStreamExt as _;
use http::StatusCode;
use kube::core::WatchEvent;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout_at},
};
use tracing::{debug, warn};

use super::{
    api::{Api, ApiError, Kind, answer, called},
    objects::Object,
};

/// How long one watch is asked to go on; the server may end it sooner.
const WATCH: Duration = Duration::from_secs(240);
/// By then a server that works has ended a watch.
const WATCH_LIMIT: Duration = Duration::from_secs(260);
const BACKOFF: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(15)];
/// A watch that went on for this long was no failure.
const GOOD_WATCH: Duration = Duration::from_secs(5);

/// What has become of the objects of a kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Change<T> {
    /// All that there are: whatever else was known is gone.
    All(Vec<T>),
    /// New, or changed; perhaps neither.
    Put(T),
    Gone(T),
    /// The API does not say; it is asked again.
    Down(String),
}

/// Ends when nobody reads any more.
pub async fn watch<T: Object, C: Send + 'static>(
    api: Api,
    kind: Kind,
    changes: mpsc::Sender<C>,
    wrap: impl Fn(Change<T>) -> C + Send + Sync + 'static,
) {
    let mut pause = Pause::default();
    loop {
        let (objects, version) = match api.list::<T>(&kind).await {
            Ok(listed) => listed,
            Err(error) => {
                warn!(target: "redirect::kubernetes", kind = T::PLURAL, "{error}");
                if changes
                    .send(wrap(Change::Down(error.to_string())))
                    .await
                    .is_err()
                {
                    return;
                }
                pause.take().await;
                continue;
            }
        };
        pause.reset();
        debug!(target: "redirect::kubernetes", kind = T::PLURAL, objects = objects.len(), version, "listed");
        if changes.send(wrap(Change::All(objects))).await.is_err() {
            return;
        }
        let mut version = version;
        loop {
            let began = Instant::now();
            match follow(&api, &kind, &mut version, &changes, &wrap).await {
                Ended::NobodyReads => return,
                Ended::Gone => break,
                Ended::ByServer if began.elapsed() >= GOOD_WATCH => pause.reset(),
                Ended::ByServer => pause.take().await,
                Ended::Failed(error) => {
                    warn!(target: "redirect::kubernetes", kind = T::PLURAL, "{error}");
                    if began.elapsed() >= GOOD_WATCH {
                        pause.reset();
                    }
                    pause.take().await;
                }
            }
        }
        // A server that always says so shall not be listed without end.
        pause.take().await;
    }
}

enum Ended {
    /// It is asked again from where it was.
    ByServer,
    Failed(ApiError),
    /// The version is too old for the server to go on from.
    Gone,
    NobodyReads,
}

/// Passes on the changes after `version`, and moves that on.
async fn follow<T: Object, C>(
    api: &Api,
    kind: &Kind,
    version: &mut String,
    changes: &mpsc::Sender<C>,
    wrap: &impl Fn(Change<T>) -> C,
) -> Ended {
    let call = || format!("watch {} from {version}", T::PLURAL);
    let request = api.watch_request::<T>(kind, version, WATCH.as_secs());
    let deadline = Instant::now() + WATCH_LIMIT;
    // It begins to answer at once, however long there is nothing to tell.
    let events = answer(call(), api.client().request_events::<T>(request)).await;
    let events = match events {
        Ok(events) => events,
        Err(error) => return failed(error),
    };
    let mut events = pin!(events);
    loop {
        let event = match timeout_at(deadline, events.try_next()).await {
            // A connection that is dead without either side knowing.
            Err(_) => return Ended::ByServer,
            Ok(Ok(None)) => return Ended::ByServer,
            Ok(Ok(Some(event))) => event,
            Ok(Err(error)) => {
                return failed(called(
                    format!("watch {} from {version}", T::PLURAL),
                    &error,
                ));
            }
        };
        let change = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => Change::Put(object),
            WatchEvent::Deleted(object) => Change::Gone(object),
            WatchEvent::Bookmark(bookmark) => {
                *version = bookmark.metadata.resource_version;
                continue;
            }
            WatchEvent::Error(status) => {
                let error = kube::Error::Api(status);
                return failed(called(
                    format!("watch {} from {version}", T::PLURAL),
                    &error,
                ));
            }
        };
        if let Change::Put(object) | Change::Gone(object) = &change {
            let reached = &object.meta().resource_version;
            if !reached.is_empty() {
                version.clone_from(reached);
            }
        }
        if changes.send(wrap(change)).await.is_err() {
            return Ended::NobodyReads;
        }
    }
}

fn failed(error: ApiError) -> Ended {
    match error.is(StatusCode::GONE) {
        true => Ended::Gone,
        false => Ended::Failed(error),
    }
}

/// Between calls that fail: doubled each time.
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(BACKOFF[0])
    }
}

impl Pause {
    fn reset(&mut self) {
        *self = Self::default();
    }

    async fn take(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(BACKOFF[1]);
    }
}
