//! What a run counts, in bins of 100 ms, and the figures taken from it.

use super::scenario::{MOST_CALLS, MS};

/// Width of a bin.
const BIN: u64 = 100 * MS;
/// Tiers told apart at most.
const TIERS: usize = 8;
/// Resolution of queueing times.
const QUEUE_STEP: u64 = 100;
/// Queueing times up to 2 s are told apart.
const QUEUE_STEPS: usize = 20_000;

/// Tasks that arrived, and how many of them succeeded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tasks {
    pub(super) arrived: u32,
    pub(super) won: u32,
}

impl Tasks {
    /// Share that succeeded; 1 where nothing arrived.
    pub(super) fn success(self) -> f64 {
        if self.arrived == 0 { 1.0 } else { f64::from(self.won) / f64::from(self.arrived) }
    }

    /// Share that did not.
    pub(super) fn loss(self) -> f64 {
        1.0 - self.success()
    }

    fn add(&mut self, other: Tasks) {
        self.arrived += other.arrived;
        self.won += other.won;
    }
}

/// What belongs to one task when it is counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Traits {
    /// When the user first wanted it.
    pub(super) arrived: u64,
    /// Calls.
    pub(super) calls: u8,
    /// Index of the tier.
    pub(super) tier: u8,
    /// Of a user who does not take no for an answer.
    pub(super) aggressive: bool,
}

/// Tasks by the time of their arrival, events by their own time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Bin {
    calls: [Tasks; MOST_CALLS],
    tiers: [Tasks; TIERS],
    manners: [Tasks; 2],
    /// Tasks that succeeded in this bin, whenever they arrived, and their calls.
    completed: u32,
    fruitful: u32,
    /// Calls that M refused or dropped.
    refused: u32,
    /// Calls that A did not send because of the level.
    kept_back: u32,
    /// Calls sent again.
    resent: u32,
    /// Calls begun by a server.
    begun: u32,
    /// Calls begun whose task had already failed.
    wasted: u32,
}

/// Everything a run counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tally {
    bins: Vec<Bin>,
    from: u64,
    until: u64,
    queueing: Vec<u32>,
}

impl Tally {
    /// For a run of which `from` to `until` is measured.
    pub(super) fn new(from: u64, until: u64) -> Self {
        let bins = usize::try_from(until / BIN).unwrap_or(0) + 20;
        let queueing = vec![0; QUEUE_STEPS];
        Self { bins: vec![Bin::default(); bins], from, until, queueing }
    }

    fn bin(&mut self, time: u64) -> &mut Bin {
        let last = self.bins.len() - 1;
        &mut self.bins[((time / BIN) as usize).min(last)]
    }

    /// A user wants something.
    pub(super) fn arrived(&mut self, task: Traits) {
        let bin = self.bin(task.arrived);
        bin.calls[usize::from(task.calls) - 1].arrived += 1;
        bin.tiers[usize::from(task.tier)].arrived += 1;
        bin.manners[usize::from(task.aggressive)].arrived += 1;
    }

    /// And gets it.
    pub(super) fn won(&mut self, task: Traits, now: u64) {
        let bin = self.bin(task.arrived);
        bin.calls[usize::from(task.calls) - 1].won += 1;
        bin.tiers[usize::from(task.tier)].won += 1;
        bin.manners[usize::from(task.aggressive)].won += 1;
        let bin = self.bin(now);
        bin.completed += 1;
        bin.fruitful += u32::from(task.calls);
    }

    /// M refused a call, on arrival or later.
    pub(super) fn refused(&mut self, now: u64) {
        self.bin(now).refused += 1;
    }

    /// A did not send a call.
    pub(super) fn kept_back(&mut self, now: u64) {
        self.bin(now).kept_back += 1;
    }

    /// A sent a call once more.
    pub(super) fn resent(&mut self, now: u64) {
        self.bin(now).resent += 1;
    }

    /// A server begins with a call that waited for `queued`.
    pub(super) fn begun(&mut self, now: u64, queued: u64, wasted: bool) {
        let bin = self.bin(now);
        bin.begun += 1;
        bin.wasted += u32::from(wasted);
        if (self.from..self.until).contains(&now) {
            self.queueing[((queued / QUEUE_STEP) as usize).min(QUEUE_STEPS - 1)] += 1;
        }
    }

    fn window(&self, from: u64, to: u64) -> &[Bin] {
        let last = self.bins.len();
        &self.bins[((from / BIN) as usize).min(last)..((to / BIN) as usize).min(last)]
    }

    fn sum(&self, from: u64, to: u64, part: impl Fn(&Bin) -> Tasks) -> Tasks {
        let mut sum = Tasks::default();
        self.window(from, to).iter().for_each(|bin| sum.add(part(bin)));
        sum
    }

    fn count(&self, part: impl Fn(&Bin) -> u32) -> u64 {
        self.window(self.from, self.until).iter().map(|bin| u64::from(part(bin))).sum()
    }

    /// Tasks with `calls` calls that arrived in the measured window.
    pub(super) fn of_calls(&self, calls: usize) -> Tasks {
        self.sum(self.from, self.until, |bin| bin.calls[calls - 1])
    }

    /// All tasks that arrived in the measured window.
    pub(super) fn all(&self) -> Tasks {
        self.all_between(self.from, self.until)
    }

    /// All tasks that arrived between two times.
    pub(super) fn all_between(&self, from: u64, to: u64) -> Tasks {
        let mut sum = Tasks::default();
        for manner in 0..2 {
            sum.add(self.sum(from, to, |bin| bin.manners[manner]));
        }
        sum
    }

    /// Tasks of the first `tiers` tiers that arrived between two times.
    pub(super) fn of_tiers(&self, tiers: usize, from: u64, to: u64) -> Tasks {
        let mut sum = Tasks::default();
        for tier in 0..tiers {
            sum.add(self.sum(from, to, |bin| bin.tiers[tier]));
        }
        sum
    }

    /// Tasks of aggressive or polite users in the measured window.
    pub(super) fn of_manner(&self, aggressive: bool) -> Tasks {
        self.sum(self.from, self.until, |bin| bin.manners[usize::from(aggressive)])
    }

    /// Tasks completed per second between two times.
    pub(super) fn goodput(&self, from: u64, to: u64) -> f64 {
        let bins = self.window(from, to);
        let done: u64 = bins.iter().map(|bin| u64::from(bin.completed)).sum();
        done as f64 / (bins.len().max(1) as f64 * BIN as f64 / 1e6)
    }

    /// Tasks completed per second in the measured window.
    pub(super) fn steady_goodput(&self) -> f64 {
        self.goodput(self.from, self.until)
    }

    /// (seconds, tasks completed per second), one point per `width` bins.
    pub(super) fn curve(&self, width: usize) -> Vec<(f64, f64)> {
        let bins = self.window(0, self.until);
        bins.chunks_exact(width)
            .enumerate()
            .map(|(index, bins)| {
                let done: u32 = bins.iter().map(|bin| bin.completed).sum();
                let span = width as f64 * BIN as f64 / 1e6;
                ((index as f64 + 0.5) * span, f64::from(done) / span)
            })
            .collect()
    }

    /// From `from` on: microseconds until, for good, of the tasks that arrive in
    /// any second at least `share` succeed.
    pub(super) fn back_to(&self, share: f64, from: u64) -> u64 {
        let second = 10 * BIN;
        let last = (self.until - second - from) / BIN;
        (0..=last)
            .rev()
            .map(|step| from + step * BIN)
            .find(|&at| self.all_between(at, at + second).success() < share)
            .map_or(0, |at| at + BIN - from)
    }

    /// Queueing time below which `quantile` of what the servers began in the
    /// measured window lies, in microseconds; at most 2 s is told.
    pub(super) fn queueing(&self, quantile: f64) -> u64 {
        let all: u64 = self.queueing.iter().map(|&n| u64::from(n)).sum();
        let mut left = (all as f64 * quantile).ceil() as u64;
        for (step, &n) in self.queueing.iter().enumerate() {
            left = left.saturating_sub(u64::from(n));
            if left == 0 {
                return (step as u64 + 1) * QUEUE_STEP;
            }
        }
        QUEUE_STEPS as u64 * QUEUE_STEP
    }

    /// Calls that M refused or dropped in the measured window.
    pub(super) fn refusals(&self) -> u64 {
        self.count(|bin| bin.refused)
    }

    /// Calls that A kept back in the measured window.
    pub(super) fn kept_back_calls(&self) -> u64 {
        self.count(|bin| bin.kept_back)
    }

    /// Calls sent again in the measured window.
    pub(super) fn resends(&self) -> u64 {
        self.count(|bin| bin.resent)
    }

    /// Calls begun in the measured window.
    pub(super) fn begun_calls(&self) -> u64 {
        self.count(|bin| bin.begun)
    }

    /// Calls of the tasks that succeeded in the measured window.
    pub(super) fn fruitful_calls(&self) -> u64 {
        self.count(|bin| bin.fruitful)
    }

    /// Calls begun in it whose task had failed before.
    pub(super) fn wasted_calls(&self) -> u64 {
        self.count(|bin| bin.wasted)
    }

    /// Mean queueing time of what began in the measured window, in microseconds,
    /// to half a step.
    #[cfg(test)]
    pub(super) fn mean_queueing(&self) -> f64 {
        let (mut sum, mut all) = (0.0, 0.0);
        for (step, &n) in self.queueing.iter().enumerate() {
            // What waited not at all is in the first step.
            let value = if step == 0 { 0.0 } else { (step as f64 + 0.5) * QUEUE_STEP as f64 };
            sum += value * f64::from(n);
            all += f64::from(n);
        }
        sum / all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(arrived: u64, tier: u8) -> Traits {
        Traits { arrived, calls: 2, tier, aggressive: false }
    }

    #[test]
    fn success_counts_by_arrival_and_goodput_by_completion() {
        let mut tally = Tally::new(0, 1_000 * MS);
        tally.arrived(task(50 * MS, 0));
        tally.arrived(task(60 * MS, 1));
        tally.won(task(50 * MS, 0), 250 * MS);
        assert_eq!(tally.all_between(0, 100 * MS), Tasks { arrived: 2, won: 1 });
        assert_eq!(tally.of_tiers(1, 0, 1_000 * MS), Tasks { arrived: 1, won: 1 });
        assert_eq!(tally.goodput(200 * MS, 300 * MS), 10.0);
        assert_eq!(tally.goodput(0, 100 * MS), 0.0);
        assert_eq!(tally.of_calls(2).success(), 0.5);
    }

    #[test]
    fn a_quantile_of_queueing_is_the_upper_edge_of_its_step() {
        let mut tally = Tally::new(0, 1_000 * MS);
        for wait in 0..100 {
            tally.begun(10, wait * MS + 50, false);
        }
        assert_eq!(tally.queueing(0.99), 98 * MS + 100);
    }

    #[test]
    fn recovery_lasts_until_the_last_bad_second() {
        let mut tally = Tally::new(0, 5_000 * MS);
        for bin in 0..50 {
            for _ in 0..10 {
                tally.arrived(task(bin * BIN, 0));
                if bin >= 7 {
                    tally.won(task(bin * BIN, 0), bin * BIN);
                }
            }
        }
        assert_eq!(tally.back_to(0.99, 0), 7 * BIN);
        assert_eq!(tally.back_to(0.99, 7 * BIN), 0);
    }
}
