//! Keyed state with a bound on keys, bytes and time.
//!
//! Totals and latest values share this: an entry per (kind, user, key), found by
//! the keyed hash of the three, at most `max_keys` of a kind, and forgotten when
//! its deadline has passed.
//!
//! Deadlines stand in a heap that is corrected lazily (as quinn's and tokio's
//! timers are): a deadline that moves later, which is what every event of a
//! running combo does, costs nothing; only when the old one comes up is it put
//! back at its true place. A deadline that moves earlier gets a second record,
//! and the first is recognised as stale by not being the entry's recorded one.
//! So a full table finds an expired key in logarithmic, not linear, time.

use std::cmp::Reverse;
use std::collections::hash_map::Entry as MapEntry;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use foldhash::fast::FixedState;

use crate::engine::kind::Kind;
use crate::engine::outcome::Refusal;
use crate::engine::time::Time;

/// Flat allowance for one entry: itself, its share of hash table and heap.
pub(super) const ENTRY_BYTES: usize = 384;

/// What a table holds.
pub(super) trait Keyed {
    /// By which kind's limit it counts.
    fn kind(&self) -> &Arc<Kind>;
    /// Bytes beyond [`ENTRY_BYTES`].
    fn bytes(&self) -> usize;
    /// When it may be forgotten; `None`: never, or not while something is pending.
    fn deadline(&self) -> Option<Time>;
}

#[derive(Debug)]
struct Slot<V> {
    value: V,
    /// The record in the heap that counts.
    recorded: Option<Time>,
}

/// A bounded map from key hash to `V`.
#[derive(Debug)]
pub(super) struct Table<V> {
    /// Keys are keyed hashes already, so the map's own hasher needs no secret.
    slots: HashMap<u128, Slot<V>, FixedState>,
    per_kind: HashMap<Arc<str>, usize, FixedState>,
    deadlines: BinaryHeap<Reverse<(Time, u128)>>,
    bytes: usize,
}

impl<V: Keyed> Table<V> {
    pub(super) fn new() -> Self {
        Self {
            slots: HashMap::default(),
            per_kind: HashMap::default(),
            deadlines: BinaryHeap::new(),
            bytes: 0,
        }
    }

    pub(super) fn get(&self, key: u128) -> Option<&V> {
        self.slots.get(&key).map(|slot| &slot.value)
    }

    /// For changes that leave [`Keyed::bytes`] as it is.
    pub(super) fn get_mut(&mut self, key: u128) -> Option<&mut V> {
        self.slots.get_mut(&key).map(|slot| &mut slot.value)
    }

    /// Changes an entry, and forgets it if `change` says so.
    pub(super) fn change(&mut self, key: u128, change: impl FnOnce(&mut V) -> Keep) {
        let Some(slot) = self.slots.get_mut(&key) else { return };
        let before = slot.value.bytes();
        let keep = change(&mut slot.value);
        self.bytes = self.bytes - before + slot.value.bytes();
        match keep {
            Keep::Yes => self.schedule(key),
            Keep::No => self.remove(key),
        }
    }

    /// Whether the kind may have one key more; forgets expired ones if that helps.
    pub(super) fn admit(
        &mut self,
        kind: &Arc<Kind>,
        max_keys: usize,
        now: Time,
    ) -> Result<(), Refusal> {
        if self.keys_of(kind) >= max_keys {
            self.expire(now, usize::MAX);
        }
        if self.keys_of(kind) < max_keys { Ok(()) } else { Err(Refusal::TooManyKeys) }
    }

    /// Puts an entry in place; the key must be new.
    pub(super) fn insert(&mut self, key: u128, value: V) {
        *self.per_kind.entry(Arc::clone(&value.kind().name)).or_insert(0) += 1;
        self.bytes += ENTRY_BYTES + value.bytes();
        let replaced = self.slots.insert(key, Slot { value, recorded: None });
        debug_assert!(replaced.is_none(), "inserted a key that was there");
        self.schedule(key);
    }

    /// Forgets entries whose deadline has passed, at most `limit` at a time.
    /// Every record taken was put in by an insertion or a change, so this is
    /// paid for.
    pub(super) fn expire(&mut self, now: Time, limit: usize) {
        let mut removed = 0;
        while removed < limit {
            let Some(&Reverse((recorded, key))) = self.deadlines.peek() else { break };
            if recorded > now {
                break;
            }
            self.deadlines.pop();
            let Some(slot) = self.slots.get_mut(&key) else { continue };
            if slot.recorded != Some(recorded) {
                continue;
            }
            slot.recorded = None;
            match slot.value.deadline() {
                Some(deadline) if deadline <= now => {
                    self.remove(key);
                    removed += 1;
                }
                _ => self.schedule(key),
            }
        }
    }

    /// All entries, in no order that means anything.
    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.slots.values().map(|slot| &slot.value)
    }

    /// Bytes that count against the limit on state.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn keys_of(&self, kind: &Kind) -> usize {
        self.per_kind.get(&kind.name).copied().unwrap_or(0)
    }

    fn remove(&mut self, key: u128) {
        let Some(slot) = self.slots.remove(&key) else { return };
        self.bytes -= ENTRY_BYTES + slot.value.bytes();
        if let MapEntry::Occupied(mut count) =
            self.per_kind.entry(Arc::clone(&slot.value.kind().name))
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        // Give memory back when a burst of keys is over.
        if self.slots.capacity() > 64 && self.slots.len() * 8 < self.slots.capacity() {
            self.slots.shrink_to(self.slots.len() * 2);
        }
    }

    /// Makes sure a record comes up no later than the deadline.
    fn schedule(&mut self, key: u128) {
        let Some(slot) = self.slots.get_mut(&key) else { return };
        let Some(deadline) = slot.value.deadline() else { return };
        if slot.recorded.is_some_and(|recorded| recorded <= deadline) {
            return;
        }
        slot.recorded = Some(deadline);
        self.deadlines.push(Reverse((deadline, key)));
        if self.deadlines.len() > 2 * self.slots.len() + 16 {
            self.drop_stale_records();
        }
    }

    fn drop_stale_records(&mut self) {
        let slots = &self.slots;
        self.deadlines.retain(|Reverse((recorded, key))| {
            slots.get(key).is_some_and(|slot| slot.recorded == Some(*recorded))
        });
        self.deadlines.shrink_to(2 * self.deadlines.len());
    }
}

/// Whether an entry is still needed after a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    Yes,
    No,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::testing::chat;

    struct Until(Arc<Kind>, Option<u64>);

    impl Keyed for Until {
        fn kind(&self) -> &Arc<Kind> {
            &self.0
        }
        fn bytes(&self) -> usize {
            7
        }
        fn deadline(&self) -> Option<Time> {
            self.1.map(Time::from_micros)
        }
    }

    #[test]
    fn a_full_table_forgets_what_has_expired_and_only_that() {
        let kind = chat("c").event().kind;
        let mut table = Table::new();
        table.insert(1, Until(Arc::clone(&kind), Some(10)));
        table.insert(2, Until(Arc::clone(&kind), None));
        let at = Time::from_micros;
        assert_eq!(table.admit(&kind, 2, at(9)), Err(Refusal::TooManyKeys));
        assert_eq!(table.admit(&kind, 2, at(10)), Ok(()));
        assert!(table.get(1).is_none() && table.get(2).is_some());
    }

    proptest! {
        /// Deadlines move both ways, appear and vanish; keys are reused.
        #[test]
        fn exactly_the_expired_are_forgotten(
            steps in prop::collection::vec((0u128..8, prop::option::of(0u64..100), 0u64..4), 1..200)
        ) {
            let kind = chat("c").event().kind;
            let mut table = Table::new();
            let mut naive: HashMap<u128, Option<u64>> = HashMap::new();
            let mut now = 0;
            for (key, deadline, pass) in steps {
                now += pass;
                if naive.insert(key, deadline).is_some() {
                    table.change(key, |value: &mut Until| { value.1 = deadline; Keep::Yes });
                } else {
                    table.insert(key, Until(Arc::clone(&kind), deadline));
                }
                table.expire(Time::from_micros(now), usize::MAX);
                naive.retain(|_, deadline| deadline.is_none_or(|d| d > now));
                let mut left: Vec<_> = table.slots.keys().copied().collect();
                let mut expected: Vec<_> = naive.keys().copied().collect();
                left.sort_unstable();
                expected.sort_unstable();
                prop_assert_eq!(left, expected);
                prop_assert_eq!(table.keys_of(&kind), naive.len());
                prop_assert_eq!(table.bytes(), naive.len() * (ENTRY_BYTES + 7));
                prop_assert!(table.deadlines.len() <= 2 * table.slots.len() + 16);
            }
        }
    }
}
