//! The bounds of what a publisher holds, and when something may give way.
//!
//! Each event has its place and its bytes from `publish` to its outcome. When none
//! are left, an event may come in nevertheless if something less important *waits*
//! (to be sent, or to be sent again): it is given a place beyond the bounds, of
//! which there are a sixteenth as many (with as many bytes), and the publisher's
//! task takes what is least important out and gives the newcomer its place. So a queue full of likes has room for a red
//! packet, as the server's own queue has.
//!
//! Tiers are those of the server's table; while there is none, nothing is known to
//! be more important than anything else, and a full queue takes nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::engine::ids::Tier;

/// Places beyond the bounds, as a share of them. They are held for one turn of the
/// task only.
const BEYOND: usize = 16;

/// Tiers by kind, as the server has them.
#[derive(Debug, Clone)]
pub(super) struct Tiers {
    pub(super) kinds: HashMap<String, Tier>,
    /// Tier of every other kind.
    pub(super) unknown: Tier,
}

impl Tiers {
    /// The kind's tier, if the kind is known.
    pub(super) fn known(&self, kind: &str) -> Option<Tier> {
        self.kinds.get(kind).copied()
    }
}

/// What one event holds of the bounds.
#[derive(Debug)]
pub(super) struct Places {
    _event: OwnedSemaphorePermit,
    bytes: OwnedSemaphorePermit,
    /// Beyond the bounds: to be exchanged for those of others.
    pub(super) beyond: bool,
}

impl Places {
    /// Bytes it has.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.num_permits()
    }

    /// One event's places of those of several that gave way: `bytes` of theirs.
    /// What is too much is free again. `None` if there is not as much.
    pub(super) fn of(several: Vec<Places>, bytes: usize) -> Option<Places> {
        let mut several = several.into_iter();
        let mut all = several.next()?;
        for places in several {
            all.bytes.merge(places.bytes);
        }
        let surplus = all.bytes().checked_sub(permits(bytes) as usize)?;
        drop(all.bytes.split(surplus));
        Some(all)
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Bounds {
    within: Pair,
    beyond: Pair,
    tiers: RwLock<Option<Arc<Tiers>>>,
    /// Events that wait, by tier.
    waiting: [AtomicU32; 64],
}

#[derive(Debug)]
struct Pair {
    events: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

impl Pair {
    fn new(events: usize, bytes: usize) -> Self {
        let semaphore = |most: usize| Arc::new(Semaphore::new(most.clamp(1, most_permits())));
        Self { events: semaphore(events), bytes: semaphore(bytes) }
    }

    fn take(&self, bytes: usize, beyond: bool) -> Option<Places> {
        let event = Arc::clone(&self.events).try_acquire_owned().ok()?;
        let bytes = Arc::clone(&self.bytes).try_acquire_many_owned(permits(bytes)).ok()?;
        Some(Places { _event: event, bytes, beyond })
    }
}

fn most_permits() -> usize {
    Semaphore::MAX_PERMITS.min(u32::MAX as usize)
}

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

impl Bounds {
    pub(super) fn new(events: usize, bytes: usize) -> Self {
        Self {
            within: Pair::new(events, bytes),
            // A large event has to fit in, whose bytes others make free.
            beyond: Pair::new(events / BEYOND, bytes),
            tiers: RwLock::new(None),
            waiting: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }

    /// Events that may be held at once, those beyond the bounds included.
    pub(super) fn most(events: usize) -> usize {
        events.clamp(1, most_permits()).saturating_add((events / BEYOND).max(1))
    }

    /// Places for an event of a kind; `None` if it has to stay outside.
    pub(super) fn take(&self, kind: &str, bytes: usize) -> Option<Places> {
        self.within.take(bytes, false).or_else(|| {
            let tier = self.tier(kind)?;
            let waits = |counts: &[AtomicU32]| counts.iter().any(|n| n.load(Ordering::Relaxed) > 0);
            let less_important = self.waiting.get(usize::from(tier.0) + 1..)?;
            waits(less_important).then(|| self.beyond.take(bytes, true)).flatten()
        })
    }

    /// What the server says of tiers, from now on.
    pub(super) fn learn(&self, tiers: Arc<Tiers>) {
        *self.tiers.write().unwrap_or_else(PoisonError::into_inner) = Some(tiers);
    }

    /// The kind's tier, if there is a table.
    pub(super) fn tier(&self, kind: &str) -> Option<Tier> {
        let tiers = self.tiers.read().unwrap_or_else(PoisonError::into_inner);
        tiers.as_ref().map(|tiers| tiers.known(kind).unwrap_or(tiers.unknown))
    }

    /// Counts an event as one that waits, and may give way.
    pub(super) fn wait(self: &Arc<Self>, tier: Tier) -> Waits {
        self.count(tier).fetch_add(1, Ordering::Relaxed);
        Waits { bounds: Arc::clone(self), tier }
    }

    fn count(&self, tier: Tier) -> &AtomicU32 {
        &self.waiting[usize::from(tier.0.min(Tier::LOWEST.0))]
    }
}

/// An event waits, for as long as this is there.
#[derive(Debug)]
pub(super) struct Waits {
    bounds: Arc<Bounds>,
    tier: Tier,
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.bounds.count(self.tier).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(events: usize, bytes: usize) -> Arc<Bounds> {
        let bounds = Arc::new(Bounds::new(events, bytes));
        let kinds = [("gift", 1), ("chat", 3)].map(|(kind, tier)| (kind.to_owned(), Tier(tier)));
        bounds.learn(Arc::new(Tiers { kinds: kinds.into(), unknown: Tier(63) }));
        bounds
    }

    #[test]
    fn only_what_is_more_important_than_something_that_waits_gets_in_beyond() {
        let bounds = bounds(1, 1_000);
        let held = bounds.take("chat", 10).expect("room");
        assert!(!held.beyond);
        assert!(bounds.take("gift", 10).is_none(), "nothing waits yet");
        let waits = bounds.wait(Tier(3));
        assert!(bounds.take("chat", 10).is_none(), "an equal one");
        assert!(bounds.take("unheard_of", 10).is_none(), "a lesser one");
        let beyond = bounds.take("gift", 10).expect("a more important one");
        assert!(beyond.beyond);
        assert!(bounds.take("gift", 10).is_none(), "there are few of these");
        drop((beyond, waits));
        assert!(bounds.take("gift", 10).is_none(), "it does not wait any more");
        drop(held);
        assert!(!bounds.take("chat", 1_000).expect("all free again").beyond);
    }

    #[test]
    fn without_a_table_nothing_is_more_important() {
        let bounds = Arc::new(Bounds::new(1, 100));
        let _held = bounds.take("like", 1).expect("room");
        let _waits = bounds.wait(Tier::LOWEST);
        assert!(bounds.take("gift", 1).is_none());
    }

    #[test]
    fn places_of_several_are_made_one_and_the_rest_is_free() {
        let bounds = bounds(10, 100);
        let take = |bytes| bounds.take("chat", bytes).expect("room");
        let one = Places::of(vec![take(40), take(50)], 70).expect("as much");
        assert_eq!((one.bytes(), bounds.within.bytes.available_permits()), (70, 30));
        assert_eq!(bounds.within.events.available_permits(), 9);
        assert!(Places::of(vec![one], 71).is_none());
        assert_eq!(bounds.within.bytes.available_permits(), 100);
        assert!(Places::of(Vec::new(), 1).is_none());
    }
}
