//! How long to wait before connecting again: full jitter over a limit that doubles
//! (AWS Architecture Blog, "Exponential Backoff And Jitter"), so that many who were
//! cut off together do not come back together.
//!
//! The limit falls back only after a connection that held for a while. A server
//! that accepts and drops everybody at once would otherwise be asked at full speed
//! for ever.

use std::time::Duration;

use crate::engine::time::Time;

/// Longest first wait.
const START: Duration = Duration::from_millis(500);
/// Longest wait at all.
const LIMIT: Duration = Duration::from_secs(20);
/// A connection that held for so long was a good one.
const STABLE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Backoff {
    /// Attempts since the last good connection.
    attempts: u32,
    connected: Option<Time>,
}

impl Backoff {
    /// A connection stands.
    pub(super) fn connected(&mut self, now: Time) {
        self.connected = Some(now);
    }

    /// An attempt failed or a connection ended. How long to wait; `random` is
    /// uniform in 0 to 1.
    pub(super) fn lost(&mut self, now: Time, random: f64) -> Duration {
        if self.connected.take().is_some_and(|since| now.since(since) >= STABLE) {
            self.attempts = 0;
        }
        let limit = START.saturating_mul(1 << self.attempts.min(16)).min(LIMIT);
        self.attempts = self.attempts.saturating_add(1);
        limit.mul_f64(random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_millis(seconds * 1_000)
    }

    #[test]
    fn waits_grow_to_a_limit_and_are_spread_over_all_of_it() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.lost(at(0), 0.5), Duration::from_millis(250));
        assert_eq!(backoff.lost(at(0), 1.0), Duration::from_secs(1));
        assert_eq!(backoff.lost(at(0), 0.0), Duration::ZERO);
        for _ in 0..100_000 {
            backoff.lost(at(0), 1.0);
        }
        assert_eq!(backoff.lost(at(0), 1.0), LIMIT);
    }

    #[test]
    fn only_a_connection_that_held_makes_it_forget() {
        let mut backoff = Backoff::default();
        for _ in 0..3 {
            backoff.lost(at(0), 1.0);
        }
        backoff.connected(at(10));
        assert_eq!(backoff.lost(at(19), 1.0), Duration::from_secs(4), "it fell at once");
        backoff.connected(at(30));
        assert_eq!(backoff.lost(at(40), 1.0), START);
        assert_eq!(backoff.lost(at(90), 1.0), 2 * START, "an attempt is no connection");
    }
}
