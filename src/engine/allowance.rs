//! How much a room may say while its shard is short of time.
//!
//! A frame's budget alone does not bound what a room sends: in a flood the next frame is
//! full the moment the last is out, and fan-out of one large room takes whatever time the
//! shard gives to fan-out, for talk that nobody can read at that speed. So under strain
//! the budget of one frame is what a room may say in as many flush intervals as the
//! strain stretches them to: a bucket of one frame that fills over that time. A room that
//! says little finds it full, and loses nothing.

use std::time::Duration;

use super::settings::Strain;
use super::time::Time;

/// See the module's documentation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowance {
    /// Of one frame's budget, 0 to 1.
    left: f64,
    /// When that was so; absent: there was no frame yet.
    at: Option<Time>,
}

impl Allowance {
    /// Nothing was said yet.
    pub(super) const FULL: Allowance = Allowance { left: 1.0, at: None };

    /// The part of a frame's budget that a frame may use which is made now.
    pub(super) fn refill(&mut self, strain: Strain, interval: Duration, now: Time) -> f64 {
        let whole = interval * strain.stretch;
        let since = self.at.map_or(whole, |at| now.since(at));
        self.at = Some(now);
        self.left = if strain.is_stretched() && since < whole {
            (self.left + since.as_secs_f64() / whole.as_secs_f64()).min(1.0)
        } else {
            1.0
        };
        self.left
    }

    /// That frame used this part of its budget.
    pub(super) fn spend(&mut self, part: f64) {
        self.left = (self.left - part).max(0.0);
    }

    /// When the next frame may be made only because much waits for it.
    pub(super) fn next_frame(&self, interval: Duration) -> Time {
        self.at.map_or(Time::default(), |at| at + interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::START;

    const SECOND: Duration = Duration::from_secs(1);
    const TRIM: Strain = Strain { stretch: 4, ..Strain::NONE };

    #[test]
    fn one_frame_in_as_many_intervals_as_they_are_stretched_to() {
        let mut allowance = Allowance::FULL;
        assert_eq!(allowance.refill(TRIM, SECOND, START), 1.0);
        allowance.spend(1.0);
        assert_eq!(allowance.refill(TRIM, SECOND, START + SECOND), 0.25);
        assert_eq!(allowance.refill(TRIM, SECOND, START + SECOND * 3), 0.75);
        allowance.spend(0.5);
        assert_eq!(allowance.refill(TRIM, SECOND, START + SECOND * 4), 0.5);
        assert_eq!(allowance.refill(TRIM, SECOND, START + SECOND * 60), 1.0, "one, and no more");
        allowance.spend(2.0);
        assert_eq!(allowance.refill(TRIM, SECOND, START + SECOND * 60), 0.0);
    }

    #[test]
    fn without_strain_or_without_an_interval_it_is_always_full() {
        let mut allowance = Allowance::FULL;
        for (strain, interval) in [(Strain::NONE, SECOND), (TRIM, Duration::ZERO)] {
            for _ in 0..2 {
                assert_eq!(allowance.refill(strain, interval, START), 1.0);
                allowance.spend(1.0);
            }
        }
    }
}
