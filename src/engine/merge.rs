//! How many events become few before they are multiplied by the viewers.
//!
//! [`Merges`] holds what the rules of [`Merge`] need to know between events:
//! running totals for `sum`, the newest value per key for `latest`, the best of
//! this flush for `sample(n)`. `append` needs nothing. It decides and the room
//! acts: events themselves wait in the room's buffer, except those of a `sum`,
//! of which nothing is left to wait.
//!
//! The important lane is never merged away. There a `sum` event adds to its
//! total and still travels by itself, and a `latest` event becomes the state and
//! overtakes nobody.
//!
//! A key is named by a keyed 128-bit hash of kind, user and key (see
//! [`LevelKey`]): finding it costs one short hash and no comparison of strings.
//!
//! All of it is bounded, per kind by `max_keys` and together by `state_bytes`.
//! At a bound a new key is refused unless an expired one can go: to forget a
//! live total instead would make a combo start again before the viewer's eyes.

mod latest;
mod sample;
mod table;
mod totals;

use std::sync::Arc;

use super::event::{Event, Numbered, Total};
use super::kind::{Lane, Merge, MergeBy};
use super::level::{LevelKey, Rank, Use};
use super::outcome::Refusal;
use super::settings::RoomSettings;
use super::time::Time;
use latest::{Latest, Waiting};
use sample::Samples;
pub(super) use sample::Verdict;
use totals::Totals;

/// Expired keys forgotten per flush, so that the end of a thousand combos at
/// once does not hold up one flush; the rest go with the next.
const EXPIRED_PER_FLUSH: usize = 256;

/// What the room has to do with an event that the merge rules have admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admitted {
    /// It has become part of a total; nothing is left to keep.
    Absorbed,
    /// Keep it until the flush.
    Keep,
    /// Keep it in place of the one with this order.
    Overtakes(u64),
}

/// Bounds on what one table may hold.
#[derive(Debug, Clone, Copy)]
struct Limits {
    keys: usize,
    bytes: usize,
}

impl Limits {
    fn fits(self, held: usize, more: usize) -> bool {
        held.saturating_add(more) <= self.bytes
    }
}

/// The merge state of one room.
#[derive(Debug)]
pub(super) struct Merges {
    key: LevelKey,
    totals: Totals,
    latest: Latest,
    samples: Samples,
}

impl Merges {
    pub(super) fn new(key: LevelKey) -> Self {
        Self { key, totals: Totals::new(), latest: Latest::new(), samples: Samples::default() }
    }

    /// Applies the rule of an event that is about to be numbered and, unless
    /// absorbed, kept under `order`. Changes nothing when it refuses.
    pub(super) fn admit(
        &mut self,
        event: &Event,
        order: u64,
        now: Time,
        settings: &RoomSettings,
    ) -> Result<Admitted, Refusal> {
        let important = event.kind.lane == Lane::Important;
        match event.kind.merge {
            Merge::Append | Merge::Sample(_) => Ok(Admitted::Keep),
            Merge::Sum(by) => {
                let hash = self.name(event, by, Use::SumByKey, Use::SumByUserKey);
                let limits = self.limits(settings, self.latest.bytes());
                self.totals.add(hash, by, event, now, limits)?;
                Ok(if important { Admitted::Keep } else { Admitted::Absorbed })
            }
            Merge::Latest(by) => {
                let hash = self.name_latest(event, by);
                let limits = self.limits(settings, self.totals.bytes());
                let overtaken =
                    self.latest.reserve(hash, by, event, waiting(event, order), now, limits)?;
                Ok(overtaken.map_or(Admitted::Keep, Admitted::Overtakes))
            }
        }
    }

    /// Whether [`admit`](Self::admit) would refuse an important event now.
    pub(super) fn check(
        &mut self,
        event: &Event,
        now: Time,
        settings: &RoomSettings,
    ) -> Result<(), Refusal> {
        match event.kind.merge {
            Merge::Append | Merge::Sample(_) => Ok(()),
            Merge::Sum(by) => {
                let hash = self.name(event, by, Use::SumByKey, Use::SumByUserKey);
                let limits = self.limits(settings, self.latest.bytes());
                self.totals.check(hash, by, event, now, limits)
            }
            Merge::Latest(by) => {
                let hash = self.name_latest(event, by);
                let limits = self.limits(settings, self.totals.bytes());
                self.latest.check(hash, by, event, now, limits)
            }
        }
    }

    /// Whether an event of a `sample(n)` kind is among the best so far.
    pub(super) fn sample(&mut self, event: &Event, n: usize, rank: Rank) -> Verdict {
        self.samples.offer(&event.kind, n, rank)
    }

    /// A kept event travels.
    pub(super) fn carried(&mut self, event: &Arc<Numbered>, order: u64) {
        if let Merge::Latest(by) = event.event.kind.merge {
            let hash = self.name_latest(&event.event, by);
            self.latest.carried(hash, event, waiting(&event.event, order));
        }
    }

    /// A kept event was dropped.
    pub(super) fn dropped(&mut self, event: &Event, rank: Rank) {
        match event.kind.merge {
            Merge::Latest(by) => {
                let hash = self.name_latest(event, by);
                self.latest.dropped(hash, rank.order);
            }
            Merge::Sample(_) => self.samples.forget(&event.kind, rank),
            Merge::Append | Merge::Sum(_) => {}
        }
    }

    /// The buffer was emptied: what is sampled from now on belongs to the next flush.
    pub(super) fn close_samples(&mut self) {
        self.samples.clear();
    }

    /// After every kept event was carried or dropped: the totals that changed.
    pub(super) fn flush(&mut self, now: Time) -> Vec<Total> {
        self.latest.expire(now, EXPIRED_PER_FLUSH);
        self.totals.flush(now)
    }

    /// State and totals as of the last flush, without what has expired.
    pub(super) fn snapshot(&mut self, now: Time) -> (Vec<Arc<Numbered>>, Vec<Total>) {
        self.latest.expire(now, usize::MAX);
        self.totals.expire(now, usize::MAX);
        (self.latest.snapshot(now), self.totals.snapshot())
    }

    /// Keys whose total changed since the last flush.
    pub(super) fn pending_totals(&self) -> usize {
        self.totals.pending_keys()
    }

    /// Bytes held; samples only point into the buffer and are counted there.
    pub(super) fn memory_bytes(&self) -> usize {
        self.totals.bytes() + self.latest.bytes() + self.totals.spare_bytes()
    }

    /// Bytes held at most. A list of pending keys is at most twice (by how a
    /// vector grows) as long as there are entries.
    pub(super) fn memory_bound(settings: &RoomSettings) -> usize {
        let entries = settings.state_bytes / table::ENTRY_BYTES;
        settings.state_bytes + (2 * entries + 4) * size_of::<u128>()
    }

    fn limits(&self, settings: &RoomSettings, others: usize) -> Limits {
        Limits { keys: settings.max_keys, bytes: settings.state_bytes.saturating_sub(others) }
    }

    fn name_latest(&self, event: &Event, by: MergeBy) -> u128 {
        self.name(event, by, Use::LatestByKey, Use::LatestByUserKey)
    }

    fn name(&self, event: &Event, by: MergeBy, by_key: Use, by_user_key: Use) -> u128 {
        let (kind, key) = (&*event.kind.name, event.key.as_deref().unwrap_or_default());
        match by {
            MergeBy::Key => self.key.hash128(by_key, [kind, key]),
            MergeBy::UserKey => self.key.hash128(by_user_key, [kind, key, &event.user]),
        }
    }
}

fn waiting(event: &Event, order: u64) -> Waiting {
    if event.kind.lane == Lane::Important {
        Waiting::Important
    } else {
        Waiting::Replaceable(order)
    }
}
