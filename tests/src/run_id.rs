//! The name that everything of one testbed starts with, and whether its maker still lives.

use std::{
    fmt, fs, process,
    sync::atomic::{AtomicU32, Ordering},
};

/// `rdt-PID-STARTTIME-N`: the maker's pid, its start time (so that a reused pid is not taken for it), and a number.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(String);

impl RunId {
    /// A name that no other testbed has, in this process or another.
    pub fn fresh() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let pid = process::id();
        let start = start_time(pid).expect("our own /proc/PID/stat is readable");
        Self(format!(
            "rdt-{pid}-{start}-{}",
            NEXT.fetch_add(1, Ordering::Relaxed)
        ))
    }

    /// The id that `name` (of a namespace, cgroup or directory) starts with, if it is one of a testbed.
    pub fn of(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix("rdt-")?.split('-');
        let mut number = || parts.next().filter(|part| part.parse::<u64>().is_ok());
        let (pid, start, n) = (number()?, number()?, number()?);
        Some(Self(format!("rdt-{pid}-{start}-{n}")))
    }

    /// Whether the process that made the testbed is still there.
    pub fn is_alive(&self) -> bool {
        let mut parts = self.0.split('-').skip(1);
        let pid = parts.next().and_then(|pid| pid.parse().ok());
        let start = parts.next().and_then(|start| start.parse::<u64>().ok());
        pid.and_then(start_time) == start
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Field 22 of proc(5) stat, in clock ticks since boot. `None` for a dead process and for a zombie.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_comm = &stat[stat.rfind(')')? + 1..];
    let mut fields = after_comm.split_ascii_whitespace();
    let state = fields.next()?;
    let start = fields.nth(18)?.parse().ok()?;
    (state != "Z").then_some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognises_its_own_names_and_no_others() {
        let id = RunId::fresh();
        assert_eq!(RunId::of(&format!("{id}-a-client")).as_ref(), Some(&id));
        assert_eq!(RunId::of(id.as_str()).as_ref(), Some(&id));
        for other in ["rdt-x", "rdt-1-2", "pod-1-2-3", "", "rdt-1-2-x"] {
            assert_eq!(RunId::of(other), None, "{other}");
        }
    }

    #[test]
    fn knows_the_living_from_the_dead() {
        let id = RunId::fresh();
        assert!(id.is_alive());
        let (pid, start) = (process::id(), start_time(process::id()).expect("alive"));
        let reused = RunId::of(&format!("rdt-{pid}-{}-0", start + 1)).expect("well formed");
        assert!(!reused.is_alive(), "same pid, other start time");
    }
}
