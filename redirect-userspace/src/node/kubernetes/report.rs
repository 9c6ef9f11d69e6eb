//! What Kubernetes is told of pods: the annotation of those that are captured, events of those that are not. One call at a time,
//! apart from what captures, so that a slow API holds up nobody.

use http::StatusCode;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::{
    annotations::{ENABLED, REDIRECTION},
    api::Api,
    keeper::Heard,
    objects::{Event, EventMeta, EventSource, Meta, ObjectReference},
    watch::Change,
};
use crate::pod::PodUid;

/// What is to be told or asked.
#[derive(Debug)]
pub enum Report {
    /// Set or remove the annotation that the pod is captured.
    Annotate(Meta, bool),
    /// A warning that `kubectl describe pod` shows.
    Warn(Meta, &'static str, String),
    /// Whether a pod is still there that the list does not have.
    Confirm {
        uid: PodUid,
        namespace: String,
        name: String,
    },
}

/// Reports that wait.
const WAITING: usize = 512;

pub fn start(api: Api, node: String, heard: mpsc::Sender<Heard>) -> mpsc::Sender<Report> {
    let (reports, mut waiting) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        while let Some(report) = waiting.recv().await {
            let answer = match report {
                Report::Annotate(meta, value) => annotate(&api, &meta, value).await,
                Report::Warn(meta, reason, message) => {
                    say(&api, &node, &meta, reason, message).await;
                    continue;
                }
                Report::Confirm {
                    uid,
                    namespace,
                    name,
                } => confirm(&api, uid, &namespace, &name).await,
            };
            if heard.send(answer).await.is_err() {
                return;
            }
        }
    });
    reports
}

async fn annotate(api: &Api, meta: &Meta, value: bool) -> Heard {
    let uid = PodUid::new(meta.uid.as_str());
    let text = value.then_some(ENABLED);
    match api.annotate(meta, REDIRECTION, text).await {
        Ok(pod) => {
            debug!(target: "redirect::kubernetes", pod = %uid, value, "annotated");
            Heard::Annotated(uid, Some(Box::new(pod)))
        }
        Err(error) => {
            // Gone, or another by now: the watch will tell.
            if !error.is(StatusCode::NOT_FOUND) && !error.is(StatusCode::CONFLICT) {
                warn!(target: "redirect::kubernetes", pod = %uid, "cannot say on the pod whether it is captured: {error}");
            }
            Heard::Annotated(uid, None)
        }
    }
}

async fn say(api: &Api, node: &str, meta: &Meta, reason: &'static str, message: String) {
    let now = now();
    let event = Event {
        metadata: EventMeta {
            generate_name: format!("{}.", meta.name),
            namespace: meta.namespace.clone(),
        },
        involved_object: ObjectReference {
            api_version: "v1",
            kind: "Pod",
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
        },
        reason,
        message,
        kind: "Warning",
        source: EventSource {
            component: "redirect",
            host: node.to_owned(),
        },
        first_timestamp: now.clone(),
        last_timestamp: now,
        count: 1,
    };
    if let Err(error) = api.say(&event).await {
        warn!(target: "redirect::kubernetes", pod = meta.uid, "cannot post an event: {error}");
    }
}

/// As RFC 3339 has it, in seconds, which is what the API takes here.
fn now() -> String {
    let now = k8s_openapi::jiff::Timestamp::now();
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

async fn confirm(api: &Api, uid: PodUid, namespace: &str, name: &str) -> Heard {
    match api.pod(namespace, name).await {
        Ok(pod) if pod.metadata.uid == uid.as_str() => Heard::Pod(Change::Put(pod)),
        Ok(_) => Heard::IsGone(uid),
        Err(error) if error.is(StatusCode::NOT_FOUND) => Heard::IsGone(uid),
        Err(error) => {
            warn!(target: "redirect::kubernetes", pod = %uid, "whether it is still there: {error}");
            Heard::NotConfirmed(uid)
        }
    }
}
