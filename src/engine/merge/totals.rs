//! `sum`: many amounts become one total per key.
//!
//! Likes and gift combos arrive by the hundred thousand and mean only their
//! sum. The frame carries the running sum beside the delta, so that a viewer
//! who missed a frame is right again at the next one and needs no replay.
//! Amounts are whole numbers and every step is checked: |sum| and |delta| stay
//! below 2^53, where a JSON reader with doubles is exact.

use std::sync::Arc;

use super::super::event::{Event, Total};
use super::super::kind::{Kind, MergeBy};
use super::super::outcome::Refusal;
use super::super::time::Time;
use super::Limits;
use super::table::{Keep, Keyed, Table};

/// Magnitude that no sum and no delta reaches.
pub(super) const AMOUNT_LIMIT: i64 = 1 << 53;

/// One running total.
#[derive(Debug)]
struct Running {
    kind: Arc<Kind>,
    user: Option<Arc<str>>,
    key: Arc<str>,
    /// Pending delta included.
    sum: i64,
    delta: i64,
    /// Something is pending, even if it adds up to 0.
    pending: bool,
    /// A frame has carried it.
    known: bool,
    last_event: Time,
}

impl Running {
    fn is_over(&self, now: Time) -> bool {
        self.deadline().is_some_and(|deadline| deadline <= now)
    }
}

impl Keyed for Running {
    fn kind(&self) -> &Arc<Kind> {
        &self.kind
    }

    fn bytes(&self) -> usize {
        self.key.len() + self.user.as_ref().map_or(0, |user| user.len())
    }

    fn deadline(&self) -> Option<Time> {
        if self.pending { None } else { Some(self.last_event + self.kind.idle_reset?) }
    }
}

/// All totals of a room.
#[derive(Debug)]
pub(super) struct Totals {
    table: Table<Running>,
    /// Keys with something pending, in order of their first event.
    pending: Vec<u128>,
}

impl Totals {
    pub(super) fn new() -> Self {
        Self { table: Table::new(), pending: Vec::new() }
    }

    /// Whether [`add`](Self::add) would refuse.
    pub(super) fn check(
        &mut self,
        hash: u128,
        by: MergeBy,
        event: &Event,
        now: Time,
        limits: Limits,
    ) -> Result<(), Refusal> {
        let amount = event.amount.unwrap_or(1);
        match self.table.get(hash) {
            None => {
                within_limit(amount)?;
                self.admit(by, event, now, limits)
            }
            Some(total) if total.is_over(now) => within_limit(amount).map(drop),
            Some(total) => {
                within_limit(total.sum.saturating_add(amount))?;
                within_limit(total.delta.saturating_add(amount)).map(drop)
            }
        }
    }

    /// Adds an event's amount to its key, or changes nothing.
    pub(super) fn add(
        &mut self,
        hash: u128,
        by: MergeBy,
        event: &Event,
        now: Time,
        limits: Limits,
    ) -> Result<(), Refusal> {
        let amount = event.amount.unwrap_or(1);
        let Some(total) = self.table.get_mut(hash) else {
            within_limit(amount)?;
            self.admit(by, event, now, limits)?;
            self.insert(hash, by, event, amount, now);
            return Ok(());
        };
        if total.is_over(now) {
            within_limit(amount)?;
            (total.sum, total.known) = (0, false);
        }
        let sum = within_limit(total.sum.saturating_add(amount))?;
        let delta = within_limit(total.delta.saturating_add(amount))?;
        (total.sum, total.delta, total.last_event) = (sum, delta, now);
        if !Arc::ptr_eq(&total.kind, &event.kind) {
            total.kind = Arc::clone(&event.kind);
        }
        if !total.pending {
            total.pending = true;
            self.pending.push(hash);
        }
        Ok(())
    }

    /// The totals that changed, in order of their first pending event.
    pub(super) fn flush(&mut self, now: Time) -> Vec<Total> {
        let mut changed = Vec::with_capacity(self.pending.len());
        for &hash in &self.pending {
            self.table.change(hash, |total| {
                changed.push(Total {
                    kind: Arc::clone(&total.kind),
                    user: total.user.clone(),
                    key: Arc::clone(&total.key),
                    sum: total.sum,
                    delta: total.delta,
                });
                (total.delta, total.pending, total.known) = (0, false, true);
                Keep::Yes
            });
        }
        self.pending.shrink_to(2 * self.pending.len());
        self.pending.clear();
        self.expire(now, super::EXPIRED_PER_FLUSH);
        changed
    }

    pub(super) fn expire(&mut self, now: Time, limit: usize) {
        self.table.expire(now, limit);
    }

    /// Totals as of the last flush.
    pub(super) fn snapshot(&self) -> Vec<Total> {
        let mut totals: Vec<Total> = self
            .table
            .values()
            .filter(|total| total.known)
            .map(|total| Total {
                kind: Arc::clone(&total.kind),
                user: total.user.clone(),
                key: Arc::clone(&total.key),
                sum: total.sum - total.delta,
                delta: 0,
            })
            .collect();
        totals.sort_unstable_by(|a, b| {
            (&a.kind.name, &a.user, &a.key).cmp(&(&b.kind.name, &b.user, &b.key))
        });
        totals
    }

    pub(super) fn pending_keys(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.table.bytes()
    }

    /// Bytes held beside what [`Totals::bytes`] counts.
    pub(super) fn spare_bytes(&self) -> usize {
        self.pending.capacity() * size_of::<u128>()
    }

    fn admit(
        &mut self,
        by: MergeBy,
        event: &Event,
        now: Time,
        limits: Limits,
    ) -> Result<(), Refusal> {
        self.table.admit(&event.kind, limits.keys, now)?;
        let user = if by == MergeBy::UserKey { event.user.len() } else { 0 };
        let cost = super::table::ENTRY_BYTES + event.key.as_ref().map_or(0, |k| k.len()) + user;
        if limits.fits(self.bytes(), cost) {
            return Ok(());
        }
        self.expire(now, usize::MAX);
        if limits.fits(self.bytes(), cost) { Ok(()) } else { Err(Refusal::TooManyKeys) }
    }

    fn insert(&mut self, hash: u128, by: MergeBy, event: &Event, amount: i64, now: Time) {
        let total = Running {
            kind: Arc::clone(&event.kind),
            user: (by == MergeBy::UserKey).then(|| Arc::clone(&event.user)),
            key: event.key.clone().unwrap_or_default(),
            sum: amount,
            delta: amount,
            pending: true,
            known: false,
            last_event: now,
        };
        self.table.insert(hash, total);
        self.pending.push(hash);
    }
}

fn within_limit(amount: i64) -> Result<i64, Refusal> {
    if -AMOUNT_LIMIT < amount && amount < AMOUNT_LIMIT {
        Ok(amount)
    } else {
        Err(Refusal::AmountOverflow)
    }
}
