//! Reads the programs' counters.

use std::sync::Arc;

use aya::maps::{Map, MapData, MapError, PerCpuArray};
use redirect_common::counter;

use super::super::{CaptureError, VerdictCount, VerdictCounters};

/// A reader that sums over all CPUs, and gives what is not zero.
pub fn reader(map: Map) -> Result<VerdictCounters, CaptureError> {
    let counters: PerCpuArray<MapData, u64> = map
        .try_into()
        .map_err(|error: MapError| CaptureError::kernel("use", "map rdr_counters", &error))?;
    Ok(Arc::new(move || {
        (0..counter::COUNTERS)
            .filter_map(|index| read(&counters, index))
            .collect()
    }))
}

fn read(counters: &PerCpuArray<MapData, u64>, index: u32) -> Option<VerdictCount> {
    let count = counters.get(&index, 0).ok()?.iter().sum();
    let (hook, verdict, reason) = counter::at(index)?;
    (count > 0).then_some(VerdictCount {
        hook: hook.as_str(),
        verdict: verdict.as_str(),
        reason: reason.as_str(),
        count,
    })
}
