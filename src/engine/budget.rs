//! How much one frame carries, and who gives way.
//!
//! A frame is multiplied by every viewer, so what a room may say per flush is
//! bounded in events and bytes however fast its publishers are. Bounded is what
//! travels by itself and could be shed: `append` events of both droppable lanes
//! and `sample` events of the ordered lane. Totals and latest values are few by
//! their keys, a sample of the sampled lane by its n, and the important lane is
//! never shed.
//!
//! Part of the budget is reserved for the first tiers; they may use all of it,
//! the others only what is not reserved. Within that, the frame takes events in
//! order of [`Rank`] and stops at the first that does not fit: nobody is carried
//! while someone more important is dropped. Filling the gap with smaller, less
//! important events would use the budget better by less than one event and turn
//! the order around. Only an event too large for an empty frame is passed over,
//! or it would silence everyone behind it.

use super::kind::{Lane, Merge};
use super::level::Rank;
use super::pending::Waiting;
use super::settings::{RoomSettings, Strain};

/// What becomes of a frame's events.
#[derive(Debug, PartialEq)]
pub(super) struct Budgeted {
    /// Indices, ascending, of those that it cannot carry.
    pub(super) over: Vec<usize>,
    /// The part of its budget that the others use.
    pub(super) used: f64,
}

/// Which events a frame can carry that may use this part, 0 to 1, of its budget. What is
/// reserved is reserved of the whole.
pub(super) fn over_budget(
    waiting: &[Waiting],
    settings: &RoomSettings,
    strain: Strain,
    part: f64,
) -> Budgeted {
    let whole = Share { events: settings.frame_events, bytes: settings.frame_bytes }
        .percent(strain.frame_percent.min(100) as usize);
    let largest = whole.percent(100 - usize::from(settings.reserved_percent.min(100)));
    let limit = whole.part(part);
    let open = limit.without(whole.without(largest));
    let all = waiting.iter().filter(|w| is_budgeted(w));
    let all = all.fold(Share::default(), |used, w| used.plus(w.weight));
    if all.within(open) {
        // The common case, without sorting.
        return Budgeted { over: Vec::new(), used: all.of(whole) };
    }
    let mut ranked: Vec<(Rank, usize)> = (waiting.iter().enumerate())
        .filter(|(_, w)| is_budgeted(w))
        .map(|(index, w)| (w.rank, index))
        .collect();
    ranked.sort_unstable();

    let (mut used, mut used_open, mut full) = (Share::default(), Share::default(), false);
    let mut out = Vec::new();
    for (rank, index) in ranked {
        let weight = waiting[index].weight;
        let reserved = rank.tier.0 <= settings.reserved_tier;
        if weight > if reserved { whole.bytes } else { largest.bytes } {
            out.push(index);
            continue;
        }
        full = full
            || !used.plus(weight).within(limit)
            || (!reserved && !used_open.plus(weight).within(open));
        if full {
            out.push(index);
            continue;
        }
        used = used.plus(weight);
        if !reserved {
            used_open = used_open.plus(weight);
        }
    }
    out.sort_unstable();
    Budgeted { over: out, used: used.of(whole) }
}

/// Events and bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    events: usize,
    bytes: usize,
}

impl Share {
    fn percent(self, percent: usize) -> Self {
        let of = |n: usize| n / 100 * percent + n % 100 * percent / 100;
        Self { events: of(self.events), bytes: of(self.bytes) }
    }

    fn without(self, other: Self) -> Self {
        let without = usize::saturating_sub;
        Self { events: without(self.events, other.events), bytes: without(self.bytes, other.bytes) }
    }

    fn part(self, part: f64) -> Self {
        let of = |n: usize| (n as f64 * part) as usize;
        Self { events: of(self.events), bytes: of(self.bytes) }
    }

    /// The larger of the two parts that it is of `whole`.
    fn of(self, whole: Self) -> f64 {
        let of = |n: usize, whole: usize| if n == 0 { 0.0 } else { n as f64 / whole as f64 };
        of(self.events, whole.events).max(of(self.bytes, whole.bytes))
    }

    fn plus(self, weight: usize) -> Self {
        Self { events: self.events + 1, bytes: self.bytes + weight }
    }

    fn within(self, limit: Self) -> bool {
        self.events <= limit.events && self.bytes <= limit.bytes
    }
}

fn is_budgeted(waiting: &Waiting) -> bool {
    let kind = &waiting.event.event.kind;
    match (kind.lane, kind.merge) {
        (Lane::Important, _) => false,
        (_, Merge::Append) => true,
        (lane, Merge::Sample(_)) => lane == Lane::Ordered,
        (_, Merge::Sum(_) | Merge::Latest(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::engine::event::Numbered;
    use crate::engine::ids::Tier;
    use crate::engine::testing::{self, Build, card, chat, entrance, red_packet};

    fn waiting(build: Build, level: u8, order: u64) -> Waiting {
        let event = build.event();
        Waiting {
            weight: event.weight(),
            rank: Rank { tier: event.kind.tier, level, order },
            event: Arc::new(Numbered { event, seq: None, important: None }),
            overtaken: [0; 3],
            oldest: testing::START,
        }
    }

    fn over(waiting: &[Waiting], settings: &RoomSettings) -> Vec<usize> {
        over_budget(waiting, settings, Strain::NONE, 1.0).over
    }

    fn settings(events: usize, bytes: usize, reserved: u8) -> RoomSettings {
        RoomSettings {
            frame_events: events,
            frame_bytes: bytes,
            reserved_percent: reserved,
            reserved_tier: 1,
            ..testing::settings()
        }
    }

    fn tier(tier: u8) -> Build {
        chat("c").kind(|kind| kind.tier = Tier(tier))
    }

    #[test]
    fn the_reserved_share_is_for_the_first_tiers_alone() {
        let few: Vec<_> = (0..10).map(|i| waiting(tier(2), 0, i)).collect();
        assert_eq!(over(&few, &settings(10, 1 << 20, 40)), [6, 7, 8, 9]);
        let mut mixed: Vec<_> = (0..8).map(|i| waiting(tier(1), 0, i)).collect();
        mixed.extend((8..12).map(|i| waiting(tier(2), 0, i)));
        assert_eq!(over(&mixed, &settings(10, 1 << 20, 40)), [10, 11]);
    }

    #[test]
    fn the_lowest_tier_then_the_lowest_level_then_the_latest_gives_way() {
        let mut all = [(2, 9), (2, 3), (1, 90), (3, 0), (2, 3)].into_iter().enumerate();
        let all: Vec<_> = all.by_ref().map(|(i, (t, l))| waiting(tier(t), l, i as u64)).collect();
        for (frame, out) in [(4, vec![3]), (3, vec![0, 3]), (2, vec![0, 3, 4])] {
            assert_eq!(over(&all, &settings(frame, 1 << 20, 0)), out);
        }
    }

    #[test]
    fn under_strain_the_least_important_give_way_earlier() {
        let few: Vec<_> = (0..10).map(|i| waiting(tier(i as u8), 0, i)).collect();
        let strain = Strain { frame_percent: 50, ..Strain::NONE };
        assert_eq!(over_budget(&few, &settings(10, 1 << 20, 0), strain, 1.0).over, [5, 6, 7, 8, 9]);
    }

    #[test]
    fn what_is_used_is_the_part_of_the_whole_budget_and_never_more_than_may_be() {
        let few: Vec<_> = (0..10).map(|i| waiting(tier(2), 0, i)).collect();
        let with = |events, part| {
            let settings = settings(events, 1 << 20, 0);
            let budgeted = over_budget(&few, &settings, Strain::NONE, part);
            (10 - budgeted.over.len(), budgeted.used)
        };
        assert_eq!(with(20, 1.0), (10, 0.5));
        assert_eq!(with(20, 0.25), (5, 0.25));
        assert_eq!(with(20, 0.0), (0, 0.0));
        let reserved = over_budget(&few, &settings(20, 1 << 20, 25), Strain::NONE, 0.5);
        assert_eq!((reserved.over.len(), reserved.used), (5, 0.25), "of the whole");
        let bytes: usize = few.iter().map(|w| w.weight).sum();
        let heavy = over_budget(&few, &settings(1_000, 2 * bytes, 0), Strain::NONE, 1.0);
        assert_eq!(heavy, Budgeted { over: Vec::new(), used: 0.5 });
    }

    #[test]
    fn an_event_too_large_for_any_frame_silences_nobody() {
        let large = tier(0).payload(&"x".repeat(5_000));
        let all = [waiting(large, 0, 0), waiting(tier(2), 0, 1)];
        assert_eq!(over(&all, &settings(10, 4_000, 0)), [0]);
    }

    #[test]
    fn what_is_few_by_its_nature_is_not_budgeted() {
        let all = [
            waiting(red_packet("r"), 0, 0),
            waiting(card("k"), 0, 1),
            waiting(entrance("e", 3), 0, 2),
        ];
        assert!(over(&all, &settings(0, 0, 0)).is_empty());
    }

    proptest! {
        #[test]
        fn the_budget_holds_and_nobody_is_carried_before_someone_more_important(
            events in 0usize..12,
            bytes in 0usize..4_000,
            reserved in 0u8..=100,
            all in prop::collection::vec((0u8..4, 0u8..4, 0usize..900), 0..30),
        ) {
            let settings = settings(events, bytes, reserved);
            let all: Vec<_> = (0..).zip(all).map(|(order, (t, level, len))| {
                waiting(tier(t).payload(&"x".repeat(len)), level, order)
            }).collect();
            let out = over(&all, &settings);
            let is_in = |i: usize| !out.contains(&i);
            let open = settings.frame_bytes * usize::from(100 - reserved) / 100;
            let fits_alone = |w: &Waiting| {
                w.weight <= if w.rank.tier.0 <= 1 { settings.frame_bytes } else { open }
            };
            let carried: Vec<_> = (0..all.len()).filter(|i| is_in(*i)).map(|i| &all[i]).collect();
            prop_assert!(carried.len() <= events);
            prop_assert!(carried.iter().map(|w| w.weight).sum::<usize>() <= bytes);
            let others: Vec<_> = carried.iter().filter(|w| w.rank.tier.0 > 1).collect();
            prop_assert!(others.len() * 100 <= events * usize::from(100 - reserved));
            prop_assert!(others.iter().map(|w| w.weight).sum::<usize>() <= open);
            for &dropped in out.iter().filter(|i| fits_alone(&all[**i])) {
                prop_assert!(carried.iter().all(|w| w.rank < all[dropped].rank));
            }
        }
    }
}
