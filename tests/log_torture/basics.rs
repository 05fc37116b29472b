//! What the log promises while nothing is broken.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate::engine::ids::{Epoch, ImportantNo, Seq};
use tidegate::log::{Entry, Log, LogError, LogFailure, LogSettings, Retention};

use super::disk::MemoryDisk;
use super::kit::{Bench, START, event, kinds, room, settings};

const EPOCH: Epoch = Epoch(77);

fn fill(bench: &mut Bench, name: &str, numbers: std::ops::RangeInclusive<u64>) {
    for n in numbers {
        bench.write_event(&room(name), EPOCH, &event(n, n * 2, n, START));
    }
}

#[test]
fn what_is_written_is_read_before_and_after_a_restart_across_segments() {
    let disk = MemoryDisk::default();
    let mut bench = Bench::open(&disk);
    assert!(bench.recovered.rooms.is_empty());
    fill(&mut bench, "a", 1..=120);
    fill(&mut bench, "b", 1..=3);
    assert!(bench.log.stats().segments > 3, "{:?}", bench.log.stats());
    let expected: BTreeMap<_, _> = (1..=120).map(|n| (n, event(n, n * 2, n, START))).collect();
    assert_eq!(bench.read_all(&room("a"), EPOCH), expected);
    bench.log.close();

    let bench = Bench::open(&disk);
    assert!(bench.recovered.report.is_clean(), "{}", bench.recovered.report);
    assert_eq!(bench.recovered.report.cut_tail_bytes, 0);
    assert_eq!(bench.recovered.report.events, 123);
    assert_eq!(bench.read_all(&room("a"), EPOCH), expected);
    let restored = bench.recovered.rooms.iter().find(|r| r.room == room("a")).expect("room a");
    assert_eq!((restored.epoch, restored.seq.0, restored.important.0), (EPOCH, 240, 120));
    assert_eq!(restored.last_used, START);
    assert_eq!(restored.former, None);
    let ids: Vec<_> = (1..=120).map(|n| (format!("id-{n}").into(), Seq(n * 2))).collect();
    assert_eq!(restored.ids, ids);
    assert_eq!(restored.tail, expected.into_values().collect::<Vec<_>>());
}

#[test]
fn reads_are_bounded_and_say_what_follows_and_what_is_gone() {
    let disk = MemoryDisk::default();
    let retention = Retention { events_per_room: 10, ..Retention::default() };
    let mut bench =
        Bench::open_with(&disk, LogSettings { retention, ..settings() }, START).expect("opens");
    fill(&mut bench, "a", 1..=30);
    let (a, numbers) = (room("a"), |answer: &tidegate::log::ReadAnswer| {
        answer.events.iter().filter_map(|e| e.important.map(|n| n.0)).collect::<Vec<_>>()
    });
    let some = bench.read(&a, EPOCH, 22, 3);
    assert_eq!((numbers(&some), some.complete, some.more), (vec![23, 24, 25], true, true));
    let rest = bench.read(&a, EPOCH, 27, 3);
    assert_eq!((numbers(&rest), rest.complete, rest.more), (vec![28, 29, 30], true, false));
    let edge = bench.read(&a, EPOCH, 20, 1);
    assert_eq!((numbers(&edge), edge.complete, edge.more), (vec![21], true, true));
    let gone = bench.read(&a, EPOCH, 19, 1);
    assert_eq!((numbers(&gone), gone.complete, gone.more), (vec![21], false, true));
    let none = bench.read(&a, EPOCH, 30, 9);
    assert_eq!((numbers(&none), none.complete, none.more), (vec![], true, false));
    let unknown = bench.read(&a, Epoch(78), 0, 9);
    assert_eq!((numbers(&unknown), unknown.complete), (vec![], false));
    assert_eq!(bench.log.stats().events, 10);
}

#[test]
fn a_reservation_survives_and_a_lower_one_takes_it_back() {
    let disk = MemoryDisk::default();
    let mut bench = Bench::open(&disk);
    let reserve = |seq| Entry::Reserve { room: room("a"), epoch: EPOCH, seq: Seq(seq) };
    bench.write(vec![reserve(500)]).expect("reserved");
    fill(&mut bench, "a", 1..=3);
    let bench = Bench::open(&disk.after_kill());
    let restored = &bench.recovered.rooms[0];
    assert_eq!((restored.seq.0, restored.important.0), (500, 3));

    let mut bench = Bench::open(&disk.after_kill());
    bench.write(vec![reserve(9)]).expect("taken back");
    bench.log.close();
    let bench = Bench::open(&disk.after_kill());
    assert_eq!(bench.recovered.rooms[0].seq.0, 500, "on a copy of the disk");
}

#[test]
fn a_clean_stop_leaves_no_gap_in_the_numbers() {
    let disk = MemoryDisk::default();
    let mut bench = Bench::open(&disk);
    let reserve = |seq| Entry::Reserve { room: room("a"), epoch: EPOCH, seq: Seq(seq) };
    bench.write(vec![reserve(500)]).expect("reserved");
    fill(&mut bench, "a", 1..=3);
    bench.write(vec![reserve(9)]).expect("taken back");
    bench.log.close();
    let mut bench = Bench::open(&disk);
    assert_eq!(bench.recovered.rooms[0].seq.0, 9);
    // Never below what an event has.
    bench.write_event(&room("a"), EPOCH, &event(4, 10, 4, START));
    bench.write(vec![reserve(2)]).expect("a fault of the caller");
    bench.log.close();
    assert_eq!(Bench::open(&disk).recovered.rooms[0].seq.0, 10);
}

#[test]
fn numbers_that_were_never_given_are_not_missing() {
    let disk = MemoryDisk::default();
    let mut bench = Bench::open(&disk);
    fill(&mut bench, "a", 1..=2);
    fill(&mut bench, "a", 6..=7);
    bench.log.close();
    let bench = Bench::open(&disk);
    assert!(bench.recovered.report.is_clean(), "{}", bench.recovered.report);
    let answer = bench.read(&room("a"), EPOCH, 0, 9);
    assert!(answer.complete);
    assert_eq!(answer.events.len(), 4);
}

#[test]
fn a_room_that_begins_high_is_not_complete_below() {
    let disk = MemoryDisk::default();
    let mut bench = Bench::open(&disk);
    fill(&mut bench, "a", 51..=52);
    assert!(!bench.read(&room("a"), EPOCH, 10, 9).complete);
    assert!(bench.read(&room("a"), EPOCH, 50, 9).complete);
    bench.log.close();
    let bench = Bench::open(&disk);
    assert!(bench.recovered.report.is_clean(), "{}", bench.recovered.report);
    assert!(!bench.read(&room("a"), EPOCH, 10, 9).complete);
}

#[test]
fn batches_out_of_order_concern_nobody_else() {
    let disk = MemoryDisk::default();
    let mut bench = Bench::open(&disk);
    fill(&mut bench, "a", 1..=2);
    let entry =
        |n| Entry::Event { room: room("a"), epoch: EPOCH, event: event(n, n * 2, n, START) };
    for entries in [vec![entry(2)], vec![entry(4), entry(4)], vec![entry(5), entry(3)]] {
        assert_eq!(bench.write(entries), Err(LogFailure::Invalid));
    }
    let mut unnumbered = event(3, 6, 3, START).as_ref().clone();
    unnumbered.seq = None;
    let event = Arc::new(unnumbered);
    let unnumbered = Entry::Event { room: room("a"), epoch: EPOCH, event };
    assert_eq!(bench.write(vec![unnumbered]), Err(LogFailure::Invalid));
    fill(&mut bench, "a", 3..=3);
    assert_eq!(bench.write(Vec::new()), Ok(()), "an empty batch is answered in its turn");
    let stats = bench.log.stats();
    assert_eq!((stats.failures.invalid, stats.events, stats.abandoned), (4, 3, 0));
}

#[test]
fn old_events_and_idle_rooms_go_and_their_segments_with_them() {
    let disk = MemoryDisk::default();
    let mut bench = Bench::open(&disk);
    fill(&mut bench, "idle", 1..=300);
    let later = START + Duration::from_secs(20 * 3_600);
    for n in 1..=5 {
        bench.write_event(&room("busy"), EPOCH, &event(n, n, n, later));
    }
    let before = disk.files().len();
    bench.log.close();

    let now = START + Duration::from_secs(25 * 3_600);
    let bench = Bench::open_with(&disk, settings(), now).expect("opens");
    assert!(bench.recovered.report.is_clean(), "{}", bench.recovered.report);
    let rooms: Vec<_> = bench.recovered.rooms.iter().map(|r| r.room.as_str()).collect();
    assert_eq!(rooms, ["busy"]);
    assert_eq!(bench.read_all(&room("busy"), EPOCH).len(), 5);
    bench.log.close();
    let after = disk.files().len();
    assert!(before > 5 && after <= 3, "{before} segments before, {after} after");
    let bench = Bench::open_with(&disk, settings(), now).expect("opens");
    assert!(bench.recovered.report.is_clean(), "{}", bench.recovered.report);
}

#[test]
fn the_whole_store_keeps_to_its_size() {
    let disk = MemoryDisk::default();
    let retention = Retention { total_bytes: 20_000, ..Retention::default() };
    let limited = LogSettings { retention, ..settings() };
    let mut bench = Bench::open_with(&disk, limited.clone(), START).expect("opens");
    fill(&mut bench, "a", 1..=400);
    let stats = bench.log.stats();
    assert!(stats.segment_bytes <= 20_000 + 4_096 + 1_024, "{stats:?}");
    let held = bench.read_all(&room("a"), EPOCH);
    assert!(held.len() > 40 && held.contains_key(&400) && !held.contains_key(&1));
    bench.log.close();
    let bench = Bench::open_with(&disk, limited, START).expect("opens");
    assert!(bench.recovered.report.is_clean(), "{}", bench.recovered.report);
    let again = bench.read_all(&room("a"), EPOCH);
    assert!(again.iter().all(|(n, event)| held.get(n) == Some(event)));
    assert_eq!(bench.recovered.rooms[0].important, ImportantNo(400));
}

#[test]
fn what_is_restored_into_memory_is_bounded() {
    let disk = MemoryDisk::default();
    let mut bench = Bench::open(&disk);
    fill(&mut bench, "a", 1..=60);
    bench.log.close();
    let small = LogSettings { ids_per_room: 7, tail_events: 5, ..settings() };
    let bench = Bench::open_with(&disk, small, START).expect("opens");
    let restored = &bench.recovered.rooms[0];
    assert_eq!(restored.ids.first(), Some(&("id-54".into(), Seq(108))));
    assert_eq!(restored.tail.first().and_then(|e| e.important), Some(ImportantNo(56)));
    assert_eq!((restored.ids.len(), restored.tail.len()), (7, 5));
    bench.log.close();
    let weight = event(60, 120, 60, START).event.weight();
    let small = LogSettings { tail_bytes: weight + 10, ..settings() };
    let bench = Bench::open_with(&disk, small, START).expect("opens");
    assert_eq!(bench.recovered.rooms[0].tail.len(), 1);
}

#[test]
fn a_directory_belongs_to_one_log_and_its_files_are_found_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("log");
    let open = || {
        let done = Box::new(|_| ());
        Log::open(LogSettings::new(&path), kinds(), START, done)
    };
    let (log, _) = open().expect("opens");
    assert!(matches!(open(), Err(LogError::Locked(_))));
    log.close();
    let (log, recovered) = open().expect("opens again");
    assert!(recovered.report.is_clean());
    assert_eq!(recovered.report.segments, 1);
    log.close();

    let file = path.join("0000000002.tidelog");
    let mut bytes = std::fs::read(&file).expect("the second segment");
    for copy in [0, 64] {
        bytes[copy + 8] += 1;
        let check = crc32c::crc32c(&bytes[copy..copy + 60]);
        bytes[copy + 60..copy + 64].copy_from_slice(&check.to_le_bytes());
    }
    std::fs::write(&file, bytes).expect("written");
    assert!(matches!(open(), Err(LogError::Version { segment: 2, version: 2, .. })));
}
