//! Which network namespace is the pod's, of those that its processes are in. Pure.

/// A process of the pod.
pub struct Candidate<T> {
    /// The inode of its network namespace.
    pub netns: u64,
    /// In clock ticks since boot.
    pub started: u64,
    pub what: T,
}

/// The oldest process whose namespace is none of the host's and `holds` what it should. A container may have made others for
/// itself (docker in docker), and they are younger than the sandbox.
pub fn oldest<T>(
    mut candidates: Vec<Candidate<T>>,
    hosts: &[u64],
    holds: impl Fn(&Candidate<T>) -> bool,
) -> Option<T> {
    candidates.sort_by_key(|candidate| candidate.started);
    let mut refused = Vec::new();
    for candidate in candidates {
        if hosts.contains(&candidate.netns) || refused.contains(&candidate.netns) {
            continue;
        }
        if holds(&candidate) {
            return Some(candidate.what);
        }
        refused.push(candidate.netns);
    }
    None
}
