//! Important events on their way to the log.
//!
//! What a publisher was told is accepted must survive the server's death, so
//! an important event gets its numbers, goes to the log, and only when it is on
//! disk is it accepted, merged and sent. Until then it is staged here: nobody
//! has seen it, and if the log cannot take it, it is as if it had not come,
//! except that its `seq` stays unused.
//!
//! Order is kept while that takes its usual milliseconds: a frame covers only
//! numbers before the first staged event. A log that stalls must not silence a
//! room, so after [`RoomSettings::log_patience`] what came later goes ahead;
//! the event then travels in a later frame, in order by its `important` number.
//!
//! [`RoomSettings::log_patience`]: super::RoomSettings::log_patience

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::super::event::{Event, Numbered};
use super::super::ids::{ImportantNo, Seq};
use super::super::kind::{Ack, Lane};
use super::super::level::{Rank, Use};
use super::super::outcome::{Outcome, Refusal};
use super::super::pending::{Load, Waiting};
use super::super::stats::DropReason;
use super::super::time::Time;
use super::{Numbers, Room};

/// Numbers set aside at a time for what is not logged itself, so that none is
/// given twice after a crash. At most this many are skipped by one.
const RESERVE: u64 = 4_096;

/// What became of an event that was offered to a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    /// It is decided.
    Done(Outcome),
    /// It waits for the log, under this number.
    Staged {
        /// What [`Room::logged`] will name.
        important: ImportantNo,
        /// The answer once it is logged.
        answer: Outcome,
        /// Its kind is answered without waiting for that.
        at_once: bool,
    },
}

/// One event on its way.
#[derive(Debug)]
struct Entry {
    event: Arc<Numbered>,
    id: u128,
    order: u64,
    weight: usize,
    since: Time,
    /// What came later has gone ahead of it.
    passed: bool,
}

/// The staged events of a room, oldest first.
#[derive(Debug, Default)]
pub(super) struct Staged {
    entries: VecDeque<Entry>,
    ids: HashMap<u128, (Seq, ImportantNo)>,
    load: Load,
    /// How many of `entries` have been handed to the log.
    submitted: usize,
    /// Sequence numbers up to this are set aside.
    reserved: Seq,
}

/// Where frames must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Barrier {
    /// Of the first staged event that others wait for.
    pub(super) order: u64,
    /// Its number.
    pub(super) seq: Seq,
    since: Time,
}

impl Staged {
    /// Nothing before this number is to be set aside again.
    pub(super) fn set_reserved(&mut self, seq: Seq) {
        self.reserved = seq;
    }

    /// The last number set aside.
    pub(super) fn reserved(&self) -> Seq {
        self.reserved
    }

    /// The first event that frames may not go past.
    pub(super) fn barrier(&self) -> Option<Barrier> {
        let first = self.entries.iter().find(|entry| !entry.passed)?;
        let seq = first.event.seq.unwrap_or_default();
        Some(Barrier { order: first.order, seq, since: first.since })
    }

    /// When what waits for the first staged event goes ahead of it.
    pub(super) fn held_until(&self, patience: Duration) -> Option<Time> {
        self.barrier().map(|barrier| barrier.since + patience)
    }

    /// Lets others go ahead of what has waited for its patience.
    pub(super) fn pass(&mut self, patience: Duration, now: Time) {
        for entry in &mut self.entries {
            if entry.since + patience > now {
                break;
            }
            entry.passed = true;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn load(&self) -> Load {
        self.load
    }

    /// Bytes held.
    pub(super) fn memory_bytes(&self) -> usize {
        self.load.bytes
            + self.entries.capacity() * size_of::<Entry>()
            + self.ids.capacity() * size_of::<(u128, (Seq, ImportantNo))>() * 8 / 7
    }

    /// Bytes held at most by as many events as fit a buffer: a ring and a table
    /// grow by doubling.
    pub(super) const fn memory_bound(events: usize) -> usize {
        let each = size_of::<Entry>() + size_of::<(u128, (Seq, ImportantNo))>() * 8 / 7 * 2;
        2 * (events + 8) * each
    }

    fn pop(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        self.submitted = self.submitted.saturating_sub(1);
        self.left(&entry);
        Some(entry)
    }

    fn pop_last(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_back()?;
        self.submitted = self.submitted.min(self.entries.len());
        self.left(&entry);
        Some(entry)
    }

    fn left(&mut self, entry: &Entry) {
        self.ids.remove(&entry.id);
        self.load.remove(entry.weight);
        if self.entries.is_empty() {
            // A burst's memory is given back when it is over.
            self.entries.shrink_to(16);
            self.ids.shrink_to(16);
        }
    }
}

impl Room {
    /// Like [`publish`](Room::publish), except that in a durable room an
    /// important event is staged: [`take_unlogged`](Room::take_unlogged) hands
    /// it out for the log, and [`logged`](Room::logged) or
    /// [`log_failed`](Room::log_failed) decide it.
    pub fn offer(&mut self, event: Event, now: Time) -> Offered {
        if !self.settings.durable || event.kind.lane != Lane::Important {
            return Offered::Done(self.publish(event, now));
        }
        self.last_activity = now;
        let at_once = event.kind.ack == Ack::Received;
        let id = self.level_key.hash128(Use::EventId, [&event.id]);
        if let Some((seq, important)) = self.staged.ids.get(&id).copied() {
            self.stats.duplicates += 1;
            let answer = Outcome::Duplicate { seq: Some(seq) };
            return Offered::Staged { important, answer, at_once };
        }
        if let Some(seq) = self.sequenced_ids.find(id).or_else(|| self.sampled_ids.find(id)) {
            self.stats.duplicates += 1;
            return Offered::Done(Outcome::Duplicate { seq });
        }
        let checked =
            self.check(&event, now).and_then(|()| self.merges.check(&event, now, &self.settings));
        if let Err(refusal) = checked {
            self.stats.refused[refusal.index()] += 1;
            return Offered::Done(Outcome::Rejected(refusal));
        }
        let (seq, important) = self.stage(event, id, now);
        Offered::Staged { important, answer: Outcome::Accepted { seq: Some(seq) }, at_once }
    }

    fn stage(&mut self, event: Event, id: u128, now: Time) -> (Seq, ImportantNo) {
        self.given.seq.0 += 1;
        self.given.important.0 += 1;
        let Numbers { seq, important } = self.given;
        let weight = event.weight();
        let event = Arc::new(Numbered { event, seq: Some(seq), important: Some(important) });
        let order = self.pending.take_order();
        self.open.since.get_or_insert(now);
        self.staged.ids.insert(id, (seq, important));
        self.staged.load.add(weight);
        self.staged.entries.push_back(Entry {
            event,
            id,
            order,
            weight,
            since: now,
            passed: false,
        });
        (seq, important)
    }

    /// Staged events that were not handed out before, in order of their numbers.
    pub fn take_unlogged(&mut self) -> Vec<Arc<Numbered>> {
        let from = std::mem::replace(&mut self.staged.submitted, self.staged.entries.len());
        self.staged.entries.range(from..).map(|entry| Arc::clone(&entry.event)).collect()
    }

    /// Sequence numbers to set aside in the log, if those set aside run low.
    /// Only rooms whose numbering the log knows need any. It goes to the log
    /// before the events of [`take_unlogged`](Room::take_unlogged): what makes
    /// the log know a room must not be there without it. If it fails, say
    /// [`log_failed`](Room::log_failed), with or without events.
    pub fn take_reservation(&mut self) -> Option<Seq> {
        if !self.runs_low() {
            return None;
        }
        self.staged.reserved = Seq(self.given.seq.0 + RESERVE);
        Some(self.staged.reserved)
    }

    /// The log forgets what it does not hear of: the next
    /// [`take_reservation`](Room::take_reservation) repeats the last.
    pub fn renew_reservation(&mut self) {
        self.staged.reserved = Seq(0);
    }

    /// The last number given, for the log of a room that is going to sleep.
    #[must_use]
    pub fn last_reservation(&self) -> Option<Seq> {
        self.is_logged().then_some(self.given.seq)
    }

    /// Whether there is anything for the log: asked for every event.
    #[must_use]
    pub fn wants_log(&self) -> bool {
        self.staged.submitted < self.staged.entries.len() || self.runs_low()
    }

    fn runs_low(&self) -> bool {
        self.is_logged() && self.given.seq.0 + RESERVE / 2 > self.staged.reserved.0
    }

    /// The log knows its numbering, or is about to.
    fn is_logged(&self) -> bool {
        let known = self.given.important.0 > 0 || self.staged.reserved.0 > 0;
        self.settings.durable && known
    }

    /// Staged events up to this number are on disk: they are accepted.
    pub fn logged(&mut self, upto: ImportantNo, now: Time) {
        while self.staged.entries.front().is_some_and(|first| first.event.important <= Some(upto)) {
            let Some(entry) = self.staged.pop() else { break };
            self.commit(entry, now);
        }
    }

    fn commit(&mut self, entry: Entry, now: Time) {
        let Entry { event, id, order, weight, .. } = entry;
        self.committed = event.important.unwrap_or_default();
        self.sequenced_ids.remember(id, event.seq);
        self.stats.accepted[Lane::Important.index()] += 1;
        self.open.since.get_or_insert(now);
        if self.merges.admit(&event.event, order, now, &self.settings).is_err() {
            self.stats.unmerged += 1;
        }
        let level = self.level_key.user_level(&event.event.user, now);
        let rank = Rank { tier: event.event.kind.tier, level, order };
        let oldest = event.event.received;
        self.pending.push(Waiting { event, rank, weight, overtaken: [0; 3], oldest });
        self.shed_excess();
    }

    /// The log has failed for what is staged from this number on: nothing of it
    /// was accepted, and its important numbers are given again. Events whose
    /// kind is answered on receipt count as dropped. What was to be set aside
    /// may not be, and is asked for again.
    pub fn log_failed(&mut self, from: ImportantNo) {
        self.staged.reserved = Seq(0);
        while self.staged.entries.back().is_some_and(|last| last.event.important >= Some(from)) {
            let Some(entry) = self.staged.pop_last() else { break };
            let kind = &entry.event.event.kind;
            if kind.ack == Ack::Received {
                self.stats.accepted[Lane::Important.index()] += 1;
                self.shed(kind, [0; 3], DropReason::Unlogged);
            } else {
                self.stats.refused[Refusal::LogUnavailable.index()] += 1;
            }
        }
        self.given.important = match self.staged.entries.back() {
            Some(last) => last.event.important.unwrap_or_default(),
            None => self.committed,
        };
        // Numbers that stay unused are no reason for a frame.
        let nothing = self.staged.is_empty()
            && self.pending.is_empty()
            && self.drops.list().is_empty()
            && self.open.absorbed == [0; 3];
        if nothing {
            self.open.since = None;
        }
    }

    /// Whether anything waits for the log.
    #[must_use]
    pub fn awaits_log(&self) -> bool {
        !self.staged.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ids::{Epoch, RoomId};
    use crate::engine::kind::{Merge, MergeBy};
    use crate::engine::level::LevelKey;
    use crate::engine::room::Restored;
    use crate::engine::settings::RoomSettings;
    use crate::engine::testing::{self, START, build, chat, red_packet};

    const PATIENCE: Duration = Duration::from_millis(500);

    fn settings() -> RoomSettings {
        RoomSettings { durable: true, log_patience: PATIENCE, ..testing::settings() }
    }

    fn room_with(settings: RoomSettings) -> Room {
        let id = RoomId::new("r").unwrap();
        let mut room = Room::new(id, Epoch(7), LevelKey::from_seed(1), Arc::new(settings), START);
        room.set_online(5, START);
        room.flush_now(START).expect("tells the count");
        room.frame_out(START);
        room
    }

    fn room() -> Room {
        room_with(settings())
    }

    fn at(ms: u64) -> Time {
        START + Duration::from_millis(ms)
    }

    fn stage(room: &mut Room, id: &str, now: Time) -> ImportantNo {
        match room.offer(red_packet(id).event(), now) {
            Offered::Staged { important, .. } => important,
            done => panic!("{done:?}"),
        }
    }

    fn seqs(events: &[Arc<Numbered>]) -> Vec<u64> {
        events.iter().filter_map(|event| event.seq).map(|seq| seq.0).collect()
    }

    #[test]
    fn nothing_is_sent_before_it_is_logged_and_order_is_kept() {
        let mut room = room();
        room.offer(chat("before").event(), START);
        let first = stage(&mut room, "a", START);
        room.offer(chat("between").event(), START);
        let second = stage(&mut room, "b", START);
        room.offer(chat("after").event(), START);
        assert_eq!(seqs(&room.take_unlogged()), [2, 4]);
        assert!(room.take_unlogged().is_empty(), "handed out once");
        assert_eq!(room.next_flush(), Some(START + PATIENCE));
        assert!(room.flush(at(200)).is_none());

        room.logged(first, at(3));
        let frame = room.flush(at(3)).expect("at once");
        assert_eq!(seqs(&frame.events), [1, 2, 3]);
        assert_eq!((frame.first_seq, frame.last_seq), (Seq(1), Seq(3)));
        assert_eq!(frame.important, ImportantNo(1));
        room.frame_out(at(4));

        room.logged(second, at(5));
        let frame = room.flush(at(5)).expect("at once");
        assert_eq!(seqs(&frame.events), [4, 5]);
        assert_eq!((frame.first_seq, frame.last_seq), (Seq(4), Seq(5)));
        assert_eq!(frame.important, ImportantNo(2));
        room.frame_out(at(6));
        assert_eq!(room.next_flush().filter(|due| *due < at(1_000)), None);
    }

    #[test]
    fn a_log_that_stalls_holds_up_important_events_only() {
        let mut room = room();
        let staged = stage(&mut room, "a", START);
        room.offer(chat("c").event(), at(1));
        let frame = room.flush(START + PATIENCE).expect("patience is over");
        assert_eq!(seqs(&frame.events), [2]);
        assert_eq!((frame.first_seq, frame.last_seq), (Seq(1), Seq(2)));
        assert_eq!(frame.important, ImportantNo(0));
        room.frame_out(at(501));
        room.offer(chat("d").event(), at(502));
        room.logged(staged, at(800));
        let frame = room.flush(at(800)).expect("at once");
        assert_eq!(seqs(&frame.events), [1, 3]);
        assert_eq!((frame.first_seq, frame.last_seq), (Seq(3), Seq(3)));
        assert_eq!(frame.important, ImportantNo(1));
        let replay = room.history_after_seq(Seq(0), 9);
        assert_eq!(seqs(&replay.events), [1, 2, 3], "history is in order all the same");
    }

    #[test]
    fn what_the_log_refuses_never_was_and_its_number_is_given_again() {
        let mut room = room();
        stage(&mut room, "a", START);
        stage(&mut room, "b", START);
        room.log_failed(ImportantNo(1));
        assert!(!room.awaits_log());
        assert_eq!(room.next_flush(), None, "nothing happened");
        assert_eq!(room.stats().refused[Refusal::LogUnavailable.index()], 2);
        assert_eq!(stage(&mut room, "a", at(1)), ImportantNo(1), "the id is free again");
        room.logged(ImportantNo(1), at(2));
        let frame = room.flush(at(2)).expect("at once");
        assert_eq!(seqs(&frame.events), [3], "sequence numbers are not given again");
        assert_eq!((frame.first_seq, frame.last_seq), (Seq(1), Seq(3)));
    }

    #[test]
    fn what_is_on_its_way_outlives_the_refusal_of_what_came_later() {
        let mut room = room();
        let first = stage(&mut room, "a", START);
        room.take_unlogged();
        let second = stage(&mut room, "b", START);
        room.log_failed(second);
        assert_eq!(stage(&mut room, "c", START), second);
        assert_eq!(seqs(&room.take_unlogged()), [3]);
        room.logged(first, at(1));
        room.logged(second, at(2));
        let frame = room.flush(at(2)).expect("at once");
        let ids: Vec<_> = frame.events.iter().map(|event| &*event.event.id).collect();
        assert_eq!(ids, ["a", "c"]);
    }

    #[test]
    fn a_repetition_waits_with_the_first_and_gets_its_number() {
        let mut room = room();
        let first = stage(&mut room, "a", START);
        let again = room.offer(red_packet("a").event(), START);
        let answer = Outcome::Duplicate { seq: Some(Seq(1)) };
        assert_eq!(again, Offered::Staged { important: first, answer, at_once: false });
        room.logged(first, at(1));
        assert_eq!(room.offer(red_packet("a").event(), at(2)), Offered::Done(answer));
        assert_eq!(room.stats().accepted[Lane::Important.index()], 1);
    }

    #[test]
    fn a_kind_answered_on_receipt_counts_as_dropped_when_the_log_fails() {
        let mut room = room();
        let event = red_packet("a").kind(|kind| kind.ack = Ack::Received).event();
        assert!(matches!(room.offer(event, START), Offered::Staged { at_once: true, .. }));
        room.log_failed(ImportantNo(1));
        assert_eq!(room.stats().dropped[DropReason::Unlogged.index()], [1, 0, 0]);
        assert_eq!(room.stats().pending(Lane::Important), 0);
    }

    #[test]
    fn staged_events_count_towards_the_buffer() {
        let mut room = room_with(RoomSettings { buffer_events: 2, ..settings() });
        stage(&mut room, "a", START);
        stage(&mut room, "b", START);
        let refused = room.offer(red_packet("c").event(), START);
        assert_eq!(refused, Offered::Done(Outcome::Rejected(Refusal::BufferFull)));
    }

    #[test]
    fn numbers_are_set_aside_before_they_are_used() {
        let mut room = room();
        room.offer(chat("c").event(), START);
        assert_eq!(room.take_reservation(), None, "the log knows nothing of the room");
        stage(&mut room, "a", START);
        let reserved = room.take_reservation().expect("the first");
        assert!(reserved > Seq(2_000));
        for i in 0..5_000 {
            room.offer(chat(&format!("c{i}")).event(), START);
            assert!(room.seq() <= room.take_reservation().unwrap_or(Seq(u64::MAX)));
        }
        assert!(room.staged.reserved.0 >= room.seq().0 + RESERVE / 2);
        assert_eq!(room.last_reservation(), Some(room.seq()));
    }

    #[test]
    fn what_the_log_did_not_set_aside_is_asked_for_again() {
        let mut room = room();
        stage(&mut room, "a", START);
        assert!(room.take_reservation().is_some());
        assert_eq!(room.take_reservation(), None);
        room.log_failed(ImportantNo(1));
        stage(&mut room, "a", at(1));
        assert!(room.take_reservation().is_some(), "the first was lost");
    }

    #[test]
    fn a_restored_room_goes_on_where_it_stopped() {
        let card = |id: &str, important: u64| {
            let build = build("card", Lane::Important, Merge::Latest(MergeBy::Key), 0, id);
            let (seq, important) = (Some(Seq(important * 10)), Some(ImportantNo(important)));
            Arc::new(Numbered { event: build.event(), seq, important })
        };
        let restored = Restored {
            epoch: Epoch(7),
            seq: Seq(99),
            important: ImportantNo(5),
            ids: vec![("old".into(), Seq(30))],
            tail: vec![card("x", 4), card("y", 5)],
        };
        let id = RoomId::new("r").unwrap();
        let key = LevelKey::from_seed(9);
        let mut room = Room::restored(id, &restored, key, Arc::new(settings()), START);
        let snapshot = room.snapshot(START);
        assert_eq!((snapshot.seq, snapshot.important), (Seq(99), ImportantNo(5)));
        assert_eq!(snapshot.state.len(), 1, "the newest card");
        assert_eq!(&*snapshot.state[0].event.id, "y");
        let old = room.offer(red_packet("old").event(), START);
        assert_eq!(old, Offered::Done(Outcome::Duplicate { seq: Some(Seq(30)) }));
        assert_eq!(stage(&mut room, "new", START), ImportantNo(6));
        assert_eq!(room.seq(), Seq(100));
        assert!(room.history_after_important(ImportantNo(3), 9).complete);
        assert!(!room.history_after_important(ImportantNo(2), 9).complete);
        assert!(room.history_after_seq(Seq(99), 9).complete);
        assert!(!room.history_after_seq(Seq(98), 9).complete);
    }

    #[test]
    fn a_drain_makes_no_frame_of_what_is_not_logged() {
        let mut room = room();
        let staged = stage(&mut room, "a", at(1));
        assert!(room.flush_now(at(1)).is_none());
        room.logged(staged, at(2));
        assert_eq!(room.flush_now(at(2)).map(|frame| frame.events.len()), Some(1));
    }
}
