//! How often viewers are asked to acknowledge.

use std::time::Duration;

use super::super::time::Time;
use super::Asked;

/// How many acknowledgements a second a home shard asks for, over all its rooms.
#[derive(Debug)]
pub struct Budget {
    per_second: f64,
    left: f64,
    filled: Time,
}

/// A sample is not smaller than this while the budget is overdrawn by less than
/// a second's worth: fewer viewers tell nothing.
const LEAST_SAMPLE: u32 = 64;
/// Longest delay that is asked for: half of the first of [`HORIZONS`], so that
/// who has an event at once does not count as late for doing as it was told.
const LONGEST: Duration = Duration::from_millis(500);
/// Answers of fewer viewers than this need no spreading.
const AT_ONCE: u32 = 100;

impl Budget {
    /// A full second's worth.
    #[must_use]
    pub fn new(per_second: u32, now: Time) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, left: per_second, filled: now }
    }

    /// How `viewers` are to acknowledge what is sent now. `None`: they are not
    /// asked, since too many were in the last two seconds.
    pub fn ask(&mut self, viewers: u32, now: Time) -> Option<Asked> {
        let refill = now.since(self.filled).as_secs_f64() * self.per_second;
        (self.left, self.filled) = ((self.left + refill).min(self.per_second), now);
        if self.left <= -self.per_second {
            return None;
        }
        let mut one_in = 1;
        while f64::from(viewers / one_in) > self.left.max(0.0)
            && viewers / (one_in * 2) >= LEAST_SAMPLE
            && one_in < 65_536
        {
            one_in *= 2;
        }
        let answers = viewers / one_in;
        self.left -= f64::from(answers);
        let spread = Duration::from_secs_f64(f64::from(answers) / self.per_second.max(1.0));
        let within = if answers < AT_ONCE { Duration::ZERO } else { spread.min(LONGEST) };
        Some(Asked { one_in, within_ms: within.as_millis() as u32, digest_from: None })
    }
}

#[cfg(test)]
mod tests {
    use super::super::HORIZONS;
    use super::*;
    use crate::engine::testing::START;

    fn at(ms: u64) -> Time {
        START + Duration::from_millis(ms)
    }

    #[test]
    fn the_budget_asks_all_of_few_and_a_sample_of_many() {
        let mut budget = Budget::new(1_000, START);
        assert_eq!(budget.ask(50, START), Some(Asked::ALL));
        let many = budget.ask(200_000, START).unwrap();
        assert!(200_000 / many.one_in <= 950 && many.within_ms > 0, "{many:?}");
        // Spent: the least sample, until it fills again.
        let spent = budget.ask(200_000, START).unwrap();
        assert!((LEAST_SAMPLE..2 * LEAST_SAMPLE).contains(&(200_000 / spent.one_in)));
        assert_eq!(budget.ask(50, START), Some(Asked::ALL), "few tell only as a whole");
        let mut asked = 0;
        for second in 1..=20 {
            asked += 100_000 / budget.ask(100_000, at(second * 1_000)).unwrap().one_in;
        }
        assert!(asked <= 20 * 1_000, "{asked} in 20 s");
    }

    #[test]
    fn many_small_rooms_do_not_outrun_the_budget() {
        let mut budget = Budget::new(1_000, START);
        let mut asked = 0;
        for ms in 0..10_000 {
            asked += budget.ask(50, at(ms)).map_or(0, |asked| 50 / asked.one_in);
        }
        assert!((10_000..=12_100).contains(&asked), "{asked} in 10 s, and two seconds' worth");
    }

    #[test]
    fn answers_are_asked_for_well_within_the_first_horizon() {
        for viewers in [1, 99, 100, 5_000, 200_000] {
            let asked = Budget::new(5_000, Time::default()).ask(viewers, Time::default()).unwrap();
            assert!(viewers / asked.one_in <= 5_000, "{asked:?}");
            assert!(Duration::from_millis(u64::from(asked.within_ms)) <= HORIZONS[0] / 2);
        }
    }
}
