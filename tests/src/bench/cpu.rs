//! What a process used, from /proc.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

/// CPU time of all threads until now, user and system together.
pub fn time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The name before the last parenthesis may hold spaces; utime and stime are fields 14 and 15 (proc(5)).
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_ascii_whitespace()
        .collect();
    let ticks = |index: usize| {
        fields
            .get(index)
            .and_then(|field| field.parse::<u64>().ok())
    };
    let used = ticks(11)
        .zip(ticks(12))
        .map(|(user, system)| user + system)
        .with_context(|| format!("odd {path}"))?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.map_or(100, i64::cast_unsigned);
    Ok(Duration::from_millis(used * 1000 / per_second))
}

/// Resident memory in bytes.
pub fn resident(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .with_context(|| format!("odd {path}"))?;
    let kib: u64 = line
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .with_context(|| format!("odd {path}: {line}"))?;
    Ok(kib * 1024)
}
