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
/// A tier's remembered demand halves in this time unless it is seen again, in
/// microseconds: two windows of the paper.
const MEMORY_HALF_LIFE: f64 = 2_000_000.0;
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

    /// The levels that admit `targets` work per microsecond, in ascending order,
    /// judged by what arrived in `elapsed` microseconds under `current`. `keep`
    /// (0 to 1) is how much of this the next judgement still counts.
    pub(super) fn levels<const N: usize>(
        &mut self,
        targets: [f64; N],
        current: AdmissionLevel,
        elapsed: f64,
        keep: f64,
    ) -> [AdmissionLevel; N] {
        self.span += elapsed;
        let mut sum = 0.0;
        let mut levels = [AdmissionLevel::OPEN; N];
        let mut found = 0;
        for tier in 0..TIERS {
            let expected = self.expect(tier, current, elapsed);
            while found < N && targets[found] < sum + expected {
                levels[found] = self.cut(tier, expected, targets[found] - sum, current);
                found += 1;
            }
            sum += expected;
        }
        self.span *= keep;
        self.cells.iter_mut().for_each(|cell| *cell *= keep as f32);
        levels
    }

    /// Work per microsecond a tier would bring if all of it were let in.
    fn expect(&mut self, tier: usize, current: AdmissionLevel, elapsed: f64) -> f64 {
        let cells = &self.cells[tier * CELLS_PER_TIER..(tier + 1) * CELLS_PER_TIER];
        let seen = cells.iter().map(|work| f64::from(*work)).sum::<f64>() / self.span.max(1.0);
        let admitted = admitted_part(tier, current);
        let faded = self.memory[tier] * (-elapsed / MEMORY_HALF_LIFE).exp2();
        self.memory[tier] = if admitted >= 1.0 {
            seen
        } else if admitted >= LEAST_SEEN {
            let below = self.below(tier, admitted) / self.span.max(1.0);
            seen.max(below / admitted)
        } else {
            seen.max(faded)
        };
        self.memory[tier]
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
    fn cut(&self, tier: usize, expected: f64, left: f64, current: AdmissionLevel) -> AdmissionLevel {
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
        fn level(
            &mut self,
            target: f64,
            current: AdmissionLevel,
            elapsed: f64,
            keep: f64,
        ) -> AdmissionLevel {
            self.levels([target], current, elapsed, keep)[0]
        }
    }

    fn position(level: AdmissionLevel) -> f64 {
        (level.cell() as f64 + level.share()) / CELLS_PER_TIER as f64
    }

    #[test]
    fn the_level_ends_where_the_target_does() {
        let mut demand = Demand::new();
        fill(&mut demand, &[0, 1, 2], 1e6, AdmissionLevel::OPEN);
        let level = demand.level(1.253, AdmissionLevel::OPEN, 1e6, 0.0);
        assert!((position(level) - 1.253).abs() < 0.001, "{}", position(level));
        fill(&mut demand, &[0, 1, 2], 1e6, AdmissionLevel::OPEN);
        assert!(demand.level(3.01, AdmissionLevel::OPEN, 1e6, 0.0).is_open());
        assert!(demand.level(0.0, AdmissionLevel::OPEN, 1e6, 0.0).is_open(), "nothing arrives");
    }

    #[test]
    fn what_callers_shed_is_not_taken_for_absent() {
        let mut demand = Demand::new();
        let tight = AdmissionLevel::inside(128 + 64, 0.0);
        fill(&mut demand, &[0, 1], 1e6, tight);
        // Half of tier 1 is hidden; the even spread tells how much it is.
        let level = demand.level(1.75, tight, 1e6, 0.0);
        assert!((position(level) - 1.75).abs() < 0.01, "{}", position(level));
    }

    #[test]
    fn a_tier_that_was_seen_whole_is_remembered_and_fades() {
        let mut demand = Demand::new();
        fill(&mut demand, &[0, 1], 1e6, AdmissionLevel::OPEN);
        let level = demand.level(1.0, AdmissionLevel::OPEN, 1e6, 0.0);
        assert!((position(level) - 1.0).abs() < 0.001);
        fill(&mut demand, &[0], 1e6, level);
        let next = demand.level(1.25, level, 1e6, 0.0);
        assert!((1.3..1.4).contains(&position(next)), "faded to 0.71: {}", position(next));
    }

    #[test]
    fn one_heavy_cell_is_admitted_in_part() {
        let mut demand = Demand::new();
        demand.arrived(Priority::new(Tier(3), 77, 0), 4e6);
        let level = demand.level(1.0, AdmissionLevel::OPEN, 1e6, 0.0);
        assert_eq!((level.business(), level.user()), (3, 77));
        assert!((level.share() - 0.25).abs() < 0.001, "{}", level.share());
    }
}
