//! How much work gets done per busy microsecond, in the units in which arrivals are
//! counted.
//!
//! With random service times 375 of them tell their mean to 5 %, and servers that
//! disagree by so much let in what the next one refuses. So the mean is taken over many
//! seconds. What then makes it slow to see that half of the machine is gone is left to a
//! test: Page's cumulative sum (*Continuous Inspection Schemes*, Biometrika 41, 1954) of
//! the evidence that work takes half as long again as it did, or two thirds. When that
//! is sure, the mean begins anew with what was seen since the evidence began, and its
//! memory grows with its age.

/// Memory of the mean, in microseconds of busy time, once it is old enough.
const MEMORY: f64 = 6_000_000.0;
/// Least memory of a mean that began anew.
const LEAST_MEMORY: f64 = 200_000.0;
/// Part of its age that a mean remembers until then.
const PART: f64 = 0.5;
/// A change that is looked for: work takes so many times as long, or so many times less.
/// To double is found nearly as fast as by a test for just that, and a third more still.
const TIMES: f64 = 1.5;
/// Evidence that is sure, as the logarithm of a ratio of likelihoods: chance alone comes
/// by it once in some 100,000 measurements.
const SURE: f64 = 12.0;
/// The same for what must not be taken for true by chance: once in some five million.
const VERY_SURE: f64 = 16.0;
/// One measurement counts as no more than so many times the mean: a thread that was not
/// running is no evidence of how fast it runs.
const MOST: f64 = 8.0;
/// Evidence is collected for so many microseconds of busy time at least: what passes
/// sooner, a frame for a large room, is no change of the capacity.
const LEAST_CHANGE: f64 = 100_000.0;
/// Requests from which the capacity is measured for the first time: with random
/// service times it is then off by 10 %. From 20 it was so wrong that the
/// simulation at ten times the capacity did not find its feet in 10 s.
const FIRST_SAMPLES: f64 = 100.0;
/// Busy time below this measures nothing, in microseconds.
const LEAST_BUSY: f64 = 2_000.0;

/// Work that was done: in busy microseconds, and in how many requests.
#[derive(Debug, Clone, Copy, Default)]
struct Done {
    work: f64,
    time: f64,
    requests: f64,
}

impl Done {
    fn add(&mut self, other: Done) {
        self.work += other.work;
        self.time += other.time;
        self.requests += other.requests;
    }

    fn fade(&mut self, keep: f64) {
        self.work *= keep;
        self.time *= keep;
        self.requests *= keep;
    }
}

/// Evidence that work takes `times` as long as it did.
#[derive(Debug, Clone, Copy)]
struct Change {
    times: f64,
    evidence: f64,
    since: Done,
}

impl Change {
    fn to(times: f64) -> Self {
        Self { times, evidence: 0.0, since: Done::default() }
    }

    /// Something took `took` times as long as the mean says; returns whether that is
    /// enough. The evidence is that of exponential times. Requests that were done
    /// together count as one: what slowed one of them slowed all.
    fn add(&mut self, done: Done, took: f64, sure: f64) -> bool {
        self.evidence += took * (1.0 - 1.0 / self.times) - self.times.ln();
        if self.evidence <= 0.0 {
            *self = Self::to(self.times);
            return false;
        }
        self.since.add(done);
        self.evidence >= sure && self.since.time >= LEAST_CHANGE
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Capacity {
    rate: f64,
    in_force: bool,
    done: Done,
    /// Busy time since the mean began.
    age: f64,
    /// Evidence that is enough for a change.
    sure: f64,
    slower: Change,
    faster: Change,
}

impl Capacity {
    /// What costs a microsecond takes one, until measured.
    pub(super) fn new() -> Self {
        Self {
            rate: 1.0,
            in_force: false,
            done: Done::default(),
            age: 0.0,
            sure: SURE,
            slower: Change::to(TIMES),
            faster: Change::to(1.0 / TIMES),
        }
    }

    /// That sees a change later and nearly never where there is none.
    pub(super) fn cautious() -> Self {
        Self { sure: VERY_SURE, ..Self::new() }
    }

    /// Work per busy microsecond, above 0.
    pub(super) fn rate(&self) -> f64 {
        self.rate
    }

    /// Whether [`rate`](Self::rate) has been measured.
    pub(super) fn is_measured(&self) -> bool {
        self.in_force
    }

    /// Whether enough has been seen to measure it for the first time.
    pub(super) fn is_new(&self) -> bool {
        !self.in_force && self.done.requests >= FIRST_SAMPLES && self.done.time >= LEAST_BUSY
    }

    /// Takes what was seen for the first measurement, if anything was. Returns how many
    /// times as long work takes by it.
    pub(super) fn settle(&mut self) -> Option<f64> {
        if self.in_force || self.done.time < LEAST_BUSY {
            return None;
        }
        self.in_force = true;
        let before = self.rate;
        self.follow();
        Some(before / self.rate)
    }

    /// `work` above 0 was done in `requests` and in `time` busy microseconds, above 0.
    /// Returns whether the capacity has changed.
    pub(super) fn measured(&mut self, work: f64, requests: f64, time: f64) -> bool {
        let most = if self.in_force { MOST * work / self.rate } else { time };
        let done = Done { work, time: time.min(most), requests };
        self.age += time;
        let memory = (self.age * PART).clamp(LEAST_MEMORY, MEMORY);
        self.done.fade((-time / memory).exp());
        self.done.add(done);
        if !self.in_force {
            return false;
        }
        let took = done.time * self.rate / work;
        let slower = self.slower.add(done, took, self.sure).then_some(self.slower.since);
        let faster = self.faster.add(done, took, self.sure).then_some(self.faster.since);
        let changed = slower.or(faster);
        if let Some(since) = changed {
            self.done = since;
            self.age = since.time;
            self.slower = Change::to(TIMES);
            self.faster = Change::to(1.0 / TIMES);
        }
        self.follow();
        changed.is_some()
    }

    fn follow(&mut self) {
        if self.done.time >= LEAST_BUSY && self.done.work > 0.0 {
            self.rate = self.done.work / self.done.time;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    /// Work of 4,000 each that takes `mean` microseconds on average; returns how often a
    /// change was seen.
    fn serve(capacity: &mut Capacity, requests: usize, mean: f64, rng: &mut SmallRng) -> usize {
        (0..requests)
            .filter(|_| {
                let time = -(1.0 - rng.random::<f64>()).ln() * mean;
                capacity.measured(4_000.0, 1.0, time.max(1.0))
            })
            .count()
    }

    fn settled(mean: f64, rng: &mut SmallRng) -> Capacity {
        let mut capacity = Capacity::new();
        serve(&mut capacity, 99, mean, rng);
        assert!(!capacity.is_new() && !capacity.is_measured());
        serve(&mut capacity, 901, mean, rng);
        assert!(capacity.is_new() && capacity.settle().is_some() && capacity.settle().is_none());
        capacity
    }

    #[test]
    fn chance_is_no_change_and_the_mean_is_that_of_many_seconds() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut capacity = settled(4_000.0, &mut rng);
        assert_eq!(serve(&mut capacity, 20_000, 4_000.0, &mut rng), 0);
        for _ in 0..20 {
            serve(&mut capacity, 500, 4_000.0, &mut rng);
            assert!((capacity.rate() - 1.0).abs() < 0.08, "{}", capacity.rate());
        }
    }

    #[test]
    fn half_the_speed_is_seen_within_half_a_second_and_so_is_its_return() {
        for seed in 0..20 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut capacity = settled(4_000.0, &mut rng);
            for (mean, rate) in [(8_000.0, 0.5), (4_000.0, 1.0)] {
                serve(&mut capacity, 250, mean, &mut rng);
                let seen = capacity.rate() / rate;
                assert!((0.7..1.35).contains(&seen), "seed {seed}, {mean}: {seen}");
                serve(&mut capacity, 2_000, mean, &mut rng);
                let seen = capacity.rate() / rate;
                assert!((0.9..1.1).contains(&seen), "seed {seed}, {mean}: {seen}");
            }
        }
    }

    #[test]
    fn one_thread_that_did_not_run_for_a_second_changes_nothing() {
        let mut rng = SmallRng::seed_from_u64(3);
        let mut capacity = settled(4_000.0, &mut rng);
        assert!(!capacity.measured(4_000.0, 1.0, 1_000_000.0));
        assert!(capacity.rate() > 0.7, "{}", capacity.rate());
    }

    #[test]
    fn what_passes_in_a_moment_is_no_change() {
        let mut rng = SmallRng::seed_from_u64(4);
        let mut capacity = settled(4.0, &mut rng);
        for _ in 0..1_000 {
            capacity.measured(256_000.0, 64.0, 256.0);
        }
        // A frame for a large room: 5 ms in which all takes three times as long.
        let changed = (0..20).any(|_| capacity.measured(256_000.0, 64.0, 768.0));
        assert!(!changed);
    }
}
