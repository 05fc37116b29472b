//! A store is cut, flipped, or robbed of a file; then it is opened, written on,
//! and opened once more.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tidegate::engine::event::Numbered;
use tidegate::engine::ids::{Epoch, RoomId, Seq};
use tidegate::log::{DamageKind, Entry, LogSettings, Report};

use super::disk::MemoryDisk;
use super::kit::{Bench, START, event, room, settings};

type Files = BTreeMap<String, Vec<u8>>;

/// What was acknowledged.
#[derive(Clone, Default)]
struct Truth {
    rooms: BTreeMap<RoomId, Book>,
}

#[derive(Clone)]
struct Book {
    epoch: Epoch,
    events: BTreeMap<u64, Arc<Numbered>>,
    /// Highest sequence number that may be in use.
    used: u64,
    /// File and bytes of each event's record.
    places: BTreeMap<u64, (String, Range<usize>)>,
}

/// A store of several segments: three rooms in use to the end, one that was
/// used early only, and one of which nothing but a reservation is known.
fn store() -> (Files, Truth) {
    store_left(0, true)
}

/// The same, with zeros ahead of the records, and closed or killed.
fn store_left(ahead_bytes: usize, closed: bool) -> (Files, Truth) {
    let disk = MemoryDisk::default();
    let settings = LogSettings { segment_bytes: 1_600, ahead_bytes, ..settings() };
    let mut bench = Bench::open_with(&disk, settings, START).expect("the log opens");
    let mut truth = Truth::default();
    for (at, name) in ["a", "b", "c", "early", "quiet"].iter().enumerate() {
        let epoch = Epoch(1_000 + at as u64);
        let used = 40;
        let book = Book { epoch, events: BTreeMap::new(), used, places: BTreeMap::new() };
        truth.rooms.insert(room(name), book);
        let entry = Entry::Reserve { room: room(name), epoch, seq: Seq(used) };
        bench.write(vec![entry]).expect("reserved");
    }
    let mut salt = 0;
    for round in 0..16_u64 {
        for name in ["a", "b", "c", "early"] {
            if name == "early" && round > 3 {
                continue;
            }
            let book = truth.rooms.get_mut(&room(name)).expect("a room");
            let n = book.events.len() as u64 + 1;
            salt += 1;
            let event = event(n, n * 3, salt, START + Duration::from_millis(salt));
            let before = disk.files();
            bench.write_event(&room(name), book.epoch, &event);
            book.places.insert(n, grown(&before, &disk.files()));
            book.events.insert(n, event);
        }
    }
    let killed = disk.files();
    bench.log.close();
    (if closed { disk.files() } else { killed }, truth)
}

/// Where the last write went. A new segment's checkpoint goes before it.
fn grown(before: &Files, after: &Files) -> (String, Range<usize>) {
    let (name, bytes) = after.iter().next_back().expect("a segment");
    let from = before.get(name).map_or(0, Vec::len);
    (name.clone(), from..bytes.len())
}

/// What a damaged store must still be.
struct Judge<'a> {
    truth: &'a Truth,
    what: String,
    /// The end was cut off as by a write that was never finished: what was
    /// there then was never acknowledged, and its numbers may be given again.
    cut: bool,
}

impl<'a> Judge<'a> {
    fn of(truth: &'a Truth, what: impl Into<String>) -> Self {
        Self { truth, what: what.into(), cut: false }
    }
}

impl Judge<'_> {
    /// Opens it, compares, writes on, and compares again after a restart.
    fn judge(&self, files: &Files) -> Report {
        let disk = MemoryDisk::with(files);
        let mut bench = Bench::open(&disk);
        let report = bench.recovered.report.clone();
        let what = &self.what;
        let mut going_on = Vec::new();
        let mut missing_rooms = 0;
        for (room, book) in &self.truth.rooms {
            let served = bench.read_all(room, book.epoch);
            for (n, event) in &served {
                assert_eq!(book.events.get(n), Some(event), "{what}: {room} {n}");
            }
            let complete = bench.read(room, book.epoch, 0, usize::MAX).complete;
            let missing = book.events.keys().any(|n| !served.contains_key(n));
            if missing {
                let told = !report.damaged.is_empty() || self.cut;
                assert!(told, "{what}: {room} misses events and nothing says so");
            }
            let restored = bench.recovered.rooms.iter().find(|r| r.room == *room);
            let Some(restored) = restored else {
                missing_rooms += 1;
                assert!(!report.damaged.is_empty() || self.cut, "{what}: {room} is gone");
                continue;
            };
            if restored.epoch == book.epoch {
                let last = book.events.keys().last().copied().unwrap_or(0);
                if !self.cut {
                    assert!(restored.important.0 >= last, "{what}: {room} reuses numbers");
                    assert!(restored.seq.0 >= book.used, "{what}: {room} reuses numbers");
                    assert!(!missing || !complete, "{what}: {room} hides what it lost");
                    for n in book.events.keys().filter(|n| !served.contains_key(n)) {
                        let told = report.lost.iter().any(|lost| {
                            lost.room == *room && (lost.from.0..=lost.to.0).contains(n)
                        });
                        assert!(told, "{what}: {room} lost {n} without saying so\n{report}");
                    }
                }
            } else {
                assert!(restored.epoch.0 > book.epoch.0 && restored.epoch.0 < 1 << 53);
                assert_eq!((restored.important.0, restored.seq.0), (0, 0));
                let told = report.renumbered.iter().any(|r| {
                    r.room == *room && r.former == book.epoch && r.epoch == restored.epoch
                });
                assert!(told, "{what}: {room} was renumbered silently");
            }
            going_on.push((room.clone(), restored.epoch, restored.important.0, restored.seq.0));
        }
        assert!(missing_rooms < self.truth.rooms.len() || !report.damaged.is_empty());
        for restored in &bench.recovered.rooms {
            let book = self.truth.rooms.get(&restored.room).expect("no room is made up");
            for event in &restored.tail {
                let n = event.important.expect("numbered").0;
                assert_eq!(book.events.get(&n), Some(event), "{what}: tail");
            }
            for (id, seq) in &restored.ids {
                let known = book.events.values().any(|e| e.event.id == *id && e.seq == Some(*seq));
                assert!(known, "{what}: an id that never was: {id} {seq:?}");
            }
        }
        let mut after = BTreeMap::new();
        for (room, epoch, important, seq) in &going_on {
            let event = event(important + 1, seq + 1, 9_000, START);
            bench.write_event(room, *epoch, &event);
            after.insert(room.clone(), (bench.read_all(room, *epoch), *epoch));
        }
        bench.log.close();
        let bench = Bench::open(&disk);
        let again = &bench.recovered.report;
        assert!(again.renumbered.is_empty(), "{what}: the second start renumbers: {again}");
        assert_eq!(again.cut_tail_bytes, 0, "{what}");
        for (room, (events, epoch)) in &after {
            assert_eq!(bench.read_all(room, *epoch), *events, "{what}: {room} after a restart");
        }
        report
    }
}

#[test]
fn a_cut_at_any_byte_of_the_last_segment_leaves_the_records_before_it() {
    let (files, truth) = store();
    let (last, bytes) = files.iter().next_back().expect("segments");
    let places: Vec<_> = truth
        .rooms
        .iter()
        .flat_map(|(room, book)| book.places.iter().map(move |(n, place)| (room, *n, place)))
        .filter(|(_, _, (file, _))| file == last)
        .collect();
    assert!(places.len() > 4, "the last segment holds {} events", places.len());
    for cut in 0..bytes.len() {
        let mut files = files.clone();
        files.get_mut(last).expect("it").truncate(cut);
        let judge =
            Judge { truth: &truth, what: format!("cut at {cut} of {}", bytes.len()), cut: true };
        let report = judge.judge(&files);
        assert!(report.damaged.is_empty() && report.renumbered.is_empty(), "{cut}: {report}");

        let bench = Bench::open(&MemoryDisk::with(&files));
        let whole: Vec<_> = places.iter().filter(|(_, _, (_, r))| r.end <= cut).collect();
        let ends = places.iter().map(|(_, _, (_, range))| range.end);
        let boundary = ends.filter(|&end| end <= cut).max().unwrap_or(0);
        for (room, n, _) in &places {
            let served = bench.read_all(room, truth.rooms[*room].epoch).contains_key(n);
            let expected = whole.iter().any(|(r, m, _)| r == room && m == n);
            assert_eq!(served, expected, "cut at {cut}: {room} {n}");
        }
        if boundary > 0 {
            // Zeros at the end may as well never have been written.
            let rest = bytes[boundary..cut].iter().rposition(|&b| b != 0).map_or(0, |at| at + 1);
            assert_eq!(report.cut_tail_bytes, rest as u64, "cut at {cut}");
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_is_harmless_or_told_and_never_served() {
    let (files, truth) = store();
    let total: usize = files.values().map(Vec::len).sum();
    assert!(files.len() >= 3, "{} segments of {total} bytes", files.len());
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut renumbered = 0;
    for (name, bytes) in &files {
        for at in 0..bytes.len() {
            let mut files = files.clone();
            let bit = (at * 7 + 3) % 8;
            files.get_mut(name).expect("it")[at] ^= 1 << bit;
            let judge = Judge::of(&truth, format!("{name}: bit {bit} of byte {at}"));
            let report = judge.judge(&files);
            assert!(!report.damaged.is_empty(), "{}: nothing says so", judge.what);
            assert_eq!(report.cut_tail_bytes, 0, "{}", judge.what);
            seen.extend(report.damaged.iter().map(|damage| format!("{:?}", damage.what)));
            renumbered += report.renumbered.len();
        }
    }
    println!("{total} positions, damage seen: {seen:?}, {renumbered} rooms renumbered");
    let expected = ["Bytes", "HeaderCopy", "Record"].map(String::from);
    assert!(expected.iter().all(|what| seen.contains(what)), "{seen:?}");
    assert!(renumbered > 0, "a flip at the end makes rooms begin anew");
}

#[test]
fn a_flipped_bit_before_zeros_is_told_from_a_write_that_was_never_finished() {
    let (files, truth) = store_left(3_000, false);
    let (name, bytes) = files.iter().next_back().expect("segments");
    let written = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    assert!(written + 100 < bytes.len(), "zeros follow");
    let report = Judge::of(&truth, "killed").judge(&files);
    assert!(report.is_clean() && report.cut_tail_bytes == 0, "{report}");
    for at in 0..written {
        let mut files = files.clone();
        let bit = (at * 5 + 1) % 8;
        files.get_mut(name).expect("it")[at] ^= 1 << bit;
        let judge = Judge::of(&truth, format!("bit {bit} of byte {at}"));
        let report = judge.judge(&files);
        assert!(!report.damaged.is_empty(), "{}: nothing says so", judge.what);
        assert_eq!(report.cut_tail_bytes, 0, "{}", judge.what);
    }
    // And what was never finished is no damage, wherever it stopped.
    for at in 128..written {
        let mut files = files.clone();
        files.get_mut(name).expect("it")[at..].fill(0);
        let judge = Judge { cut: true, ..Judge::of(&truth, format!("written to {at}")) };
        let report = judge.judge(&files);
        assert!(report.damaged.is_empty() && report.renumbered.is_empty(), "{at}: {report}");
    }
}

#[test]
fn a_flip_is_charged_to_the_rooms_that_nothing_speaks_for_later() {
    let (files, truth) = store();
    let book = &truth.rooms[&room("a")];
    // Damage before a checkpoint concerns nobody's numbering.
    let (file, range) = &book.places[&1];
    let mut early = files.clone();
    early.get_mut(file).expect("it")[range.start + 20] ^= 1;
    let report = Judge::of(&truth, "the first event").judge(&early);
    assert!(report.renumbered.is_empty(), "{report}");
    assert_eq!(report.lost.len(), 1);
    assert_eq!((report.lost[0].from.0, report.lost[0].to.0), (1, 1));
    // Damage in the last record concerns all.
    let (file, range) = &truth.rooms[&room("c")].places[&16];
    let mut late = files;
    late.get_mut(file).expect("it")[range.start + 20] ^= 1;
    let report = Judge::of(&truth, "the last event").judge(&late);
    assert_eq!(report.renumbered.len(), truth.rooms.len(), "{report}");
}

#[test]
fn a_missing_file_is_told_with_what_was_in_it() {
    let (files, truth) = store();
    for (at, name) in files.keys().enumerate() {
        if at + 1 == files.len() {
            // Nothing tells of the last one: that it ever was is in itself.
            continue;
        }
        let mut files = files.clone();
        files.remove(name);
        let report = Judge::of(&truth, format!("{name} removed")).judge(&files);
        assert!(report.damaged.iter().any(|d| d.what == DamageKind::Missing), "{report}");
        assert!(report.renumbered.is_empty(), "the next checkpoint speaks for all: {report}");
    }
}

#[test]
fn whole_pages_of_zeros_or_rubbish_are_told() {
    let (files, truth) = store();
    let last = files.keys().next_back().expect("segments");
    for (name, bytes) in &files {
        for start in (0..bytes.len()).step_by(512) {
            for rubbish in [0_u8, 0xa5] {
                let mut files = files.clone();
                let bytes = files.get_mut(name).expect("it");
                let end = (start + 512).min(bytes.len());
                bytes[start..end].fill(rubbish);
                let what = format!("{name}: {start}..{end} is {rubbish:#x}");
                // Zeros at the end are what was never written.
                let unwritten = rubbish == 0 && end == bytes.len() && name == last;
                let judge = Judge { cut: unwritten, ..Judge::of(&truth, what) };
                let report = judge.judge(&files);
                assert!(unwritten || !report.damaged.is_empty(), "{report}");
            }
        }
    }
}

#[test]
fn files_of_nobody_are_left_alone_and_the_server_starts() {
    let (files, truth) = store();
    let mut rubbish = Files::new();
    rubbish.insert("0000000009.tidelog".into(), vec![0x5a; 3_000]);
    rubbish.insert("notes.txt".into(), b"hello".to_vec());
    let disk = MemoryDisk::with(&rubbish);
    let bench = Bench::open(&disk);
    assert_eq!(bench.recovered.report.damaged.len(), 2, "{}", bench.recovered.report);
    assert!(bench.recovered.rooms.is_empty());
    bench.log.close();
    let kept = disk.files();
    assert!(rubbish.iter().all(|(name, bytes)| kept.get(name) == Some(bytes)));
    assert!(kept.contains_key("0000000010.tidelog"), "the next number is free");

    // A segment of another store between ours.
    let (others, _) = store();
    let mut mixed = files;
    let stranger = others.values().next_back().expect("a segment").clone();
    mixed.insert("0000000050.tidelog".into(), stranger);
    let report = Judge::of(&truth, "a stranger").judge(&mixed);
    assert!(report.damaged.iter().any(|d| d.what == DamageKind::Foreign), "{report}");
}
