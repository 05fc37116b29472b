//! The one thread that writes.
//!
//! **Group commit**: it takes all that waits, writes it, syncs once, answers
//! every batch, and finds what came meanwhile. No wait is added: while a sync
//! runs the next group gathers by itself.
//!
//! **A failed write or sync is final.** After a failed `fsync` Linux marks the
//! pages clean, so a second call that succeeds proves nothing (Rebello et al.,
//! *Can Applications Recover from fsync Failures?*, USENIX ATC 2020). The whole
//! group fails, and with it what was waiting behind it, since its numbers build
//! on those that failed; the segment is given up at its last good byte, and the
//! next one says in its header where that was, so what was refused does not come
//! back after a restart.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::ids::{Epoch, ImportantNo, RoomId, Seq};
use crate::engine::time::Time;

use super::disk::{Disk, DiskFile, write_all};
use super::format::{Header, Place, append, file_name};
use super::index::{Arrival, Index, Segment};
use super::queue::{Taken, Waiting};
use super::record::{Numbers, put_event, put_numbering, put_removed, put_segments};
use super::settings::LogSettings;
use super::{Entry, LogFailure, Logged, Shared, Ticker};

/// How often retention by age is applied. It is about hours.
const SWEEP: Duration = Duration::from_secs(10);

/// The segment being written.
struct Current {
    number: u32,
    file: Arc<dyn DiskFile>,
    /// Where the checkpoint ends.
    body: u64,
    /// Where what is synced ends.
    end: u64,
    /// Up to where zeros were written ahead.
    ahead: u64,
}

pub(super) struct Writer {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) settings: LogSettings,
    pub(super) shared: Arc<Shared>,
    pub(super) done: Box<dyn Fn(Logged) + Send>,
    pub(super) ticker: Ticker,
    pub(super) store: u64,
    /// The last segment and where it validly ends.
    pub(super) previous: Option<(u32, u64)>,
    pub(super) next: u32,
    pub(super) schedule: Schedule,
    current: Option<Current>,
    buffer: Vec<u8>,
}

/// What is due when.
pub(super) struct Schedule {
    pause: Duration,
    attempt: Time,
    sweep: Time,
}

/// What a group will have changed once it is synced.
#[derive(Default)]
struct Staged {
    changes: Vec<Change>,
    /// Where the rooms of the group stand with it.
    ahead: HashMap<RoomId, Ahead>,
    /// By batch.
    results: Vec<Result<(), LogFailure>>,
}

enum Change {
    Event(Arrival),
    Reserve { room: RoomId, epoch: Epoch, used: Seq, time: Time },
}

#[derive(Clone, Copy)]
struct Ahead {
    epoch: Epoch,
    used: Seq,
    event_seq: Seq,
    first: ImportantNo,
    last: ImportantNo,
    known: bool,
}

impl Writer {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        settings: LogSettings,
        shared: Arc<Shared>,
        done: Box<dyn Fn(Logged) + Send>,
        ticker: Ticker,
        store: u64,
    ) -> Self {
        let now = ticker.now();
        let schedule = Schedule { pause: settings.first_pause, attempt: now, sweep: now + SWEEP };
        Self {
            disk,
            settings,
            shared,
            done,
            ticker,
            store,
            previous: None,
            next: 1,
            schedule,
            current: None,
            buffer: Vec::new(),
        }
    }

    /// Begins the first segment, and removes files that hold nothing. On a full
    /// disk the log starts all the same, as failing.
    pub(super) fn start(&mut self, garbage: &[u32]) -> io::Result<()> {
        for &number in garbage {
            // Found again at the next start.
            let _ = self.disk.remove(&file_name(number));
        }
        match self.begin() {
            Err(error) if reason(&error, LogFailure::Write) == LogFailure::Full => {
                self.fail(LogFailure::Full, Vec::new());
                Ok(())
            }
            Ok(()) => {
                self.sweep();
                Ok(())
            }
            failed => failed,
        }
    }

    /// Until the log is closed and nothing waits.
    pub(super) fn run(mut self) {
        loop {
            let now = self.ticker.now();
            let due =
                if self.current.is_some() { self.schedule.sweep } else { self.schedule.attempt };
            match self.shared.queue.take(self.settings.group_bytes, due.since(now)) {
                Taken::Group(group) => self.commit(group),
                Taken::Nothing => {}
                Taken::Closed => return self.leave(),
            }
            let now = self.ticker.now();
            if self.current.is_none() && now >= self.schedule.attempt {
                self.attempt();
            } else if self.current.is_some() && now >= self.schedule.sweep {
                self.sweep();
            }
        }
    }

    /// Tries to go on after a failure.
    fn attempt(&mut self) {
        match self.begin() {
            Ok(()) => self.shared.queue.recover(),
            Err(error) => {
                let now = self.ticker.now();
                self.shared.queue.still_failing(reason(&error, LogFailure::Write), now);
                self.schedule.attempt = now + self.schedule.pause;
                self.schedule.pause = (self.schedule.pause * 2).min(self.settings.longest_pause);
            }
        }
    }

    /// Begins the next segment with a checkpoint of all rooms.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        let now = self.ticker.now();
        let number = self.next;
        self.next = self.next.checked_add(1).ok_or(io::ErrorKind::Other)?;
        let (previous, previous_end) = self.previous.unwrap_or((0, 0));
        let header =
            Header { store: self.store, segment: number, previous, previous_end, created: now };
        self.buffer.clear();
        self.buffer.extend_from_slice(&header.encode());
        {
            let mut index = self.shared.index();
            index.retain(now, &self.settings.retention, None);
            if matches!(self.shared.queue.state(), super::LogState::Failing { .. }) {
                // Room for it may be what is missing. The new segment will not list
                // them. The last one stays: its checkpoint is the only one that holds.
                let dead = index.dead(now, self.previous.map(|(number, _)| number));
                self.remove(&mut index, &dead);
            }
            let _ = index.take_moved();
            checkpoint(&mut self.buffer, Place { store: self.store, segment: number }, &index);
        }
        let name = file_name(number);
        let created = self.disk.create(&name).and_then(|file| {
            write_all(file.as_ref(), &self.buffer, 0)?;
            self.sync(file.as_ref())?;
            self.disk.sync_dir()?;
            Ok(file)
        });
        let file = match created {
            Ok(file) => file,
            Err(error) => {
                // Whatever is left of it is no segment: the next one names `previous`.
                let _ = self.disk.remove(&name);
                return Err(error);
            }
        };
        let end = self.buffer.len() as u64;
        let mut index = self.shared.index();
        let segment = Segment { end, live: 0, keep_until: Time::default() };
        index.tally.segments.insert(number, segment);
        drop(index);
        self.current = Some(Current { number, file, body: end, end, ahead: end });
        self.previous = Some((number, end));
        self.schedule.pause = self.settings.first_pause;
        // What the limit on the whole store has just given up can go.
        self.schedule.sweep = now;
        let mut stats = self.shared.stats();
        stats.segments_begun += 1;
        stats.written_bytes += end;
        Ok(())
    }

    fn sync(&self, file: &dyn DiskFile) -> io::Result<()> {
        let started = self.ticker.now();
        let result = file.sync_data();
        let took = self.ticker.now().since(started);
        self.shared.stats().syncs.record(took);
        result
    }

    /// Writes a group, syncs it and answers.
    fn commit(&mut self, group: Vec<Waiting>) {
        let bytes = group.iter().map(|waiting| waiting.bytes as u64).sum::<u64>();
        let full = |current: &Current| {
            current.end > current.body
                && current.end - current.body + bytes > self.settings.segment_bytes
        };
        if self.current.as_ref().is_some_and(full) {
            self.leave();
            if let Err(error) = self.begin() {
                return self.fail(reason(&error, LogFailure::Write), group);
            }
        }
        let Some((number, end)) = self.current.as_ref().map(|c| (c.number, c.end)) else {
            return self.fail(LogFailure::Write, group);
        };
        let mut staged = self.stage(&group, number, end);
        if !self.buffer.is_empty()
            && let Err(failure) = self.write()
        {
            return self.fail(failure, group);
        }
        self.apply(&staged);
        for (waiting, result) in group.into_iter().zip(staged.results.drain(..)) {
            let Waiting { batch, .. } = waiting;
            (self.done)(Logged { shard: batch.shard, ticket: batch.ticket, result });
        }
    }

    /// Encodes a group for the place where it will stand.
    fn stage(&mut self, group: &[Waiting], segment: u32, end: u64) -> Staged {
        let now = self.ticker.now();
        let place = Place { store: self.store, segment };
        self.buffer.clear();
        let mut staged = Staged::default();
        let index = self.shared.index();
        for waiting in group {
            let entries = &waiting.batch.entries;
            let valid = is_valid(entries, &index, &staged.ahead);
            staged.results.push(if valid { Ok(()) } else { Err(LogFailure::Invalid) });
            if !valid {
                continue;
            }
            for entry in entries {
                let change = match entry {
                    Entry::Event { room, epoch, event } => {
                        let (Some(seq), Some(important)) = (event.seq, event.important) else {
                            continue;
                        };
                        let ahead = ahead(&mut staged.ahead, &index, room, *epoch);
                        let previous = if ahead.known { ahead.last } else { before(important) };
                        if !std::mem::replace(&mut ahead.known, true) {
                            ahead.first = important;
                        }
                        (ahead.last, ahead.event_seq) = (important, seq);
                        ahead.used = ahead.used.max(seq);
                        let used = ahead.used;
                        let numbers = Numbers { epoch: *epoch, used, previous, important, seq };
                        let (offset, len) = append(&mut self.buffer, place, end, |out| {
                            put_event(out, room, &numbers, &event.event);
                        });
                        Change::Event(Arrival {
                            room: room.clone(),
                            epoch: *epoch,
                            used,
                            previous,
                            important,
                            seq,
                            received: event.event.received,
                            segment,
                            offset,
                            len,
                        })
                    }
                    Entry::Reserve { room, epoch, seq } => {
                        let ahead = ahead(&mut staged.ahead, &index, room, *epoch);
                        ahead.known = true;
                        ahead.used = (*seq).max(ahead.event_seq);
                        let stand = ahead.stand(now);
                        append(&mut self.buffer, place, end, |out| {
                            put_numbering(out, room, &stand);
                        });
                        let (room, used) = (room.clone(), ahead.used);
                        Change::Reserve { room, epoch: *epoch, used, time: now }
                    }
                };
                staged.changes.push(change);
            }
        }
        staged
    }

    /// Writes the buffer behind what is synced, and syncs it.
    fn write(&mut self) -> Result<(), LogFailure> {
        let current = self.current.as_ref().ok_or(LogFailure::Write)?;
        write_all(current.file.as_ref(), &self.buffer, current.end)
            .map_err(|error| reason(&error, LogFailure::Write))?;
        let end = current.end + self.buffer.len() as u64;
        let ahead = current.ahead.max(if end > current.ahead {
            self.fill(current.file.as_ref(), end)
        } else {
            end
        });
        self.sync(current.file.as_ref()).map_err(|error| reason(&error, LogFailure::Sync))?;
        let Some(current) = &mut self.current else { return Ok(()) };
        (current.end, current.ahead) = (end, ahead);
        self.previous = Some((current.number, current.end));
        if let Some(segment) = self.shared.index().tally.segments.get_mut(&current.number) {
            segment.end = current.end;
        }
        self.shared.stats().written_bytes += self.buffer.len() as u64;
        Ok(())
    }

    /// Writes zeros ahead, as far as the disk takes them, and says to where.
    fn fill(&self, file: &dyn DiskFile, end: u64) -> u64 {
        // A group this large pays for its own change of length.
        if self.buffer.len() >= self.settings.ahead_bytes / 4 {
            return end;
        }
        let zeros = vec![0; self.settings.ahead_bytes];
        match write_all(file, &zeros, end) {
            Ok(()) => end + zeros.len() as u64,
            Err(_) => end,
        }
    }

    /// Nothing more is written to the current segment: it gives back what was
    /// filled ahead. Its end is known from elsewhere too.
    fn leave(&mut self) {
        if let Some(current) = self.current.take() {
            let _ = current.file.truncate(current.end);
        }
    }

    fn apply(&self, staged: &Staged) {
        let mut index = self.shared.index();
        for change in &staged.changes {
            match change {
                Change::Event(arrival) => {
                    index.push(arrival);
                    index.retain_room(&arrival.room, &self.settings.retention);
                }
                Change::Reserve { room, epoch, used, time } => {
                    index.reserve(room, *epoch, *used, *time);
                }
            }
        }
        drop(index);
        let entries = staged.changes.len() as u64;
        let mut stats = self.shared.stats();
        stats.groups += 1;
        stats.entries += entries;
        stats.largest_group = stats.largest_group.max(entries);
        stats.batches += staged.results.iter().filter(|result| result.is_ok()).count() as u64;
        for failure in staged.results.iter().filter_map(|result| result.err()) {
            stats.failures.count(failure);
        }
    }

    /// Gives up the segment and answers the group and all that waits.
    fn fail(&mut self, failure: LogFailure, group: Vec<Waiting>) {
        let now = self.ticker.now();
        self.leave();
        let waiting = self.shared.queue.fail(failure, now);
        {
            let mut stats = self.shared.stats();
            stats.abandoned += 1;
            group.iter().for_each(|_| stats.failures.count(failure));
            waiting.iter().for_each(|_| stats.failures.count(LogFailure::Stale));
        }
        let failed = group.into_iter().map(|waiting| (waiting.batch, failure));
        let stale = waiting.into_iter().map(|waiting| (waiting.batch, LogFailure::Stale));
        for (batch, failure) in failed.chain(stale) {
            let result = Err(failure);
            (self.done)(Logged { shard: batch.shard, ticket: batch.ticket, result });
        }
        self.schedule.attempt = now;
    }

    /// Applies retention and removes what holds nothing any more. That is noted
    /// in the log first: a file that is missing otherwise is damage.
    fn sweep(&mut self) {
        let now = self.ticker.now();
        self.schedule.sweep = now + SWEEP;
        let Some((number, end)) = self.current.as_ref().map(|c| (c.number, c.end)) else { return };
        let place = Place { store: self.store, segment: number };
        self.buffer.clear();
        let dead = {
            let mut index = self.shared.index();
            index.retain(now, &self.settings.retention, Some(number));
            let dead = index.dead(now, Some(number));
            if dead.is_empty() {
                return;
            }
            append(&mut self.buffer, place, end, |out| put_removed(out, &dead));
            // Else their events would seem to be missing.
            for (room, stand) in index.take_moved() {
                append(&mut self.buffer, place, end, |out| put_numbering(out, &room, &stand));
            }
            dead
        };
        if let Err(failure) = self.write() {
            return self.fail(failure, Vec::new());
        }
        let shared = Arc::clone(&self.shared);
        self.remove(&mut shared.index(), &dead);
    }

    /// Removes segments that hold nothing that is kept.
    fn remove(&self, index: &mut Index, dead: &[u32]) {
        for &number in dead {
            // What cannot be removed now is found at the next start.
            let _ = self.disk.remove(&file_name(number));
            index.tally.segments.remove(&number);
        }
        self.shared.stats().segments_removed += dead.len() as u64;
    }
}

impl Ahead {
    fn stand(&self, now: Time) -> super::record::Stand {
        let Self { epoch, used, first, last, .. } = *self;
        super::record::Stand { epoch, used, first, last, last_used: now }
    }
}

const fn before(important: ImportantNo) -> ImportantNo {
    ImportantNo(important.0.saturating_sub(1))
}

/// Where a room stands with what is staged before.
fn ahead<'a>(
    staged: &'a mut HashMap<RoomId, Ahead>,
    index: &Index,
    room: &RoomId,
    epoch: Epoch,
) -> &'a mut Ahead {
    let ahead = staged.entry(room.clone()).or_insert_with(|| look_up(index, room, epoch));
    if ahead.epoch != epoch {
        *ahead = look_up(index, room, epoch);
    }
    ahead
}

fn look_up(index: &Index, room: &RoomId, epoch: Epoch) -> Ahead {
    match index.numbering(room, epoch) {
        Some(numbering) => {
            let stand = numbering.stand();
            Ahead {
                epoch,
                used: stand.used,
                event_seq: numbering.event_seq,
                first: stand.first,
                last: stand.last,
                known: true,
            }
        }
        None => Ahead {
            epoch,
            used: Seq(0),
            event_seq: Seq(0),
            first: ImportantNo(1),
            last: ImportantNo(0),
            known: false,
        },
    }
}

/// Whether every event's number is above those before it.
fn is_valid(entries: &[Entry], index: &Index, staged: &HashMap<RoomId, Ahead>) -> bool {
    let mut last: HashMap<(&RoomId, Epoch), ImportantNo> = HashMap::new();
    entries.iter().all(|entry| match entry {
        Entry::Event { room, epoch, event } => {
            let before = last.entry((room, *epoch)).or_insert_with(|| {
                let ahead = staged.get(room).filter(|ahead| ahead.epoch == *epoch);
                ahead.map_or_else(|| look_up(index, room, *epoch).last, |ahead| ahead.last)
            });
            let number = event.important.filter(|number| event.seq.is_some() && number > before);
            if let Some(number) = number {
                *before = number;
            }
            number.is_some()
        }
        Entry::Reserve { .. } => true,
    })
}

/// The first records of a segment: the others, and where every room stands.
fn checkpoint(buffer: &mut Vec<u8>, place: Place, index: &Index) {
    let segments = &index.tally.segments;
    let listed: Vec<(u32, u64)> = segments.iter().map(|(&n, segment)| (n, segment.end)).collect();
    append(buffer, place, 0, |out| put_segments(out, &listed));
    for (room, stand) in index.stands() {
        append(buffer, place, 0, |out| put_numbering(out, room, &stand));
    }
}

fn reason(error: &io::Error, other: LogFailure) -> LogFailure {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => LogFailure::Full,
        _ => other,
    }
}
