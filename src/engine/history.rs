//! What a room remembers for readers who come back.
//!
//! Two rings: every sequenced event that travelled in a frame, and the important
//! ones once more beside them, so that chat cannot push a red packet out of
//! memory. Both are bounded by events and by bytes and share the events with
//! the frames that carried them.
//!
//! What never travelled by itself is not history: events merged into a total or
//! overtaken by a newer one are found in the snapshot, shed ones are gone. So
//! holes between the numbers of a replay are normal, and whether one is missing
//! something is answered by [`Replay::complete`] alone.

use std::collections::VecDeque;
use std::sync::Arc;

use super::event::Numbered;
use super::ids::{ImportantNo, Seq};
use super::settings::RoomSettings;

/// Events after a number, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// The events.
    pub events: Vec<Arc<Numbered>>,
    /// Nothing that travelled after the number asked for was forgotten. False
    /// also for a number that the room has not yet reached: the asker counts in
    /// another numbering.
    pub complete: bool,
    /// The limit cut it: there is more after the last event returned.
    pub more: bool,
}

/// Both rings of one room.
#[derive(Debug)]
pub(super) struct History {
    sequenced: Ring,
    important: Ring,
}

impl History {
    /// Remembers nothing yet.
    pub(super) fn new(settings: &RoomSettings) -> Self {
        Self {
            sequenced: Ring::new(settings.history_events, settings.history_bytes),
            important: Ring::new(settings.history_important, settings.history_important_bytes),
        }
    }

    /// An event has travelled. Events without a number are not remembered.
    pub(super) fn push(&mut self, event: &Arc<Numbered>) {
        let weight = event.event.weight();
        if let Some(seq) = event.seq {
            self.sequenced.push(seq.0, weight, event);
        }
        if let Some(important) = event.important {
            self.important.push(important.0, weight, event);
        }
    }

    /// Numbers up to these were given before anything here was remembered;
    /// important events up to `important` are no more in memory than that.
    pub(super) fn begin_after(&mut self, seq: Seq, important: ImportantNo) {
        self.sequenced.forgotten = seq.0;
        self.important.forgotten = important.0;
    }

    /// The important events, oldest first, and the number up to which they are
    /// forgotten.
    pub(super) fn into_important(self) -> (Box<[Arc<Numbered>]>, ImportantNo) {
        let Ring { entries, forgotten, .. } = self.important;
        (entries.into_iter().map(|entry| entry.event).collect(), ImportantNo(forgotten))
    }

    /// An important event of an earlier process.
    pub(super) fn push_restored(&mut self, event: &Arc<Numbered>) {
        if let Some(important) = event.important {
            self.important.push(important.0, event.event.weight(), event);
        }
    }

    /// Sequenced events after `after`; `flushed` is the last number a frame covered.
    pub(super) fn after_seq(&self, after: Seq, flushed: Seq, limit: usize) -> Replay {
        self.sequenced.after(after.0, flushed.0, limit)
    }

    /// Important events after `after`; `flushed` is the last number a frame covered.
    pub(super) fn after_important(
        &self,
        after: ImportantNo,
        flushed: ImportantNo,
        limit: usize,
    ) -> Replay {
        self.important.after(after.0, flushed.0, limit)
    }

    /// Bytes held.
    pub(super) fn memory_bytes(&self) -> usize {
        self.sequenced.memory_bytes() + self.important.memory_bytes()
    }

    /// Bytes held at most.
    pub(super) fn memory_bound(settings: &RoomSettings) -> usize {
        Ring::memory_bound(settings.history_events, settings.history_bytes)
            + Ring::memory_bound(settings.history_important, settings.history_important_bytes)
    }
}

/// One remembered event.
#[derive(Debug)]
struct Entry {
    number: u64,
    weight: usize,
    event: Arc<Numbered>,
}

/// The newest events by one of their numbers.
#[derive(Debug)]
struct Ring {
    max_events: usize,
    max_bytes: usize,
    bytes: usize,
    /// The highest number that was here and is no more; 0: none.
    forgotten: u64,
    entries: VecDeque<Entry>,
}

impl Ring {
    fn new(max_events: usize, max_bytes: usize) -> Self {
        Self { max_events, max_bytes, bytes: 0, forgotten: 0, entries: VecDeque::new() }
    }

    fn push(&mut self, number: u64, weight: usize, event: &Arc<Numbered>) {
        if self.max_events == 0 || weight > self.max_bytes {
            // It may come late, behind higher ones.
            self.forgotten = self.forgotten.max(number);
            return;
        }
        while self.entries.len() >= self.max_events || self.bytes + weight > self.max_bytes {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.bytes -= oldest.weight;
            self.forgotten = self.forgotten.max(oldest.number);
        }
        if self.entries.len() == self.entries.capacity() {
            let target = (self.entries.len() * 2).max(8).min(self.max_events);
            self.entries.reserve_exact(target - self.entries.len());
        }
        self.bytes += weight;
        let entry = Entry { number, weight, event: Arc::clone(event) };
        // An event that others have gone ahead of comes late.
        let late = self.entries.iter().rev().take_while(|entry| entry.number > number).count();
        self.entries.insert(self.entries.len() - late, entry);
    }

    fn after(&self, after: u64, flushed: u64, limit: usize) -> Replay {
        let from = self.entries.partition_point(|entry| entry.number <= after);
        let rest = self.entries.range(from..);
        Replay {
            more: rest.len() > limit,
            complete: after >= self.forgotten && after <= flushed,
            events: rest.take(limit).map(|entry| Arc::clone(&entry.event)).collect(),
        }
    }

    fn memory_bytes(&self) -> usize {
        self.bytes + self.entries.capacity() * size_of::<Entry>()
    }

    fn memory_bound(max_events: usize, max_bytes: usize) -> usize {
        max_bytes + max_events * size_of::<Entry>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::{Build, chat, red_packet};

    fn numbered(build: Build, seq: u64, important: Option<u64>) -> Arc<Numbered> {
        Arc::new(Numbered {
            event: build.event(),
            seq: Some(Seq(seq)),
            important: important.map(ImportantNo),
        })
    }

    fn settings(events: usize, bytes: usize) -> RoomSettings {
        RoomSettings {
            history_events: events,
            history_bytes: bytes,
            history_important: 2,
            ..crate::engine::testing::settings()
        }
    }

    fn seqs(replay: &Replay) -> Vec<u64> {
        replay.events.iter().filter_map(|e| e.seq).map(|seq| seq.0).collect()
    }

    #[test]
    fn a_replay_is_complete_until_something_after_the_number_was_forgotten() {
        let mut history = History::new(&settings(3, 1 << 20));
        for seq in [1, 2, 5, 6] {
            history.push(&numbered(chat("c"), seq, None));
        }
        let at = |after| history.after_seq(Seq(after), Seq(7), 9);
        assert_eq!((seqs(&at(0)), at(0).complete), (vec![2, 5, 6], false));
        assert_eq!((seqs(&at(1)), at(1).complete), (vec![2, 5, 6], true));
        assert_eq!((seqs(&at(5)), at(5).complete), (vec![6], true));
        assert_eq!((seqs(&at(7)), at(7).complete), (vec![], true));
        assert!(!at(8).complete, "a number from another numbering");
    }

    #[test]
    fn the_limit_is_told() {
        let mut history = History::new(&settings(9, 1 << 20));
        (1..=3).for_each(|seq| history.push(&numbered(chat("c"), seq, None)));
        let two = history.after_seq(Seq(0), Seq(3), 2);
        assert_eq!((seqs(&two), two.more), (vec![1, 2], true));
        assert!(!history.after_seq(Seq(1), Seq(3), 2).more);
    }

    #[test]
    fn chat_cannot_push_important_events_out() {
        let mut history = History::new(&settings(2, 1 << 20));
        history.push(&numbered(red_packet("r"), 1, Some(1)));
        (2..=50).for_each(|seq| history.push(&numbered(chat("c"), seq, None)));
        let replay = history.after_important(ImportantNo(0), ImportantNo(1), 9);
        assert_eq!((replay.events.len(), replay.complete), (1, true));
    }

    #[test]
    fn bytes_bound_it_and_what_is_too_large_leaves_a_known_hole() {
        let event = numbered(chat("c"), 1, None);
        let weight = event.event.weight();
        let mut history = History::new(&settings(100, weight * 3));
        (1..=5).for_each(|seq| history.push(&numbered(chat("c"), seq, None)));
        assert_eq!(seqs(&history.after_seq(Seq(0), Seq(5), 9)), [3, 4, 5]);
        history.push(&numbered(chat("c").payload(&"x".repeat(weight * 3)), 6, None));
        history.push(&numbered(chat("c"), 7, None));
        assert!(!history.after_seq(Seq(5), Seq(7), 9).complete);
        assert!(history.after_seq(Seq(6), Seq(7), 9).complete);
    }

    #[test]
    fn what_comes_late_and_is_not_kept_makes_nothing_else_complete() {
        let mut history = History::new(&settings(0, 1 << 20));
        history.push(&numbered(chat("c"), 5, None));
        history.push(&numbered(red_packet("r"), 3, Some(1)));
        assert!(!history.after_seq(Seq(4), Seq(5), 9).complete);
        assert!(history.after_seq(Seq(5), Seq(5), 9).complete);
    }
}
