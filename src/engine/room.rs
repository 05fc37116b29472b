//! One room: numbers what it takes, merges, buffers, and makes frames.
//!
//! Calling contract, with `now` never going backwards:
//! - [`publish`](Room::publish) and [`set_online`](Room::set_online) at any
//!   time. Neither flushes.
//! - After them, and after [`frame_out`](Room::frame_out), ask
//!   [`next_flush`](Room::next_flush) when to call [`flush`](Room::flush).
//! - Send a frame that `flush` returned, and call `frame_out` when its last
//!   viewer was served. Until then the room makes no further frame and merges
//!   what arrives: under load the interval stretches before anything is dropped.
//!
//! When a frame is due: at the next tick of the room's own grid (`schedule`);
//! at once when something important waits, when the room is so small that
//! merging saves nothing, or when enough waits to be worth a frame.
//!
//! Numbers are given on acceptance, before it is known whether the event will be
//! merged or shed: the publisher gets its answer at once, and a viewer sees from
//! the numbers of a frame how much it stands for. Frames follow each other
//! without a gap in them.
//!
//! An id is recognised for as long as the window remembers it, whatever happened
//! to its event. Two windows, for numbered and for sampled events, so that likes
//! cannot push the id of a red packet out.
//!
//! In a durable room important events go by way of the log, see `staged`.

mod asleep;
mod frame;
mod intake;
mod resume;
mod staged;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::allowance::Allowance;
use super::dedupe::Window;
use super::drops::Drops;
use super::event::{Event, Frame, Snapshot};
use super::history::History;
pub use super::history::Replay;
use super::ids::{Epoch, ImportantNo, MAX_ROOM_ID_BYTES, RoomId, Seq};
use super::kind::Lane;
use super::level::{LevelKey, Use};
use super::mark::{Fate, Fated};
use super::merge::Merges;
pub use super::outcome::{Outcome, Refusal};
use super::pending::Pending;
use super::schedule::Ticks;
use super::settings::{RoomSettings, Strain};
use super::stats::RoomStats;
use super::time::Time;
use super::visitors::Visitors;
pub use asleep::{Asleep, Restored};
pub use resume::{Position, Resumed};
pub use staged::Offered;
use staged::Staged;

/// The state of one room. The module says in which order to call it.
#[derive(Debug)]
pub struct Room {
    id: RoomId,
    epoch: Epoch,
    level_key: LevelKey,
    settings: Arc<RoomSettings>,
    strain: Strain,
    allowance: Allowance,
    ticks: Ticks,

    given: Numbers,
    /// The last important number that is safe: logged, or in need of no log.
    committed: ImportantNo,
    flushed: Numbers,
    going_out: bool,
    online: Online,
    visitors: Visitors,
    last_activity: Time,

    sequenced_ids: Window,
    sampled_ids: Window,
    merges: Merges,
    staged: Staged,
    pending: Pending,
    open: Open,
    drops: Drops,
    history: History,
    stats: RoomStats,
    /// Marked events that will be in no frame, until somebody asks.
    fates: Vec<Fated>,
}

/// The last numbers given, or covered by a frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Numbers {
    seq: Seq,
    important: ImportantNo,
}

/// The viewer count and what viewers know of it.
#[derive(Debug, Clone, Copy)]
struct Online {
    now: u32,
    sent: u32,
    /// A snapshot told somebody another count than frames told the rest: the
    /// next frame says it again, even if it is `sent` once more.
    told_apart: bool,
    /// When it began to differ from `sent`.
    changed: Time,
    /// When a frame last carried it.
    sent_at: Option<Time>,
}

/// What the next frame will stand for beside the events that wait.
#[derive(Debug, Clone, Copy, Default)]
struct Open {
    /// When the first event since the last frame was accepted, whatever became of it.
    since: Option<Time>,
    /// Events absorbed into totals, by lane.
    absorbed: [u64; 3],
    /// When the earliest of those arrived.
    absorbed_oldest: Option<Time>,
    /// When the first of those was accepted.
    absorbed_since: Option<Time>,
}

impl Online {
    fn differs(&self) -> bool {
        self.told_apart || self.now != self.sent
    }
}

impl Room {
    /// An empty room.
    #[must_use]
    pub fn new(
        id: RoomId,
        epoch: Epoch,
        level_key: LevelKey,
        settings: Arc<RoomSettings>,
        now: Time,
    ) -> Self {
        Self {
            ticks: Ticks::new(&id, level_key, settings.flush_interval),
            id,
            epoch,
            level_key,
            given: Numbers::default(),
            committed: ImportantNo::default(),
            flushed: Numbers::default(),
            going_out: false,
            online: Online { now: 0, sent: 0, told_apart: false, changed: now, sent_at: None },
            visitors: Visitors::default(),
            last_activity: now,
            sequenced_ids: Window::new(settings.dedupe_sequenced),
            sampled_ids: Window::new(settings.dedupe_sampled),
            merges: Merges::new(level_key),
            staged: Staged::default(),
            pending: Pending::default(),
            open: Open::default(),
            drops: Drops::default(),
            history: History::new(&settings),
            stats: RoomStats::default(),
            fates: Vec::new(),
            settings,
            strain: Strain::NONE,
            allowance: Allowance::FULL,
        }
    }

    /// What to do without from now on. Ask [`next_flush`](Room::next_flush) again.
    pub fn set_strain(&mut self, strain: Strain) {
        self.strain = strain;
    }

    /// Viewers that an event of `lane` makes the room send a frame to, which
    /// without it would not be sent: all, if it flushes at once and nothing
    /// that does so waits already.
    #[must_use]
    pub fn viewers_of_a_flush(&self, lane: Lane) -> u32 {
        let waits = self.going_out || self.has_open() && self.flushes_at_once();
        let at_once = lane == Lane::Important || self.online.now < self.settings.small_room_viewers;
        if at_once && !waits { self.online.now } else { 0 }
    }

    /// Numbers, merges and buffers an event; does not flush. A repetition gets
    /// the first answer's number, a refusal changes nothing.
    pub fn publish(&mut self, event: Event, now: Time) -> Outcome {
        self.last_activity = now;
        let id = self.level_key.hash128(Use::EventId, [&event.id]);
        if let Some(seq) = self.sequenced_ids.find(id).or_else(|| self.sampled_ids.find(id)) {
            self.stats.duplicates += 1;
            return Outcome::Duplicate { seq };
        }
        match self.admit(&event, now) {
            Ok(admitted) => Outcome::Accepted { seq: self.accept(event, id, admitted, now) },
            Err(refusal) => {
                self.stats.refused[refusal.index()] += 1;
                Outcome::Rejected(refusal)
            }
        }
    }

    /// The viewer count has changed.
    pub fn set_online(&mut self, viewers: u32, now: Time) {
        self.last_activity = now;
        if !self.online.differs() {
            self.online.changed = now;
        }
        self.online.now = viewers;
    }

    /// A user has come, by [`LevelKey::visitor`].
    pub fn visited(&mut self, hash: u64) {
        self.visitors.add(hash);
    }

    /// When [`flush`](Room::flush) has something to do; a time that is not in
    /// the future means at once. `None`: nothing to do, or a frame is still
    /// going out.
    #[must_use]
    pub fn next_flush(&self) -> Option<Time> {
        if self.going_out {
            return None;
        }
        let events = self.open.since.map(|since| self.events_due(since));
        match (events, self.online_due()) {
            (Some(events), Some(online)) => Some(events.min(online)),
            (events, online) => events.or(online),
        }
    }

    /// The next frame, if one is due.
    pub fn flush(&mut self, now: Time) -> Option<Frame> {
        let due = self.next_flush().is_some_and(|at| at <= now);
        due.then(|| self.make_frame(self.holds_totals(now), now))
    }

    /// The next frame, due or not, unless one is still going out or there is
    /// nothing to say: for a drain.
    pub fn flush_now(&mut self, now: Time) -> Option<Frame> {
        let something = self.has_coverable() || self.online.differs();
        (something && !self.going_out).then(|| self.make_frame(false, now))
    }

    /// The last viewer of the last frame was served.
    pub fn frame_out(&mut self, now: Time) {
        self.last_activity = now;
        self.going_out = false;
    }

    /// Whether a frame was made that is not yet out.
    #[must_use]
    pub fn is_going_out(&self) -> bool {
        self.going_out
    }

    /// Where the room stands as of its last frame. Forgets state that has expired.
    pub fn snapshot(&mut self, now: Time) -> Snapshot {
        let (state, totals) = self.merges.snapshot(now);
        self.online.told_apart |= self.online.now != self.online.sent;
        Snapshot {
            room: self.id.clone(),
            epoch: self.epoch,
            seq: self.flushed.seq,
            important: self.flushed.important,
            online: self.online.now,
            users: self.visitors.users(),
            state,
            totals,
        }
    }

    /// Sequenced events after a number, as far as they travelled by themselves.
    #[must_use]
    pub fn history_after_seq(&self, after: Seq, limit: usize) -> Replay {
        self.history.after_seq(after, self.flushed.seq, limit)
    }

    /// Important events after a number.
    #[must_use]
    pub fn history_after_important(&self, after: ImportantNo, limit: usize) -> Replay {
        self.history.after_important(after, self.flushed.important, limit)
    }

    /// What became of marked events that are in no frame, since the last call.
    pub fn take_fates(&mut self) -> Vec<Fated> {
        std::mem::take(&mut self.fates)
    }

    pub(super) fn note_fate(&mut self, event: &Event, fate: Fate) {
        if let Some(mark) = &event.mark {
            self.fates.push((Arc::clone(mark), fate));
        }
    }

    /// Counters since the room began, or since they were last taken.
    #[must_use]
    pub fn stats(&self) -> &RoomStats {
        &self.stats
    }

    /// Counters since the last call; they begin anew.
    pub fn take_stats(&mut self) -> RoomStats {
        std::mem::take(&mut self.stats)
    }

    /// Estimate of the bytes it holds. Content counts by
    /// [`Event::weight`](super::event::Event::weight); a payload that is a slice
    /// of a larger buffer keeps all of that alive, which nobody here can see.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.id.as_str().len()
            + self.sequenced_ids.memory_bytes()
            + self.sampled_ids.memory_bytes()
            + self.merges.memory_bytes()
            + self.staged.memory_bytes()
            + self.pending.memory_bytes()
            + self.drops.memory_bytes()
            + self.visitors.memory_bytes()
            + self.history.memory_bytes()
    }

    /// What [`memory_bytes`](Room::memory_bytes) never exceeds.
    #[must_use]
    pub fn memory_bound(settings: &RoomSettings) -> usize {
        size_of::<Self>()
            + MAX_ROOM_ID_BYTES
            + Window::memory_bound(settings.dedupe_sequenced)
            + Window::memory_bound(settings.dedupe_sampled)
            + Merges::memory_bound(settings)
            + Staged::memory_bound(settings.buffer_events)
            + Pending::memory_bound(settings)
            + Drops::memory_bound()
            + Visitors::memory_bound()
            + History::memory_bound(settings)
    }

    /// No viewers, nothing that waits, and nothing on its way.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.online.now == 0 && !self.has_open() && !self.going_out && self.staged.is_empty()
    }

    /// When an event was last published, the viewer count last set, or a frame last out.
    #[must_use]
    pub fn last_activity(&self) -> Time {
        self.last_activity
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &RoomId {
        &self.id
    }

    /// Its numbering.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The last number that a frame covered.
    #[must_use]
    pub fn sent_seq(&self) -> Seq {
        self.flushed.seq
    }

    /// The last important number that a frame carried.
    #[must_use]
    pub fn sent_important(&self) -> ImportantNo {
        self.flushed.important
    }

    /// The last number given.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.given.seq
    }

    /// The last important number given.
    #[must_use]
    pub fn important(&self) -> ImportantNo {
        self.given.important
    }

    /// Viewers in the room.
    #[must_use]
    pub fn online(&self) -> u32 {
        self.online.now
    }
}
