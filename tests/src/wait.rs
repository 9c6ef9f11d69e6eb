//! Waiting for a condition with a deadline.

use std::{
    env, thread,
    time::{Duration, Instant},
};

/// Limits are for machines; an emulated one is this many times slower.
const SLOWNESS: &str = "RDT_SLOWNESS";

/// `limit` as it is for this machine.
pub fn stretched(limit: Duration) -> Duration {
    let slowness = env::var(SLOWNESS).ok().and_then(|text| text.parse().ok());
    limit * slowness.unwrap_or(1)
}

const POLL: Duration = Duration::from_millis(5);

/// Polls until `condition` holds; false when `limit` has passed.
#[must_use]
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + stretched(limit);
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(POLL);
    }
}

/// Polls until `attempt` gives a value; panics with `what` and the last reason after `limit`.
#[track_caller]
pub fn eventually<T, E: std::fmt::Display>(
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + stretched(limit);
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) if Instant::now() >= deadline => {
                panic!("{what}: not within {limit:?}: {error}")
            }
            Err(_) => thread::sleep(POLL),
        }
    }
}
