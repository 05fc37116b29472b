//! `latest`: of many values of a key only the newest travels and is remembered.
//!
//! Viewer counts, pinned cards, stream state: a value makes the one before it
//! worthless. While both wait, the newer overtakes the older in the buffer; once
//! flushed it is the state that joiners are given. A null payload travels like
//! any value and then clears the key.

use std::sync::Arc;

use super::super::event::{Event, Numbered};
use super::super::kind::{Kind, MergeBy};
use super::super::outcome::Refusal;
use super::super::time::Time;
use super::Limits;
use super::table::{ENTRY_BYTES, Keep, Keyed, Table};

/// One key.
#[derive(Debug)]
struct Held {
    kind: Arc<Kind>,
    /// Of `user` and `key`.
    name_bytes: usize,
    /// The newest that a frame has carried.
    flushed: Option<Arc<Numbered>>,
    /// Order of the one that waits and may be overtaken.
    pending: Option<u64>,
    /// Important ones that wait; they overtake nothing.
    important: usize,
    /// Weight of the heaviest that waits.
    pending_bytes: usize,
}

impl Held {
    fn waits(&self) -> bool {
        self.pending.is_some() || self.important > 0
    }

    fn keep(&self) -> Keep {
        if self.waits() || self.flushed.is_some() { Keep::Yes } else { Keep::No }
    }
}

impl Keyed for Held {
    fn kind(&self) -> &Arc<Kind> {
        &self.kind
    }

    /// The state's place is reserved when its event is taken, so that a flush
    /// never has to refuse it.
    fn bytes(&self) -> usize {
        let flushed = self.flushed.as_ref().map_or(0, |state| state.event.weight());
        self.name_bytes + flushed.max(self.pending_bytes)
    }

    fn deadline(&self) -> Option<Time> {
        if self.waits() { None } else { self.flushed.as_ref()?.event.expires() }
    }
}

/// The state of a room.
#[derive(Debug)]
pub(super) struct Latest {
    table: Table<Held>,
}

impl Latest {
    pub(super) fn new() -> Self {
        Self { table: Table::new() }
    }

    /// Whether [`reserve`](Self::reserve) would refuse. Forgets what has
    /// expired if that makes room.
    pub(super) fn check(
        &mut self,
        hash: u128,
        by: MergeBy,
        event: &Event,
        now: Time,
        limits: Limits,
    ) -> Result<(), Refusal> {
        let weight = event.weight();
        let fits = |table: &Table<Held>| {
            let own = table.get(hash).map_or(0, |held| ENTRY_BYTES + held.bytes());
            let grown = own.max(ENTRY_BYTES + weight + names(by, event));
            limits.fits(table.bytes() - own, grown)
        };
        if self.table.get(hash).is_none() {
            self.table.admit(&event.kind, limits.keys, now)?;
        }
        if !fits(&self.table) {
            self.table.expire(now, usize::MAX);
            if !fits(&self.table) {
                return Err(Refusal::TooManyKeys);
            }
        }
        Ok(())
    }

    /// Takes note that `event` will wait in the buffer under `order`. Returns
    /// the order of the one it overtakes, if any.
    pub(super) fn reserve(
        &mut self,
        hash: u128,
        by: MergeBy,
        event: &Event,
        order: Waiting,
        now: Time,
        limits: Limits,
    ) -> Result<Option<u64>, Refusal> {
        self.check(hash, by, event, now, limits)?;
        let weight = event.weight();
        if self.table.get(hash).is_none() {
            self.insert(hash, by, event);
        }
        let mut overtaken = None;
        self.table.change(hash, |held| {
            held.pending_bytes = held.pending_bytes.max(weight);
            match order {
                Waiting::Important => held.important += 1,
                Waiting::Replaceable(order) => overtaken = held.pending.replace(order),
            }
            Keep::Yes
        });
        Ok(overtaken)
    }

    /// A frame carries `event`: it is the state now.
    pub(super) fn carried(&mut self, hash: u128, event: &Arc<Numbered>, order: Waiting) {
        self.table.change(hash, |held| {
            held.settle(order);
            held.flushed = (!event.event.payload.is_null()).then(|| Arc::clone(event));
            held.keep()
        });
    }

    /// The event that waited was dropped: the state stays as it was.
    pub(super) fn dropped(&mut self, hash: u128, order: u64) {
        self.table.change(hash, |held| {
            held.settle(Waiting::Replaceable(order));
            held.keep()
        });
    }

    pub(super) fn expire(&mut self, now: Time, limit: usize) {
        self.table.expire(now, limit);
    }

    /// The newest of every key as of the last flush.
    pub(super) fn snapshot(&self, now: Time) -> Vec<Arc<Numbered>> {
        let mut state: Vec<Arc<Numbered>> = self
            .table
            .values()
            .filter_map(|held| held.flushed.as_ref())
            .filter(|state| state.event.expires().is_none_or(|expires| expires > now))
            .map(Arc::clone)
            .collect();
        state.sort_unstable_by(|a, b| place(&a.event).cmp(&place(&b.event)));
        state
    }

    pub(super) fn bytes(&self) -> usize {
        self.table.bytes()
    }

    fn insert(&mut self, hash: u128, by: MergeBy, event: &Event) {
        let held = Held {
            kind: Arc::clone(&event.kind),
            name_bytes: names(by, event),
            flushed: None,
            pending: None,
            important: 0,
            pending_bytes: 0,
        };
        self.table.insert(hash, held);
    }
}

impl Held {
    fn settle(&mut self, order: Waiting) {
        match order {
            Waiting::Important => self.important = self.important.saturating_sub(1),
            Waiting::Replaceable(order) if self.pending == Some(order) => self.pending = None,
            Waiting::Replaceable(_) => {}
        }
        if !self.waits() {
            self.pending_bytes = 0;
        }
    }
}

/// How an event of a `latest` kind waits in the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    /// It travels in any case.
    Important,
    /// A newer one of its key takes its place; it has this order.
    Replaceable(u64),
}

fn names(by: MergeBy, event: &Event) -> usize {
    let user = if by == MergeBy::UserKey { event.user.len() } else { 0 };
    user + event.key.as_ref().map_or(0, |key| key.len())
}

/// Position in a snapshot.
fn place(event: &Event) -> (&str, &str, &str) {
    (&event.kind.name, event.key.as_deref().unwrap_or_default(), &event.user)
}
