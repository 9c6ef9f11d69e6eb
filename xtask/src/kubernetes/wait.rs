//! Waiting for what other programs do in their own time.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// How often we look. What is looked at often costs a start of kubectl.
const INTERVAL: Duration = Duration::from_millis(300);

/// Waits until `true`; `what` is to be read after "waited for".
pub fn until(what: &str, seconds: u64, mut look: impl FnMut() -> bool) -> Result<()> {
    some(what, seconds, || Ok(look().then_some(())))
}

/// Waits for a value. An error may pass: it is only what the message at the end says.
pub fn some<T>(what: &str, seconds: u64, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        let failed = match look() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if started.elapsed() > Duration::from_secs(seconds) {
            let waited = format!("waited {seconds} s in vain: {what}");
            match failed {
                Some(error) => return Err(error).context(waited),
                None => bail!("{waited}"),
            }
        }
        thread::sleep(INTERVAL);
    }
}
