//! The only reader of real time.
//!
//! Everything below is handed a [`Time`]. Wall time may jump (an operator, NTP),
//! and a jump would expire events and connections at once, so wall time is read
//! a single time at start and a monotonic clock counts on from there. Over weeks
//! the two drift apart by what NTP would have corrected, milliseconds to a few
//! seconds; tokens are checked with a leeway larger than that.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::engine::time::Time;

/// A monotonic clock anchored to wall time. Copies share the anchor; one process
/// starts one clock and hands it to every thread.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
    wall: Time,
}

impl Clock {
    /// Reads wall time once.
    #[must_use]
    pub fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self { started: Instant::now(), wall: Time::default() + since_epoch }
    }

    /// Now. Never earlier than any value returned before.
    #[must_use]
    pub fn now(&self) -> Time {
        self.wall + self.started.elapsed()
    }

    /// The monotonic instant at which this clock shows `time`, for timers of an
    /// async runtime. A time before the start of the clock gives the start.
    #[must_use]
    pub fn instant(&self, time: Time) -> Instant {
        self.started + time.since(self.wall)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_does_not_go_backwards_and_copies_agree() {
        let clock = Clock::start();
        let copy = clock;
        let mut last = clock.now();
        for _ in 0..1_000 {
            let now = copy.now();
            assert!(now >= last);
            last = now;
        }
        assert!(last.as_millis() > 1_700_000_000_000, "anchored to wall time");
    }

    #[test]
    fn an_instant_maps_back_to_its_time() {
        let clock = Clock::start();
        let later = clock.now() + Duration::from_secs(5);
        let ahead = clock.instant(later).duration_since(clock.started);
        assert_eq!(clock.wall + ahead, later);
    }
}
