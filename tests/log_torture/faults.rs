//! Failing disks, kills and power cuts from a seed, against books that know
//! what was acknowledged, what was refused, and which numbers were ever given.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tidegate::engine::event::Numbered;
use tidegate::engine::ids::{Epoch, RoomId, Seq};
use tidegate::engine::time::Time;
use tidegate::log::{DamageKind, Entry, LogFailure, LogSettings, Retention};

use super::disk::{Faults, Hold, MemoryDisk};
use super::kit::{Bench, START, event, room, settings};
use super::rng::Rng;

/// Seeds that every run repeats.
const FIXED: std::ops::Range<u64> = 1..161;
/// Seeds that no run repeats.
const FRESH: u64 = 40;
/// Submissions of one seed.
const STEPS: u64 = 60;

#[test]
fn nothing_acknowledged_is_lost_nothing_refused_returns_no_number_serves_twice() {
    let mut seen = Seen::default();
    for seed in seeds() {
        match catch_unwind(AssertUnwindSafe(|| World::new(seed).run())) {
            Ok(of_one) => seen.absorb(&of_one),
            Err(panic) => {
                eprintln!("to replay: TIDEGATE_SEED={seed} cargo test --test log_torture");
                resume_unwind(panic);
            }
        }
    }
    println!("{seen:#?}");
    if std::env::var_os("TIDEGATE_SEED").is_none() {
        seen.assert_everything_happened();
    }
}

fn seeds() -> Vec<u64> {
    if let Ok(seed) = std::env::var("TIDEGATE_SEED") {
        return vec![seed.parse().expect("TIDEGATE_SEED is a number")];
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    let first = now.as_nanos() as u64 >> 10;
    println!("fresh seeds: {first} to {}", first + FRESH - 1);
    FIXED.chain(first..first + FRESH).collect()
}

/// So that a run that never met a fault is not taken for a good one.
#[derive(Debug, Default)]
struct Seen {
    acknowledged: u64,
    refused: BTreeMap<&'static str, u64>,
    kills: u64,
    power_cuts: u64,
    clean_stops: u64,
    renumbered: u64,
    cut_tails: u64,
    segments: u64,
    removed: u64,
}

impl Seen {
    fn absorb(&mut self, other: &Seen) {
        self.acknowledged += other.acknowledged;
        for (code, count) in &other.refused {
            *self.refused.entry(code).or_default() += count;
        }
        self.kills += other.kills;
        self.power_cuts += other.power_cuts;
        self.clean_stops += other.clean_stops;
        self.renumbered += other.renumbered;
        self.cut_tails += other.cut_tails;
        self.segments = self.segments.max(other.segments);
        self.removed += other.removed;
    }

    fn assert_everything_happened(&self) {
        for code in ["log_write", "log_sync", "log_full", "log_stale"] {
            assert!(self.refused.contains_key(code), "no {code}");
        }
        let counts = [self.kills, self.power_cuts, self.clean_stops, self.renumbered];
        assert!(counts.iter().all(|&count| count > 0), "{counts:?}");
        assert!(
            self.cut_tails > 0
                && self.segments > 5
                && self.removed > 0
                && self.acknowledged > 1_000
        );
    }
}

/// What was said of a room.
#[derive(Default)]
struct Book {
    epoch: Epoch,
    /// Last numbers that count.
    seq: u64,
    important: u64,
    /// And with what is on its way.
    ahead: (u64, u64),
    /// Whether the log ever answered for it.
    known: bool,
    /// Sequence numbers that left the room, by epoch.
    given: BTreeSet<(u64, u64)>,
    /// By epoch and important number.
    acknowledged: BTreeMap<(u64, u64), Arc<Numbered>>,
    /// Neither acknowledged nor refused for good: there or not.
    doubtful: Vec<(u64, Arc<Numbered>)>,
}

impl Book {
    /// Takes back what was numbered and is not acknowledged.
    fn take_back(&mut self) {
        self.ahead = (self.seq, self.important);
    }

    fn give(&mut self, seq: u64) {
        assert!(self.given.insert((self.epoch.0, seq)), "sequence number {seq} is given twice");
        self.seq = self.seq.max(seq);
    }

    fn acknowledge(&mut self, epoch: u64, event: &Arc<Numbered>) {
        let (Some(seq), Some(important)) = (event.seq, event.important) else {
            panic!("logged events have numbers");
        };
        let before = self.acknowledged.insert((epoch, important.0), Arc::clone(event));
        assert_eq!(before, None, "important number {} is given twice", important.0);
        if epoch == self.epoch.0 {
            self.important = self.important.max(important.0);
            self.give(seq.0);
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Stop,
    Kill,
    PowerCut,
}

struct World {
    rng: Rng,
    disk: MemoryDisk,
    bench: Bench,
    books: BTreeMap<RoomId, Book>,
    now: Time,
    salt: u64,
    /// Events of a room that are retained.
    keep: u64,
    /// Damage that is known.
    torn: BTreeSet<(u32, u64)>,
    seen: Seen,
}

/// Events of a room that some seeds retain; segments go then.
const FEW: u64 = 6;

fn limits(keep: u64) -> LogSettings {
    let retention = Retention { events_per_room: keep, ..Retention::default() };
    LogSettings { segment_bytes: 1_500, retention, ..settings() }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let mut books = BTreeMap::new();
        for n in 0..rng.between(1, 4) {
            let epoch = Epoch(100 + n);
            books.insert(room(&format!("r{n}")), Book { epoch, ..Book::default() });
        }
        let disk = MemoryDisk::default();
        let keep = *rng.pick(&[FEW, u64::MAX]);
        let bench = Bench::open_with(&disk, limits(keep), START).expect("the log opens");
        let (now, salt) = (START, 0);
        Self {
            rng,
            disk,
            bench,
            books,
            now,
            salt,
            keep,
            torn: BTreeSet::new(),
            seen: Seen::default(),
        }
    }

    fn run(mut self) -> Seen {
        for _ in 0..STEPS {
            if self.rng.percent(25) {
                self.break_something();
            }
            let ends = self.rng.percent(10);
            let held = ends && self.rng.percent(80);
            if held {
                // Else it might never come as far as that.
                self.disk.set_faults(Faults::default());
                self.disk.hold(*self.rng.pick(&[Hold::Write, Hold::Sync]));
            }
            let sent = self.send();
            if held && !sent.is_empty() {
                self.disk.until_held();
            }
            if ends {
                self.restart(sent);
            } else {
                self.hear(sent);
                if self.rng.percent(80) {
                    self.mend();
                }
            }
        }
        self.restart(Vec::new());
        self.seen
    }

    fn break_something(&mut self) {
        let rng = &mut self.rng;
        let mut some = |percent| if rng.percent(percent) { rng.between(1, 2) as u32 } else { 0 };
        let mut faults = Faults {
            write: some(25),
            sync: some(35),
            sync_dir: some(15),
            create: some(20),
            short: some(30),
            space: None,
        };
        if self.rng.percent(25) {
            let used: usize = self.disk.files().values().map(Vec::len).sum();
            faults.space = Some(used + self.rng.below(600) as usize);
        }
        self.disk.set_faults(faults);
    }

    /// The disk works again; what was refused before the new segment is gone for good.
    fn mend(&mut self) {
        self.disk.set_faults(Faults::default());
        self.bench.until_writable();
        self.books.values_mut().for_each(|book| book.doubtful.clear());
    }

    fn entries(&mut self, name: &RoomId) -> Vec<Entry> {
        let Self { rng, books, salt, now, .. } = self;
        let book = books.get_mut(name).expect("a room");
        let (name, epoch) = (name.clone(), book.epoch);
        if rng.percent(25) {
            let seq = Seq(book.ahead.0 + rng.between(1, 20));
            book.ahead.0 = seq.0;
            return vec![Entry::Reserve { room: name, epoch, seq }];
        }
        let mut entries = Vec::new();
        for _ in 0..rng.between(1, 3) {
            *salt += 1;
            book.ahead.0 += rng.between(1, 3);
            // Some rooms leave a number out.
            book.ahead.1 += if rng.percent(5) { 2 } else { 1 };
            let event = event(book.ahead.1, book.ahead.0, *salt, *now);
            entries.push(Entry::Event { room: name.clone(), epoch, event });
        }
        entries
    }

    /// Some batches at once, so that the writer may group them or not.
    fn send(&mut self) -> Vec<(u64, RoomId, Vec<Entry>)> {
        self.now = self.now + Duration::from_millis(self.rng.below(1_000));
        let mut sent = Vec::new();
        let names: Vec<RoomId> = self.books.keys().cloned().collect();
        for _ in 0..self.rng.between(1, 4) {
            let name = self.rng.pick(&names).clone();
            let entries = self.entries(&name);
            match self.bench.submit(entries.clone()) {
                Ok(ticket) => sent.push((ticket, name, entries)),
                Err(failure) => {
                    *self.seen.refused.entry(failure.code()).or_default() += 1;
                    // It never came near the disk; but what came before may still fail.
                    self.books.get_mut(&name).expect("a room").take_back();
                    break;
                }
            }
        }
        sent
    }

    fn hear(&mut self, sent: Vec<(u64, RoomId, Vec<Entry>)>) {
        for (ticket, name, entries) in sent {
            let logged = self.bench.answer();
            assert_eq!(logged.ticket, ticket, "answers come in order");
            self.answered(&name, &entries, logged.result);
        }
        self.books.values_mut().for_each(Book::take_back);
    }

    fn answered(&mut self, name: &RoomId, entries: &[Entry], result: Result<(), LogFailure>) {
        if let Err(failure) = result {
            *self.seen.refused.entry(failure.code()).or_default() += 1;
            return self.doubt(name, entries);
        }
        let book = self.books.get_mut(name).expect("a room");
        book.known = true;
        for entry in entries {
            match entry {
                Entry::Event { epoch, event, .. } => {
                    book.acknowledge(epoch.0, event);
                    self.seen.acknowledged += 1;
                }
                // Given to events that are not logged.
                Entry::Reserve { seq, .. } => (book.seq + 1..=seq.0).for_each(|seq| book.give(seq)),
            }
        }
    }

    fn doubt(&mut self, name: &RoomId, entries: &[Entry]) {
        let book = self.books.get_mut(name).expect("a room");
        for entry in entries {
            if let Entry::Event { epoch, event, .. } = entry {
                book.doubtful.push((epoch.0, Arc::clone(event)));
            }
        }
    }

    /// Ends it somehow, some batches being on their way, and opens it again.
    fn restart(&mut self, sent: Vec<(u64, RoomId, Vec<Entry>)>) {
        let end = *self.rng.pick(&[End::Stop, End::Kill, End::Kill, End::PowerCut]);
        let disk = self.disk.clone();
        if end == End::Stop {
            disk.let_go();
            self.hear(sent);
            self.bench.log.stop();
            self.seen.clean_stops += 1;
        } else {
            let mut sent = sent.into_iter();
            while let Ok(logged) = self.bench.answers.try_recv() {
                let (ticket, name, entries) = sent.next().expect("one answer a batch");
                assert_eq!(logged.ticket, ticket, "answers come in order");
                self.answered(&name, &entries, logged.result);
            }
            self.disk = if end == End::Kill {
                self.seen.kills += 1;
                self.disk.after_kill()
            } else {
                self.seen.power_cuts += 1;
                self.disk.after_power_cut(&mut self.rng)
            };
            // On their way when it ended: nobody heard of them.
            for (_, name, entries) in sent {
                self.doubt(&name, &entries);
            }
        }
        let stats = self.bench.log.stats();
        self.seen.segments = self.seen.segments.max(stats.segments_begun);
        self.seen.removed += stats.segments_removed;
        self.disk.set_faults(Faults::default());
        self.now = self.now + Duration::from_secs(1);
        disk.let_go();
        self.bench =
            Bench::open_with(&self.disk, limits(self.keep), self.now).expect("the log opens");
        self.compare(end);
    }

    fn compare(&mut self, end: End) {
        let report = &self.bench.recovered.report;
        for damage in &report.damaged {
            // What a power cut tore is told again as long as the segment is kept.
            // On a full disk a segment may go before that can be noted.
            let new = self.torn.insert((damage.segment, damage.offset));
            let unnoted = damage.what == DamageKind::Missing && self.keep == FEW;
            assert!(!new || end == End::PowerCut || unnoted, "{report}");
        }
        assert!(end == End::PowerCut || report.renumbered.is_empty(), "{report}");
        self.seen.cut_tails += u64::from(report.cut_tail_bytes > 0);
        self.seen.renumbered += report.renumbered.len() as u64;
        for lost in &report.lost {
            let book = &self.books[&lost.room];
            let from = lost.from.0.max((book.important + 1).saturating_sub(self.keep));
            let range = (lost.epoch.0, from)..=(lost.epoch.0, lost.to.0.max(from));
            let found = book.acknowledged.range(range).next().filter(|_| from <= lost.to.0);
            assert_eq!(found, None, "acknowledged and lost:\n{report}");
        }
        for (name, book) in &mut self.books {
            let doubtful = std::mem::take(&mut book.doubtful);
            let mut epochs: BTreeSet<u64> = book.acknowledged.keys().map(|key| key.0).collect();
            epochs.insert(book.epoch.0);
            let mut retained = 0;
            // Older numberings go in the end.
            for &epoch in epochs.iter().rev().take(3) {
                let served = self.bench.read_all(name, Epoch(epoch));
                for (n, event) in &served {
                    if !book.acknowledged.contains_key(&(epoch, *n)) {
                        let known = doubtful.contains(&(epoch, Arc::clone(event)));
                        assert!(known, "{name} {epoch} {n} was refused and is back: {event:?}");
                        book.acknowledge(epoch, event);
                    }
                }
                let last = book.acknowledged.range((epoch, 0)..=(epoch, u64::MAX)).next_back();
                let last = last.map_or(0, |(key, _)| key.1);
                let from = (epoch, (last + 1).saturating_sub(self.keep));
                for ((_, n), event) in book.acknowledged.range(from..=(epoch, u64::MAX)) {
                    assert_eq!(served.get(n), Some(event), "{name} {epoch} {n}\n{report}");
                    retained += usize::from(epoch == book.epoch.0);
                }
            }
            let restored = self.bench.recovered.rooms.iter().find(|r| r.room == *name);
            let Some(restored) = restored else {
                assert!(!book.known, "{name} is forgotten\n{report}");
                book.take_back();
                continue;
            };
            if restored.epoch == book.epoch {
                assert!(restored.important.0 >= book.important, "{name}\n{report}");
                assert!(restored.seq.0 >= book.seq, "{name}\n{report}");
            } else {
                assert!(!epochs.contains(&restored.epoch.0), "an epoch is used again");
                book.epoch = restored.epoch;
                retained = 0;
            }
            (book.known, book.important, book.seq) = (true, restored.important.0, restored.seq.0);
            book.take_back();
            for (id, seq) in &restored.ids {
                let known = book.acknowledged.iter().any(|(key, event)| {
                    key.0 == book.epoch.0 && event.event.id == *id && event.seq == Some(*seq)
                });
                assert!(known, "{name} remembers an id that never was: {id}");
            }
            assert!(restored.ids.len() >= retained, "{name} forgets ids");
        }
    }
}
