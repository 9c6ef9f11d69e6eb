//! Probes: the program that lets connections of whoever probes pods pass, on the cgroup of that one.
//!
//! A service that is started anew gets a new cgroup, and the program went with the old one: so we keep looking.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    super::CaptureError,
    links::{self, PROBER_HOOKS},
    object::Programs,
    pins::Pins,
};
use crate::{
    config::ProberCgroups,
    sys::cgroup::{self, Cgroup},
};

mod find;

/// Between two looks at whether the cgroups are the same: one stat each.
const LOOK: Duration = Duration::from_secs(1);
/// Between two searches through all processes, while nobody is found.
const SEARCH: u32 = 10;

pub struct Prober {
    programs: Arc<Programs>,
    pins: Pins,
    wanted: ProberCgroups,
    attached: Vec<Cgroup>,
}

impl Prober {
    /// Attaches the program to the cgroups that are there now.
    pub fn attach(
        programs: Arc<Programs>,
        pins: Pins,
        wanted: ProberCgroups,
    ) -> Result<Self, CaptureError> {
        let mut prober = Self {
            programs,
            pins,
            wanted,
            attached: Vec::new(),
        };
        let result = prober.renew();
        match (&prober.wanted, result) {
            // A search may be denied; captured pods are none the worse for that, but for their probes.
            (ProberCgroups::Auto, Err(error)) => {
                tracing::warn!(%error, "cannot find who probes pods; name the cgroup in capture.probes.cgroups");
            }
            (_, result) => result?,
        }
        if prober.attached.is_empty() {
            tracing::info!(
                "nobody is known who probes pods: all connections to them in plaintext are judged by policy (capture.probes.cgroups)"
            );
        }
        Ok(prober)
    }

    /// Goes on looking, for as long as the daemon lives. Inside its runtime.
    pub async fn follow(mut self) {
        if self.wanted == ProberCgroups::Paths(Vec::new()) {
            return;
        }
        let mut looks = 0_u32;
        loop {
            tokio::time::sleep(LOOK).await;
            looks = looks.wrapping_add(1);
            let is_due = match self.attached.is_empty() {
                true => looks.is_multiple_of(SEARCH) || self.wanted != ProberCgroups::Auto,
                false => !self.attached.iter().all(is_there),
            };
            if !is_due {
                continue;
            }
            // Reading /proc may take milliseconds, in which nothing else would go on.
            let renewed = tokio::task::spawn_blocking(move || {
                let result = self.renew();
                (self, result)
            });
            let Ok((back, result)) = renewed.await else {
                return tracing::error!("probes are not followed any more");
            };
            self = back;
            if let Err(error) = result {
                tracing::warn!(%error, "probes of captured pods may fail");
            }
        }
    }

    fn renew(&mut self) -> Result<(), CaptureError> {
        let wanted = cgroups(&self.wanted)?;
        let mut cgroups = Vec::new();
        for path in &wanted {
            cgroups.push(open(path)?);
        }
        if cgroups.is_empty() && self.attached.is_empty() {
            return self.pins.remove_other_probers(&[]);
        }
        links::attach_probers(&self.programs, &self.pins, &cgroups, &PROBER_HOOKS)?;
        let is_new = |cgroup: &&Cgroup| !self.attached.contains(cgroup);
        for cgroup in cgroups.iter().filter(is_new) {
            tracing::info!(cgroup = %cgroup.path.display(), "connections from here to ports that are declared for probes pass");
            report_sharers(cgroup);
        }
        self.attached = cgroups;
        Ok(())
    }
}

/// The same directory, not one that was made anew.
fn is_there(cgroup: &Cgroup) -> bool {
    Cgroup::open(&cgroup.path).is_ok_and(|now| now.id == cgroup.id)
}

fn open(path: &Path) -> Result<Cgroup, CaptureError> {
    let cgroup = Cgroup::open(path)?;
    if cgroup.is_root() {
        return Err(CaptureError::Kernel {
            call: "take as the prober's cgroup",
            object: path.display().to_string(),
            cause: "it is the root, in which everybody is".into(),
            hint: "; name the cgroup of kubelet's service",
        });
    }
    Ok(cgroup)
}

/// Those that are there now.
pub fn cgroups(wanted: &ProberCgroups) -> Result<Vec<PathBuf>, CaptureError> {
    match wanted {
        ProberCgroups::Auto => found(),
        ProberCgroups::Paths(paths) => Ok(find::present(paths)),
    }
}

/// Where kubelet runs.
fn found() -> Result<Vec<PathBuf>, CaptureError> {
    let processes = processes()?;
    let paths = find::cgroups(&processes);
    let directories = paths.iter().map(|path| cgroup::directory_of(path));
    Ok(directories.collect::<Result<_, _>>()?)
}

fn processes() -> Result<Vec<find::Process>, CaptureError> {
    find::processes(Path::new("/proc"))
        .map_err(|error| CaptureError::kernel("read", "the processes in /proc", &error))
}

/// Whoever shares the prober's cgroup passes as it does: an operator wants to know.
pub fn report_sharers(cgroup: &Cgroup) {
    let (Ok(processes), Ok(name)) = (processes(), cgroup::in_hierarchy(&cgroup.path)) else {
        return;
    };
    let sharers = find::sharers(&processes, &name);
    if sharers.is_empty() {
        return;
    }
    let named: Vec<_> = sharers
        .iter()
        .take(8)
        .map(|process| format!("{} ({})", process.name, process.pid))
        .collect();
    tracing::warn!(
        cgroup = %cgroup.path.display(),
        processes = sharers.len(),
        among_them = named.join(", "),
        "processes share the prober's cgroup: their connections pass as probes do"
    );
}
