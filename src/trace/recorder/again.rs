//! Events that viewers get again: counted by event and way, in bursts, so that
//! a room of 200,000 that comes back leaves one step and not 200,000.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::super::step::{Detail, Noted, Step};
use super::Recorder;
use crate::engine::event::{Frame, Numbered};
use crate::engine::ids::{Epoch, ImportantNo, RoomId};
use crate::engine::mark::Mark;
use crate::engine::time::Time;

/// A burst is over when this has passed without another viewer: as long as
/// acknowledgements of the first sending are counted.
const QUIET: Duration = Duration::from_secs(10);

/// A burst is no longer than this, so that a busy room's spans do not wait
/// for its viewers to rest.
const LONGEST: Duration = Duration::from_secs(60);

/// How an event reached viewers again, or why they were told that they miss it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Again {
    /// Sent along to viewers who had been asked and had not acknowledged it.
    Carried,
    /// These were silent to the end and were told to pull it.
    Silent,
    /// Their digests lacked it, and they were told to pull it.
    Digest,
    /// A viewer asked for it by number.
    Pulled,
    /// Somebody read the room's events over HTTP.
    Read,
    /// Sent to viewers who came back and said how far they had come.
    Replayed,
    /// Sent to slow viewers who had skipped ahead and were owed it.
    Rebased,
}

impl Again {
    const ALL: [Again; 7] = [
        Again::Carried,
        Again::Silent,
        Again::Digest,
        Again::Pulled,
        Again::Read,
        Again::Replayed,
        Again::Rebased,
    ];

    /// The step that stands for it.
    #[must_use]
    pub const fn step(self) -> Step {
        match self {
            Again::Carried => Step::Carried,
            Again::Silent | Again::Digest => Step::Missed,
            Again::Pulled | Again::Read => Step::Pulled,
            Again::Replayed => Step::Replayed,
            Again::Rebased => Step::Rebased,
        }
    }

    /// What tells it from another of the same step.
    const fn word(self) -> Option<(&'static str, Detail)> {
        match self {
            Again::Silent => Some(("why", Detail::Word("silent"))),
            Again::Digest => Some(("why", Detail::Word("digest"))),
            Again::Pulled => Some(("way", Detail::Word("viewer"))),
            Again::Read => Some(("way", Detail::Word("http"))),
            Again::Carried | Again::Replayed | Again::Rebased => None,
        }
    }
}

impl Recorder {
    /// Events have got their numbers.
    pub(super) fn learn(&mut self, frame: &Frame) {
        for (mark, important) in super::marked(frame) {
            if let (Some(number), Some(trace)) = (important, self.traces.get_mut(&mark.key)) {
                trace.important = Some(number);
                self.numbers.learn(frame.epoch, number, mark);
            }
        }
    }

    /// Whether an event that is sent again may be followed.
    #[must_use]
    pub fn is_following(&self) -> bool {
        !self.traces.is_empty()
    }

    /// Gives events of a room that come from the log their marks back.
    pub fn recognise(&self, room: &RoomId, epoch: Epoch, events: &mut [Arc<Numbered>]) {
        if self.numbers.is_empty() {
            return;
        }
        let Some(marks) = self.numbers.of(room, epoch) else { return };
        for event in events {
            let mark = event.important.and_then(|number| marks.get(&number));
            if let Some(mark) = mark.filter(|mark| mark.id == event.event.id) {
                Arc::make_mut(event).event.mark = Some(Arc::clone(mark));
            }
        }
    }

    /// So many viewers more have got these events again.
    pub fn again(&mut self, events: &[Arc<Numbered>], how: Again, viewers: u64) {
        let now = self.clock.now();
        for mark in events.iter().filter_map(|event| event.event.mark.as_ref()) {
            self.sent_again(mark, how, viewers, now);
        }
    }

    /// A viewer was told that it misses these numbers of a room.
    pub fn missed(
        &mut self,
        (room, epoch): (&RoomId, Epoch),
        (from, to): (ImportantNo, ImportantNo),
        how: Again,
    ) {
        let Some(marks) = self.numbers.of(room, epoch).filter(|_| from <= to) else { return };
        let marks: Vec<_> = marks.range(from..=to).map(|(_, mark)| Arc::clone(mark)).collect();
        let now = self.clock.now();
        for mark in marks {
            self.sent_again(&mark, how, 1, now);
        }
    }

    fn sent_again(&mut self, mark: &Arc<Mark>, how: Again, viewers: u64, now: Time) {
        if self.bursts.len() >= self.settings.kept.max(1) && !self.bursts.has(mark, how) {
            // All of them, rather than looking for the oldest one each time.
            let cut_short = self.bursts.end();
            self.close_bursts(cut_short);
        }
        // A shard without viewers when it first went out, or a trace that has
        // given way: it pushes out no other.
        if !self.traces.contains_key(&mark.key) && self.traces.len() < self.settings.kept {
            self.begin(mark);
        }
        self.bursts.add(mark, how, viewers, now);
    }

    pub(super) fn close_bursts(&mut self, ended: Vec<Burst>) {
        for burst in ended {
            let Noted { step, at, since, details } = burst.noted();
            self.note_at(&burst.mark, step, &details, since, at);
        }
    }

    /// Whether [`tick`](Self::tick) may have something to end.
    #[must_use]
    pub fn is_counting(&self) -> bool {
        !self.receipts.is_empty() || !self.bursts.is_empty()
    }
}

/// Viewers who got one event again in one way, shortly after one another.
#[derive(Debug)]
pub(super) struct Burst {
    pub(super) mark: Arc<Mark>,
    again: Again,
    first: Time,
    last: Time,
    /// Viewers; of rounds, in the largest.
    viewers: u64,
    /// Times that it was told of.
    rounds: u64,
}

impl Burst {
    pub(super) fn noted(&self) -> Noted {
        let mut details: Vec<_> = self.again.word().into_iter().collect();
        let counted = if self.again == Again::Read { "answers" } else { "viewers" };
        details.push((counted, Detail::Count(self.viewers)));
        if self.again == Again::Carried {
            details.push(("rounds", Detail::Count(self.rounds)));
        }
        Noted { step: self.again.step(), at: self.last, since: self.first, details }
    }
}

/// Bursts that go on.
#[derive(Debug, Default)]
pub(super) struct Bursts {
    open: HashMap<(u128, Again), Burst>,
}

impl Bursts {
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    pub(super) fn has(&self, mark: &Mark, again: Again) -> bool {
        self.open.contains_key(&(mark.key, again))
    }

    /// So many viewers more.
    pub(super) fn add(&mut self, mark: &Arc<Mark>, again: Again, viewers: u64, now: Time) {
        let new = || Burst {
            mark: Arc::clone(mark),
            again,
            first: now,
            last: now,
            viewers: 0,
            rounds: 0,
        };
        let burst = self.open.entry((mark.key, again)).or_insert_with(new);
        burst.last = now;
        burst.rounds += 1;
        // The silent of one round are for the most part those of the next.
        burst.viewers = match again {
            Again::Carried => burst.viewers.max(viewers),
            _ => burst.viewers + viewers,
        };
    }

    /// Takes out what has ended, the earliest first.
    pub(super) fn over(&mut self, now: Time) -> Vec<Burst> {
        let ended =
            |burst: &mut Burst| now.since(burst.last) >= QUIET || now.since(burst.first) >= LONGEST;
        in_order(self.open.extract_if(|_, burst| ended(burst)).map(|(_, burst)| burst))
    }

    /// Takes out all.
    pub(super) fn end(&mut self) -> Vec<Burst> {
        in_order(self.open.drain().map(|(_, burst)| burst))
    }

    /// An event's, the earliest first.
    pub(super) fn of(&self, key: u128) -> impl Iterator<Item = Noted> {
        let those = Again::ALL.into_iter().filter_map(|again| self.open.get(&(key, again)));
        let mut those: Vec<Noted> = those.map(Burst::noted).collect();
        those.sort_by_key(|noted| (noted.at, noted.step));
        those.into_iter()
    }
}

fn in_order(bursts: impl Iterator<Item = Burst>) -> Vec<Burst> {
    let mut bursts: Vec<Burst> = bursts.collect();
    bursts.sort_by_key(|burst| (burst.last, burst.again.step(), burst.mark.key));
    bursts
}

/// The important numbers of events that are followed: what is read back from
/// the log has no mark, and who is told that it misses a range hears numbers
/// only. Holds a number per trace at most.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    rooms: HashMap<RoomId, (Epoch, BTreeMap<ImportantNo, Arc<Mark>>)>,
}

impl Numbers {
    pub(super) fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }

    /// An event has this number in its room.
    pub(super) fn learn(&mut self, epoch: Epoch, number: ImportantNo, mark: &Arc<Mark>) {
        let (known, marks) = self.rooms.entry(mark.room.clone()).or_default();
        if *known != epoch {
            // The room has begun anew; numbers of before mean other events.
            (*known, *marks) = (epoch, BTreeMap::new());
        }
        marks.insert(number, Arc::clone(mark));
    }

    /// An event's trace is gone.
    pub(super) fn forget(&mut self, number: ImportantNo, mark: &Mark) {
        let Some((_, marks)) = self.rooms.get_mut(&mark.room) else { return };
        if marks.get(&number).is_some_and(|known| known.key == mark.key) {
            marks.remove(&number);
        }
        if marks.is_empty() {
            self.rooms.remove(&mark.room);
        }
    }

    /// Those of a room, in one numbering.
    pub(super) fn of(
        &self,
        room: &RoomId,
        epoch: Epoch,
    ) -> Option<&BTreeMap<ImportantNo, Arc<Mark>>> {
        self.rooms.get(room).filter(|(known, _)| *known == epoch).map(|(_, marks)| marks)
    }
}
