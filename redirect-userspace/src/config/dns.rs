//! The part `dns`.

use std::time::Duration;

use super::{
    DnsConfig,
    read::boolean,
    sections::{count, duration},
};
use crate::document::Fields;

/// More answers than this for each of many pods is a cache for whole nodes, which this is not.
const MOST_CACHED: u32 = 100_000;

pub(super) fn read(f: &mut Fields<'_>) -> Option<DnsConfig> {
    let domain = f
        .optional("domain")
        .map_or(Some("cluster.local".to_owned()), |node| {
            node.checked(domain)
        });
    let cache_size = f
        .optional("cacheSize")
        .map_or(Some(1000), |node| node.integer(0..=MOST_CACHED));
    let upstream = f
        .optional("upstream")
        .map(|node| node.parsed("an address such as 10.96.0.10:53"));
    Some(DnsConfig {
        enabled: boolean(f, "enabled", true),
        domain: domain?,
        ttl: duration(f, "ttl", true, Duration::from_secs(30)),
        timeout: duration(f, "timeout", false, Duration::from_secs(4)),
        cache_size: usize::try_from(cache_size?).ok()?,
        max_in_flight_per_pod: count(f, "maxInFlightPerPod", 512, 65_536),
        upstream: upstream.map_or(Some(None), |upstream| upstream.map(Some))?,
    })
}

/// Names are compared in lower case and without the last dot.
fn domain(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let fits = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    match name.len() <= 200 && name.split('.').all(fits) {
        true => Ok(name),
        false => Err(format!("{text:?} is not a domain such as cluster.local")),
    }
}
