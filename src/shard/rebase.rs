//! What slow viewers ask of their rooms' homes, and what they make of the
//! answers: the newest totals or the whole state for a viewer that was not sent
//! some of it, and the state with the important events it is owed for one that
//! skipped ahead.
//!
//! A viewer stays a member of its room meanwhile: the room's count of viewers
//! does not flicker, and every frame that it is not sent is booked as lost.
//!
//! An answer covers every frame that reached this shard before it, and none
//! after: the mailbox keeps order, and a home makes no frame before the last is
//! out. So it is applied when the frame on its way here is out, and before the
//! home hears of that. Nothing is then missed or comes twice, as in a join.
//!
//! After a stall that thousands of viewers share all of them are answered between
//! the same two frames, and each answer is written at once. While that was done in one
//! go, a turn of the fan-out under a storm of joins took 310 ms (measured), for which
//! every other room of the shard waited. So answers are given in slices, and a room's
//! next frame waits for its own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Shard;
use super::connection::ViewerKey;
use super::peers::{Asker, Message, Path as _, Placement as _};
use super::room::BACKLOGGED;
use super::stats::ShardStats;
use crate::engine::delivery::owed::Owed;
use crate::engine::delivery::{Ask, Delivery, Wanted};
use crate::engine::ids::ImportantNo;
use crate::engine::room::Replay;
use crate::engine::time::Time;
use crate::wire::Format;
use crate::wire::close::CloseReason;
use crate::wire::shared::{SharedFrame, SharedSnapshot, ViewerFrame};

/// Viewers answered before another room has its turn, and between two looks at the
/// clock.
const TURN: usize = 8;

/// Where a room stands, for one slow viewer.
#[derive(Debug)]
pub struct Located {
    /// Who asked.
    pub viewer: ViewerKey,
    /// What.
    pub ask: Ask,
    /// As of the last frame.
    pub snapshot: Arc<SharedSnapshot>,
    /// Important events from `ask.from` on, if it asked for any.
    pub owed: Option<Replay>,
}

/// A room's answers that were not yet given.
#[derive(Debug, Default)]
pub struct Answers {
    /// Those that cover the frame on its way: when it is out.
    parked: Vec<Located>,
    /// Those whose time has come; the next frame waits for them.
    due: VecDeque<Located>,
    /// A frame is out, and the home has not heard of it.
    unsaid: bool,
}

impl Answers {
    /// Whether there are none, and nothing is to be said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parked.is_empty() && self.due.is_empty() && !self.unsaid
    }

    /// Whether the next frame has to wait.
    #[must_use]
    pub fn are_due(&self) -> bool {
        !self.due.is_empty()
    }
}

/// Rooms with answers that are due, and the last debt that was written down.
#[derive(Debug, Default)]
pub struct Rebases {
    rooms: VecDeque<u32>,
    last: Option<Piece>,
    /// Frames with followed events that were given since they were last noted.
    pub(super) marked: Vec<Arc<SharedFrame>>,
}

/// A piece of what is owed from one number on. After a stall that many viewers
/// share it is the same for all of them.
#[derive(Debug)]
struct Piece {
    snapshot: Arc<SharedSnapshot>,
    from: ImportantNo,
    bytes: usize,
    owed: Owed,
    frame: Option<Arc<SharedFrame>>,
}

impl Rebases {
    fn piece(&mut self, position: &Located, from: ImportantNo, bytes: usize, now: Time) -> &Piece {
        let same = |last: &Piece| {
            Arc::ptr_eq(&last.snapshot, &position.snapshot)
                && (last.from, last.bytes) == (from, bytes)
        };
        let last = self.last.take().filter(same);
        self.last.insert(last.unwrap_or_else(|| Piece::new(position, from, bytes, now)))
    }

    /// Gives a slow viewer what it asked for. `bytes`: of owed events at once.
    pub fn apply(
        &mut self,
        position: &Located,
        delivery: &mut Delivery<ViewerFrame>,
        format: Format,
        bytes: usize,
        stats: &mut ShardStats,
        now: Time,
    ) {
        let Located { ask, snapshot, .. } = position;
        let room = &ask.room;
        let owed_from = match delivery.wanted(room, ask.serial, ask.from) {
            Wanted::Nothing => return,
            Wanted::Totals => {
                let totals = snapshot.totals(format, now).clone();
                return delivery.retotalled(room, totals, &mut stats.delivery, now);
            }
            Wanted::State => {
                let state = (snapshot.snapshot().seq, snapshot.rebased(format).clone());
                return delivery.refreshed(room, state, &mut stats.delivery, now);
            }
            Wanted::Rebase(from) => from,
        };
        let nothing = Owed { events: Vec::new(), gone: 0, rest: None };
        let mut marked = std::mem::take(&mut self.marked);
        let (owed, frame) = match owed_from {
            Some(from) => {
                let piece = self.piece(position, from, bytes, now);
                marked.extend(piece.frame.clone().filter(|frame| frame.is_marked()));
                (&piece.owed, piece.frame.clone().map(|frame| ViewerFrame { frame, format }))
            }
            None => (&nothing, None),
        };
        let last_piece = owed.rest.is_none();
        let joined = if last_piece { snapshot.rebased(format).clone() } else { Bytes::new() };
        let state = (snapshot.snapshot().seq, joined);
        delivery.rebased(room, owed, frame, state, &format, &mut stats.delivery, now);
        self.marked = marked;
    }
}

impl Piece {
    fn new(position: &Located, from: ImportantNo, bytes: usize, now: Time) -> Self {
        let snapshot = Arc::clone(&position.snapshot);
        let (events, more) =
            position.owed.as_ref().map_or((Vec::new(), false), |r| (r.events.clone(), r.more));
        let last = snapshot.snapshot().important;
        let owed = Owed::within(events, from, last, more, bytes);
        let frame = owed.frame(snapshot.snapshot(), now);
        let frame = frame.map(|frame| Arc::new(SharedFrame::new(frame, snapshot.compression())));
        Self { snapshot, from, bytes, owed, frame }
    }
}

impl Shard {
    /// A home's answer.
    pub(super) fn located(&mut self, position: Located) {
        let Some(&index) = self.by_name.get(&position.ask.room) else { return };
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        let answers = &mut room.answers;
        if room.job.is_some() || !room.queue.is_empty() {
            answers.parked.push(position);
        } else {
            if !answers.are_due() {
                self.rebases.rooms.push_back(index);
            }
            answers.due.push_back(position);
        }
    }

    /// The frame of a room is out. Its home hears of it once the answers that cover it
    /// are given.
    pub(super) fn frame_is_out(&mut self, index: u32, now: Time) {
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        let answers = &mut room.answers;
        debug_assert!(!answers.are_due(), "the frame would have waited for them");
        answers.unsaid = true;
        answers.due.extend(std::mem::take(&mut answers.parked));
        if answers.are_due() {
            self.rebases.rooms.push_back(index);
        } else {
            self.frames_go_on(index, now);
        }
    }

    /// Whether any answers are due.
    pub(super) fn has_answers(&self) -> bool {
        !self.rebases.rooms.is_empty()
    }

    /// Gives answers that are due, for about `slice`, to some viewers of each room in
    /// turn; a room that is done with its own goes on with its frames.
    pub(super) fn give_answers(&mut self, slice: Duration) {
        let begun = self.clock.now();
        let mut now = begun;
        while now.since(begun) < slice
            && let Some(index) = self.rebases.rooms.pop_front()
        {
            for _ in 0..TURN {
                let room = self.rooms[index as usize].as_mut();
                let Some(position) = room.and_then(|room| room.answers.due.pop_front()) else {
                    break;
                };
                self.viewers.answer(&position, &mut self.rebases, &mut self.stats, now);
                self.trace_rebased();
            }
            now = self.clock.now();
            let Some(room) = self.rooms[index as usize].as_mut() else { continue };
            if room.answers.are_due() {
                self.rebases.rooms.push_back(index);
            } else {
                // A stall's memory is given back.
                room.answers.due = VecDeque::new();
                self.frames_go_on(index, now);
            }
        }
    }

    /// Between two frames of a room nothing is to be said any more: its home hears that
    /// the last is out, and the next begins to go out.
    fn frames_go_on(&mut self, index: u32, now: Time) {
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        let id = room.id.clone();
        let unsaid = std::mem::take(&mut room.answers.unsaid);
        if room.job.is_some() || room.begin_job(now) {
            self.fanout.enqueue(index);
            self.expect_receipts(index);
        }
        if unsaid {
            self.send_home(&id, Message::FrameOut { room: id.clone() });
        }
        self.drop_if_idle(index);
    }

    /// Sends the questions of slow viewers, and notes when to look at them again.
    pub(super) fn attend_slow(&mut self, now: Time) {
        while let Some(index) = self.viewers.attention.pop() {
            let Some(key) = self.viewers.key_of(index).filter(|key| self.viewers.is_open(*key))
            else {
                continue;
            };
            while let Some(ask) = self.viewers.poll_ask(index, now) {
                let format = self.viewers.row(index).format;
                let viewer = Asker { shard: self.id, viewer: key, format };
                self.peers.send(self.peers.home_of(&ask.room), Message::Locate { viewer, ask });
            }
            self.schedule_slow(key, now);
        }
    }

    /// Tells a viewer's rooms that it is slow, or is not any more.
    pub(super) fn mark_backlog(&mut self, index: u32, now: Time) {
        let Some(key) = self.viewers.key_of(index) else { return };
        let backlogged = self.viewers.has_backlog(index);
        for membership in &self.viewers.row(index).memberships {
            let Some(room) = self.rooms[membership.room as usize].as_mut() else { continue };
            if let Some(member) = room.members.get_mut(membership.member as usize) {
                if backlogged {
                    member.marks |= BACKLOGGED;
                } else {
                    member.marks &= !BACKLOGGED;
                }
            }
        }
        self.schedule_slow(key, now);
    }

    /// Time has come to look at a viewer, which may be slow. Returns whether it
    /// stays.
    pub(super) fn check_slow(&mut self, key: ViewerKey, now: Time) -> bool {
        if !self.viewers.tick(key.index, &mut self.stats, now) {
            self.viewers.end(key, CloseReason::Slow);
            return false;
        }
        self.schedule_slow(key, now);
        true
    }

    fn schedule_slow(&mut self, key: ViewerKey, now: Time) {
        if let Some(deadline) = self.viewers.deadline(key.index) {
            self.schedule(key, deadline.since(now));
        }
    }
}
