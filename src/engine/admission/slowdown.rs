//! Whether the server has become slower.
//!
//! A load that grows can be refused: what is let in is what fits, as before, and the
//! level follows. When the server itself loses a good part of its speed, less fits of what
//! was promised already: tiers that had room to spare are suddenly close to all there is.
//! They still fit, but a queue that serves what matters most first is then long for the
//! least of them, though all of them are served in the end. (In a queue with priorities
//! the wait of a tier grows with 1 ÷ ((1 − ρ before it)(1 − ρ with it)); with 0.56 and
//! 0.88 it is nineteen times that of an empty server.) Whoever keeps to a short bound then
//! refuses what fits. So for a while after a slowdown, what fits waits for longer.
//!
//! That requests take longer is told by the test that watches the [`Capacity`]: of
//! requests done per busy microsecond, and not of work, since what requests cost is
//! learned within some dozens of them, and work done per microsecond stays as it was. It
//! asks for more evidence, since in steady overload chance must not make the queue long.
//! In the simulation a server that loses half of its speed knows 0.4 to 1.3 s later, 0.64 s
//! in the median of 60 servers, and in 576 runs of steady overload none took chance for it;
//! with the evidence that the capacity needs it was one of 144.

use std::time::Duration;

use super::capacity::Capacity;
use crate::engine::time::Time;

/// For how long a slowdown counts, if it does not end before. A minute: a supervisor needs
/// about as long to replace a server or to send it less.
const LASTS: Duration = Duration::from_secs(60);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Slowdown {
    /// Requests done per busy microsecond.
    pace: Capacity,
    since: Option<Time>,
}

impl Slowdown {
    /// None is known.
    pub(super) fn new() -> Self {
        Self { pace: Capacity::cautious(), since: None }
    }

    /// `requests`, at least one, were done in `time` busy microseconds, above 0, that end
    /// `now`.
    pub(super) fn measured(&mut self, requests: f64, time: f64, now: Time) {
        let before = self.pace.rate();
        if self.pace.measured(requests, requests, time) {
            self.since = (self.pace.rate() < before).then_some(now);
        }
        if self.pace.is_new() {
            self.pace.settle();
        }
    }

    /// Whether the server became slower within the last minute and has not become faster.
    pub(super) fn is_slowed(&self, now: Time) -> bool {
        self.since.is_some_and(|at| at <= now && now.since(at) < LASTS)
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    const START: Time = Time::from_millis(1_700_000_000_000);

    struct Bench {
        slowdown: Slowdown,
        rng: SmallRng,
        now: Time,
    }

    impl Bench {
        fn new(seed: u64) -> Self {
            let rng = SmallRng::seed_from_u64(seed);
            let mut bench = Self { slowdown: Slowdown::new(), rng, now: START };
            assert_eq!(bench.serve(1_000, 4_000.0), None);
            bench
        }

        /// Serves so many requests of `mean` microseconds; after how many of them it took
        /// the server for slowed.
        fn serve(&mut self, requests: usize, mean: f64) -> Option<usize> {
            let mut first = None;
            for request in 0..requests {
                let time = (-(1.0 - self.rng.random::<f64>()).ln() * mean).max(1.0);
                self.now = self.now + Duration::from_micros(time as u64);
                self.slowdown.measured(1.0, time, self.now);
                if first.is_none() && self.slowdown.is_slowed(self.now) {
                    first = Some(request);
                }
            }
            first
        }
    }

    #[test]
    fn half_the_speed_is_a_slowdown_until_it_is_back() {
        for seed in 0..20 {
            let mut bench = Bench::new(seed);
            let after = bench.serve(300, 8_000.0);
            assert!(after.is_some_and(|after| (12..250).contains(&after)), "{seed}: {after:?}");
            bench.serve(1_000, 8_000.0);
            assert!(bench.slowdown.is_slowed(bench.now), "seed {seed}");
            bench.serve(500, 4_000.0);
            assert!(!bench.slowdown.is_slowed(bench.now), "seed {seed}");
        }
    }

    #[test]
    fn chance_is_none_and_neither_is_a_gain() {
        for seed in 0..10 {
            let mut bench = Bench::new(seed);
            assert_eq!(bench.serve(5_000, 4_000.0), None, "seed {seed}");
            assert_eq!(bench.serve(2_000, 2_000.0), None, "seed {seed}");
        }
    }

    #[test]
    fn it_counts_for_a_minute() {
        let mut bench = Bench::new(1);
        bench.serve(500, 8_000.0);
        let at = bench.slowdown.since.expect("half the speed is seen in 500 requests");
        assert!(bench.slowdown.is_slowed(at));
        assert!(!bench.slowdown.is_slowed(at + LASTS));
        let clock_went_back = Time::from_millis(1_000);
        assert!(!bench.slowdown.is_slowed(clock_went_back));
    }
}
