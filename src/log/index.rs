//! Where each retained event stands, and which numbers each room has used.
//!
//! A numbering's events lie in a row by important number, 16 bytes each, holes
//! included: a number that was never given and one whose event is lost both
//! have a place, told apart. So a lookup is a subtraction, and what is missing
//! is known without asking the disk. Events enter when they are synced.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use crate::engine::ids::{Epoch, ImportantNo, RoomId, Seq};
use crate::engine::time::Time;

use super::record::Stand;
use super::settings::Retention;

/// A row of numbers longer than this between two events is not kept: the older
/// ones are given up instead.
const LONGEST_HOLE: u64 = 1 << 20;
/// Numberings kept of one room; older ones are there to be read only.
const NUMBERINGS: usize = 4;

/// Where an event stands. Without length it is a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) segment: u32,
    pub(super) offset: u32,
    /// Head included.
    pub(super) len: u32,
    /// Seconds since the Unix epoch, for retention by age.
    received: u32,
}

/// A number that was never given: nothing is missing.
const NEVER: Position = Position { segment: 0, offset: 0, len: 0, received: 0 };
/// A number whose event should be there.
const LOST: Position = Position { segment: 0, offset: 1, len: 0, received: 0 };

impl Position {
    pub(super) fn new(segment: u32, offset: u64, len: u32, received: Time) -> Self {
        // Segments stay below 4 GiB by their setting, and seconds until 2106.
        let offset = u32::try_from(offset).unwrap_or(u32::MAX);
        let received = u32::try_from(received.as_millis() / 1_000).unwrap_or(u32::MAX);
        Self { segment, offset, len, received }
    }

    fn older_than(&self, time: Time) -> bool {
        u64::from(self.received) < time.as_millis() / 1_000
    }
}

/// One numbering of a room.
#[derive(Debug)]
pub(super) struct Numbering {
    pub(super) epoch: Epoch,
    /// Highest sequence number that may be in use.
    pub(super) used: Seq,
    /// Sequence number of the last event.
    pub(super) event_seq: Seq,
    pub(super) last: ImportantNo,
    pub(super) last_used: Time,
    /// Those of `last + 1 - len ..= last`.
    positions: VecDeque<Position>,
    bytes: u64,
}

impl Numbering {
    fn first(&self) -> u64 {
        self.last.0 + 1 - self.positions.len() as u64
    }

    pub(super) fn stand(&self) -> Stand {
        Stand {
            epoch: self.epoch,
            used: self.used,
            first: ImportantNo(self.first()),
            last: self.last,
            last_used: self.last_used,
        }
    }
}

/// What is known of a segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    /// Where its valid part ends.
    pub(super) end: u64,
    /// Retained events in it.
    pub(super) live: u64,
    /// Not removed before, though nothing in it be retained.
    pub(super) keep_until: Time,
}

/// One event as it enters.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    pub(super) room: RoomId,
    pub(super) epoch: Epoch,
    pub(super) used: Seq,
    pub(super) previous: ImportantNo,
    pub(super) important: ImportantNo,
    pub(super) seq: Seq,
    pub(super) received: Time,
    pub(super) segment: u32,
    pub(super) offset: u64,
    pub(super) len: u32,
}

/// What a lookup found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Oldest first.
    pub(super) positions: Vec<(ImportantNo, Position)>,
    /// Nothing that should be there is missing from `after` to the last of them.
    pub(super) complete: bool,
    /// Further events follow.
    pub(super) more: bool,
}

/// What is held in all, by segment and in sum.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) segments: BTreeMap<u32, Segment>,
    /// Retained events.
    pub(super) events: u64,
    /// Bytes of their records.
    pub(super) bytes: u64,
}

impl Tally {
    fn add(&mut self, position: &Position) {
        self.bytes += u64::from(position.len);
        self.events += 1;
        if let Some(segment) = self.segments.get_mut(&position.segment) {
            segment.live += 1;
        }
    }

    fn remove(&mut self, position: &Position) {
        self.bytes -= u64::from(position.len);
        self.events -= 1;
        if let Some(segment) = self.segments.get_mut(&position.segment) {
            segment.live -= 1;
        }
    }
}

type Rooms = HashMap<RoomId, Vec<Numbering>>;

/// All rooms and segments.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// The newest numbering of each room is the last.
    rooms: Rooms,
    pub(super) tally: Tally,
    /// Rooms whose oldest number went up since a checkpoint said it.
    moved: HashSet<RoomId>,
}

/// The numbering, made when it is new.
fn open<'a>(
    rooms: &'a mut Rooms,
    room: &RoomId,
    epoch: Epoch,
    last: ImportantNo,
) -> &'a mut Numbering {
    let all = rooms.entry(room.clone()).or_default();
    let at = all.iter().position(|numbering| numbering.epoch == epoch);
    let at = at.unwrap_or_else(|| {
        all.push(Numbering {
            epoch,
            used: Seq(0),
            event_seq: Seq(0),
            last,
            last_used: Time::default(),
            positions: VecDeque::new(),
            bytes: 0,
        });
        all.len() - 1
    });
    &mut all[at]
}

impl Numbering {
    /// Adds a place behind the last.
    fn push(&mut self, position: Position, tally: &mut Tally) {
        self.positions.push_back(position);
        self.last.0 += 1;
        if position.len > 0 {
            self.bytes += u64::from(position.len);
            tally.add(&position);
        }
    }

    /// Drops the oldest place; false when there is none.
    fn pop(&mut self, tally: &mut Tally) -> bool {
        let Some(position) = self.positions.pop_front() else {
            return false;
        };
        if position.len > 0 {
            self.bytes -= u64::from(position.len);
            tally.remove(&position);
        }
        true
    }

    /// Drops the oldest events as far as they are `gone`, and the holes between
    /// them. One before an event that stays does stay: it may be a loss to tell
    /// of. Says whether anything went.
    fn expire(&mut self, tally: &mut Tally, gone: impl Fn(&Position) -> bool) -> bool {
        let mut count = 0;
        for (at, position) in self.positions.iter().enumerate() {
            if position.len > 0 && !gone(position) {
                break;
            }
            if position.len > 0 {
                count = at + 1;
            }
        }
        (0..count).for_each(|_| {
            self.pop(tally);
        });
        count > 0
    }

    fn clear(&mut self, tally: &mut Tally) {
        while self.pop(tally) {}
    }

    /// Makes `last` the last number: drops what is beyond, and fills up what is
    /// missing with holes. Returns how many those were.
    fn align(&mut self, last: ImportantNo, hole: Position, tally: &mut Tally) -> u64 {
        while self.last > last {
            let Some(position) = self.positions.pop_back() else { break };
            self.last.0 -= 1;
            if position.len > 0 {
                self.bytes -= u64::from(position.len);
                tally.remove(&position);
            }
        }
        let missing = last.0.saturating_sub(self.last.0);
        if missing > LONGEST_HOLE {
            self.clear(tally);
        } else {
            (0..missing).for_each(|_| self.push(hole, tally));
        }
        self.last = last;
        missing
    }
}

impl Index {
    pub(super) fn rooms(&self) -> usize {
        self.rooms.len()
    }

    pub(super) fn numbering(&self, room: &RoomId, epoch: Epoch) -> Option<&Numbering> {
        self.rooms.get(room)?.iter().find(|numbering| numbering.epoch == epoch)
    }

    /// Every room with its newest numbering and the one before.
    pub(super) fn newest(&self) -> impl Iterator<Item = (&RoomId, &Numbering, Option<&Numbering>)> {
        self.rooms.iter().filter_map(|(room, all)| {
            let (newest, older) = all.split_last()?;
            Some((room, newest, older.last()))
        })
    }

    /// Where every room stands in each of its numberings, the newest last.
    pub(super) fn stands(&self) -> impl Iterator<Item = (&RoomId, Stand)> {
        self.rooms.iter().flat_map(|(room, all)| all.iter().map(move |n| (room, n.stand())))
    }

    /// Bytes of all segments.
    pub(super) fn segment_bytes(&self) -> u64 {
        self.tally.segments.values().map(|segment| segment.end).sum()
    }

    /// Gives up a room's oldest numberings when it has too many.
    fn trim_numberings(&mut self, room: &RoomId) {
        while let Some(all) = self.rooms.get_mut(room).filter(|all| all.len() > NUMBERINGS) {
            all.remove(0).clear(&mut self.tally);
        }
    }

    /// Enters an event. It says what it follows: what is there beyond that
    /// never counted and goes; what is missing up to there is lost. Returns how
    /// many are. A numbering that was not known begins here.
    pub(super) fn push(&mut self, arrival: &Arrival) -> u64 {
        let Arrival { ref room, epoch, previous, important, .. } = *arrival;
        let numbering = open(&mut self.rooms, room, epoch, previous);
        let lost = numbering.align(previous, LOST, &mut self.tally);
        numbering.align(ImportantNo(important.0 - 1), NEVER, &mut self.tally);
        let Arrival { segment, offset, len, received, .. } = *arrival;
        numbering.push(Position::new(segment, offset, len, received), &mut self.tally);
        numbering.used = arrival.used;
        numbering.event_seq = arrival.seq;
        numbering.last_used = numbering.last_used.max(received);
        self.trim_numberings(room);
        lost
    }

    /// Takes over what a record says of where a room stands. Returns the ranges
    /// of events that should be there and are not.
    pub(super) fn stand(&mut self, room: &RoomId, stand: &Stand) -> Vec<(u64, u64)> {
        let mut lost = Vec::new();
        let before = ImportantNo(stand.first.0.saturating_sub(1));
        let numbering = open(&mut self.rooms, room, stand.epoch, before);
        if numbering.last < before {
            numbering.align(before, LOST, &mut self.tally);
        }
        let missing = numbering.align(stand.last, LOST, &mut self.tally);
        if missing > 0 {
            lost.push((stand.last.0 - missing + 1, stand.last.0));
        }
        // It begins later than it should: its first known record came after a loss.
        let first = numbering.first();
        if stand.first.0 < first && stand.first.0 > 0 {
            lost.push((stand.first.0, first - 1));
            if first - stand.first.0 <= LONGEST_HOLE {
                (stand.first.0..first).for_each(|_| numbering.positions.push_front(LOST));
            }
        }
        numbering.used = stand.used;
        numbering.last_used = stand.last_used;
        while numbering.first() < stand.first.0 && numbering.pop(&mut self.tally) {}
        self.trim_numberings(room);
        lost
    }

    /// Says that sequence numbers up to `used` may be in use.
    pub(super) fn reserve(&mut self, room: &RoomId, epoch: Epoch, used: Seq, now: Time) {
        let numbering = open(&mut self.rooms, room, epoch, ImportantNo(0));
        numbering.used = used;
        numbering.last_used = numbering.last_used.max(now);
        self.trim_numberings(room);
    }

    /// Applies the limits to a room that has just grown.
    pub(super) fn retain_room(&mut self, room: &RoomId, retention: &Retention) {
        let Some(numbering) = self.rooms.get_mut(room).and_then(|all| all.last_mut()) else {
            return;
        };
        while (numbering.positions.len() as u64 > retention.events_per_room
            || numbering.bytes > retention.bytes_per_room)
            && numbering.pop(&mut self.tally)
        {
            self.moved.insert(room.clone());
        }
    }

    /// Forgets what is too old, rooms included, and what exceeds the totals;
    /// `current` is being written.
    pub(super) fn retain(&mut self, now: Time, retention: &Retention, current: Option<u32>) {
        let oldest = now - retention.age;
        let Self { rooms, tally, moved } = self;
        rooms.retain(|room, all| {
            let newest = all.last().map(|numbering| numbering.epoch);
            all.retain_mut(|numbering| {
                let forgotten = numbering.last_used < oldest;
                if forgotten {
                    numbering.clear(tally);
                } else if numbering.expire(tally, |position| position.older_than(oldest)) {
                    moved.insert(room.clone());
                }
                // Older numberings are there for their events alone.
                let needed = Some(numbering.epoch) == newest || !numbering.positions.is_empty();
                needed && !forgotten
            });
            !all.is_empty()
        });
        while self.segment_bytes() > retention.total_bytes
            || self.tally.events > retention.total_events
        {
            let mut held = self.tally.segments.iter().filter(|(_, segment)| segment.end > 0);
            match held.next() {
                Some((&oldest, _)) if Some(oldest) != current => self.give_up(oldest),
                _ => break,
            }
        }
        let Self { rooms, moved, .. } = self;
        moved.retain(|room| rooms.contains_key(room));
    }

    /// Moves every room's oldest number past a segment.
    fn give_up(&mut self, oldest: u32) {
        let Self { rooms, tally, moved } = self;
        for (room, all) in rooms {
            for numbering in all {
                if numbering.expire(tally, |position| position.segment <= oldest) {
                    moved.insert(room.clone());
                }
            }
        }
        if let Some(segment) = tally.segments.get_mut(&oldest) {
            // Out of the sum now; the file goes with the next sweep.
            *segment = Segment { end: 0, live: 0, keep_until: Time::default() };
        }
    }

    /// Segments that hold nothing that is kept.
    pub(super) fn dead(&self, now: Time, current: Option<u32>) -> Vec<u32> {
        let dead = |(&number, segment): (&u32, &Segment)| {
            (segment.live == 0 && Some(number) != current && segment.keep_until <= now)
                .then_some(number)
        };
        self.tally.segments.iter().filter_map(dead).collect()
    }

    /// Where rooms stand whose oldest number went up since this was last asked.
    pub(super) fn take_moved(&mut self) -> Vec<(RoomId, Stand)> {
        let moved = std::mem::take(&mut self.moved);
        let all = moved.iter().filter_map(|room| self.rooms.get_key_value(room));
        all.flat_map(|(room, all)| all.iter().map(move |n| (room.clone(), n.stand()))).collect()
    }

    /// Events of one numbering after a number.
    pub(super) fn lookup(
        &self,
        room: &RoomId,
        epoch: Epoch,
        after: ImportantNo,
        max_events: usize,
        max_bytes: usize,
    ) -> Found {
        let Some(numbering) = self.numbering(room, epoch) else {
            return Found::default();
        };
        let next = after.0.saturating_add(1);
        let first = numbering.first();
        let mut found = Found { complete: next >= first, ..Found::default() };
        let start = usize::try_from(next.saturating_sub(first)).unwrap_or(usize::MAX);
        let start = start.min(numbering.positions.len());
        let mut bytes = 0;
        for (number, position) in (first + start as u64..).zip(numbering.positions.range(start..)) {
            if position.len == 0 {
                found.complete &= *position == NEVER;
                continue;
            }
            bytes += position.len as usize;
            if found.positions.len() >= max_events.max(1)
                || (bytes > max_bytes && !found.positions.is_empty())
            {
                found.more = true;
                break;
            }
            found.positions.push((ImportantNo(number), *position));
        }
        found
    }
}
