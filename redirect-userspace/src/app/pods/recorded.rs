//! Pods on record: where to clean up after this daemon, or for an earlier one.

use std::{collections::BTreeSet, fs, io, path::Path};

use super::{PodError, Pods};
use crate::{
    app::record::{self, Record},
    capture,
    config::Part,
    pod::Pod,
    proxy::client_ip,
    sys::netns::Netns,
};

impl Pods {
    /// Remembers where to clean up. Returns the other backends that captured this pod before.
    pub(super) fn record(&self, pod: &Pod) -> Result<BTreeSet<String>, PodError> {
        // Nothing is done there that could be left; and the path is good in this process only.
        if self.part == Part::Proxy {
            return Ok(BTreeSet::new());
        }
        let path = record::path(&self.records, &pod.uid);
        let fail = |source| PodError::Record {
            path: path.clone(),
            source,
        };
        let mut earlier = BTreeSet::new();
        if let Some(before) = Record::read(&path).map_err(fail)? {
            if before.netns == pod.netns {
                earlier = before.backends;
            } else if let Err(error) = clean_record(&path) {
                tracing::error!(pod = %pod.uid, %error, "cannot clean up in the pod's former namespace");
            }
        }
        let mut backends = earlier.clone();
        backends.insert(self.capture.name().to_owned());
        let netns = pod.netns.clone();
        let record = Record { netns, backends };
        record.write(&path).map_err(fail)?;
        earlier.remove(self.capture.name());
        Ok(earlier)
    }

    /// Takes back what other backends made, now that this one's capture is in place.
    pub(super) fn forget_earlier(
        &self,
        pod: &Pod,
        netns: &Netns,
        earlier: BTreeSet<String>,
    ) -> Result<(), PodError> {
        if earlier.is_empty() {
            return Ok(());
        }
        for backend in &earlier {
            capture::clean_netns_after(netns, backend, self.capture.name())?;
        }
        let path = record::path(&self.records, &pod.uid);
        let record = Record {
            netns: pod.netns.clone(),
            backends: BTreeSet::from([self.capture.name().to_owned()]),
        };
        record
            .write(&path)
            .map_err(|source| PodError::Record { path, source })
    }
}

/// Cleans up after all pods that are on record.
pub fn clean_recorded(state_dir: &Path) -> anyhow::Result<()> {
    let records = record::folder(state_dir);
    let entries = match fs::read_dir(&records) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let (mut errors, mut backends) = (Vec::new(), BTreeSet::new());
    for entry in entries {
        let path = entry?.path();
        if let Ok(Some(record)) = Record::read(&path) {
            backends.extend(record.backends);
        }
        if let Err(error) = clean_record(&path) {
            errors.push(format!("{}: {error}", path.display()));
        }
    }
    let own = backends.iter().map(|backend| capture::clean_own(backend));
    errors.extend(own.filter_map(Result::err).map(|error| error.to_string()));
    if errors.is_empty() {
        fs::remove_dir(&records)?;
        return Ok(());
    }
    anyhow::bail!("{}", errors.join("; "))
}

/// Undoes what was done in the namespace that the record names. A pod that is gone took it along.
pub(super) fn clean_record(path: &Path) -> anyhow::Result<()> {
    let Some(record) = Record::read(path)? else {
        return Ok(());
    };
    let enters = record
        .backends
        .iter()
        .any(|name| capture::enters_pods(name));
    if let Ok(netns) = Netns::open(&record.netns)
        && enters
    {
        let cleaned = record.backends.iter();
        let cleaned = cleaned.map(|backend| capture::clean_netns(&netns, backend));
        let cleaned: Vec<_> = cleaned.collect();
        client_ip::clean(&netns)?;
        cleaned.into_iter().collect::<Result<(), _>>()?;
    }
    fs::remove_file(path)?;
    Ok(())
}
