//! The world around the rooms: publishers, viewers who come and go, fan-outs
//! that take their time, all as entries in one queue of virtual time.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate::engine::event::{Event, Frame, Payload};
use tidegate::engine::ids::{Epoch, ImportantNo, RoomId, Seq, Tier};
use tidegate::engine::kind::{Ack, Kind, Lane, Merge, MergeBy};
use tidegate::engine::level::LevelKey;
use tidegate::engine::outcome::Refusal;
use tidegate::engine::room::{Outcome, Room};
use tidegate::engine::settings::RoomSettings;
use tidegate::engine::stats::{DropReason, RoomStats};
use tidegate::engine::time::Time;

use super::ledger::Ledger;
use super::model::Model;
use super::rng::Rng;

pub(crate) const START: Time = Time::from_millis(1_700_000_000_000);
/// Just before the hour in which all user levels change, so that they do.
const HOUR_IN: Duration = Duration::from_secs(3_600 - 1_700_000_000 % 3_600);
const ROOMS: usize = 10;
const LENGTH: Duration = Duration::from_secs(5);

/// What happened in a run: a simulation in which something never happens tests
/// nothing of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) stats: RoomStats,
    pub(crate) empty_frames: u64,
    pub(crate) online_frames: u64,
    pub(crate) merged_behind_a_frame: u64,
    pub(crate) incomplete_replays: u64,
    pub(crate) cleared_state: u64,
    pub(crate) slept: u64,
}

impl Seen {
    pub(crate) fn absorb(&mut self, other: &Seen) {
        self.stats.absorb(&other.stats);
        self.empty_frames += other.empty_frames;
        self.online_frames += other.online_frames;
        self.merged_behind_a_frame += other.merged_behind_a_frame;
        self.incomplete_replays += other.incomplete_replays;
        self.cleared_state += other.cleared_state;
        self.slept += other.slept;
    }

    pub(crate) fn assert_everything_happened(&self) {
        let stats = &self.stats;
        assert!(stats.accepted.iter().all(|&n| n > 1_000));
        // What is refused before a room is asked is counted by its home shard.
        let at_home = Refusal::TooManyRooms.index();
        let mut refused = stats.refused.iter().enumerate().filter(|(i, _)| *i < at_home);
        assert!(refused.all(|(_, &n)| n > 0) && stats.duplicates > 100);
        // Rooms with a log have a simulation of their own.
        for reason in DropReason::ALL.into_iter().filter(|r| *r != DropReason::Unlogged) {
            let [important, ordered, sampled] = stats.dropped[reason.index()];
            assert!(important == 0 && ordered > 0 && sampled > 0, "{}", reason.name());
        }
        let rare = [
            self.empty_frames,
            self.online_frames,
            self.merged_behind_a_frame,
            self.incomplete_replays,
            self.cleared_state,
            self.slept,
        ];
        assert!(rare.iter().all(|&n| n > 0), "{self:?}");
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Publish(usize),
    Viewers(usize),
    Flush(usize),
    FrameOut(usize),
    Look(usize),
}

struct Simulated {
    room: Room,
    key: LevelKey,
    /// What it counted before it last slept.
    counted: RoomStats,
    model: Model,
    ledger: Ledger,
    /// Events published lately, to be published again: fewer than the windows
    /// for repetitions remember, so that each is recognised.
    recent: Vec<Event>,
    /// Mean microseconds between events, outside of bursts.
    pace: u64,
}

thread_local! {
    /// Settings by room, for judges that see only the room.
    static SETTINGS: RefCell<HashMap<RoomId, Arc<RoomSettings>>> = RefCell::default();
}

/// The settings that a room of this run was given.
pub(crate) fn settings_of(room: &Room) -> Arc<RoomSettings> {
    SETTINGS.with_borrow(|all| Arc::clone(&all[room.id()]))
}

/// One run: the same seed gives the same run, to the last count.
pub(crate) fn run(seed: u64) -> Seen {
    let mut world = World::new(seed);
    while let Some(Reverse((now, _, step))) = world.queue.pop() {
        world.step(step, now);
    }
    world.close()
}

struct World {
    rng: Rng,
    queue: BinaryHeap<Reverse<(Time, u64, Step)>>,
    queued: u64,
    kinds: Vec<Arc<Kind>>,
    rooms: Vec<Simulated>,
    names: u64,
    until: Time,
    seen: Seen,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let key = LevelKey::from_seed(u128::from(rng.next()) << 64 | u128::from(rng.next()));
        let start = START + HOUR_IN - LENGTH / 2;
        let rooms = (0..ROOMS).map(|i| Simulated::new(i, key, start, &mut rng)).collect();
        let mut world = Self {
            rng,
            queue: BinaryHeap::new(),
            queued: 0,
            kinds: kinds(),
            rooms,
            names: 0,
            until: start + LENGTH,
            seen: Seen::default(),
        };
        for room in 0..ROOMS {
            world.queue(start, Step::Publish(room));
            world.queue(start, Step::Viewers(room));
            world.queue(start, Step::Look(room));
        }
        world
    }

    fn queue(&mut self, at: Time, step: Step) {
        self.queued += 1;
        self.queue.push(Reverse((at, self.queued, step)));
    }

    fn step(&mut self, step: Step, now: Time) {
        match step {
            Step::Publish(room) => self.publish(room, now),
            Step::Viewers(room) => self.viewers(room, now),
            Step::Flush(room) => self.flush(room, now),
            Step::FrameOut(room) => {
                self.rooms[room].room.frame_out(now);
                self.rooms[room].ledger.frame_out(now);
            }
            Step::Look(room) => self.look(room, now),
        }
        let (Step::Publish(room)
        | Step::Viewers(room)
        | Step::Flush(room)
        | Step::FrameOut(room)
        | Step::Look(room)) = step;
        self.rooms[room].check(now);
        if let Some(at) = self.rooms[room].room.next_flush()
            && step != Step::Flush(room)
        {
            self.queue(at.max(now), Step::Flush(room));
        }
    }

    fn publish(&mut self, index: usize, now: Time) {
        if now >= self.until {
            return;
        }
        // A tenth of all seconds is a burst of ten times the pace.
        let burst = (now.as_millis() / 1_000 + index as u64 * 7).is_multiple_of(10);
        let pace = self.rooms[index].pace / if burst { 10 } else { 1 };
        let wait = Duration::from_micros(self.rng.between(1, 2 * pace.max(1)));
        self.queue(now + wait, Step::Publish(index));

        let room = &self.rooms[index];
        let again = (!room.recent.is_empty() && self.rng.percent(5))
            .then(|| Event { received: now, ..self.rng.pick(&room.recent).clone() });
        let is_new = again.is_none();
        let event = again.unwrap_or_else(|| self.event(now));
        let room = &mut self.rooms[index];
        let expected = room.model.publish(event.clone(), now);
        let outcome = room.room.publish(event.clone(), now);
        assert_eq!(outcome, expected, "{event:?}");
        room.ledger.published(&event, outcome, now);
        if matches!(outcome, Outcome::Accepted { .. }) {
            let behind = u64::from(room.room.is_going_out());
            self.seen.merged_behind_a_frame += behind;
        }
        if is_new {
            room.recent.push(event);
        }
        if room.recent.len() > 20 {
            room.recent.remove(0);
        }
    }

    fn event(&mut self, now: Time) -> Event {
        self.names += 1;
        let rng = &mut self.rng;
        let mut kind = Arc::clone(rng.pick(&self.kinds));
        if rng.percent(2) {
            let unknown = Kind { name: format!("unknown-{}", rng.below(50)).into(), ..unknown() };
            kind = Arc::new(unknown);
        }
        let payload = match (kind.merge, rng.below(10)) {
            (Merge::Latest(_), 0) => "null".to_owned(),
            _ => "x".repeat(rng.between(1, 310) as usize),
        };
        let amount = match rng.below(100) {
            0 => Some(rng.between(1 << 51, (1 << 53) - 1) as i64),
            1 => Some(-(rng.between(1 << 51, (1 << 53) - 1) as i64)),
            2..50 => Some(rng.between(0, 40) as i64 - 10),
            _ => None,
        };
        Event {
            id: format!("e{}", self.names).into(),
            user: format!("u{}", rng.below(60)).into(),
            payload: Payload { bytes: Bytes::from(payload), json: true },
            key: rng.percent(80).then(|| format!("k{}", rng.below(6)).into()),
            amount,
            ttl: rng.percent(10).then(|| Duration::from_millis(rng.between(1, 400))),
            received: now - Duration::from_micros(rng.below(5_000)),
            kind,
            mark: None,
        }
    }

    fn viewers(&mut self, index: usize, now: Time) {
        if now >= self.until {
            return;
        }
        let wait = Duration::from_micros(self.rng.between(1_000, 400_000));
        self.queue(now + wait, Step::Viewers(index));
        let room = &mut self.rooms[index];
        let small = u64::from(room.model.settings.small_room_viewers);
        let viewers = self.rng.below(4 * small + 20) as u32;
        room.room.set_online(viewers, now);
        room.model.set_online(viewers);
    }

    fn flush(&mut self, index: usize, now: Time) {
        let room = &mut self.rooms[index];
        let Some(frame) = room.room.flush(now) else { return };
        let expected = room.model.flush(now);
        room.ledger.framed(&frame, &room.room);
        self.seen.note(&frame);
        assert_same(frame, expected);
        assert!(room.room.is_going_out() && room.room.flush_now(now).is_none());
        let wait = match self.rng.below(1_000) {
            0..600 => 0,
            600..960 => self.rng.between(1, 5_000),
            960..995 => self.rng.between(5_000, 300_000),
            _ => self.rng.between(300_000, 3_000_000),
        };
        self.queue(now + Duration::from_micros(wait), Step::FrameOut(index));
    }

    /// Someone joins, or comes back and asks what was missed.
    fn look(&mut self, index: usize, now: Time) {
        if now >= self.until {
            return;
        }
        let wait = Duration::from_micros(self.rng.between(10_000, 500_000));
        self.queue(now + wait, Step::Look(index));
        if self.rng.percent(50) {
            self.seen.slept += u64::from(self.rooms[index].sleep(now));
        }
        let Simulated { room, model, .. } = &mut self.rooms[index];
        let snapshot = room.snapshot(now);
        let expected = model.snapshot(now);
        assert_eq!(snapshot, expected);
        let limit = self.rng.between(0, 60) as usize;
        let after = self.rng.between(snapshot.seq.0.saturating_sub(80), snapshot.seq.0);
        let replay = room.history_after_seq(Seq(after), limit);
        assert_eq!(replay, model.replay_after_seq(after, limit));
        self.seen.incomplete_replays += u64::from(!replay.complete);
        let last = snapshot.important.0;
        let after = self.rng.between(last.saturating_sub(30), last);
        let replay = room.history_after_important(ImportantNo(after), limit);
        assert_eq!(replay, model.replay_after_important(after, limit));
    }

    fn close(mut self) -> Seen {
        for simulated in &mut self.rooms {
            let now = self.until + Duration::from_secs(60);
            assert!(!simulated.room.is_going_out());
            if let Some(frame) = simulated.room.flush_now(now) {
                // Only a change in the number of viewers may have been left.
                assert!(simulated.model.open_since.is_none());
                let expected = simulated.model.flush(now);
                simulated.ledger.framed(&frame, &simulated.room);
                assert_same(frame, expected);
            }
            let stats = simulated.stats();
            simulated.ledger.close(&stats);
            self.seen.stats.absorb(&stats);
        }
        self.seen
    }
}

impl Seen {
    fn note(&mut self, frame: &Frame) {
        let nothing = frame.events.is_empty() && frame.totals.is_empty();
        self.empty_frames += u64::from(nothing && !frame.dropped.is_empty());
        self.online_frames += u64::from(nothing && frame.dropped.is_empty());
        let clears = |e: &Event| matches!(e.kind.merge, Merge::Latest(_)) && e.payload.is_null();
        self.cleared_state += frame.events.iter().filter(|e| clears(&e.event)).count() as u64;
    }
}

impl Simulated {
    fn new(index: usize, key: LevelKey, now: Time, rng: &mut Rng) -> Self {
        let settings = settings(rng);
        let id = RoomId::new(&format!("live:{index}")).expect("a valid name");
        let epoch = Epoch(index as u64 + 1);
        let shared = Arc::new(settings.clone());
        SETTINGS.with_borrow_mut(|all| all.insert(id.clone(), Arc::clone(&shared)));
        Self {
            room: Room::new(id.clone(), epoch, key, shared, now),
            key,
            counted: RoomStats::default(),
            model: Model::new(id, epoch, key, settings),
            ledger: Ledger::default(),
            recent: Vec::new(),
            pace: *rng.pick(&[2_000, 5_000, 20_000, 100_000]),
        }
    }

    /// Falls asleep if it may, and is woken. Returns whether it slept.
    fn sleep(&mut self, now: Time) -> bool {
        let Self { room, model, counted, recent, .. } = self;
        if !room.is_quiet() {
            return false;
        }
        counted.absorb(&room.take_stats());
        let (id, settings) = (room.id().clone(), settings_of(room));
        let empty = Room::new(id.clone(), room.epoch(), self.key, Arc::clone(&settings), now);
        let awake = room.memory_bytes();
        let asleep = std::mem::replace(room, empty).fall_asleep();
        assert!(asleep.memory_bytes() <= awake, "{} of {awake}", asleep.memory_bytes());
        *room = Room::woken(id, asleep, self.key, settings, now);
        model.sleep();
        // Repetitions of samples are not known any more.
        recent.clear();
        true
    }

    /// All that was counted.
    fn stats(&self) -> RoomStats {
        let mut stats = self.counted.clone();
        stats.absorb(self.room.stats());
        stats
    }

    /// What holds after every step.
    fn check(&self, now: Time) {
        let Self { room, model, ledger, .. } = self;
        assert!(room.memory_bytes() <= Room::memory_bound(&model.settings));
        ledger.check_counts(&self.stats());
        match (room.is_going_out(), model.open_since, room.next_flush()) {
            (true, _, due) => assert_eq!(due, None),
            (false, Some(_), Some(due)) if model.at_once() => assert!(due <= now),
            (false, Some(since), due) => {
                assert!(due.is_some_and(|due| due <= since + model.settings.flush_interval));
            }
            (false, None, Some(_)) => assert!(model.online_differs() && room.online() > 0),
            (false, None, None) => {}
        }
    }
}

/// Frames are the same but for the order in which they name what was dropped.
pub(crate) fn assert_same(mut frame: Frame, mut expected: Frame) {
    frame.dropped.sort_by(|a, b| a.kind.name.cmp(&b.kind.name));
    expected.dropped.sort_by(|a, b| a.kind.name.cmp(&b.kind.name));
    assert_eq!(frame, expected);
}

/// Tight limits, so that every one is met.
pub(crate) fn settings(rng: &mut Rng) -> RoomSettings {
    let buffer_events = rng.between(5, 120) as usize;
    RoomSettings {
        flush_interval: Duration::from_millis(*rng.pick(&[0, 20, 100, 500])),
        flush_events: rng.between(5, 100) as usize,
        flush_bytes: rng.between(2_000, 40_000) as usize,
        small_room_viewers: rng.below(20) as u32,
        frame_events: rng.between(1, 40) as usize,
        frame_bytes: rng.between(400, 15_000) as usize,
        reserved_percent: *rng.pick(&[0, 20, 50, 100]),
        reserved_tier: rng.below(3) as u8,
        buffer_events,
        buffer_bytes: rng.between(1_500, 500 * buffer_events as u64) as usize,
        history_events: rng.below(60) as usize,
        history_bytes: rng.between(0, 20_000) as usize,
        history_important: rng.below(20) as usize,
        history_important_bytes: rng.between(0, 8_000) as usize,
        dedupe_sequenced: rng.between(20, 64) as usize,
        dedupe_sampled: rng.between(20, 64) as usize,
        max_keys: rng.between(1, 40) as usize,
        state_bytes: 1 << 20,
        durable: false,
        log_patience: Duration::from_millis(rng.between(5, 200)),
        online_interval: Duration::from_millis(*rng.pick(&[0, 50, 1_000])),
    }
}

/// What a name gets that is not configured.
fn unknown() -> Kind {
    kind("unknown", Lane::Ordered, Merge::Append, 63)
}

fn kind(name: &str, lane: Lane, merge: Merge, tier: u8) -> Kind {
    Kind {
        name: name.into(),
        lane,
        merge,
        tier: Tier(tier),
        ttl: None,
        max_payload_bytes: 300,
        ack: Ack::Logged,
        viewer_publish: false,
        idle_reset: None,
    }
}

pub(crate) fn kinds() -> Vec<Arc<Kind>> {
    use Lane::{Important, Ordered, Sampled};
    use Merge::{Append, Latest, Sample, Sum};
    let ttl = |ms, kind| Kind { ttl: Some(Duration::from_millis(ms)), ..kind };
    let idle = |ms, kind| Kind { idle_reset: Some(Duration::from_millis(ms)), ..kind };
    let all = [
        ttl(800, kind("chat", Ordered, Append, 2)),
        ttl(800, kind("chat_of_fans", Ordered, Append, 1)),
        kind("notice", Ordered, Append, 0),
        idle(300, kind("gift", Ordered, Sum(MergeBy::UserKey), 1)),
        kind("like", Sampled, Sum(MergeBy::Key), 4),
        ttl(500, kind("viewers", Sampled, Latest(MergeBy::Key), 3)),
        ttl(900, kind("card", Ordered, Latest(MergeBy::Key), 1)),
        kind("vote", Ordered, Latest(MergeBy::UserKey), 3),
        kind("enter", Sampled, Sample(3), 5),
        ttl(300, kind("quiz", Ordered, Sample(2), 3)),
        ttl(200, kind("flying", Sampled, Append, 5)),
        ttl(500, kind("red_packet", Important, Append, 0)),
        kind("stream", Important, Latest(MergeBy::Key), 0),
        idle(400, kind("donation", Important, Sum(MergeBy::Key), 0)),
    ];
    all.into_iter().map(Arc::new).collect()
}
