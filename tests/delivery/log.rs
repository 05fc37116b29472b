//! The log as the home shards see it, with a disk that is slow, fails and
//! forgets: what was answered stays, what was not may stay.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tidegate::engine::event::Numbered;
use tidegate::engine::ids::{Epoch, ImportantNo, Seq};
use tidegate::engine::room::Restored;
use tidegate::engine::settings::RoomSettings;

use super::rng::Rng;

/// Something to be made durable.
#[derive(Debug, Clone)]
pub(crate) enum Entry {
    Event { room: usize, epoch: Epoch, event: Arc<Numbered> },
    Reserve { room: usize, epoch: Epoch, seq: Seq },
}

#[derive(Debug, Clone)]
pub(crate) struct Batch {
    pub(crate) ticket: u64,
    pub(crate) entries: Vec<Entry>,
}

/// What is on disk of a room.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) epoch: Epoch,
    pub(crate) used: Seq,
    pub(crate) last: ImportantNo,
    event_seq: Seq,
    retained: VecDeque<Arc<Numbered>>,
    /// Every event that was ever durable, by number: what retention drops is
    /// remembered here for the judge, and for the ids of a restart.
    pub(crate) all: Vec<Arc<Numbered>>,
}

/// Answer to a read.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) events: Vec<Arc<Numbered>>,
    pub(crate) complete: bool,
    pub(crate) more: bool,
}

#[derive(Debug)]
pub(crate) struct Log {
    retain: usize,
    pub(crate) rooms: BTreeMap<usize, Stored>,
    waiting: Vec<Batch>,
    syncing: Vec<Batch>,
    /// Written, refused, and not yet cut off: a crash may bring it back.
    remains: Vec<Batch>,
    pub(crate) failing: bool,
    pub(crate) generation: u64,
}

impl Log {
    pub(crate) fn new(retain: usize) -> Self {
        Self {
            retain,
            rooms: BTreeMap::new(),
            waiting: Vec::new(),
            syncing: Vec::new(),
            remains: Vec::new(),
            failing: false,
            generation: 0,
        }
    }

    /// Whether it was taken.
    pub(crate) fn submit(&mut self, batch: Batch, generation: u64) -> bool {
        let taken = !self.failing && generation == self.generation;
        if taken {
            self.waiting.push(batch);
        }
        taken
    }

    /// Begins to write what waits, unless it is writing; returns whether it did.
    pub(crate) fn begin_sync(&mut self) -> bool {
        let begins = self.syncing.is_empty() && !self.waiting.is_empty() && !self.failing;
        if begins {
            self.syncing = std::mem::take(&mut self.waiting);
        }
        begins
    }

    /// The sync has ended. Returns the tickets that are decided, in order.
    pub(crate) fn end_sync(&mut self, ok: bool) -> Vec<u64> {
        let batches = std::mem::take(&mut self.syncing);
        let mut tickets: Vec<u64> = batches.iter().map(|batch| batch.ticket).collect();
        if ok {
            batches.iter().flat_map(|batch| &batch.entries).for_each(|entry| self.apply(entry));
            return tickets;
        }
        tickets.extend(std::mem::take(&mut self.waiting).iter().map(|batch| batch.ticket));
        (self.remains, self.failing) = (batches, true);
        self.generation += 1;
        tickets
    }

    /// What failed is cut off, and the log takes batches again.
    pub(crate) fn recover(&mut self) {
        self.failing = false;
        self.remains.clear();
    }

    /// The process is gone. Of what was being written, some is on disk. Returns
    /// how many events came to stay that way.
    pub(crate) fn crash(&mut self, rng: &mut Rng) -> u64 {
        let mut open = std::mem::take(&mut self.remains);
        open.append(&mut self.syncing);
        self.waiting.clear();
        self.failing = false;
        self.generation += 1;
        let entries: Vec<Entry> = open.into_iter().flat_map(|batch| batch.entries).collect();
        let written = match rng.below(3) {
            0 => 0,
            1 => entries.len(),
            _ => rng.below(entries.len() as u64 + 1) as usize,
        };
        entries[..written].iter().for_each(|entry| self.apply(entry));
        entries[..written].iter().filter(|entry| matches!(entry, Entry::Event { .. })).count()
            as u64
    }

    fn apply(&mut self, entry: &Entry) {
        let (Entry::Event { room, epoch, .. } | Entry::Reserve { room, epoch, .. }) = entry;
        let stored = self.rooms.entry(*room).or_insert_with(|| Stored {
            epoch: *epoch,
            used: Seq(0),
            last: ImportantNo(0),
            event_seq: Seq(0),
            retained: VecDeque::new(),
            all: Vec::new(),
        });
        assert_eq!(stored.epoch, *epoch, "a room that the log knows keeps its numbering");
        match entry {
            Entry::Event { event, .. } => {
                let (seq, important) = (event.seq.unwrap_or_default(), event.important);
                let next = ImportantNo(stored.last.0 + 1);
                assert_eq!(important, Some(next), "the log takes each important number once");
                assert!(seq > stored.event_seq, "sequence numbers rise");
                stored.last = next;
                stored.event_seq = seq;
                stored.used = stored.used.max(seq);
                stored.all.push(Arc::clone(event));
                stored.retained.push_back(Arc::clone(event));
                while stored.retained.len() > self.retain {
                    stored.retained.pop_front();
                }
            }
            Entry::Reserve { seq, .. } => stored.used = stored.event_seq.max(*seq),
        }
    }

    /// The first event that is still kept; behind the last if none is.
    pub(crate) fn first(&self, room: usize) -> u64 {
        self.rooms.get(&room).map_or(1, |s| s.last.0 + 1 - s.retained.len() as u64)
    }

    pub(crate) fn read(&self, room: usize, after: ImportantNo, max: usize) -> Answer {
        let Some(stored) = self.rooms.get(&room) else {
            return Answer { events: Vec::new(), complete: false, more: false };
        };
        let mut rest = stored.retained.iter().filter(|event| event.important > Some(after));
        let events = rest.by_ref().take(max.max(1)).map(Arc::clone).collect();
        let complete = after.0 + 1 >= self.first(room);
        Answer { events, complete, more: rest.next().is_some() }
    }

    /// What a process that starts finds of a room. The numbers that it will
    /// give first are set aside before it is told.
    pub(crate) fn restored(&mut self, room: usize, settings: &RoomSettings) -> Option<Restored> {
        let restored = self.found(room, settings)?;
        let stored = self.rooms.get_mut(&room)?;
        stored.used = Seq(restored.seq.0 + 4_096);
        Some(restored)
    }

    fn found(&self, room: usize, settings: &RoomSettings) -> Option<Restored> {
        let stored = self.rooms.get(&room)?;
        let number = |event: &Arc<Numbered>| event.seq.unwrap_or_default();
        let ids = stored.all.iter().map(|event| (Arc::clone(&event.event.id), number(event)));
        let mut tail: Vec<Arc<Numbered>> = Vec::new();
        let mut bytes = 0;
        for event in stored.retained.iter().rev() {
            bytes += event.event.weight();
            if tail.len() >= settings.history_important || bytes > settings.history_important_bytes
            {
                break;
            }
            tail.push(Arc::clone(event));
        }
        tail.reverse();
        Some(Restored {
            epoch: stored.epoch,
            seq: stored.used,
            important: stored.last,
            ids: ids.collect(),
            tail,
        })
    }
}
