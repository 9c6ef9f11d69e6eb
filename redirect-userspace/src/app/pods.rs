//! The pods of this daemon: adding one is all or nothing, and one pod's failure is its own.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    capture::{self, Applied, Capture, CaptureError},
    identity::IdentityError,
    pod::{Pod, PodUid},
    proxy::{Listeners, PodContext, Shared, Workers, WorkersError, client_ip},
    sys::netns::Netns,
};

pub struct Pods {
    shared: Arc<Shared>,
    capture: Box<dyn Capture>,
    records: PathBuf,
    captured: HashMap<PodUid, Arc<PodContext>>,
}

/// Why a pod is not captured.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    #[error("open network namespace {}: {source}", path.display())]
    Netns { path: PathBuf, source: io::Error },
    #[error("network namespace {} is the daemon's own; a pod has one of its own", .0.display())]
    OwnNetns(PathBuf),
    #[error("listen on port {port} in the pod: {source}; does something in the pod listen there?")]
    Listen { port: u16, source: io::Error },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    ClientIp(#[from] client_ip::ClientIpError),
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Workers(#[from] WorkersError),
    #[error("record the pod in {}: {source}", path.display())]
    Record { path: PathBuf, source: io::Error },
}

impl Pods {
    pub fn new(shared: Arc<Shared>, capture: Box<dyn Capture>, state_dir: &Path) -> Self {
        Self {
            shared,
            capture,
            records: records(state_dir),
            captured: HashMap::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.captured.len()
    }

    pub fn backend(&self) -> &'static str {
        self.capture.name()
    }

    /// Lets go of pods that an earlier daemon captured and that are not wanted any more.
    pub fn remove_stale(&mut self, wanted: &[Pod]) {
        let wanted: HashSet<&PodUid> = wanted.iter().map(|pod| &pod.uid).collect();
        let found = match self.capture.inspect() {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "cannot see what an earlier daemon left");
                return;
            }
        };
        for uid in found.iter().filter(|uid| !wanted.contains(uid)) {
            self.clean(uid);
        }
    }

    /// Captures the pods; returns how many could not be.
    pub async fn add_all(&mut self, pods: Vec<Pod>, workers: &Workers) -> usize {
        let mut failed = 0;
        for pod in pods {
            let uid = pod.uid.clone();
            match self.add(pod, workers).await {
                Ok(Applied::Attached) => tracing::info!(pod = %uid, "captured"),
                Ok(Applied::Adopted) => {
                    tracing::info!(pod = %uid, "captured: adopted what an earlier daemon left")
                }
                Err(error) => {
                    failed += 1;
                    tracing::error!(pod = %uid, %error, "cannot capture pod");
                }
            }
        }
        failed
    }

    /// Listeners first, programs last: a connection is never steered to a port where nobody listens.
    async fn add(&mut self, pod: Pod, workers: &Workers) -> Result<Applied, PodError> {
        let netns = Netns::open(&pod.netns).map_err(|source| PodError::Netns {
            path: pod.netns.clone(),
            source,
        })?;
        if Netns::current().is_ok_and(|own| own.inode() == netns.inode()) {
            return Err(PodError::OwnNetns(pod.netns));
        }
        self.shared.identities.prepare(&pod.identity).await?;
        let listeners =
            Listeners::open(&netns).map_err(|(port, source)| PodError::Listen { port, source })?;
        self.record(&pod)?;
        if pod.options.preserve_client_ip {
            client_ip::apply(&netns)?;
        }
        let applied = self.capture.apply(&pod, &netns)?;
        let client_ip = pod.options.preserve_client_ip;
        let context = Arc::new(PodContext::new(
            pod,
            netns,
            client_ip,
            &self.shared.cluster_id,
        ));
        workers.add(context.clone(), &listeners)?;
        self.captured.insert(context.pod.uid.clone(), context);
        Ok(applied)
    }

    /// Lets go of all pods; what fails is reported and the rest goes on.
    pub fn clean_all(&mut self) {
        for uid in self.captured.keys().cloned().collect::<Vec<_>>() {
            self.clean(&uid);
        }
    }

    fn clean(&mut self, uid: &PodUid) {
        let capture = self.capture.clean(uid);
        let record = clean_record(&record_path(&self.records, uid));
        self.captured.remove(uid);
        match (capture, record) {
            (Ok(()), Ok(())) => tracing::info!(pod = %uid, "let go"),
            (capture, record) => {
                let errors = [
                    capture.err().map(|e| e.to_string()),
                    record.err().map(|e| e.to_string()),
                ];
                tracing::error!(pod = %uid, error = errors.into_iter().flatten().collect::<Vec<_>>().join("; "), "not wholly let go");
            }
        }
    }

    /// Remembers where to clean up for a daemon, or an `uninstall`, that does not know the pod.
    fn record(&self, pod: &Pod) -> Result<(), PodError> {
        let path = record_path(&self.records, &pod.uid);
        let write = || -> io::Result<()> {
            fs::create_dir_all(&self.records)?;
            fs::write(&path, pod.netns.as_os_str().as_encoded_bytes())
        };
        write().map_err(|source| PodError::Record {
            path: path.clone(),
            source,
        })
    }
}

fn records(state_dir: &Path) -> PathBuf {
    state_dir.join("pods")
}

fn record_path(records: &Path, uid: &PodUid) -> PathBuf {
    records.join(uid.as_str().replace('%', "%25").replace('/', "%2f"))
}

/// Cleans up after all pods that are on record.
pub fn clean_recorded(state_dir: &Path) -> anyhow::Result<()> {
    let records = records(state_dir);
    let entries = match fs::read_dir(&records) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mut errors = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if let Err(error) = clean_record(&path) {
            errors.push(format!("{}: {error}", path.display()));
        }
    }
    if errors.is_empty() {
        fs::remove_dir(&records)?;
        return Ok(());
    }
    anyhow::bail!("{}", errors.join("; "))
}

/// Undoes what was done in the namespace that the record names. A pod that is gone took it along.
fn clean_record(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::ffi::OsStringExt;
    let netns = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        netns => PathBuf::from(std::ffi::OsString::from_vec(netns?)),
    };
    if let Ok(netns) = Netns::open(&netns) {
        let route = capture::clean_netns(&netns);
        client_ip::clean(&netns)?;
        route?;
    }
    fs::remove_file(path)?;
    Ok(())
}
