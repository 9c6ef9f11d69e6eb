//! What is measured, in which unit, and what redirect has to reach.

use super::stage::Variant;

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Figure {
    Throughput1,
    Throughput8,
    CpuPerGbOutbound,
    CpuPerGbInbound,
    Rps1,
    P50Of1,
    P99Of1,
    Rps32,
    P50Of32,
    P99Of32,
    NewConnections,
    CpuPerConnectionOutbound,
    CpuPerConnectionInbound,
    ConnectExcluded,
    ConnectLoopback,
    ConnectRedirected,
    IdleOutbound,
    IdleInbound,
    PerConnectionOutbound1000,
    PerConnectionInbound1000,
    KernelPerConnection1000,
    PerConnectionOutbound5000,
    PerConnectionInbound5000,
    KernelPerConnection5000,
}

/// What `--only` selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Group {
    /// iperf3 with 1 and 8 streams.
    Throughput,
    /// wrk with 1 and 32 keep-alive connections.
    Requests,
    /// New connections per second: connect, one byte and back, close.
    Connections,
    /// How long `connect()` takes, with and without the programs.
    Connect,
    /// Resident memory at rest and with idle connections.
    Memory,
    /// The ways of capture beside each other.
    Backends,
    /// DNS queries through the proxy, and past it.
    Dns,
    /// The start of a pod through CNI, with our plugin and without.
    Cni,
}

impl Group {
    /// Whether it is part of the table with all variants.
    pub fn is_of_variants(self) -> bool {
        !matches!(self, Self::Backends | Self::Dns | Self::Cni)
    }
}

/// A bound on redirect's median.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub figure: Figure,
    pub bound: Bound,
}

#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// At least this many times the variant's.
    AtLeast(f64, Variant),
    /// At most this many times the variant's.
    AtMost(f64, Variant),
    /// At most this, in the figure's unit.
    Most(f64),
}

pub const TARGETS: &[Target] = &[
    Target {
        figure: Figure::Throughput1,
        bound: Bound::AtLeast(1.3, Variant::Tls),
    },
    Target {
        figure: Figure::Throughput8,
        bound: Bound::AtLeast(1.3, Variant::Tls),
    },
    Target {
        figure: Figure::P50Of1,
        bound: Bound::AtMost(1.05, Variant::Tls),
    },
    Target {
        figure: Figure::Rps32,
        bound: Bound::AtLeast(1.2, Variant::Tls),
    },
    Target {
        figure: Figure::NewConnections,
        bound: Bound::AtLeast(4.0, Variant::Tls),
    },
    Target {
        figure: Figure::ConnectExcluded,
        bound: Bound::AtMost(1.15, Variant::Direct),
    },
    Target {
        figure: Figure::ConnectLoopback,
        bound: Bound::AtMost(1.15, Variant::Direct),
    },
    Target {
        figure: Figure::ConnectRedirected,
        bound: Bound::AtMost(1.15, Variant::Direct),
    },
    Target {
        figure: Figure::IdleOutbound,
        bound: Bound::Most(16.0),
    },
    Target {
        figure: Figure::IdleInbound,
        bound: Bound::Most(16.0),
    },
    Target {
        figure: Figure::PerConnectionOutbound1000,
        bound: Bound::Most(6.0),
    },
    Target {
        figure: Figure::PerConnectionInbound1000,
        bound: Bound::Most(6.0),
    },
    Target {
        figure: Figure::PerConnectionOutbound5000,
        bound: Bound::Most(6.0),
    },
    Target {
        figure: Figure::PerConnectionInbound5000,
        bound: Bound::Most(6.0),
    },
];

impl Figure {
    pub fn title(self) -> &'static str {
        match self {
            Self::Throughput1 => "throughput, 1 stream",
            Self::Throughput8 => "throughput, 8 streams",
            Self::CpuPerGbOutbound => "CPU per GB, client's proxy",
            Self::CpuPerGbInbound => "CPU per GB, server's proxy",
            Self::Rps1 => "requests, 1 connection",
            Self::P50Of1 => "p50, 1 connection",
            Self::P99Of1 => "p99, 1 connection",
            Self::Rps32 => "requests, 32 connections",
            Self::P50Of32 => "p50, 32 connections",
            Self::P99Of32 => "p99, 32 connections",
            Self::NewConnections => "new connections",
            Self::CpuPerConnectionOutbound => "CPU per connection, client's",
            Self::CpuPerConnectionInbound => "CPU per connection, server's",
            Self::ConnectExcluded => "connect(), excluded port",
            Self::ConnectLoopback => "connect(), loopback",
            Self::ConnectRedirected => "connect(), redirected",
            Self::IdleOutbound => "resident at rest, client's",
            Self::IdleInbound => "resident at rest, server's",
            Self::PerConnectionOutbound1000 => "per 1,000 idle, client's",
            Self::PerConnectionInbound1000 => "per 1,000 idle, server's",
            Self::KernelPerConnection1000 => "per 1,000 idle, kernel",
            Self::PerConnectionOutbound5000 => "per 5,000 idle, client's",
            Self::PerConnectionInbound5000 => "per 5,000 idle, server's",
            Self::KernelPerConnection5000 => "per 5,000 idle, kernel",
        }
    }

    pub fn unit(self) -> &'static str {
        match self {
            Self::Throughput1 | Self::Throughput8 => "Gb/s",
            Self::CpuPerGbOutbound | Self::CpuPerGbInbound => "s/GB",
            Self::Rps1 | Self::Rps32 | Self::NewConnections => "/s",
            Self::P50Of1 | Self::P99Of1 | Self::P50Of32 | Self::P99Of32 => "µs",
            Self::CpuPerConnectionOutbound | Self::CpuPerConnectionInbound => "µs",
            Self::ConnectExcluded | Self::ConnectLoopback | Self::ConnectRedirected => "µs",
            Self::IdleOutbound | Self::IdleInbound => "MB",
            Self::PerConnectionOutbound1000
            | Self::PerConnectionInbound1000
            | Self::KernelPerConnection1000
            | Self::PerConnectionOutbound5000
            | Self::PerConnectionInbound5000
            | Self::KernelPerConnection5000 => "KiB",
        }
    }
}

impl Bound {
    /// Whether `value`, redirect's median, keeps the bound; `None` if what it is compared with was not measured.
    pub fn kept(self, value: f64, other: impl Fn(Variant) -> Option<f64>) -> Option<bool> {
        match self {
            Self::AtLeast(factor, variant) => other(variant).map(|other| value >= factor * other),
            Self::AtMost(factor, variant) => other(variant).map(|other| value <= factor * other),
            Self::Most(limit) => Some(value <= limit),
        }
    }

    pub fn text(self, unit: &str) -> String {
        match self {
            Self::AtLeast(factor, variant) => format!("≥ {factor}× {}", variant.title()),
            Self::AtMost(factor, variant) => format!("≤ {factor}× {}", variant.title()),
            Self::Most(limit) => format!("≤ {limit} {unit}"),
        }
    }
}
