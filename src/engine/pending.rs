//! The buffer in which events wait for the flush.
//!
//! A vector in order of acceptance: in the common case an event is pushed at its
//! end and everything is taken at once. Whatever leaves early leaves a hole, and
//! the vector is compacted when half of it is holes; orders stay sorted, so an
//! event is found by binary search.
//!
//! Only when the buffer is full for the first time does it need to know its
//! worst: then a max-heap of ranks is built once, in linear time, and from there
//! on every event costs logarithmic time until the flush empties it. Heap
//! records of events that have left are recognised when they come up.

use std::collections::BinaryHeap;
use std::sync::Arc;

use super::event::Numbered;
use super::kind::Lane;
use super::level::Rank;
use super::settings::RoomSettings;
use super::time::Time;

/// An event that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    /// The event with its numbers.
    pub(super) event: Arc<Numbered>,
    /// Importance and order of acceptance.
    pub(super) rank: Rank,
    /// [`Event::weight`](super::event::Event::weight), asked once.
    pub(super) weight: usize,
    /// Events that it has overtaken, by lane, and that share its fate.
    pub(super) overtaken: [u64; 3],
    /// When the earliest of it and those arrived.
    pub(super) oldest: Time,
}

impl Waiting {
    /// Neither dropped nor overtaken, whatever happens.
    pub(super) fn is_important(&self) -> bool {
        self.event.event.kind.lane == Lane::Important
    }

    /// Whether its time to live is over.
    pub(super) fn has_expired(&self, now: Time) -> bool {
        self.event.event.expires().is_some_and(|expires| expires <= now)
    }
}

/// Events or their holes, by order.
#[derive(Debug)]
struct Slot {
    order: u64,
    waiting: Option<Waiting>,
}

/// Events and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) events: usize,
    pub(super) bytes: usize,
}

impl Load {
    pub(super) fn add(&mut self, weight: usize) {
        self.events += 1;
        self.bytes += weight;
    }

    pub(super) fn remove(&mut self, weight: usize) {
        self.events -= 1;
        self.bytes -= weight;
    }

    fn exceeds(self, settings: &RoomSettings) -> bool {
        self.events > settings.buffer_events || self.bytes > settings.buffer_bytes
    }

    fn with(mut self, weight: usize) -> Self {
        self.add(weight);
        self
    }
}

/// The buffer of one room.
#[derive(Debug, Default)]
pub(super) struct Pending {
    next_order: u64,
    slots: Vec<Slot>,
    all: Load,
    important: Load,
    /// Ranks of everything that may be dropped, and of some that has left.
    ranks: BinaryHeap<Rank>,
    /// Whether `ranks` is kept.
    ranked: bool,
}

impl Pending {
    /// The order that the next event gets.
    pub(super) fn next_order(&self) -> u64 {
        self.next_order
    }

    /// Orders go on from here: for a buffer that has given none yet.
    pub(super) fn begin_at(&mut self, order: u64) {
        self.next_order = order;
    }

    /// Uses up the next order.
    pub(super) fn take_order(&mut self) -> u64 {
        self.next_order += 1;
        self.next_order - 1
    }

    /// What waits.
    pub(super) fn load(&self) -> Load {
        self.all
    }

    /// Whether something important waits.
    pub(super) fn has_important(&self) -> bool {
        self.important.events > 0
    }

    /// Whether an important event has a place, beside those that are `to_come`,
    /// if everything else gives way.
    pub(super) fn fits_important(
        &self,
        to_come: Load,
        weight: usize,
        settings: &RoomSettings,
    ) -> bool {
        let mut load = self.important.with(weight);
        load.events += to_come.events;
        load.bytes += to_come.bytes;
        !load.exceeds(settings)
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.all.events == 0
    }

    /// Whether anything of a lower order waits.
    pub(super) fn has_before(&self, order: u64) -> bool {
        let first = self.slots.iter().find(|slot| slot.waiting.is_some());
        first.is_some_and(|slot| slot.order < order)
    }

    /// Whether an event of this rank would be the first to go: known before
    /// anything is allocated for it.
    pub(super) fn would_drop(
        &mut self,
        rank: Rank,
        weight: usize,
        settings: &RoomSettings,
    ) -> bool {
        self.all.with(weight).exceeds(settings) && self.worst().is_none_or(|worst| worst < rank)
    }

    /// Puts an event in its place: at the end, unless its order was taken
    /// earlier than others that wait.
    pub(super) fn push(&mut self, waiting: Waiting) {
        self.all.add(waiting.weight);
        if waiting.is_important() {
            self.important.add(waiting.weight);
        } else if self.ranked {
            self.ranks.push(waiting.rank);
        }
        let order = waiting.rank.order;
        let slot = Slot { order, waiting: Some(waiting) };
        if self.slots.last().is_none_or(|last| last.order < order) {
            self.slots.push(slot);
        } else {
            let place = self.slots.partition_point(|slot| slot.order < order);
            self.slots.insert(place, slot);
        }
    }

    /// Takes out the event with this order, if it still waits.
    pub(super) fn take(&mut self, order: u64) -> Option<Waiting> {
        let at = self.slots.binary_search_by_key(&order, |slot| slot.order).ok()?;
        let waiting = self.slots[at].waiting.take()?;
        self.all.remove(waiting.weight);
        if waiting.is_important() {
            self.important.remove(waiting.weight);
        }
        self.compact();
        Some(waiting)
    }

    /// Takes out the worst event if the buffer holds more than it may.
    pub(super) fn take_excess(&mut self, settings: &RoomSettings) -> Option<Waiting> {
        if !self.all.exceeds(settings) {
            return None;
        }
        let worst = self.worst()?;
        self.take(worst.order)
    }

    /// Takes everything, or what has a lower order than `before`, in order.
    pub(super) fn drain(&mut self, before: Option<u64>) -> Vec<Waiting> {
        if let Some(before) = before
            && self.slots.last().is_some_and(|last| last.order >= before)
        {
            return self.drain_before(before);
        }
        let mut taken = Vec::with_capacity(self.all.events);
        taken.extend(self.slots.drain(..).filter_map(|slot| slot.waiting));
        (self.all, self.important) = (Load::default(), Load::default());
        (self.ranks, self.ranked) = (BinaryHeap::new(), false);
        // A burst's memory is given back with the first calm flush after it.
        self.slots.shrink_to((2 * taken.len()).max(16));
        taken
    }

    /// Ranks of what is taken stay behind and are recognised when they come up.
    fn drain_before(&mut self, before: u64) -> Vec<Waiting> {
        let end = self.slots.partition_point(|slot| slot.order < before);
        let taken: Vec<_> = self.slots.drain(..end).filter_map(|slot| slot.waiting).collect();
        for waiting in &taken {
            self.all.remove(waiting.weight);
            if waiting.is_important() {
                self.important.remove(waiting.weight);
            }
        }
        self.compact();
        taken
    }

    /// Bytes held.
    pub(super) fn memory_bytes(&self) -> usize {
        // A sample's heap holds one rank for each of its events.
        self.all.bytes
            + self.slots.capacity() * (size_of::<Slot>() + size_of::<Rank>())
            + self.ranks.capacity() * size_of::<Rank>()
    }

    /// Bytes held at most: a vector grows by doubling, and half of it may be holes.
    pub(super) fn memory_bound(settings: &RoomSettings) -> usize {
        let slots = 2 * (2 * (settings.buffer_events + 1) + COMPACT_FROM + 2);
        settings.buffer_bytes + slots * (size_of::<Slot>() + 2 * size_of::<Rank>())
    }

    /// Rank of what goes first; nothing if only important events wait.
    fn worst(&mut self) -> Option<Rank> {
        if !self.ranked {
            self.rank_all();
        }
        loop {
            let worst = *self.ranks.peek()?;
            if self.waits(worst.order) {
                return Some(worst);
            }
            self.ranks.pop();
        }
    }

    fn waits(&self, order: u64) -> bool {
        self.slots
            .binary_search_by_key(&order, |slot| slot.order)
            .is_ok_and(|at| self.slots[at].waiting.is_some())
    }

    fn rank_all(&mut self) {
        let waiting = self.slots.iter().filter_map(|slot| slot.waiting.as_ref());
        let mut ranks = std::mem::take(&mut self.ranks).into_vec();
        ranks.clear();
        ranks.extend(waiting.filter(|w| !w.is_important()).map(|w| w.rank));
        self.ranks = BinaryHeap::from(ranks);
        self.ranked = true;
    }

    /// Keeps holes, and with them stale ranks, below half.
    fn compact(&mut self) {
        if self.slots.len() > COMPACT_FROM && self.slots.len() > 2 * self.all.events {
            self.slots.retain(|slot| slot.waiting.is_some());
            if self.ranked {
                self.rank_all();
            }
        }
    }
}

/// Below this, holes cost less than closing them.
const COMPACT_FROM: usize = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::ids::Tier;
    use crate::engine::testing::{self, chat, red_packet};

    fn waiting(pending: &mut Pending, level: u8, important: bool) -> Waiting {
        let order = pending.take_order();
        let build = if important { red_packet("r") } else { chat("c") };
        let event = Numbered { event: build.event(), seq: None, important: None };
        Waiting {
            weight: event.event.weight(),
            event: Arc::new(event),
            rank: Rank { tier: Tier(2), level, order },
            overtaken: [0; 3],
            oldest: testing::START,
        }
    }

    proptest! {
        /// Step 0: an important one; 1: take one out of the middle; else: an ordinary one.
        #[test]
        fn what_stays_is_what_a_sorted_list_keeps(
            limit in 1usize..50,
            steps in prop::collection::vec((0u8..12, 0u8..5, any::<prop::sample::Index>()), 0..300),
        ) {
            let settings = RoomSettings { buffer_events: limit, ..testing::settings() };
            let mut pending = Pending::default();
            let mut naive: Vec<(bool, Rank)> = Vec::new();
            for (step, level, index) in steps {
                let important = step == 0;
                if step == 1 && !naive.is_empty() {
                    let (_, rank) = naive.remove(index.index(naive.len()));
                    prop_assert_eq!(pending.take(rank.order).map(|w| w.rank), Some(rank));
                    prop_assert!(pending.take(rank.order).is_none());
                    continue;
                }
                let new = waiting(&mut pending, level, important);
                if important && !pending.fits_important(Load::default(), new.weight, &settings) {
                    prop_assert_eq!(naive.iter().filter(|(i, _)| *i).count(), limit);
                    continue;
                }
                naive.push((important, new.rank));
                let rank = new.rank;
                let at_once = !important && pending.would_drop(rank, new.weight, &settings);
                let mut out = Vec::new();
                if at_once {
                    out.push(rank);
                } else {
                    pending.push(new);
                }
                while let Some(excess) = pending.take_excess(&settings) {
                    out.push(excess.rank);
                }
                let mut expected = Vec::new();
                while naive.len() > limit {
                    let worst = naive.iter().filter(|(i, _)| !i).map(|(_, r)| *r).max();
                    naive.retain(|(_, r)| Some(*r) != worst);
                    expected.extend(worst);
                }
                prop_assert_eq!(out, expected);
                prop_assert_eq!(pending.load().events, naive.len());
                prop_assert!(pending.slots.len() <= COMPACT_FROM + 2 * (limit + 1));
                prop_assert!(pending.ranks.len() <= pending.slots.len());
                prop_assert!(pending.memory_bytes() <= Pending::memory_bound(&settings));
            }
            let left: Vec<Rank> = pending.drain(None).into_iter().map(|w| w.rank).collect();
            prop_assert_eq!(left, naive.into_iter().map(|(_, r)| r).collect::<Vec<_>>());
            prop_assert_eq!(pending.load(), Load::default());
        }
    }
}
