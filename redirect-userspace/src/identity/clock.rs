//! The wall clock, which certificates live by, as a thing that tests can set.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{pki_types::UnixTime, time_provider::TimeProvider};

pub trait Clock: Send + Sync + fmt::Debug {
    fn now(&self) -> SystemTime;
}

#[derive(Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// Lets rustls judge validity by our clock.
#[derive(Debug)]
pub struct TlsTime(pub Arc<dyn Clock>);

impl TimeProvider for TlsTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix_time(self.0.now()))
    }
}

/// A clock set before 1970 counts as 1970: every certificate is then not valid yet, which is refused, not fatal.
pub fn unix_time(at: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(
        at.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO),
    )
}

#[cfg(test)]
pub mod fake {
    //! A clock that stands still until it is told otherwise.

    use std::sync::Mutex;

    use super::*;

    #[derive(Debug)]
    pub struct FakeClock(Mutex<SystemTime>);

    impl FakeClock {
        pub fn new(at: SystemTime) -> Arc<Self> {
            Arc::new(Self(Mutex::new(at)))
        }

        pub fn advance(&self, by: Duration) {
            *self.0.lock().unwrap() += by;
        }

        pub fn set(&self, at: SystemTime) {
            *self.0.lock().unwrap() = at;
        }
    }

    impl Clock for FakeClock {
        fn now(&self) -> SystemTime {
            *self.0.lock().unwrap()
        }
    }
}
