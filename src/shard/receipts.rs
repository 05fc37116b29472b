//! Acknowledgements of a shard's viewers: what they confirm goes to the rooms'
//! scores, and those who are behind are sent what they miss.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;

use super::Shard;
use super::connection::{ViewerKey, WAITING};
use super::peers::{Message, Path as _, Placement as _, Reconcile};
use super::room::LocalRoom;
use super::viewer::MESSAGE_TOKENS;
use crate::engine::confirm::{Asked, Remedy, Slot, Verdict};
use crate::engine::delivery::Cut;
use crate::engine::digest::{Digest, MAX_RANGE};
use crate::engine::event::Frame;
use crate::engine::ids::{ImportantNo, RoomId};
use crate::engine::time::Time;
use crate::wire::Format;
use crate::wire::message::ServerMessage;
use crate::wire::shared::{Compression, SharedFrame};

/// Shortest time between two looks for those who are behind.
const EVERY: Duration = Duration::from_millis(100);

/// Pulls a second that viewers are told to spread themselves to.
const PULLS_PER_SECOND: usize = 1_000;

/// Longest that they are told to wait.
const LONGEST_WAIT_MS: u32 = 10_000;

/// A viewer's number for drawing samples, from its key by the finalizer of
/// SplitMix64 (Steele et al., 2014).
pub(super) fn ack_slot(key: ViewerKey) -> Slot {
    let mut z = u64::from(key.generation) << 32 | u64::from(key.index);
    z = (z ^ (z >> 30)).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z >> 48) as Slot
}

/// Rooms whose scores wait for something.
#[derive(Debug)]
pub(super) struct Chase {
    rooms: Vec<u32>,
    /// When the first of them is due, unless it was looked at just before. Waking
    /// for nothing is not free: a thread that has slept runs cold code.
    next: Option<Time>,
    /// Not before this.
    earliest: Time,
}

impl Chase {
    pub(super) fn new(now: Time) -> Self {
        Self { rooms: Vec::new(), next: None, earliest: now }
    }

    /// When [`Shard::chase_receipts`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.next
    }

    /// A room's scores wait for something at `due`.
    fn expect(&mut self, due: Time) {
        let due = due.max(self.earliest);
        self.next = Some(self.next.map_or(due, |next| next.min(due)));
    }
}

impl Shard {
    /// A viewer has every important event of a room up to a number.
    pub fn acknowledge(&mut self, key: ViewerKey, room: &RoomId, important: ImportantNo) {
        let now = self.clock.now();
        let Some(&index) = self.by_name.get(room) else { return };
        let Some(row) = self.viewers.get(key) else { return };
        let Some(place) = row.memberships.iter().find(|m| m.room == index) else { return };
        let member = place.member;
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        if member != WAITING {
            let ages = &mut self.stats.confirmation_age;
            let aged = |age| ages.observe(age, 1);
            let new = room.confirmations.acknowledged(member as usize, important, now, aged);
            self.stats.confirmed += new;
            let id = &room.id;
            super::traces::confirmed(&mut self.homes.tracer, id, new, important);
            // What confirms something new was asked for, and there are no more
            // of these than events: it takes nothing off the viewer's allowance.
            if new > 0
                && let Some(row) = self.viewers.get(key)
            {
                row.tokens = row.tokens.saturating_add(MESSAGE_TOKENS);
            }
        }
    }

    /// A viewer says what it received of some important events of a room that it
    /// is in. A range that makes no sense is no digest.
    pub fn reconcile(
        &mut self,
        key: ViewerKey,
        room: &RoomId,
        (from, to): (ImportantNo, ImportantNo),
        digest: Digest,
    ) {
        let sensible = from.0 > 0 && from <= to && to.0 - from.0 < MAX_RANGE;
        if !sensible || self.speaker_in(key, room).is_none() {
            return;
        }
        let Some(viewer) = self.asker(key) else { return };
        let reconcile = Reconcile { room: room.clone(), from, to, digest, viewer };
        self.peers.send(self.peers.home_of(room), Message::Reconcile(reconcile));
    }

    /// A frame of a room has begun to go out.
    pub(super) fn expect_receipts(&mut self, index: u32) {
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        super::traces::begun(&mut self.homes.tracer, room);
        let Some(due) = room.confirmations.next_deadline() else { return };
        self.chase.expect(due);
        if !std::mem::replace(&mut room.chased, true) {
            self.chase.rooms.push(index);
        }
    }

    /// Sends those who are behind what they miss, and takes verdicts down.
    pub(super) fn chase_receipts(&mut self, now: Time) {
        if self.chase.next.is_none_or(|next| now < next) {
            return;
        }
        (self.chase.next, self.chase.earliest) = (None, now + EVERY);
        let (mut verdicts, mut remedies) = (Vec::new(), Vec::new());
        let mut rooms = std::mem::take(&mut self.chase.rooms);
        rooms.retain(|&index| {
            let Some(room) = self.rooms[index as usize].as_mut() else { return false };
            let due = room.confirmations.next_deadline().is_some_and(|due| due <= now);
            if due {
                room.confirmations.chase(now, &mut verdicts, &mut remedies);
                self.remedy(index, &mut remedies, now);
            }
            let Some(room) = self.rooms[index as usize].as_mut() else { return false };
            let due = room.confirmations.next_deadline();
            room.chased = due.is_some();
            if let Some(due) = due {
                self.chase.expect(due);
            }
            room.chased
        });
        self.chase.rooms = rooms;
        for Verdict { kind, horizon, arrival } in verdicts {
            self.stats.arrival.add(&kind.name, horizon, &arrival);
        }
    }

    fn remedy(&mut self, index: u32, remedies: &mut Vec<(usize, Remedy)>, now: Time) {
        let Some(room) = self.rooms[index as usize].as_ref() else { return };
        let missed = remedies.iter().filter(|(_, r)| matches!(r, Remedy::Missed(..))).count();
        let within_ms = spread_ms(missed);
        let mut encoded: HashMap<(ImportantNo, Format), Bytes> = HashMap::new();
        let mut out = Vec::with_capacity(remedies.len());
        let name = room.id.clone();
        let follows = self.homes.tracer.as_ref().is_some_and(|tracer| tracer.is_following());
        let mut sent = Vec::new();
        for (member, remedy) in remedies.drain(..) {
            let Some(member) = room.members.get(member) else { continue };
            let Some(key) = self.viewers.key_of(member.viewer) else { continue };
            // A slow viewer has them queued, or is owed them when it skips ahead.
            if self.viewers.has_backlog(member.viewer) {
                continue;
            }
            if follows {
                sent.push(remedy);
            }
            match remedy {
                Remedy::Carry(after) => {
                    let bytes = encoded.entry((after, member.format)).or_insert_with(|| {
                        let frame = carrying(room, after, now);
                        let plain = Compression { min_bytes: usize::MAX, level: 1 };
                        SharedFrame::new(frame, plain).bytes(member.format, Cut::Full).clone()
                    });
                    self.stats.carried_along += 1;
                    out.push((key, bytes.clone()));
                }
                Remedy::Missed(from, to) => {
                    self.stats.missed += to.0 + 1 - from.0;
                    let room = name.as_str();
                    let told = ServerMessage::Missed { room, from, to, within_ms };
                    out.push((key, crate::wire::shared::message(member.format, &told)));
                }
            }
        }
        super::traces::remedied(&mut self.homes.tracer, room, &sent);
        for (key, bytes) in out {
            self.viewers.send(key, bytes, &mut self.stats, now);
        }
    }
}

/// How long viewers are to spread their pulls, in milliseconds.
pub(super) fn spread_ms(viewers: usize) -> u32 {
    let millis = viewers.saturating_mul(1_000) / PULLS_PER_SECOND;
    u32::try_from(millis).unwrap_or(u32::MAX).min(LONGEST_WAIT_MS)
}

/// The kept events after a number, in a frame that covers no new numbers.
fn carrying(room: &LocalRoom, after: ImportantNo, now: Time) -> Frame {
    let events = room.confirmations.after(after);
    let important = events.last().and_then(|event| event.important).unwrap_or(after);
    let frame = Frame::beside(room.id.clone(), room.stands_at, important, events, now);
    Frame { ack: Some(Asked::ALL), ..frame }
}
