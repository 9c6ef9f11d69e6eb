//! The mesh as the cluster is: where no control plane says so, workloads are pods, and services are Services with the endpoints
//! of their EndpointSlices.

mod build;

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc, task::spawn_blocking, time::sleep};
use tracing::{info, warn};

use self::build::{About, Cluster};
use super::{
    Settings,
    api::{Api, Kind},
    objects::{EndpointSlice, Namespace, Pod, Service},
    watch::{Change, watch},
};
use crate::workload::{WorkloadStore, Workloads};

const GROUP: &str = "discovery.k8s.io";
/// So many changes are taken together: what is built is the whole.
const REST: Duration = Duration::from_millis(100);

enum Heard {
    Pod(Change<Pod>),
    Namespace(Change<Namespace>),
    Service(Change<Service>),
    Slice(Change<EndpointSlice>),
}

/// Keeps `store` as the cluster is, for ever. Nothing is stored before everything was heard once.
pub fn start(api: Api, settings: &Settings, store: Arc<WorkloadStore>) {
    let about = About {
        trust_domain: settings.trust_domain.clone(),
        cluster_id: settings.cluster_id.clone(),
        network: settings.network.clone(),
        domain: settings.domain.clone(),
    };
    let (heard, hears) = mpsc::channel(1024);
    let core = Kind::core;
    tokio::spawn(watch(api.clone(), core(), heard.clone(), Heard::Pod));
    tokio::spawn(watch(api.clone(), core(), heard.clone(), Heard::Namespace));
    tokio::spawn(watch(api.clone(), core(), heard.clone(), Heard::Service));
    tokio::spawn(async move {
        let base = format!("/apis/{GROUP}/{}", slice_version(&api).await);
        watch(api, Kind { base, fields: None }, heard, Heard::Slice).await;
    });
    tokio::spawn(keep(hears, about, store));
}

/// Before Kubernetes 1.21 there is only `v1beta1`, since 1.25 only `v1`.
async fn slice_version(api: &Api) -> String {
    let mut pause = Duration::from_millis(500);
    loop {
        match api.versions(GROUP).await {
            Ok(versions) => {
                let has_v1 = versions.iter().any(|version| version == "v1");
                return if has_v1 { "v1" } else { "v1beta1" }.to_owned();
            }
            Err(error) => {
                warn!(target: "redirect::kubernetes", "which version of EndpointSlice: {error}");
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(15));
    }
}

async fn keep(mut hears: mpsc::Receiver<Heard>, about: About, store: Arc<WorkloadStore>) {
    let mut cluster = Cluster::default();
    while let Some(first) = hears.recv().await {
        let mut is_changed = hear(&mut cluster, first);
        while let Ok(next) = hears.try_recv() {
            is_changed |= hear(&mut cluster, next);
        }
        if !is_changed || !cluster.is_complete() {
            continue;
        }
        let about = about.clone();
        let built = spawn_blocking(move || {
            let workloads = build::build(&cluster, &about);
            (cluster, workloads)
        });
        let workloads;
        (cluster, workloads) = match built.await {
            Ok(built) => built,
            Err(panic) if panic.is_panic() => std::panic::resume_unwind(panic.into_panic()),
            // The runtime is ending.
            Err(_) => return,
        };
        put(&store, workloads);
        sleep(REST).await;
    }
}

/// Pods change often in ways that are nothing to the mesh.
fn put(store: &WorkloadStore, workloads: Workloads) {
    let before = store.snapshot();
    if before.as_ref().is_some_and(|before| **before == workloads) {
        return;
    }
    if before.is_none() {
        info!(
            target: "redirect::kubernetes",
            workloads = workloads.workloads().len(), services = workloads.services().len(), "the cluster is known"
        );
    }
    for warning in workloads.warnings() {
        let is_new = |before: &Arc<Workloads>| !before.warnings().contains(warning);
        if before.as_ref().is_none_or(is_new) {
            warn!(target: "redirect::kubernetes", "{warning}");
        }
    }
    store.replace(workloads);
}

fn hear(cluster: &mut Cluster, heard: Heard) -> bool {
    match heard {
        Heard::Pod(change) => cluster.pods.apply(small(change)),
        Heard::Namespace(change) => cluster.namespaces.apply(change),
        Heard::Service(change) => cluster.services.apply(change),
        Heard::Slice(change) => cluster.slices.apply(change),
    }
}

/// Of all pods of a cluster, only what is needed is kept.
fn small(change: Change<Pod>) -> Change<Pod> {
    let small = |mut pod: Pod| {
        pod.spec.containers = Vec::new();
        pod.spec.init_containers = Vec::new();
        pod
    };
    match change {
        Change::All(pods) => Change::All(pods.into_iter().map(small).collect()),
        Change::Put(pod) => Change::Put(small(pod)),
        other => other,
    }
}
