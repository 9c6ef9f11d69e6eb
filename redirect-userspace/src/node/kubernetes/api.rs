//! Calls of the Kubernetes API: whom to call and as whom, and the few verbs that are used.

use std::{future::Future, path::Path, time::Duration};

use http::{Method, Request, StatusCode, header};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::objects::{Event, Meta, Namespace, Object, Pod};

/// A page of a list, or any other single answer.
const ANSWER: Duration = Duration::from_secs(15);
/// Objects in a page of a list.
const PAGE: usize = 500;

/// Speaks to the API. Cheap to clone; a token in a file is read anew before it expires.
#[derive(Clone)]
pub struct Api {
    client: Client,
    server: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("kubeconfig {path}: {source}")]
    Kubeconfig {
        path: String,
        source: kube::config::KubeconfigError,
    },
    #[error("use the kubeconfig {path}: {source}")]
    Unusable { path: String, source: kube::Error },
    #[error(
        "{0}; outside of a pod, say in `agent.kubernetes.kubeconfig` how to reach the Kubernetes API"
    )]
    NotInCluster(kube::config::InClusterError),
    #[error("use the credentials of the daemon's pod: {0}")]
    UnusableInCluster(kube::Error),
    #[error("{call}: {reason}{}", hint(.status))]
    Call {
        call: String,
        /// 0: there was no answer.
        status: u16,
        reason: String,
    },
}

impl ApiError {
    pub fn is(&self, code: StatusCode) -> bool {
        matches!(self, Self::Call { status, .. } if *status == code.as_u16())
    }
}

/// What an operator can do.
fn hint(status: &u16) -> &'static str {
    match status {
        401 => " (the credentials are not accepted: are they of this cluster, and not expired?)",
        403 => " (the daemon's ClusterRole has to permit it: see deploy/)",
        _ => "",
    }
}

/// What is asked of a list or a watch.
#[derive(Clone, Debug)]
pub struct Kind {
    /// `/api/v1` or `/apis/GROUP/VERSION`.
    pub base: String,
    pub fields: Option<String>,
}

impl Kind {
    pub fn core() -> Self {
        Self {
            base: "/api/v1".to_owned(),
            fields: None,
        }
    }

    pub fn with_fields(self, fields: String) -> Self {
        Self {
            fields: Some(fields),
            ..self
        }
    }
}

#[derive(Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
struct List<T> {
    metadata: ListMeta,
    items: Option<Vec<T>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
}

impl Api {
    /// By a kubeconfig, else as the service account of the pod that this process is in.
    pub async fn connect(kubeconfig: Option<&Path>) -> Result<Self, ApiError> {
        let mut config = match kubeconfig {
            Some(path) => {
                let named = |source| ApiError::Kubeconfig {
                    path: path.display().to_string(),
                    source,
                };
                let read = Kubeconfig::read_from(path).map_err(named)?;
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(read, &options)
                    .await
                    .map_err(named)?
            }
            None => Config::incluster().map_err(ApiError::NotInCluster)?,
        };
        // Who calls knows better when to ask again.
        config.default_retry = false;
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(|source| match kubeconfig {
            Some(path) => ApiError::Unusable {
                path: path.display().to_string(),
                source,
            },
            None => ApiError::UnusableInCluster(source),
        })?;
        Ok(Self { client, server })
    }

    pub fn server(&self) -> &str {
        &self.server
    }

    pub async fn pod(&self, namespace: &str, name: &str) -> Result<Pod, ApiError> {
        self.get(&format!("/api/v1/namespaces/{namespace}/pods/{name}"))
            .await
    }

    pub async fn namespace(&self, name: &str) -> Result<Namespace, ApiError> {
        self.get(&format!("/api/v1/namespaces/{name}")).await
    }

    /// Which of its versions the API has of a group.
    pub async fn versions(&self, group: &str) -> Result<Vec<String>, ApiError> {
        #[derive(Deserialize)]
        struct Group {
            versions: Vec<Version>,
        }
        #[derive(Deserialize)]
        struct Version {
            version: String,
        }
        let group: Group = self.get(&format!("/apis/{group}")).await?;
        Ok(group.versions.into_iter().map(|v| v.version).collect())
    }

    /// Sets an annotation of exactly this pod, or removes it; returns the pod as it is then.
    pub async fn annotate(
        &self,
        pod: &Meta,
        name: &str,
        value: Option<&str>,
    ) -> Result<Pod, ApiError> {
        let path = format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name);
        // With its uid: another pod of this name is a conflict.
        let patch = serde_json::json!({"metadata": {"uid": pod.uid, "annotations": {name: value}}});
        let kind = "application/merge-patch+json";
        self.write(Method::PATCH, &path, kind, &patch).await
    }

    pub async fn say(&self, event: &Event) -> Result<(), ApiError> {
        let path = format!("/api/v1/namespaces/{}/events", event.metadata.namespace);
        let _: serde_json::Value = self
            .write(Method::POST, &path, "application/json", event)
            .await?;
        Ok(())
    }

    /// All objects, and the version from which a watch goes on.
    pub async fn list<T: Object>(&self, kind: &Kind) -> Result<(Vec<T>, String), ApiError> {
        let mut all = Vec::new();
        let mut next = String::new();
        loop {
            let mut query = vec![("limit", PAGE.to_string())];
            if !next.is_empty() {
                query.push(("continue", next));
            }
            let path = path::<T>(kind, query);
            let page: List<T> = self.get(&path).await?;
            all.extend(page.items.unwrap_or_default());
            if page.metadata.next.is_empty() {
                return Ok((all, page.metadata.resource_version));
            }
            next = page.metadata.next;
        }
    }

    /// The request of a watch, whose answer goes on for `seconds`.
    pub fn watch_request<T: Object>(
        &self,
        kind: &Kind,
        version: &str,
        seconds: u64,
    ) -> Request<Vec<u8>> {
        let query = vec![
            ("watch", "true".to_owned()),
            ("allowWatchBookmarks", "true".to_owned()),
            ("resourceVersion", version.to_owned()),
            ("timeoutSeconds", seconds.to_string()),
        ];
        request(Method::GET, &path::<T>(kind, query), Vec::new())
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let request = request(Method::GET, path, Vec::new());
        answer(format!("GET {path}"), self.client.request(request)).await
    }

    async fn write<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        kind: &'static str,
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        let body = serde_json::to_vec(body).expect("our own types are written as JSON");
        let name = method.to_string();
        let mut request = request(method, path, body);
        let kind = header::HeaderValue::from_static(kind);
        request.headers_mut().insert(header::CONTENT_TYPE, kind);
        answer(format!("{name} {path}"), self.client.request(request)).await
    }
}

/// Waits for it, for so long as is reasonable.
pub async fn answer<T>(
    call: String,
    answer: impl Future<Output = kube::Result<T>>,
) -> Result<T, ApiError> {
    match tokio::time::timeout(ANSWER, answer).await {
        Ok(answer) => answer.map_err(|error| called(call, &error)),
        Err(_) => Err(ApiError::Call {
            call,
            status: 0,
            reason: format!("no answer in {} s", ANSWER.as_secs()),
        }),
    }
}

pub fn called(call: String, error: &kube::Error) -> ApiError {
    let (status, reason) = match error {
        kube::Error::Api(status) => (status.code, status.message.clone()),
        other => (0, with_causes(other)),
    };
    ApiError::Call {
        call,
        status,
        reason,
    }
}

/// The cause is often all that says something: "connection refused".
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

fn path<T: Object>(kind: &Kind, mut query: Vec<(&'static str, String)>) -> String {
    if let Some(fields) = &kind.fields {
        query.push(("fieldSelector", fields.clone()));
    }
    let query: Vec<_> = query
        .iter()
        .map(|(name, value)| format!("{name}={}", escaped(value)))
        .collect();
    format!("{}/{}?{}", kind.base, T::PLURAL, query.join("&"))
}

/// For a query: what RFC 3986, section 2.3 does not call unreserved.
fn escaped(text: &str) -> String {
    let bytes = text.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    });
    bytes.collect()
}

fn request(method: Method, path: &str, body: Vec<u8>) -> Request<Vec<u8>> {
    let request = Request::builder().method(method).uri(path);
    request
        .body(body)
        .expect("the path is made of checked names and escaped values")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_a_query_are_escaped() {
        let kind = Kind::core().with_fields("spec.nodeName=a b&c".to_owned());
        assert_eq!(
            path::<Pod>(&kind, vec![("continue", "x+/=".to_owned())]),
            "/api/v1/pods?continue=x%2B%2F%3D&fieldSelector=spec.nodeName%3Da%20b%26c"
        );
    }
}
