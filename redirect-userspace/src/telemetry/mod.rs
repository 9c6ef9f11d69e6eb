//! What the daemon counts. Names and labels are part of the interface: operators build alerts on them.

mod collector;
pub mod log;

use std::sync::{Arc, atomic::AtomicI64};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use crate::{capture::VerdictCounters, identity::IdentityStore, workload::WorkloadStore};

/// Relative to the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Direction {
    #[expect(non_camel_case_types, reason = "the label value as operators see it")]
    outbound,
    #[expect(non_camel_case_types, reason = "the label value as operators see it")]
    inbound,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DirectionLabel {
    pub direction: Direction,
}

/// Why something was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FailureLabels {
    pub direction: Direction,
    pub reason: &'static str,
}

/// What became of a DNS query.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DnsLabels {
    pub transport: &'static str,
    /// Whose answer it is.
    pub by: &'static str,
    pub result: &'static str,
}

/// All counters of the proxy.
pub struct Metrics {
    pub opened: Family<DirectionLabel, Counter>,
    pub closed: Family<DirectionLabel, Counter>,
    pub sent_bytes: Family<DirectionLabel, Counter>,
    pub received_bytes: Family<DirectionLabel, Counter>,
    pub failed: Family<FailureLabels, Counter>,
    pub tunnels: Family<DirectionLabel, Gauge>,
    pub dns_queries: Family<DnsLabels, Counter>,
    pub dev_ca: Gauge,
    pub pods: Gauge,
    pub pods_failed: Gauge,
    pub repairs: Counter,
    pub repairs_failed: Counter,
    registry: Registry,
}

impl Metrics {
    pub fn new(node: &str) -> Self {
        let labels = [("node".into(), node.to_owned().into())];
        let mut registry = Registry::with_prefix_and_labels("redirect", labels.into_iter());
        let opened = Family::default();
        registry.register(
            "connections_opened",
            "Connections that were accepted",
            opened.clone(),
        );
        let closed = Family::default();
        registry.register(
            "connections_closed",
            "Connections that ended, however they did",
            closed.clone(),
        );
        let sent_bytes = Family::default();
        registry.register_with_unit(
            "sent",
            "Bytes from the app to the other end",
            Unit::Bytes,
            sent_bytes.clone(),
        );
        let received_bytes = Family::default();
        registry.register_with_unit(
            "received",
            "Bytes from the other end to the app",
            Unit::Bytes,
            received_bytes.clone(),
        );
        let failed = Family::default();
        registry.register(
            "connections_failed",
            "Connections that were refused or broke, by reason",
            failed.clone(),
        );
        let tunnels = Family::default();
        registry.register(
            "hbone_tunnels",
            "HBONE tunnels that are open",
            tunnels.clone(),
        );
        let dns_queries = Family::default();
        registry.register(
            "dns_queries",
            "DNS queries of captured pods, by who answered and why not",
            dns_queries.clone(),
        );
        let dev_ca = Gauge::<i64, AtomicI64>::default();
        registry.register(
            "dev_ca",
            "1 while this node signs certificates with a development root",
            dev_ca.clone(),
        );
        let pods = Gauge::<i64, AtomicI64>::default();
        registry.register("pods_captured", "Pods that are captured", pods.clone());
        let pods_failed = Gauge::<i64, AtomicI64>::default();
        registry.register(
            "pods_failed",
            "Pods that could not be captured",
            pods_failed.clone(),
        );
        let repairs = Counter::default();
        registry.register(
            "capture_repairs",
            "How often the capture of a pod, or of the node, was not as applied and was made good",
            repairs.clone(),
        );
        let repairs_failed = Counter::default();
        registry.register(
            "capture_repairs_failed",
            "How often it could not be made good",
            repairs_failed.clone(),
        );
        Self {
            opened,
            closed,
            sent_bytes,
            received_bytes,
            failed,
            tunnels,
            dns_queries,
            dev_ca,
            pods,
            pods_failed,
            repairs,
            repairs_failed,
            registry,
        }
    }

    /// Adds what other parts of the daemon count, read at each scrape.
    pub fn register(
        &mut self,
        verdicts: VerdictCounters,
        workloads: Arc<WorkloadStore>,
        identities: Arc<IdentityStore>,
    ) {
        self.registry
            .register_collector(Box::new(collector::Sources {
                verdicts,
                workloads,
                identities,
            }));
    }

    /// The Prometheus text format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("writing to a string");
        text
    }

    pub fn failed(&self, direction: Direction, reason: &'static str) {
        self.failed
            .get_or_create(&FailureLabels { direction, reason })
            .inc();
    }

    pub fn dns_query(&self, transport: &'static str, by: &'static str, result: &'static str) {
        self.dns_queries
            .get_or_create(&DnsLabels {
                transport,
                by,
                result,
            })
            .inc();
    }

    /// Counts a tunnel as open until the value is dropped.
    pub fn tunnel(&self, direction: Direction) -> OpenTunnel {
        let gauge = self
            .tunnels
            .get_or_create(&DirectionLabel { direction })
            .clone();
        gauge.inc();
        OpenTunnel(gauge)
    }

    /// The counters of one direction, looked up once.
    pub fn traffic(&self, direction: Direction) -> Arc<TrafficCounters> {
        let label = DirectionLabel { direction };
        Arc::new(TrafficCounters {
            opened: self.opened.get_or_create(&label).clone(),
            closed: self.closed.get_or_create(&label).clone(),
            sent: self.sent_bytes.get_or_create(&label).clone(),
            received: self.received_bytes.get_or_create(&label).clone(),
        })
    }
}

/// See [`Metrics::tunnel`].
pub struct OpenTunnel(Gauge);

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        self.0.dec();
    }
}

pub struct TrafficCounters {
    opened: Counter,
    closed: Counter,
    sent: Counter,
    received: Counter,
}

/// What one connection carried; counts in the metrics as it goes, so that a long connection is seen before it ends.
pub struct Traffic {
    counters: Arc<TrafficCounters>,
    /// For an inbound connection the other end sends and the app receives.
    inbound: bool,
    from_app: std::cell::Cell<u64>,
    to_app: std::cell::Cell<u64>,
}

impl Traffic {
    pub fn outbound(counters: &Arc<TrafficCounters>) -> Self {
        Self::new(counters, false)
    }

    pub fn inbound(counters: &Arc<TrafficCounters>) -> Self {
        Self::new(counters, true)
    }

    fn new(counters: &Arc<TrafficCounters>, inbound: bool) -> Self {
        counters.opened.inc();
        Self {
            counters: counters.clone(),
            inbound,
            from_app: 0.into(),
            to_app: 0.into(),
        }
    }

    pub fn from_app(&self, bytes: usize) {
        self.from_app.set(self.from_app.get() + bytes as u64);
        self.counters.sent.inc_by(bytes as u64);
    }

    pub fn to_app(&self, bytes: usize) {
        self.to_app.set(self.to_app.get() + bytes as u64);
        self.counters.received.inc_by(bytes as u64);
    }

    /// Bytes from the side that opened the connection, as access logs give them.
    pub fn bytes_sent(&self) -> u64 {
        if self.inbound {
            self.to_app.get()
        } else {
            self.from_app.get()
        }
    }

    pub fn bytes_received(&self) -> u64 {
        if self.inbound {
            self.from_app.get()
        } else {
            self.to_app.get()
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.counters.closed.inc();
    }
}
