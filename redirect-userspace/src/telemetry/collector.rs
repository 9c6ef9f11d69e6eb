//! Counters that other parts keep, read when metrics are asked for.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use crate::{capture::VerdictCounters, identity::IdentityStore, workload::WorkloadStore};

/// Reads its sources at each scrape.
pub struct Sources {
    pub verdicts: VerdictCounters,
    pub workloads: Arc<WorkloadStore>,
    pub identities: Arc<IdentityStore>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

impl Collector for Sources {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let workloads = self.workloads.stats();
        let identities = self.identities.stats();
        for (name, help, value) in [
            (
                "workload_loads",
                "Complete workload data that was taken over",
                workloads.loads,
            ),
            (
                "workload_load_failures",
                "Workload files that were bad, so that the old data stayed",
                workloads.failures,
            ),
            (
                "certificate_renewals",
                "Certificates that were issued or read",
                identities.renewals,
            ),
            (
                "certificate_failures",
                "Certificates that could not be had",
                identities.failures,
            ),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(
                name,
                help,
                None,
                counter.metric_type(),
            )?)?;
        }
        let ready = ConstGauge::new(i64::from(workloads.loads > 0));
        ready.encode(encoder.encode_descriptor(
            "workloads_ready",
            "1 once complete workload data was loaded",
            None,
            ready.metric_type(),
        )?)?;
        let mut verdicts = encoder.encode_descriptor(
            "capture_verdicts",
            "Verdicts of the eBPF programs, by hook and reason",
            None,
            MetricType::Counter,
        )?;
        for verdict in (self.verdicts)() {
            let labels = [
                ("hook", verdict.hook),
                ("verdict", verdict.verdict),
                ("reason", verdict.reason),
            ];
            ConstCounter::new(verdict.count).encode(verdicts.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
