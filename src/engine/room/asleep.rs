//! A room that nobody is in, as small as it can be kept: its numbering, the ids
//! that it has seen, its important events, and what a newcomer would be told.
//!
//! What was set aside for it in the log stays so, and it goes on with that when
//! it wakes. To take it back while it sleeps would save skipping it after a
//! crash, but a room that woke while the log fails would have nothing left.

use std::sync::Arc;

use super::super::event::Numbered;
use super::super::ids::{Epoch, ImportantNo, RoomId, Seq};
use super::super::kind::Merge;
use super::super::level::{LevelKey, Use};
use super::super::merge::Merges;
use super::super::settings::RoomSettings;
use super::super::time::Time;
use super::super::visitors::Visitors;
use super::{Numbers, Room};

/// What the log knows of a room.
#[derive(Debug, Clone, Default)]
pub struct Restored {
    /// Its numbering, which goes on.
    pub epoch: Epoch,
    /// The highest sequence number that may have been given.
    pub seq: Seq,
    /// The last important number given.
    pub important: ImportantNo,
    /// Ids of important events with their numbers, oldest first.
    pub ids: Vec<(Arc<str>, Seq)>,
    /// The newest important events, oldest first.
    pub tail: Vec<Arc<Numbered>>,
}

/// See the module's documentation. [`Room::fall_asleep`] makes one,
/// [`Room::woken`] a room of it.
#[derive(Debug)]
pub struct Asleep {
    epoch: Epoch,
    /// The last numbers given. Some may have stayed unused.
    last: Numbers,
    /// The last that a frame covered: frames go on from there.
    sent: Numbers,
    /// The last that is set aside.
    reserved: Seq,
    last_activity: Time,
    /// Of numbered events, oldest first.
    ids: Box<[(u128, Option<Seq>)]>,
    /// Oldest first.
    important: Box<[Arc<Numbered>]>,
    /// Important events up to here are no more in memory.
    forgotten: ImportantNo,
    memory: Memory,
}

/// What a room knows beside its events.
#[derive(Debug)]
enum Memory {
    Nothing,
    /// The state that its important events make, as far as they are here.
    OfEvents,
    Kept(Box<Kept>),
}

/// What few rooms have.
#[derive(Debug)]
struct Kept {
    merges: Merges,
    /// Where its orders stop.
    next_order: u64,
    visitors: Visitors,
}

impl Asleep {
    /// A room of an earlier process that nobody has asked for yet. Totals are
    /// gone; `latest` state is made of its important events when it wakes.
    #[must_use]
    pub fn restored(restored: Restored, level_key: LevelKey, used: Time) -> Self {
        let Restored { epoch, seq, important, ids, tail } = restored;
        let last = Numbers { seq, important };
        let hash = |(id, seq): (Arc<str>, Seq)| (level_key.hash128(Use::EventId, [&id]), Some(seq));
        let first = tail.first().and_then(|event| event.important);
        Self {
            epoch,
            last,
            sent: last,
            reserved: seq,
            last_activity: used,
            ids: ids.into_iter().map(hash).collect(),
            forgotten: first.map_or(important, |first| ImportantNo(first.0 - 1)),
            important: tail.into(),
            memory: Memory::OfEvents,
        }
    }

    /// Its numbering.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The last sequence number given.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.last.seq
    }

    /// The last sequence number that is set aside, or given: never less than the
    /// log must know, also when it failed to set any aside.
    #[must_use]
    pub fn reserved(&self) -> Seq {
        self.reserved.max(self.last.seq)
    }

    /// When it was last used.
    #[must_use]
    pub fn last_activity(&self) -> Time {
        self.last_activity
    }

    /// Estimate of the bytes it holds, as [`Room::memory_bytes`].
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let events: usize = self.important.iter().map(|event| event.event.weight()).sum();
        let memory = match &self.memory {
            Memory::Nothing | Memory::OfEvents => 0,
            Memory::Kept(kept) => {
                size_of::<Kept>() + kept.merges.memory_bytes() + kept.visitors.memory_bytes()
            }
        };
        size_of::<Self>()
            + size_of_val(&*self.ids)
            + size_of_val(&*self.important)
            + events
            + memory
    }
}

impl Room {
    /// Lets go of everything that only viewers need. The room must be
    /// [quiet](Room::is_quiet).
    #[must_use]
    pub fn fall_asleep(self) -> Asleep {
        debug_assert!(self.is_quiet());
        let next_order = self.pending.next_order();
        let Room { merges, mut visitors, .. } = self;
        let known = merges.memory_bytes() > 0 || visitors.users().count > 0;
        visitors.shrink();
        let memory = match known {
            true => Memory::Kept(Box::new(Kept { merges, next_order, visitors })),
            false => Memory::Nothing,
        };
        let (important, forgotten) = self.history.into_important();
        Asleep {
            epoch: self.epoch,
            last: self.given,
            sent: self.flushed,
            reserved: self.staged.reserved(),
            last_activity: self.last_activity,
            ids: self.sequenced_ids.iter().collect(),
            important,
            forgotten,
            memory,
        }
    }

    /// The room goes on where it stopped. If it then
    /// [wants the log](Room::wants_log), no number may be given before what
    /// [`take_reservation`](Room::take_reservation) asks for is logged.
    #[must_use]
    pub fn woken(
        id: RoomId,
        asleep: Asleep,
        level_key: LevelKey,
        settings: Arc<RoomSettings>,
        now: Time,
    ) -> Self {
        let Asleep { epoch, last, sent, reserved, ids, important, forgotten, memory, .. } = asleep;
        let mut room = Self::new(id, epoch, level_key, settings, now);
        (room.given, room.flushed, room.committed) = (last, sent, last.important);
        room.staged.set_reserved(reserved);
        for (id, seq) in ids {
            if room.sequenced_ids.find(id).is_none() {
                room.sequenced_ids.remember(id, seq);
            }
        }
        room.history.begin_after(sent.seq, forgotten);
        for event in &important {
            room.history.push_restored(event);
        }
        match memory {
            Memory::Nothing => {}
            Memory::OfEvents => important.iter().for_each(|event| room.restore_state(event, now)),
            Memory::Kept(kept) => {
                let Kept { merges, next_order, visitors } = *kept;
                (room.merges, room.visitors) = (merges, visitors);
                room.pending.begin_at(next_order);
            }
        }
        room
    }

    fn restore_state(&mut self, event: &Arc<Numbered>, now: Time) {
        let over = event.event.expires().is_some_and(|expires| expires <= now);
        if over || !matches!(event.event.kind.merge, Merge::Latest(_)) {
            return;
        }
        let order = self.pending.next_order();
        // What finds no room was refused it before, too.
        if self.merges.admit(&event.event, order, now, &self.settings).is_ok() {
            self.merges.carried(event, order);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::outcome::Outcome;
    use crate::engine::room::Offered;
    use crate::engine::testing::{self, START, chat, red_packet};

    fn key() -> LevelKey {
        LevelKey::from_seed(5)
    }

    fn settings() -> Arc<RoomSettings> {
        Arc::new(RoomSettings { durable: true, ..testing::settings() })
    }

    fn id() -> RoomId {
        RoomId::new("lounge").expect("a good id")
    }

    /// A room with talk, two red packets, a total and a state, all sent.
    fn lived_in() -> Room {
        let mut room = Room::new(id(), Epoch(9), key(), settings(), START);
        room.set_online(1, START);
        let gift = testing::combo("g1").key("rose").amount(3);
        let card = testing::card("k1").key("pinned");
        for event in [chat("c1"), gift, card, red_packet("r1")] {
            room.offer(event.event(), START);
        }
        room.offer(red_packet("r2").event(), START);
        room.visited(77);
        room.take_reservation();
        room.take_unlogged();
        room.logged(ImportantNo(2), START);
        while room.flush_now(START).is_some() {
            room.frame_out(START);
        }
        room.set_online(0, START);
        while room.flush_now(START).is_some() {
            room.frame_out(START);
        }
        room
    }

    #[test]
    fn a_room_that_slept_goes_on_as_if_it_had_not() {
        let mut awake = lived_in();
        let before = awake.snapshot(START);
        let later = START + Duration::from_secs(3_600);
        let asleep = lived_in().fall_asleep();
        assert_eq!((asleep.epoch(), asleep.seq()), (before.epoch, before.seq));
        let mut room = Room::woken(id(), asleep, key(), settings(), later);
        assert_eq!(room.snapshot(later), awake.snapshot(later));
        let [theirs, ours] =
            [&awake, &room].map(|room| room.history_after_important(ImportantNo(0), 10));
        assert_eq!(theirs, ours);
        assert_eq!(ours.events.len(), 2);
        assert!(room.history_after_seq(before.seq, 10).complete, "who saw all missed nothing");
        assert!(!room.history_after_seq(Seq(1), 10).complete, "talk is forgotten");
        // Its ids are known, and its numbers go on with what was set aside.
        let again = room.offer(red_packet("r1").event(), later);
        assert!(matches!(again, Offered::Done(Outcome::Duplicate { seq: Some(_) })), "{again:?}");
        assert!(!room.wants_log());
        let next = room.offer(chat("c9").event(), later);
        let Offered::Done(Outcome::Accepted { seq: Some(seq) }) = next else { panic!("{next:?}") };
        assert_eq!(seq, Seq(before.seq.0 + 1));
    }

    #[test]
    fn what_the_log_is_told_in_its_sleep_takes_back_no_number_that_was_given() {
        let mut room = lived_in();
        room.log_failed(ImportantNo(3));
        let given = room.last_reservation();
        let asleep = room.fall_asleep();
        assert_eq!(Some(asleep.reserved()), given);
        let mut room = Room::woken(id(), asleep, key(), settings(), START);
        assert!(room.wants_log(), "it waits until some are set aside");
        assert!(room.take_reservation() > given);
        assert_eq!(Some(room.fall_asleep().reserved()).cmp(&given), std::cmp::Ordering::Greater);
    }

    #[test]
    fn asleep_it_is_small() {
        let room = lived_in();
        let awake = room.memory_bytes();
        let asleep = room.fall_asleep().memory_bytes();
        assert!(asleep * 2 < awake, "{asleep} of {awake} bytes");
        let quiet = Room::new(id(), Epoch(9), key(), settings(), START);
        assert!(quiet.fall_asleep().memory_bytes() <= 160);
    }
}
