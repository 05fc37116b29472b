//! Events that are to be sent again, each at its time.

use std::collections::{BTreeMap, BTreeSet};

use crate::engine::ids::Tier;
use crate::engine::time::Time;

/// By when they are due, and by what is least important.
#[derive(Debug)]
pub(super) struct Later<T> {
    due: BTreeMap<(Time, u64), (Tier, T)>,
    /// The last is the least important, and of equals the one that is due last.
    worst: BTreeSet<(Tier, Time, u64)>,
}

impl<T> Default for Later<T> {
    fn default() -> Self {
        Self { due: BTreeMap::new(), worst: BTreeSet::new() }
    }
}

impl<T> Later<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.due.is_empty()
    }

    /// `order` is a number that no other has.
    pub(super) fn push(&mut self, due: Time, order: u64, tier: Tier, item: T) {
        let before = self.due.insert((due, order), (tier, item));
        debug_assert!(before.is_none(), "orders are unique");
        self.worst.insert((tier, due, order));
    }

    /// When the next is due.
    pub(super) fn next_due(&self) -> Option<Time> {
        self.due.first_key_value().map(|((due, _), _)| *due)
    }

    /// The next that is due.
    pub(super) fn pop_due(&mut self, now: Time) -> Option<T> {
        self.next_due().filter(|due| *due <= now)?;
        let ((due, order), (tier, item)) = self.due.pop_first()?;
        self.worst.remove(&(tier, due, order));
        Some(item)
    }

    /// Tier of the least important.
    pub(super) fn worst(&self) -> Option<Tier> {
        self.worst.last().map(|(tier, ..)| *tier)
    }

    /// Takes the least important out; tells when it was due.
    pub(super) fn pop_worst(&mut self) -> Option<(Time, T)> {
        let (_, due, order) = self.worst.pop_last()?;
        self.due.remove(&(due, order)).map(|(_, item)| (due, item))
    }

    /// Takes out what is due at `time` or after it.
    pub(super) fn split_off(&mut self, time: Time) -> Vec<T> {
        let off = self.due.split_off(&(time, 0));
        for ((due, order), (tier, _)) in &off {
            self.worst.remove(&(*tier, *due, *order));
        }
        off.into_values().map(|(_, item)| item).collect()
    }

    /// Takes everything out.
    pub(super) fn drain(&mut self) -> Vec<T> {
        self.worst.clear();
        std::mem::take(&mut self.due).into_values().map(|(_, item)| item).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn later() -> Later<u64> {
        let mut later = Later::default();
        for (order, (due, tier)) in [(30, 3), (10, 5), (20, 5), (10, 0)].into_iter().enumerate() {
            later.push(Time::from_millis(due), order as u64, Tier(tier), order as u64);
        }
        later
    }

    #[test]
    fn what_is_due_comes_by_time_and_what_gives_way_by_importance() {
        let mut by_time = later();
        assert_eq!(by_time.next_due(), Some(Time::from_millis(10)));
        let mut pop = |now| by_time.pop_due(Time::from_millis(now));
        assert_eq!((pop(9), pop(10), pop(10), pop(10)), (None, Some(1), Some(3), None));
        let mut worst = later();
        assert_eq!(worst.worst(), Some(Tier(5)));
        let out: Vec<_> = std::iter::from_fn(|| worst.pop_worst()).map(|(_, item)| item).collect();
        assert_eq!(out, [2, 1, 0, 3], "tier 5 first, of two the one that is due last");
        assert!(worst.is_empty() && worst.next_due().is_none());
    }

    #[test]
    fn both_orders_hold_the_same() {
        let mut later = later();
        assert_eq!(later.split_off(Time::from_millis(20)), [2, 0]);
        assert_eq!(later.pop_worst(), Some((Time::from_millis(10), 1)));
        assert_eq!(later.pop_due(Time::from_millis(99)), Some(3));
        assert!(later.is_empty() && later.worst().is_none());
        let mut later = self::later();
        assert_eq!((later.drain().len(), later.worst(), later.pop_worst()), (4, None, None));
    }
}
