//! What viewers ask of their shard, and what time asks of viewers.
//!
//! A join waits for a snapshot from the room's home, which comes through the
//! same ordered channel as the room's frames: every frame after it is for the
//! new member, none before it is, so nothing is missed and nothing comes twice.

use std::sync::Arc;
use std::time::Duration;

use super::Shard;
use super::connection::{Membership, Speaker, ViewerKey, WAITING};
use super::peers::{Entrance, Message, Origin, Path as _, Placement as _};
use super::receipts::ack_slot;
use super::room::{LocalRoom, Waiting};
use super::stats::{JOIN_RESULTS, RESUME_RESULTS, count};
use crate::engine::delivery::Cut;
use crate::engine::event::Event;
use crate::engine::ids::{ImportantNo, RoomId};
use crate::engine::outcome::RETRY_AFTER_MS;
use crate::engine::room::Position;
use crate::engine::time::Time;
use crate::trace::Again;
use crate::wire::close::CloseReason;
use crate::wire::message::ServerMessage;

/// Newcomers let into a room between two looks at the clock.
const ENTER: usize = 4;

/// Places kept for viewers whose time has come, when there are none.
const KEPT: usize = 64;

/// Newcomers enter rooms in slices, one in each round of the worker. While 15,000 came
/// under load a step of all who waited took 21 ms, one of 64 of them 4 ms, twice in a
/// round, and other rooms waited for it (measured).
#[derive(Debug, Default)]
pub(super) struct Entering {
    /// Of this round's slice, what is left.
    left: Duration,
    /// Rooms, and positions, with more who wait: asked again in the next round.
    again: Vec<(u32, Option<Position>)>,
}

/// Who joins, and from where.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Who.
    pub user: &'a Arc<str>,
    /// How it may speak.
    pub speaker: Speaker,
    /// Where it left off.
    pub resume: Option<Position>,
    /// It acknowledges important events as told.
    pub acks: bool,
}

/// Why a viewer cannot join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinError {
    /// It is in the room, or about to be.
    AlreadyJoined,
    /// It is in as many rooms as it may be.
    TooManyRooms,
    /// It joined another room as somebody else.
    OtherUser,
    /// The shard is overloaded and lets nobody in.
    Overloaded {
        /// When to try again.
        retry_after: Duration,
    },
}

impl JoinError {
    /// Code on the wire.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            JoinError::AlreadyJoined => "already_joined",
            JoinError::TooManyRooms => "too_many_rooms",
            JoinError::OtherUser => "other_user",
            JoinError::Overloaded { .. } => "overloaded",
        }
    }

    /// For people.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            JoinError::AlreadyJoined => "this connection is in the room already",
            JoinError::TooManyRooms => "this connection is in as many rooms as it may be",
            JoinError::OtherUser => "this connection joined another room as another user",
            JoinError::Overloaded { .. } => "the server lets nobody in at the moment",
        }
    }

    /// When another try may succeed.
    #[must_use]
    pub const fn retry_after(self) -> Option<Duration> {
        match self {
            JoinError::Overloaded { retry_after } => Some(retry_after),
            _ => None,
        }
    }

    /// Name in [`JOIN_RESULTS`].
    pub(super) const fn counter(self) -> &'static str {
        match self {
            JoinError::OtherUser => "refused",
            other => other.code(),
        }
    }
}

/// What one message takes off a viewer's allowance, which is in thousandths.
pub(super) const MESSAGE_TOKENS: i32 = 1_000;

/// Whether a viewer may say something now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speech {
    /// Yes.
    Granted,
    /// Not now; again after this long.
    TooFast(Duration),
    /// It was told and went on: it is being closed.
    Closed,
}

impl Shard {
    /// Counts one message of a viewer against its allowance. Below the
    /// allowance it is heard, within one more burst it is refused, and past
    /// that the connection is closed.
    pub fn hear(&mut self, key: ViewerKey) -> Speech {
        let now = self.clock.now();
        let (second, millis) = (self.viewers.second(now), self.viewers.millis(now));
        let rate = self.settings.messages_per_second;
        let burst = i32::try_from(self.settings.message_burst.saturating_mul(1_000));
        let burst = burst.unwrap_or(i32::MAX / 2);
        let Some(row) = self.viewers.get(key) else { return Speech::Closed };
        row.last_heard = second;
        row.awaiting_pong = false;
        let refill = u64::from(millis.wrapping_sub(row.refilled)) * u64::from(rate);
        let refill = i32::try_from(refill).unwrap_or(i32::MAX / 2);
        row.tokens = row.tokens.saturating_add(refill).min(burst) - MESSAGE_TOKENS;
        row.refilled = millis;
        if row.tokens >= 0 {
            return Speech::Granted;
        }
        if row.tokens < -burst {
            self.viewers.end(key, CloseReason::TooManyMessages);
            return Speech::Closed;
        }
        let millis = u64::from(row.tokens.unsigned_abs()).div_ceil(u64::from(rate.max(1)));
        Speech::TooFast(Duration::from_millis(millis))
    }

    /// A viewer joins a room; `joined` follows when the snapshot is there, and
    /// under overload when the line has moved on, or a refusal.
    ///
    /// # Errors
    /// [`JoinError`]; nothing has changed then.
    pub fn join(&mut self, key: ViewerKey, room: &RoomId, how: Entry<'_>) -> Result<(), JoinError> {
        // Nobody overtakes those in line.
        if self.homes.intake.ladder().holds_joins() || self.held.len() > 0 {
            let now = self.clock.now();
            return self.hold_join(key, room, how, now);
        }
        self.enter(key, room, how)
    }

    pub(super) fn enter(
        &mut self,
        key: ViewerKey,
        room: &RoomId,
        how: Entry<'_>,
    ) -> Result<(), JoinError> {
        let Entry { user, speaker, resume, acks } = how;
        let most = self.settings.max_rooms_per_connection;
        let index = self.by_name.get(room).copied();
        let Some(row) = self.viewers.get(key) else { return Ok(()) };
        if row.memberships.iter().any(|m| Some(m.room) == index) {
            return Err(JoinError::AlreadyJoined);
        }
        if row.memberships.len() >= most {
            return Err(JoinError::TooManyRooms);
        }
        if row.memberships.is_empty() {
            row.user = Some(Arc::clone(user));
        } else if row.user.as_ref() != Some(user) {
            return Err(JoinError::OtherUser);
        }
        let format = row.format;
        let index = index.unwrap_or_else(|| self.open_room(room));
        let membership = Membership { room: index, member: WAITING, speaker };
        self.viewers.row_mut(key.index).memberships.push(membership);
        let Some(room) = self.rooms[index as usize].as_mut() else { return Ok(()) };
        room.waiting.push(Waiting { key, resume, acks });
        // One request serves all who come from a position before its answer.
        let formats = 1 << format.index();
        if !room.asked.contains(&resume) {
            room.asked.push(resume);
            let (room_id, shard) = (room.id.clone(), self.id);
            let subscribe = Message::Subscribe { room: room_id, shard, formats, resume };
            self.peers.send(room.home, subscribe);
        }
        Ok(())
    }

    /// A viewer leaves a room. Returns whether it was in it, or in line for it.
    pub fn leave(&mut self, key: ViewerKey, room: &RoomId) -> bool {
        // Also when it is in the room: it may have asked for it again.
        let waited = self.held.withdraw(key, room);
        let second = self.viewers.second(self.clock.now());
        let Some(row) = self.viewers.get(key) else { return waited };
        if waited {
            row.idle_since = second;
        }
        let Some(&index) = self.by_name.get(room) else { return waited };
        let Some(place) = row.memberships.iter().position(|m| m.room == index) else {
            return waited;
        };
        let membership = row.memberships.remove(place);
        let alone = row.memberships.is_empty();
        row.idle_since = second;
        self.leave_room(key, membership, true);
        if alone {
            self.schedule(key, self.settings.join_timeout);
        }
        true
    }

    /// A viewer's place in a room: `None` if it is not in it, otherwise who it is
    /// and how it may speak.
    pub fn speaker_in(&mut self, key: ViewerKey, room: &RoomId) -> Option<(Arc<str>, Speaker)> {
        let index = *self.by_name.get(room)?;
        let row = self.viewers.get(key)?;
        let membership = row.memberships.iter().find(|m| m.room == index)?;
        let speaker = membership.speaker;
        row.user.clone().map(|user| (user, speaker))
    }

    /// A viewer's own event goes to its room; the outcome comes back to it.
    /// Returns false when the home's mailbox is full.
    pub fn publish(&mut self, key: ViewerKey, room: RoomId, event: Event) -> bool {
        let Some(asker) = self.asker(key) else { return true };
        self.peers.publish(room, vec![event], Duration::ZERO, Origin::Viewer(asker)).is_ok()
    }

    /// A viewer wants important events again.
    pub fn pull(&mut self, key: ViewerKey, room: &RoomId, from: ImportantNo, to: ImportantNo) {
        let Some(viewer) = self.asker(key) else { return };
        let pull = Message::Pull { room: room.clone(), from, to, viewer };
        self.peers.send(self.peers.home_of(room), pull);
    }

    /// Wakes a viewer's checks after `delay` at the latest.
    pub(super) fn schedule(&mut self, key: ViewerKey, delay: Duration) {
        let now = self.clock.now();
        // Rounded up: a check must not come before its time and do nothing.
        let second = self.viewers.second(now + delay) + 1;
        let Some(row) = self.viewers.get(key) else { return };
        if row.due != 0 && row.due <= second {
            return;
        }
        row.due = self.wheel.insert(key, second);
    }

    /// Looks at viewers whose time has come, for half of a slice: those who came in the
    /// same second are due in the same second, and many thousands at once would hold up
    /// everybody else.
    pub(super) fn check_viewers(&mut self, now: Time) {
        let until = now + self.settings.slice / 2;
        let mut now = now;
        while now < until
            && let Some((key, due)) = self.fired.pop_front()
        {
            self.check_viewer(key, due, now);
            now = self.clock.now();
        }
        if self.fired.is_empty() {
            self.fired.shrink_to(KEPT);
        }
    }

    /// A viewer's entry in the wheel has come up.
    fn check_viewer(&mut self, key: ViewerKey, due: u32, now: Time) {
        let Some(row) = self.viewers.get(key) else { return };
        if row.due != due {
            return; // A stale entry; an earlier one took over.
        }
        row.due = 0;
        if !row.is_open() {
            return self.release(key); // It has lingered long enough.
        }
        if !self.check_slow(key, now) {
            return;
        }
        self.check_silence(key, now);
    }

    fn check_silence(&mut self, key: ViewerKey, now: Time) {
        let second = self.viewers.second(now);
        let seconds = |duration: Duration| duration.as_secs_f64().ceil() as u32;
        let (interval, timeout) =
            (seconds(self.settings.ping_interval), seconds(self.settings.pong_timeout));
        let join_timeout = seconds(self.settings.join_timeout);
        let row = self.viewers.row(key.index);
        if row.memberships.is_empty() {
            let left = (row.idle_since + join_timeout).saturating_sub(second);
            if left == 0 {
                return self.viewers.end(key, CloseReason::JoinTimeout);
            }
            return self.schedule(key, Duration::from_secs(u64::from(left)));
        }
        if row.awaiting_pong && second >= row.last_sent + timeout {
            return self.viewers.end(key, CloseReason::PongTimeout);
        }
        let frames = row.memberships.iter().filter_map(|m| self.rooms[m.room as usize].as_ref());
        let last = frames.map(|room| room.last_frame).fold(row.last_sent, u32::max);
        if second >= last + interval && !row.awaiting_pong {
            self.reply(key, &ServerMessage::Ping);
            self.viewers.row_mut(key.index).awaiting_pong = true;
            return self.schedule(key, self.settings.pong_timeout);
        }
        let next = if self.viewers.row(key.index).awaiting_pong {
            (self.viewers.row(key.index).last_sent + timeout).saturating_sub(second)
        } else {
            (last + interval).saturating_sub(second)
        };
        self.schedule(key, Duration::from_secs(u64::from(next)));
    }

    pub(super) fn complete_joins(&mut self, entrance: &Entrance, now: Time) {
        let Some(&index) = self.by_name.get(&entrance.snapshot.snapshot().room) else { return };
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        room.asked.retain(|asked| *asked != entrance.resume);
        // Whoever comes back may have had the log read for it: once is enough.
        let at_once = if entrance.resume.is_none() { ENTER } else { usize::MAX };
        let until = now + self.entering.left;
        let mut replayed = 0;
        loop {
            let Some(room) = self.rooms[index as usize].as_mut() else { return };
            let same = |waits: &mut Waiting| waits.resume == entrance.resume;
            let some: Vec<Waiting> = room.waiting.extract_if(.., same).take(at_once).collect();
            for waiting in &some {
                replayed += u64::from(self.let_in(index, waiting, entrance, now));
            }
            let left = until.since(self.clock.now());
            if some.len() < at_once || left.is_zero() {
                self.entering.left = left;
                break;
            }
        }
        if let Some(replay) = &entrance.replay {
            super::traces::again(&mut self.homes.tracer, replay, Again::Replayed, replayed);
        }
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        // Also when everyone has left again: the home then hears of none.
        room.presence_dirty = true;
        self.dirty_rooms.push(index);
        if room.waiting.is_empty() {
            // A storm of joins must not hold the memory for ever.
            room.waiting = Vec::new();
        } else if room.waiting.iter().any(|waits| waits.resume == entrance.resume) {
            // Who does not enter with this snapshot does with the next, which is the
            // same if nothing has happened.
            room.asked.push(entrance.resume);
            self.entering.again.push((index, entrance.resume));
        }
    }

    /// One who waited becomes a member. Returns whether it is still there.
    fn let_in(&mut self, index: u32, waiting: &Waiting, entrance: &Entrance, now: Time) -> bool {
        let Waiting { key, resume, acks } = *waiting;
        let snapshot = &entrance.snapshot;
        let Some(row) = self.viewers.get(key).filter(|row| row.is_open()) else { return false };
        let format = row.format;
        let Some(place) = row.memberships.iter().position(|m| m.room == index) else {
            return false;
        };
        let bytes = snapshot.joined(format).clone();
        self.viewers.send(key, bytes, &mut self.stats, now);
        if let Some(replay) = &entrance.replay {
            let bytes = replay.bytes(format, Cut::Full).clone();
            self.viewers.send(key, bytes, &mut self.stats, now);
        }
        if resume.is_some() {
            let recovery = snapshot.recovery();
            let result = match (recovery.recovered, recovery.missed) {
                (true, _) => "recovered",
                (false, None) => "fresh",
                (false, Some(_)) => "missed",
            };
            count(&mut self.stats.resumes, &RESUME_RESULTS, result);
        }
        let marks = self.viewers.marks(key.index);
        let Some(room) = self.rooms[index as usize].as_mut() else { return false };
        let member = room.add(key.index, format, marks);
        if let Some(user) = self.viewers.row(key.index).user.clone() {
            // Who comes back has not come.
            if resume.is_none() {
                room.moves.entered(self.peers.visitor(&user), &user);
            }
        }
        room.confirmations.joined(ack_slot(key), acks, snapshot.snapshot().important);
        self.viewers.row_mut(key.index).memberships[place].member = member;
        count(&mut self.stats.joins, &JOIN_RESULTS, "joined");
        self.schedule(key, self.settings.ping_interval);
        true
    }

    /// Another round: newcomers may enter for `slice`.
    pub(super) fn let_newcomers_enter(&mut self, slice: Duration) {
        self.entering.left = slice;
        for (index, resume) in std::mem::take(&mut self.entering.again) {
            // It may have been refused meanwhile.
            let room = self.rooms[index as usize].as_ref();
            let Some(room) = room.filter(|room| room.asked.contains(&resume)) else { continue };
            // One tells of its format; those of all come with the word of who is in.
            let mut waiting = room.waiting.iter().filter(|waits| waits.resume == resume);
            let row = waiting.next().and_then(|waiting| self.viewers.get(waiting.key));
            let formats = row.map_or(0, |row| 1 << row.format.index());
            let (room, home, shard) = (room.id.clone(), room.home, self.id);
            self.peers.send(home, Message::Subscribe { room, shard, formats, resume });
        }
    }

    /// Whether some wait for the next round.
    pub(super) fn newcomers_wait(&self) -> bool {
        !self.entering.again.is_empty()
    }

    pub(super) fn refuse_joins(&mut self, id: &RoomId, code: &'static str) {
        let Some(&index) = self.by_name.get(id) else { return };
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        room.asked.clear();
        for Waiting { key, .. } in std::mem::take(&mut room.waiting) {
            let Some(row) = self.viewers.get(key) else { continue };
            row.memberships.retain(|m| m.room != index);
            count(&mut self.stats.joins, &JOIN_RESULTS, "refused");
            let error = ServerMessage::Error {
                code,
                reason: "the server has as many rooms open as it may have",
                temporary: true,
                room: Some(id.as_str()),
                retry_after_ms: Some(u64::from(RETRY_AFTER_MS)),
            };
            self.reply(key, &error);
        }
        self.drop_if_idle(index);
    }

    /// `excused`: what it has not confirmed is not held against the arrival rate.
    pub(super) fn leave_all(&mut self, key: ViewerKey, excused: bool) {
        let Some(row) = self.viewers.get(key) else { return };
        for membership in std::mem::take(&mut row.memberships) {
            self.leave_room(key, membership, excused);
        }
    }

    fn leave_room(&mut self, key: ViewerKey, membership: Membership, excused: bool) {
        let index = membership.room;
        let now = self.clock.now();
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        self.viewers.forget_room(key, &room.id, &mut self.stats, now);
        if membership.member == WAITING {
            room.waiting.retain(|waiting| waiting.key != key);
        } else {
            room.remove(index, membership.member, excused, &mut self.viewers);
            if let Some(user) = &self.viewers.row(key.index).user {
                room.moves.left(user);
            }
            self.dirty_rooms.push(index);
        }
    }

    fn open_room(&mut self, id: &RoomId) -> u32 {
        let home = self.peers.home_of(id);
        let room = Some(Box::new(LocalRoom::new(id.clone(), home, self.settings.confirm)));
        let index = match self.free_rooms.pop() {
            Some(index) => {
                self.rooms[index as usize] = room;
                index
            }
            None => {
                self.rooms.push(room);
                (self.rooms.len() - 1) as u32
            }
        };
        self.by_name.insert(id.clone(), index);
        index
    }
}
