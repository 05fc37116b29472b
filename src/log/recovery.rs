//! Reads the log back.
//!
//! A record that the end of the last file cuts off is a write that was never
//! finished, so never acknowledged: it is dropped without more ado. Any other
//! bytes that are no record are damage. What stood there cannot be known, so
//! the scan goes on at the next valid record, and each room that no later
//! record speaks for begins a new numbering: the old one may have gone further
//! than what is left of it, and no number may be used twice.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use crate::engine::event::Numbered;
use crate::engine::ids::{Epoch, ImportantNo, RoomId, Seq};
use crate::engine::time::Time;

use super::disk::{Disk, read_full};
use super::format::{Look, Place, RECORDS_AT, is_torn, look};
use super::index::{Arrival, Index, Segment};
use super::layout::{Found, Layout, LayoutError};
use super::record::{KindOf, Record, Stand, Stored};
use super::report::{
    Damage, DamageKind, Former, Lost, Recovered, Renumbered, Report, RestoredRoom,
};
use super::settings::LogSettings;

/// What was read back.
pub(super) struct Restored {
    pub(super) index: Index,
    /// Nothing where no file tells.
    pub(super) store: Option<u64>,
    /// The last segment and where it validly ends.
    pub(super) last: Option<(u32, u64)>,
    /// The number for the next segment.
    pub(super) next: u32,
    /// Files that hold nothing that counts.
    pub(super) garbage: Vec<u32>,
    pub(super) recovered: Recovered,
}

/// Reads everything.
pub(super) fn restore(
    disk: &dyn Disk,
    settings: &LogSettings,
    kinds: &KindOf,
    now: Time,
) -> Result<Restored, LayoutError> {
    let layout = Layout::read(disk)?;
    let report = Report { damaged: layout.damaged, ..Report::default() };
    let mut scan = Scan {
        settings,
        kinds,
        index: Index::default(),
        report,
        stretches: 0,
        confirmed: HashMap::new(),
        memories: HashMap::new(),
        removed: BTreeSet::new(),
    };
    let mut last = None;
    let count = layout.segments.len();
    for (at, found) in layout.segments.iter().enumerate() {
        let is_last = at + 1 == count;
        let end = match (&found.file, layout.store) {
            (Some(_), Some(store)) => scan.segment(found, store, is_last),
            _ => {
                scan.stretches += 1;
                found.end.unwrap_or(0)
            }
        };
        if is_last {
            last = Some((found.number, end));
            scan.report.unsynced =
                found.file.as_ref().is_some_and(|file| file.sync_data().is_err());
        }
    }
    let mut garbage = layout.void;
    garbage.extend(scan.drop_removed());
    let recovered = scan.finish(now);
    Ok(Restored {
        index: recovered.0,
        store: layout.store,
        last,
        next: layout.highest + 1,
        garbage,
        recovered: recovered.1,
    })
}

/// What a room will have in memory.
#[derive(Default)]
struct Memory {
    /// Id, its number, its important number, when.
    ids: VecDeque<(Arc<str>, Seq, ImportantNo, Time)>,
    tail: VecDeque<Arc<Numbered>>,
    tail_bytes: usize,
}

impl Memory {
    fn forget_tail(&mut self) {
        self.tail.clear();
        self.tail_bytes = 0;
    }

    /// Drops what stands behind `last`: it never counted.
    fn cut(&mut self, last: ImportantNo) {
        while self.ids.back().is_some_and(|&(_, _, important, _)| important > last) {
            self.ids.pop_back();
        }
        while self.tail.back().is_some_and(|event| event.important > Some(last)) {
            self.tail_bytes -= self.tail.pop_back().map_or(0, |event| event.event.weight());
        }
    }

    fn remember(&mut self, stored: Stored, settings: &LogSettings) {
        let event = &stored.event;
        let id = (Arc::clone(&event.id), stored.seq, stored.important, event.received);
        self.ids.push_back(id);
        if self.ids.len() > settings.ids_per_room {
            self.ids.pop_front();
        }
        self.tail_bytes += event.weight();
        self.tail.push_back(stored.numbered());
        while self.tail.len() > settings.tail_events || self.tail_bytes > settings.tail_bytes {
            self.tail_bytes -= self.tail.pop_front().map_or(0, |event| event.event.weight());
        }
    }
}

struct Scan<'a> {
    settings: &'a LogSettings,
    kinds: &'a KindOf,
    index: Index,
    report: Report,
    /// Damaged stretches that may have held records, so far.
    stretches: u32,
    /// How many of them were behind when a numbering was last spoken for.
    confirmed: HashMap<(RoomId, Epoch), u32>,
    memories: HashMap<(RoomId, Epoch), Memory>,
    removed: BTreeSet<u32>,
}

impl Scan<'_> {
    /// Reads a segment and says where its valid part ends.
    fn segment(&mut self, found: &Found, store: u64, is_last: bool) -> u64 {
        self.report.segments += 1;
        let valid = found.end.map_or(found.len, |end| end.min(found.len));
        let mut bytes = vec![0; usize::try_from(valid).unwrap_or(0)];
        let read = found.file.as_ref().map(|file| read_full(file.as_ref(), &mut bytes, 0));
        let unreadable = !matches!(read, Some(Ok(n)) if n == bytes.len());
        // Its events are counted as they come.
        let created = found.header.map_or(Time::default(), |header| header.created);
        let segment = Segment { end: valid, live: 0, keep_until: Time::default() };
        self.index.tally.segments.insert(found.number, segment);

        let before = self.report.damaged.len();
        if unreadable {
            self.damage(found.number, RECORDS_AT, valid, DamageKind::Unreadable);
        }
        let place = Place { store, segment: found.number };
        // With a stated end nothing can be unfinished before it.
        let may_be_torn = is_last && found.end.is_none();
        let end = self.records(&bytes, place, may_be_torn);
        let stated = found.end.unwrap_or(if may_be_torn { end } else { found.len });
        if end < stated {
            self.damage(found.number, end, stated - end, DamageKind::Cut);
        }
        let damaged = self.report.damaged.len() > before || found.header.is_none();
        if let Some(segment) = self.index.tally.segments.get_mut(&found.number) {
            segment.end = end;
            if damaged {
                // For whoever wants to look into it.
                segment.keep_until = created + self.settings.retention.age;
            }
        }
        end
    }

    fn damage(&mut self, segment: u32, offset: u64, bytes: u64, what: DamageKind) {
        self.stretches += 1;
        self.report.damaged.push(Damage { segment, offset, bytes, what });
    }

    /// Reads records and says where the last one ends.
    fn records(&mut self, bytes: &[u8], place: Place, may_be_torn: bool) -> u64 {
        let mut at = RECORDS_AT as usize;
        if bytes.len() < at {
            if may_be_torn {
                self.report.cut_tail_bytes += bytes.len() as u64;
                return 0;
            }
            return bytes.len() as u64;
        }
        let mut good = at;
        // Zeros that were written ahead; no record ends with one.
        let written = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        let end = if may_be_torn { written } else { bytes.len() };
        while at < end {
            let offset = at as u64;
            let found = look(&bytes[at..], place, offset);
            if may_be_torn && is_torn(found, at, written) {
                self.report.cut_tail_bytes += (written - at) as u64;
                return good as u64;
            }
            at += match found {
                Look::Record { content, total } => {
                    match Record::decode(content, self.kinds.as_ref()) {
                        Some(record) => {
                            self.record(record, place.segment, offset, total);
                            good = at + total;
                        }
                        None => {
                            let what = DamageKind::Content;
                            self.damage(place.segment, offset, total as u64, what);
                        }
                    }
                    total
                }
                Look::BadBody(total) => {
                    self.damage(place.segment, offset, total as u64, DamageKind::Record);
                    total
                }
                Look::Short | Look::BadHead => {
                    let skipped = resynchronise(&bytes[at..end], place, offset);
                    let what = DamageKind::Bytes;
                    self.damage(place.segment, offset, skipped as u64, what);
                    skipped
                }
            };
        }
        // Damage at the very end is told once and then cut off.
        if may_be_torn { good as u64 } else { at as u64 }
    }

    fn record(&mut self, record: Record, segment: u32, offset: u64, total: usize) {
        self.report.records += 1;
        match record {
            // Read beforehand.
            Record::Segments(_) => {}
            Record::Removed(segments) => self.removed.extend(segments),
            Record::Numbering(room, stand) => {
                let lost = self.index.stand(&room, &stand);
                let memory = self.memory(&room, stand.epoch);
                memory.cut(stand.last);
                if lost.iter().any(|&(_, to)| to == stand.last.0) {
                    memory.forget_tail();
                }
                for (from, to) in lost {
                    self.note_lost(&room, stand.epoch, from, to);
                }
                self.confirmed.insert((room, stand.epoch), self.stretches);
            }
            Record::Event(stored) => {
                let lost = self.index.push(&Arrival {
                    room: stored.room.clone(),
                    epoch: stored.epoch,
                    used: stored.used,
                    previous: stored.previous,
                    important: stored.important,
                    seq: stored.seq,
                    received: stored.event.received,
                    segment,
                    offset,
                    len: u32::try_from(total).unwrap_or(u32::MAX),
                });
                if lost > 0 {
                    let to = stored.previous.0;
                    self.note_lost(&stored.room, stored.epoch, to - lost + 1, to);
                }
                self.confirmed.insert((stored.room.clone(), stored.epoch), self.stretches);
                let settings = self.settings;
                let memory = self.memory(&stored.room, stored.epoch);
                memory.cut(stored.previous);
                if lost > 0 {
                    memory.forget_tail();
                }
                memory.remember(stored, settings);
            }
        }
    }

    fn note_lost(&mut self, room: &RoomId, epoch: Epoch, from: u64, to: u64) {
        let (room, from, to) = (room.clone(), ImportantNo(from), ImportantNo(to));
        self.report.lost.push(Lost { room, epoch, from, to });
    }

    fn memory(&mut self, room: &RoomId, epoch: Epoch) -> &mut Memory {
        self.memories.entry((room.clone(), epoch)).or_default()
    }

    /// Segments whose removal was noted and not finished, and which hold
    /// nothing indeed. A noted removal is also why a file is not there.
    fn drop_removed(&mut self) -> Vec<u32> {
        let removed = std::mem::take(&mut self.removed);
        self.report.damaged.retain(|damage| {
            damage.what != DamageKind::Missing || !removed.contains(&damage.segment)
        });
        let segments = &mut self.index.tally.segments;
        let dead = |n: &u32| segments.get(n).is_some_and(|segment| segment.live == 0);
        let dead: Vec<u32> = removed.into_iter().filter(|n| dead(n)).collect();
        segments.retain(|number, _| !dead.contains(number));
        dead
    }

    /// Renumbers what must be, applies retention, and gathers the rooms.
    fn finish(mut self, now: Time) -> (Index, Recovered) {
        let stretches = self.stretches;
        let unsure: Vec<(RoomId, Stand)> = self
            .index
            .newest()
            .filter(|(room, numbering, _)| {
                let key = ((*room).clone(), numbering.epoch);
                self.confirmed.get(&key).copied().unwrap_or(0) < stretches
            })
            .map(|(room, numbering, _)| (room.clone(), numbering.stand()))
            .collect();
        for (room, stand) in unsure {
            let epoch = fresh_epoch(&room, stand.epoch, now);
            let new = Stand {
                epoch,
                used: Seq(0),
                first: ImportantNo(1),
                last: ImportantNo(0),
                last_used: stand.last_used,
            };
            self.index.stand(&room, &new);
            let (former, important) = (stand.epoch, stand.last);
            self.report.renumbered.push(Renumbered { room, former, important, epoch });
        }
        let Self { mut index, mut report, mut memories, settings, .. } = self;
        index.retain(now, &settings.retention, None);
        // What is no longer retained is not lost.
        report.lost.retain_mut(|lost| {
            let first = index.numbering(&lost.room, lost.epoch).map(|n| n.stand().first);
            lost.from = lost.from.max(first.unwrap_or(ImportantNo(u64::MAX)));
            lost.from <= lost.to
        });
        report.renumbered.retain(|r| index.numbering(&r.room, r.epoch).is_some());
        report.events = index.tally.events;
        let oldest = now - settings.retention.age;
        let rooms = index
            .newest()
            .map(|(room, newest, older)| {
                let Stand { epoch, used, first, last, last_used } = newest.stand();
                let memory = memories.remove(&(room.clone(), epoch));
                let Memory { ids, tail, .. } = memory.unwrap_or_default();
                let ids = ids.into_iter().filter(|&(_, _, _, received)| received >= oldest);
                RestoredRoom {
                    room: room.clone(),
                    epoch,
                    seq: used,
                    important: last,
                    last_used,
                    ids: ids.map(|(id, seq, _, _)| (id, seq)).collect(),
                    tail: tail.into_iter().filter(|e| e.important >= Some(first)).collect(),
                    former: older.map(|n| Former { epoch: n.epoch, important: n.last }),
                }
            })
            .collect();
        (index, Recovered { rooms, report })
    }
}

/// How many bytes to skip to the next valid record.
fn resynchronise(bytes: &[u8], place: Place, offset: u64) -> usize {
    (1..bytes.len())
        .find(|&skip| {
            matches!(look(&bytes[skip..], place, offset + skip as u64), Look::Record { .. })
        })
        .unwrap_or(bytes.len())
}

/// A numbering that the room never had. One above the former would do, were it
/// not for a stretch lost later that held a numbering given here: time goes on.
fn fresh_epoch(room: &RoomId, former: Epoch, now: Time) -> Epoch {
    const START_OF_2020_MS: u64 = 1_577_836_800_000;
    let millis = now.as_millis().saturating_sub(START_OF_2020_MS) & ((1 << 42) - 1);
    let low = u64::from(crc32c::crc32c(room.as_str().as_bytes())) & 0x7ff;
    Epoch((millis << 11 | low).max(former.0 + 1))
}
