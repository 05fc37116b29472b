//! How much work wants in, by position: the histogram from which a level is
//! read.
//!
//! It counts everything that arrives, refused or not. What cooperating callers
//! shed before they send does not arrive, so for the part above the level the
//! histogram is blind. Two things help it out. User levels are hashes, so work
//! lies evenly over a tier, and what was seen of a tier's admitted part tells
//! what its refused part would bring. And what a tier brought when it was last
//! seen whole is remembered for a while.

use crate::engine::priority::{AdmissionLevel, CELLS, CELLS_PER_TIER, Priority};

const TIERS: usize = CELLS / CELLS_PER_TIER;
/// A hidden tier's remembered demand halves in this time, in microseconds. Much
/// less, and a lasting overload is forgotten window by window and let in again;
/// where it has really ended, [`doubt`](Demand::doubt) is quicker.
const MEMORY_HALF_LIFE: f64 = 20_000_000.0;
/// A tier that brings less than was known is believed with this time constant,
/// in microseconds: not every caller has heard of a wider level at once.
const LAG: f64 = 500_000.0;
/// What is left of the remembered demand when the server rests, which is looked at every
/// 20 ms. With 0.8, a few rests forgot the tiers that were to come back: where priorities
/// turn round every second, goodput was 0.5 to 1.1 % lower.
const DOUBT: f64 = 0.9;
/// Less than this of a tier admitted says nothing about the rest.
const LEAST_SEEN: f64 = 0.05;

/// See the module's documentation.
pub(super) struct Demand {
    /// Work per cell, decayed.
    cells: Box<[f32]>,
    /// Microseconds that the cells cover, decayed alike.
    span: f64,
    /// Work per microsecond that each tier brings, as far as known.
    memory: [f64; TIERS],
}

impl Demand {
    pub(super) fn new() -> Self {
        Self { cells: vec![0.0; CELLS].into_boxed_slice(), span: 0.0, memory: [0.0; TIERS] }
    }

    pub(super) fn arrived(&mut self, priority: Priority, cost: f64) {
        self.cells[priority.cell()] += cost as f32;
    }

    /// Judges what arrived in `elapsed` microseconds under `current`.
    pub(super) fn see(&mut self, current: AdmissionLevel, elapsed: f64) {
        self.span += elapsed;
        for tier in 0..TIERS {
            self.expect(tier, current, elapsed);
        }
    }

    /// How much (0 to 1) of what was seen the next judgement still counts.
    pub(super) fn fade(&mut self, keep: f64) {
        self.span *= keep;
        self.cells.iter_mut().for_each(|cell| *cell *= keep as f32);
    }

    /// Work per microsecond seen on average, with `elapsed` more to come.
    pub(super) fn rate(&self, elapsed: f64) -> f64 {
        self.cells.iter().map(|w| f64::from(*w)).sum::<f64>() / (self.span + elapsed).max(1.0)
    }

    /// All that was seen takes so many times as long.
    pub(super) fn scale(&mut self, times: f64) {
        self.cells.iter_mut().for_each(|cell| *cell *= times as f32);
        self.memory.iter_mut().for_each(|work| *work *= times);
    }

    /// The level that admits `target` work per microsecond.
    pub(super) fn level(&self, target: f64, current: AdmissionLevel) -> AdmissionLevel {
        let mut sum = 0.0;
        for tier in 0..TIERS {
            let expected = self.memory[tier];
            if target < sum + expected {
                return self.cut(tier, expected, target - sum, current);
            }
            sum += expected;
        }
        AdmissionLevel::OPEN
    }

    /// The server rests although it refuses: what is hidden may well be gone.
    pub(super) fn doubt(&mut self) {
        self.memory.iter_mut().for_each(|work| *work *= DOUBT);
    }

    /// The level before the first tier that, with all better ones, brings more
    /// than `most` work per microsecond.
    pub(super) fn whole_tiers(&self, most: f64) -> AdmissionLevel {
        let mut sum = 0.0;
        for tier in 0..TIERS {
            sum += self.memory[tier];
            if sum > most {
                return AdmissionLevel::inside(tier * CELLS_PER_TIER, 0.0);
            }
        }
        AdmissionLevel::OPEN
    }

    /// Judges what a tier would bring if all of it were let in.
    fn expect(&mut self, tier: usize, current: AdmissionLevel, elapsed: f64) {
        let cells = &self.cells[tier * CELLS_PER_TIER..(tier + 1) * CELLS_PER_TIER];
        let seen = cells.iter().map(|work| f64::from(*work)).sum::<f64>() / self.span.max(1.0);
        let admitted = admitted_part(tier, current);
        let known = self.memory[tier];
        let faded = known * (-elapsed / MEMORY_HALF_LIFE).exp2();
        let whole = if admitted >= 1.0 {
            seen
        } else if admitted >= LEAST_SEEN {
            let below = self.below(tier, admitted) / self.span.max(1.0);
            seen.max(below / admitted)
        } else {
            seen.max(faded)
        };
        // What callers were told lately, not all of them have heard.
        let weight = if whole < known { 1.0 - (-elapsed / LAG).exp() } else { 1.0 };
        self.memory[tier] = known + (whole - known) * weight;
    }

    /// Work seen in the first part of a tier.
    fn below(&self, tier: usize, part: f64) -> f64 {
        let whole = part * CELLS_PER_TIER as f64;
        let cells = &self.cells[tier * CELLS_PER_TIER..];
        let full: f64 = cells[..whole as usize].iter().map(|work| f64::from(*work)).sum();
        let last = cells.get(whole as usize).copied().unwrap_or(0.0);
        full + f64::from(last) * whole.fract()
    }

    /// Where in a tier `left` of the `expected` work per microsecond ends:
    /// along the histogram as far as it was let in, evenly beyond.
    fn cut(
        &self,
        tier: usize,
        expected: f64,
        left: f64,
        current: AdmissionLevel,
    ) -> AdmissionLevel {
        let admitted = admitted_part(tier, current) * CELLS_PER_TIER as f64;
        let even = expected / CELLS_PER_TIER as f64;
        let mut left = left;
        for index in 0..CELLS_PER_TIER {
            let cell = tier * CELLS_PER_TIER + index;
            let seen = f64::from(self.cells[cell]) / self.span.max(1.0);
            let known = index as f64 + 1.0 <= admitted;
            let work = if known { seen } else { seen.max(even) };
            if left < work {
                return AdmissionLevel::inside(cell, left / work);
            }
            left -= work;
        }
        AdmissionLevel::inside((tier + 1) * CELLS_PER_TIER - 1, 1.0)
    }
}

/// How much of a tier a level admits, 0 to 1.
fn admitted_part(tier: usize, level: AdmissionLevel) -> f64 {
    let end = level.cell() as f64 + level.share();
    ((end - (tier * CELLS_PER_TIER) as f64) / CELLS_PER_TIER as f64).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ids::Tier;

    /// One unit of work per microsecond in each of the tiers, over `span`,
    /// as far as the level lets it come.
    fn fill(demand: &mut Demand, tiers: &[u8], span: f64, level: AdmissionLevel) {
        for tier in tiers {
            for user in 0..128 {
                let priority = Priority::new(Tier(*tier), user, 0);
                if level.admits(priority) {
                    demand.arrived(priority, span / 128.0);
                }
            }
        }
    }

    impl Demand {
        fn judge(&mut self, target: f64, current: AdmissionLevel, elapsed: f64) -> AdmissionLevel {
            self.see(current, elapsed);
            let level = self.level(target, current);
            self.fade(0.0);
            level
        }
    }

    fn position(level: AdmissionLevel) -> f64 {
        (level.cell() as f64 + level.share()) / CELLS_PER_TIER as f64
    }

    #[test]
    fn the_level_ends_where_the_target_does() {
        let mut demand = Demand::new();
        fill(&mut demand, &[0, 1, 2], 1e6, AdmissionLevel::OPEN);
        let level = demand.judge(1.253, AdmissionLevel::OPEN, 1e6);
        assert!((position(level) - 1.253).abs() < 0.001, "{}", position(level));
        fill(&mut demand, &[0, 1, 2], 1e6, AdmissionLevel::OPEN);
        assert!(demand.judge(3.01, AdmissionLevel::OPEN, 1e6).is_open());
        let mut nothing = Demand::new();
        assert!(nothing.judge(0.0, AdmissionLevel::OPEN, 1e6).is_open(), "nothing arrives");
    }

    #[test]
    fn what_callers_shed_is_not_taken_for_absent() {
        let mut demand = Demand::new();
        let tight = AdmissionLevel::inside(128 + 64, 0.0);
        fill(&mut demand, &[0, 1], 1e6, tight);
        // Half of tier 1 is hidden; the even spread tells how much it is.
        let level = demand.judge(1.75, tight, 1e6);
        assert!((position(level) - 1.75).abs() < 0.01, "{}", position(level));
    }

    #[test]
    fn a_tier_that_was_seen_whole_is_remembered() {
        let mut demand = Demand::new();
        fill(&mut demand, &[0, 1], 1e6, AdmissionLevel::OPEN);
        let level = demand.judge(1.0, AdmissionLevel::OPEN, 1e6);
        assert!((position(level) - 1.0).abs() < 0.001);
        fill(&mut demand, &[0], 1e6, level);
        let next = demand.judge(1.25, level, 1e6);
        assert!((1.24..1.28).contains(&position(next)), "hardly faded: {}", position(next));
    }

    #[test]
    fn one_heavy_cell_is_admitted_in_part() {
        let mut demand = Demand::new();
        demand.arrived(Priority::new(Tier(3), 77, 0), 4e6);
        let level = demand.judge(1.0, AdmissionLevel::OPEN, 1e6);
        assert_eq!((level.business(), level.user()), (3, 77));
        assert!((level.share() - 0.25).abs() < 0.001, "{}", level.share());
    }
}
