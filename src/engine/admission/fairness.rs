//! Fairness between rooms: within a tier, a room that uses more than its fair
//! share of the shard yields first.
//!
//! The fair share is max-min (as in Kubernetes' API priority and fairness, and
//! before it Demers et al., *Analysis and Simulation of a Fair Queueing
//! Algorithm*, 1989): what small rooms leave over is divided among the large
//! ones. Of those beyond their share, a room that asks for r times as much as the
//! smallest of them has its events spread over their tier r times as wide, and
//! what falls off the end is last in it. So it is the same users that give way all
//! the time, not whoever comes last. Rooms within their share are let past the level
//! and stand right behind the protected tiers, before all others: together they fit, by
//! the way the share is found, and a small room does not notice the storm next door.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::AdmissionSettings;
use crate::engine::ids::Tier;
use crate::engine::level::LOWEST_USER_LEVEL;
use crate::engine::priority::{AdmissionLevel, CELLS_PER_TIER, Priority};
use crate::engine::time::Time;

/// Rooms whose recent cost is kept. When all places are taken, a further room is
/// judged by the level like any that asks for too much.
const MAX_ROOMS: usize = 4_096;
/// Half-life of what counts as recent. In time and not in windows: in an onset
/// windows end every 20 ms, and a calm room must not be forgotten between two of
/// its events.
const HALF_LIFE: Duration = Duration::from_secs(1);
/// Shares hold this long after they were last needed.
const OUTLAST: Duration = Duration::from_secs(1);
/// Standard deviations of the number of a room's requests that are chance. Of rooms that
/// all ask for a little more than their share, some would keep to it for a moment.
const CHANCE: f64 = 2.0;
/// A room below this much work, in microseconds, is forgotten.
const NEGLIGIBLE: f64 = 1.0;

/// See the module's documentation.
pub(super) struct Fairness {
    /// Recent work by room.
    cost: HashMap<u64, f64>,
    /// Rooms beyond their share, and how many times.
    stretch: HashMap<u64, f64>,
    /// Rooms within their share while others are not.
    within: HashSet<u64>,
    /// How many are beyond theirs.
    beyond: usize,
    /// When shares were last needed.
    needed: Option<Time>,
    /// Work that was done or could have been, fading as what rooms used does: the work of
    /// a moment that did nothing else but stand still would be nobody's share.
    done: f64,
    counted: Time,
}

impl Fairness {
    pub(super) fn new(now: Time) -> Self {
        Self {
            cost: HashMap::new(),
            stretch: HashMap::new(),
            within: HashSet::new(),
            beyond: 0,
            needed: None,
            done: 0.0,
            counted: now,
        }
    }

    pub(super) fn arrived(&mut self, room: u64, cost: f64) {
        if let Some(sum) = self.cost.get_mut(&room) {
            *sum += cost;
        } else if self.cost.len() < MAX_ROOMS {
            self.cost.insert(room, cost);
        }
    }

    /// Where an event of a room stands, its room's use considered.
    pub(super) fn place(
        &self,
        settings: &AdmissionSettings,
        room: u64,
        priority: Priority,
    ) -> Priority {
        if self.is_within(room) {
            let front = Tier(settings.protected_tier.0.saturating_add(1));
            return if priority.tier() < front { priority } else { Priority::at(front, 0.0) };
        }
        let Some(stretch) = self.stretch(room) else { return priority };
        Priority::at(priority.tier(), priority.within_tier() * stretch)
    }

    /// The level as a caller of one room should apply it, who knows nothing of
    /// the room's stretching.
    pub(super) fn level_for(&self, level: AdmissionLevel, room: u64) -> AdmissionLevel {
        if self.is_within(room) {
            return AdmissionLevel::OPEN;
        }
        let Some(stretch) = self.stretch(room) else { return level };
        if level.is_open() {
            return level;
        }
        let tier = level.cell() / CELLS_PER_TIER;
        let within = ((level.cell() % CELLS_PER_TIER) as f64 + level.share()) / stretch;
        let user = (within as usize).min(usize::from(LOWEST_USER_LEVEL));
        AdmissionLevel::inside(tier * CELLS_PER_TIER + user, within - user as f64)
    }

    /// Whether a room stays within its share while others do not.
    pub(super) fn is_within(&self, room: u64) -> bool {
        !self.within.is_empty() && self.within.contains(&room)
    }

    /// How many times its share a room asks for, if more than once.
    pub(super) fn stretch(&self, room: u64) -> Option<f64> {
        if self.stretch.is_empty() {
            return None;
        }
        self.stretch.get(&room).copied()
    }

    /// Rooms beyond their share.
    pub(super) fn beyond(&self) -> usize {
        self.beyond
    }

    /// What fits is everybody's; but a room below half of an equal part is not
    /// the one to blame for an overload, whatever estimates say of the sum.
    fn find_share(&self, capacity: f64) -> f64 {
        let share = fair_share(self.cost.values().copied().collect(), capacity);
        let half = capacity / (2 * self.cost.len().max(1)) as f64;
        let blamed = self.cost.values().any(|cost| *cost > half);
        if share.is_infinite() && blamed { half } else { share }
    }

    fn set(&mut self, share: f64, request: f64) {
        let beyond = || self.cost.iter().filter(|(_, cost)| **cost > share);
        self.beyond = beyond().count();
        // Among those beyond, only the difference between them matters: tiers
        // decide within a room.
        let least = beyond().map(|(_, cost)| *cost).fold(f64::INFINITY, f64::min);
        let uses = beyond().map(|(room, cost)| (*room, cost / least));
        self.stretch.clear();
        self.stretch.extend(uses.filter(|(_, uses)| *uses > 1.01));
        let surely = |cost: f64| cost + CHANCE * (cost * request).sqrt() <= share;
        let within = self.cost.iter().filter(|(_, cost)| surely(**cost));
        self.within.clear();
        self.within.extend(within.map(|(room, _)| *room));
    }

    /// Works the shares out anew. `throughput`: work per microsecond that was done, or
    /// could have been, since the last time; `request`: what one costs on average.
    pub(super) fn share_out(&mut self, throughput: f64, overloaded: bool, request: f64, now: Time) {
        let elapsed = now.since(self.counted);
        self.done += throughput * elapsed.as_micros() as f64;
        self.counted = now;
        let share = if overloaded { self.find_share(self.done) } else { f64::INFINITY };
        // The shares outlast a quiet window: the queue may fill again before the
        // next one ends.
        if share.is_finite() {
            self.needed = Some(now);
            self.set(share, request);
        } else if self.needed.is_none_or(|last| now.since(last) > OUTLAST) {
            self.stretch.clear();
            self.within.clear();
            self.beyond = 0;
        }
        let keep = (-elapsed.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2();
        self.done *= keep;
        self.cost.retain(|_, cost| {
            *cost *= keep;
            *cost >= NEGLIGIBLE
        });
    }
}

/// The largest share such that what rooms use up to it fits the capacity.
fn fair_share(mut costs: Vec<f64>, capacity: f64) -> f64 {
    costs.sort_unstable_by(f64::total_cmp);
    let mut left = capacity;
    let count = costs.len();
    for (i, cost) in costs.into_iter().enumerate() {
        let share = left / (count - i) as f64;
        if cost > share {
            return share.max(f64::MIN_POSITIVE);
        }
        left -= cost;
    }
    f64::INFINITY
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn shared_out(costs: &[f64]) -> Fairness {
        let start = Time::from_millis(1_000_000);
        let mut fairness = Fairness::new(start);
        for (room, cost) in costs.iter().enumerate() {
            fairness.arrived(room as u64, cost * 1e6);
        }
        fairness.share_out(1.0, true, 1.0, start + SECOND);
        fairness
    }

    #[test]
    fn only_rooms_beyond_the_max_min_share_are_stretched() {
        assert_eq!(fair_share(vec![0.1, 0.2, 9.0, 9.0], 1.0), 0.35);
        let fairness = shared_out(&[0.1, 0.1, 0.8, 8.0]);
        assert_eq!((fairness.stretch(0), fairness.stretch(1)), (None, None));
        assert!(fairness.is_within(0) && !fairness.is_within(2));
        assert_eq!(fairness.stretch(2), None, "the smallest of those beyond");
        assert!((fairness.stretch(3).expect("beyond") - 10.0).abs() < 1e-9);
        assert_eq!(shared_out(&[0.1, 0.2]).beyond(), 0, "all fits");
        let fairness = shared_out(&[0.01, 0.9]);
        assert!(fairness.is_within(0) && !fairness.is_within(1), "who else is to blame");
    }

    #[test]
    fn a_room_alone_and_rooms_alike_are_left_as_they_are() {
        for costs in [&[50.0][..], &[5.0; 20]] {
            let fairness = shared_out(costs);
            assert_eq!((fairness.stretch(0), fairness.beyond()), (None, costs.len()));
            assert!(!fairness.is_within(0));
        }
    }

    #[test]
    fn rooms_within_their_share_go_first_and_those_beyond_are_spread_over_their_tier() {
        let settings = AdmissionSettings::default();
        let fairness = shared_out(&[0.1, 0.1, 0.8, 8.0]);
        let of = |tier, within| Priority::at(Tier(tier), within);
        let small = fairness.place(&settings, 0, of(3, 0.9));
        assert_eq!(small, of(1, 0.0), "right behind the protected tier");
        assert_eq!(fairness.place(&settings, 0, of(0, 0.9)), of(0, 0.9));
        let stretched = fairness.place(&settings, 3, of(3, 0.05));
        assert!((stretched.within_tier() - 0.5).abs() < 1e-4 && stretched.tier() == Tier(3));
        assert_eq!(fairness.place(&settings, 3, of(3, 0.2)), of(3, 1.0), "the end of its tier");
    }

    #[test]
    fn a_moment_in_which_nothing_was_done_takes_no_room_its_share() {
        let mut fairness = shared_out(&[0.1, 0.1, 0.8, 8.0]);
        let later = Time::from_millis(1_000_000) + SECOND + Duration::from_millis(20);
        fairness.arrived(0, 2_000.0);
        fairness.arrived(3, 160_000.0);
        fairness.share_out(0.0, true, 1.0, later);
        assert!(fairness.is_within(0) && fairness.is_within(1) && !fairness.is_within(3));
        assert_eq!(fairness.beyond(), 2);
    }

    #[test]
    fn a_room_that_may_be_beyond_its_share_but_for_chance_is_not_taken_to_be_within() {
        let mut fairness = shared_out(&[0.1, 0.1, 0.8, 8.0]);
        let now = Time::from_millis(1_000_000) + SECOND;
        // It has used a quarter of its share: in 50 requests, or in a quarter of one.
        fairness.share_out(1.0, true, 1_000.0, now);
        assert!(fairness.is_within(0));
        fairness.share_out(1.0, true, 200_000.0, now);
        assert!(!fairness.is_within(0) && fairness.stretch(0).is_none(), "nor beyond");
    }

    #[test]
    fn callers_of_a_stretched_room_get_a_level_they_can_apply() {
        let settings = AdmissionSettings::default();
        let fairness = shared_out(&[0.1, 0.1, 0.8, 8.0]);
        let level = AdmissionLevel::inside(3 * 128 + 64, 0.0);
        let theirs = fairness.level_for(level, 3);
        for within in [0.01, 0.04, 0.049, 0.051, 0.1, 0.5, 0.9] {
            let own = Priority::at(Tier(3), within);
            let placed = fairness.place(&settings, 3, own);
            assert_eq!(theirs.admits(own), level.admits(placed), "{within}");
        }
        assert!(fairness.level_for(level, 0).is_open(), "within its share");
        assert_eq!(fairness.level_for(level, 77), level, "a room nobody knows");
    }

    #[test]
    fn a_million_rooms_take_bounded_memory() {
        let mut fairness = Fairness::new(Time::default());
        for room in 0..1_000_000 {
            fairness.arrived(room, 5.0);
        }
        assert_eq!(fairness.cost.len(), MAX_ROOMS);
        for second in 1..=10 {
            fairness.share_out(1.0, false, 1.0, Time::from_millis(second * 1_000));
        }
        assert!(fairness.cost.is_empty());
    }
}
