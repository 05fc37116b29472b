//! Slow viewers under virtual time: sockets with small buffers whose readers
//! hurry, dawdle and stall, real rooms, strained now and then, and the real bytes on
//! the wire.
//!
//! A viewer's client reads the byte stream as a browser would and keeps its own
//! books: nothing important twice, out of order or missing; no hole in the
//! numbers that was not announced before what follows; and in the end the room's
//! own totals and values. What the room sent and the client did not get must be
//! in a gap, to the event.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate::engine::delivery::{Ask, Bounds, Delivery, LadderSettings, Rung, Verdict};
use tidegate::engine::event::{Event, Payload};
use tidegate::engine::ids::{Epoch, ImportantNo, RoomId};
use tidegate::engine::kind::{Kind, Lane, Merge};
use tidegate::engine::ladder::Rung as RoomRung;
use tidegate::engine::level::LevelKey;
use tidegate::engine::room::Room;
use tidegate::engine::settings::RoomSettings;
use tidegate::engine::time::Time;
use tidegate::shard::connection::ViewerKey;
use tidegate::shard::rebase::{Located, Rebases};
use tidegate::shard::stats::ShardStats;
use tidegate::wire::Format;
use tidegate::wire::message::{Recovery, ServerMessage};
use tidegate::wire::shared::{Compression, SharedFrame, SharedSnapshot, ViewerFrame, message};

use super::client::Client;
use super::rng::Rng;
pub(crate) use super::slow_seen::Seen;
use super::world::{START, kinds};

const ROOMS: usize = 2;
const VIEWERS: usize = 6;
/// How long events are published.
const LENGTH: Duration = Duration::from_secs(12);
/// A reader takes what it takes this often.
const READ_EVERY: Duration = Duration::from_millis(10);
/// Important events remembered where none may be forgotten.
const ENOUGH: usize = 1_000_000;
/// In which a reader in a hurry has caught up with everything it is owed, through
/// the smallest socket, piece by piece.
const CATCH_UP: Duration = Duration::from_secs(10);
/// Bytes that a reader in a hurry takes each time.
const HURRY: usize = 100_000;
const COMPRESSION: Compression = Compression { min_bytes: usize::MAX, level: 1 };

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Publish(usize),
    Flush(usize),
    /// The next message to the shard, or to the home, arrives.
    Shard,
    Home,
    /// The next member of a room gets the frame on its way.
    Fan(usize),
    Read(usize),
    Mood(usize),
    Tick(usize),
}

enum ToShard {
    Frame(usize, Arc<SharedFrame>),
    Located(Located),
}

enum ToHome {
    FrameOut(usize),
    Locate(ViewerKey, Ask),
}

/// A room at its home, and the frame on its way to the members.
struct Place {
    id: RoomId,
    room: Room,
    pace: u64,
    snapshot: Option<Arc<SharedSnapshot>>,
    job: Option<(Arc<SharedFrame>, Vec<usize>)>,
    parked: Vec<Located>,
    /// Ordered events that travelled, by number, with their kind.
    carried: BTreeMap<u64, Arc<Kind>>,
    /// Those that the room left out, by kind.
    shed: HashMap<String, u64>,
}

/// A socket between a server that does not wait and a reader that may.
struct Viewer {
    delivery: Option<Box<Delivery<ViewerFrame>>>,
    stats: ShardStats,
    pipe: VecDeque<u8>,
    capacity: usize,
    /// A write was not taken whole: it will be said when there is room again.
    refused: bool,
    /// Bytes read each time.
    rate: usize,
    /// When the socket last took anything.
    last_taken: Time,
    rooms: Vec<usize>,
    client: Client,
    open: bool,
}

struct World {
    rng: Rng,
    queue: BinaryHeap<Reverse<(Time, u64, Step)>>,
    queued: u64,
    kinds: Vec<Arc<Kind>>,
    ladder: LadderSettings,
    places: Vec<Place>,
    viewers: Vec<Viewer>,
    to_shard: (VecDeque<ToShard>, Time),
    to_home: (VecDeque<ToHome>, Time),
    rebases: Rebases,
    names: u64,
    until: Time,
    /// Important events that rooms remember.
    history: usize,
    seen: Seen,
}

/// One run: the same seed gives the same run, to the last count.
pub(crate) fn run(seed: u64) -> Seen {
    let mut world = World::new(seed);
    let quiet = world.until + world.ladder.recover * 5 + CATCH_UP;
    while let Some(Reverse((now, _, step))) = world.queue.pop() {
        if now > quiet {
            break;
        }
        world.step(step, now);
    }
    world.close(quiet)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed ^ 0x510e_527f);
        let ladder = ladder(&mut rng);
        let history = *rng.pick(&[4, ENOUGH]);
        let places = (0..ROOMS).map(|i| Place::new(i, history, &mut rng)).collect();
        let viewers = (0..VIEWERS).map(|i| Viewer::new(i, &mut rng)).collect();
        let mut world = Self {
            rng,
            queue: BinaryHeap::new(),
            queued: 0,
            kinds: kinds(),
            ladder,
            places,
            viewers,
            to_shard: (VecDeque::new(), START),
            to_home: (VecDeque::new(), START),
            rebases: Rebases::default(),
            names: 0,
            until: START + LENGTH,
            history,
            seen: Seen::default(),
        };
        (0..ROOMS).for_each(|room| world.queue(START, Step::Publish(room)));
        for viewer in 0..VIEWERS {
            world.queue(START, Step::Read(viewer));
            world.queue(START, Step::Mood(viewer));
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
            Step::Flush(room) => self.flush(room, now),
            Step::Shard => self.shard(now),
            Step::Home => self.home(now),
            Step::Fan(room) => self.fan(room, now),
            Step::Read(viewer) => self.read(viewer, now),
            Step::Mood(viewer) => self.mood(viewer, now),
            Step::Tick(viewer) => self.tick(viewer, now),
        }
    }

    fn publish(&mut self, index: usize, now: Time) {
        if now >= self.until {
            return;
        }
        let pace = self.places[index].pace;
        let wait = Duration::from_micros(self.rng.between(1, 2 * pace));
        self.queue(now + wait, Step::Publish(index));
        let event = self.event(now);
        let strain = (self.rng.below(100) == 0).then(|| self.rng.pick(&RoomRung::ALL).strain());
        let room = &mut self.places[index].room;
        if let Some(strain) = strain {
            room.set_strain(strain);
        }
        room.publish(event, now);
        self.schedule_flush(index, now);
    }

    fn schedule_flush(&mut self, index: usize, now: Time) {
        if let Some(at) = self.places[index].room.next_flush() {
            self.queue(at.max(now), Step::Flush(index));
        }
    }

    fn event(&mut self, now: Time) -> Event {
        self.names += 1;
        let rng = &mut self.rng;
        let kind = Arc::clone(rng.pick(&self.kinds));
        let payload = match (kind.merge, rng.below(10)) {
            (Merge::Latest(_), 0) => "null".to_owned(),
            _ => format!("\"{}\"", "x".repeat(rng.between(1, 200) as usize)),
        };
        Event {
            id: format!("e{}", self.names).into(),
            user: format!("u{}", rng.below(10)).into(),
            payload: Payload { bytes: Bytes::from(payload), json: true },
            key: Some(format!("k{}", rng.below(4)).into()),
            amount: Some(rng.between(0, 20) as i64 - 5),
            ttl: None,
            received: now,
            kind,
            mark: None,
        }
    }

    fn flush(&mut self, index: usize, now: Time) {
        let place = &mut self.places[index];
        let Some(frame) = place.room.flush(now) else { return };
        place.snapshot = None;
        for numbered in frame.events.iter().filter(|e| e.event.kind.lane == Lane::Ordered) {
            let seq = numbered.seq.expect("ordered events are numbered");
            place.carried.insert(seq.0, Arc::clone(&numbered.event.kind));
        }
        for shed in frame.dropped.iter().filter(|shed| shed.kind.lane == Lane::Ordered) {
            *place.shed.entry(shed.kind.name.to_string()).or_default() += shed.count;
        }
        let frame = Arc::new(SharedFrame::new(frame, COMPRESSION));
        self.send_shard(ToShard::Frame(index, frame), now);
    }

    fn send_shard(&mut self, message: ToShard, now: Time) {
        let at = (now + self.latency()).max(self.to_shard.1);
        self.to_shard.0.push_back(message);
        self.to_shard.1 = at;
        self.queue(at, Step::Shard);
    }

    fn send_home(&mut self, message: ToHome, now: Time) {
        let at = (now + self.latency()).max(self.to_home.1);
        self.to_home.0.push_back(message);
        self.to_home.1 = at;
        self.queue(at, Step::Home);
    }

    fn latency(&mut self) -> Duration {
        Duration::from_micros(self.rng.between(1, 3_000))
    }

    fn home(&mut self, now: Time) {
        match self.to_home.0.pop_front().expect("as many as steps") {
            ToHome::FrameOut(index) => {
                self.places[index].room.frame_out(now);
                self.schedule_flush(index, now);
            }
            ToHome::Locate(viewer, ask) => {
                let place = self.places.iter_mut().find(|p| p.id == ask.room).expect("a room");
                let owed = ask
                    .from
                    .map(|from| place.room.history_after_important(ImportantNo(from.0 - 1), 20));
                let room = &mut place.room;
                let snapshot = place.snapshot.get_or_insert_with(|| {
                    Arc::new(SharedSnapshot::new(
                        room.snapshot(now),
                        Recovery::default(),
                        COMPRESSION,
                    ))
                });
                let snapshot = Arc::clone(snapshot);
                let position = Located { viewer, ask, snapshot, owed };
                self.send_shard(ToShard::Located(position), now);
            }
        }
    }

    fn shard(&mut self, now: Time) {
        match self.to_shard.0.pop_front().expect("as many as steps") {
            ToShard::Frame(index, frame) => {
                let members: Vec<usize> = (0..VIEWERS)
                    .filter(|viewer| self.viewers[*viewer].rooms.contains(&index))
                    .collect();
                assert!(self.places[index].job.is_none(), "one frame on its way");
                self.places[index].job = Some((frame, members));
                self.queue(now, Step::Fan(index));
            }
            ToShard::Located(position) => {
                let room = &position.ask.room;
                let place = self.places.iter_mut().find(|p| p.id == *room).expect("a room");
                if place.job.is_some() {
                    self.seen.parked_answers += 1;
                    place.parked.push(position);
                } else {
                    self.answer(&position, now);
                }
            }
        }
    }

    fn fan(&mut self, index: usize, now: Time) {
        let Some((frame, members)) = &mut self.places[index].job else { return };
        if let Some(viewer) = members.pop() {
            let frame = Arc::clone(frame);
            let wait = match self.rng.below(20) {
                0 => self.rng.between(1, 20_000),
                _ => self.rng.below(50),
            };
            self.queue(now + Duration::from_micros(wait), Step::Fan(index));
            return self.deliver(viewer, frame, now);
        }
        self.places[index].job = None;
        for position in std::mem::take(&mut self.places[index].parked) {
            self.answer(&position, now);
        }
        self.send_home(ToHome::FrameOut(index), now);
    }

    fn deliver(&mut self, index: usize, frame: Arc<SharedFrame>, now: Time) {
        let viewer = &mut self.viewers[index];
        if !viewer.open {
            return;
        }
        let shared = ViewerFrame { frame, format: Format::Json };
        if let Some(delivery) = &mut viewer.delivery {
            delivery.frame(shared, &self.ladder, &mut viewer.stats.delivery, now);
        } else {
            let bytes = shared.frame.bytes(Format::Json, Rung::Full.cut()).clone();
            let written = viewer.write(&bytes, now);
            if written == bytes.len() {
                return;
            }
            let mut delivery = Delivery::new(now);
            if written > 0 {
                self.seen.partial_writes += 1;
                delivery.begun(shared, bytes.slice(written..), now);
            } else {
                delivery.frame(shared, &self.ladder, &mut viewer.stats.delivery, now);
            }
            viewer.delivery = Some(Box::new(delivery));
        }
        self.settle(index, now);
    }

    fn answer(&mut self, position: &Located, now: Time) {
        let index = position.viewer.index as usize;
        let piece = self.ladder.bounds[0].bytes;
        let viewer = &mut self.viewers[index];
        let Some(delivery) = &mut viewer.delivery else { return };
        if viewer.open {
            let stats = &mut viewer.stats;
            self.rebases.apply(position, delivery, Format::Json, piece, stats, now);
            self.settle(index, now);
        }
    }

    /// What a shard does after anything that concerns a slow viewer.
    fn settle(&mut self, index: usize, now: Time) {
        let Self { viewers, ladder, seen, .. } = self;
        let viewer = &mut viewers[index];
        if viewer.delivery.as_ref().is_some_and(|delivery| delivery.is_open()) {
            viewer.write_out(ladder, now);
        }
        let Some(delivery) = &mut viewer.delivery else { return };
        let (load, last) = (delivery.load(), ladder.last());
        assert!(load.frames <= 1 || (load.frames <= last.frames && load.bytes <= last.bytes));
        // Frames, one of them begun; per room a notice or two, and a state.
        let pings = delivery.fixed_bytes() / message(Format::Json, &ServerMessage::Ping).len();
        let most = last.frames + 2 + pings + 3 * viewer.rooms.len();
        assert!(delivery.len() <= most, "{} of {most}", delivery.len());
        seen.largest_backlog = seen.largest_backlog.max(delivery.bytes());
        if delivery.is_over() {
            viewer.delivery = None;
            return;
        }
        let mut asks = Vec::new();
        while let Some(ask) = delivery.poll_ask(ladder, now) {
            asks.push(ask);
        }
        if let Some(deadline) = delivery.deadline(ladder) {
            self.queue(deadline.max(now), Step::Tick(index));
        }
        for ask in asks {
            let key = ViewerKey { index: index as u32, generation: 0 };
            self.send_home(ToHome::Locate(key, ask), now);
        }
    }

    fn tick(&mut self, index: usize, now: Time) {
        let Self { viewers, ladder, .. } = self;
        let viewer = &mut viewers[index];
        let Some(delivery) = &mut viewer.delivery else { return };
        // An entry that something overtook: like the shard's wheel, which looks
        // again no sooner than it must.
        if delivery.deadline(ladder).is_none_or(|at| at > now) {
            return;
        }
        delivery.tick(ladder, &mut viewer.stats.delivery, now);
        if delivery.verdict(ladder, now) == Verdict::GiveUp {
            let silent = now.since(viewer.last_taken);
            assert!(silent >= ladder.drain, "given up after {silent:?}");
            viewer.open = false;
            viewer.delivery = None;
            self.seen.given_up += 1;
            return;
        }
        self.settle(index, now);
    }

    fn read(&mut self, index: usize, now: Time) {
        self.queue(now + READ_EVERY, Step::Read(index));
        let viewer = &mut self.viewers[index];
        let taken = viewer.rate.min(viewer.pipe.len());
        if taken > 0 {
            let bytes: Vec<u8> = viewer.pipe.drain(..taken).collect();
            viewer.client.receive(&bytes);
        }
        let free = viewer.capacity - viewer.pipe.len();
        if viewer.refused && viewer.open && free * 3 >= viewer.capacity {
            viewer.refused = false;
            viewer.write_out(&self.ladder, now);
            self.settle(index, now);
        }
    }

    /// A message to this viewer alone.
    fn ping(&mut self, index: usize, now: Time) {
        let viewer = &mut self.viewers[index];
        let bytes = message(Format::Json, &ServerMessage::Ping);
        if let Some(delivery) = &mut viewer.delivery {
            delivery.fixed(bytes, false);
        } else {
            let written = viewer.write(&bytes, now);
            if written == bytes.len() {
                return;
            }
            let mut delivery = Delivery::new(now);
            delivery.fixed(bytes.slice(written..), written > 0);
            viewer.delivery = Some(Box::new(delivery));
        }
        self.settle(index, now);
    }

    fn mood(&mut self, index: usize, now: Time) {
        if self.viewers[index].open && self.rng.percent(30) {
            self.ping(index, now);
        }
        let viewer = &mut self.viewers[index];
        if now >= self.until || index == 0 {
            viewer.rate = HURRY;
            return;
        }
        viewer.rate = match self.rng.below(10) {
            0..3 => 0,
            3..7 => self.rng.between(10, 400) as usize,
            _ => HURRY,
        };
        // Some stall for longer than anybody waits.
        let most = if self.rng.percent(8) { 6_000 } else { 1_500 };
        let wait = Duration::from_millis(self.rng.between(50, most));
        self.queue((now + wait).min(self.until), Step::Mood(index));
    }

    /// When all is quiet every viewer that stayed has all it should have.
    fn close(mut self, now: Time) -> Seen {
        for viewer in &mut self.viewers {
            let stats = &viewer.stats.delivery;
            self.seen.delivery.absorb(stats);
            if !viewer.open {
                continue;
            }
            assert!(viewer.delivery.is_none(), "not back on the first rung: {stats:?}");
            assert!(viewer.pipe.is_empty());
            assert_eq!(stats.owed, stats.repaid + stats.unpaid);
            for room in &viewer.rooms {
                let place = &mut self.places[*room];
                let snapshot = place.room.snapshot(now);
                viewer.client.check(&snapshot, &place.carried, &place.shed);
            }
            assert_eq!(viewer.client.unpaid(), stats.unpaid);
            assert!(stats.unpaid == 0 || self.history < ENOUGH, "nothing was forgotten");
        }
        let quick = &self.viewers[0].stats.delivery.climbed;
        assert_eq!(quick.iter().sum::<u64>(), 0, "who keeps up loses nothing");
        self.seen
    }
}

impl Place {
    fn new(index: usize, history_important: usize, rng: &mut Rng) -> Self {
        let settings = RoomSettings {
            flush_interval: Duration::from_millis(*rng.pick(&[10, 50, 200])),
            small_room_viewers: *rng.pick(&[0, 100]),
            history_important,
            ..super::world::settings(rng)
        };
        let id = RoomId::new(&format!("slow:{index}")).expect("a valid name");
        let epoch = Epoch(index as u64 + 1);
        let key = LevelKey::from_seed(u128::from(rng.next()));
        let settings = RoomSettings { history_important_bytes: 1 << 30, ..settings };
        let mut room = Room::new(id.clone(), epoch, key, Arc::new(settings), START);
        room.set_online(VIEWERS as u32, START);
        Self {
            id,
            room,
            pace: *rng.pick(&[2_000, 8_000, 30_000]),
            snapshot: None,
            job: None,
            parked: Vec::new(),
            carried: BTreeMap::new(),
            shed: HashMap::new(),
        }
    }
}

impl Viewer {
    fn new(index: usize, rng: &mut Rng) -> Self {
        let both: BTreeSet<usize> = (0..2).map(|_| rng.below(ROOMS as u64) as usize).collect();
        // The quick one has room for all that may come between two reads.
        let capacity = if index == 0 { HURRY * 10 } else { rng.between(500, 20_000) as usize };
        Self {
            delivery: None,
            stats: ShardStats::default(),
            pipe: VecDeque::new(),
            capacity,
            refused: false,
            rate: HURRY,
            last_taken: START,
            client: Client::new(both.iter().map(|room| format!("slow:{room}"))),
            rooms: both.into_iter().collect(),
            open: true,
        }
    }

    /// As many bytes as there is room for, as a socket does.
    fn write(&mut self, bytes: &[u8], now: Time) -> usize {
        let written = bytes.len().min(self.capacity - self.pipe.len());
        self.pipe.extend(&bytes[..written]);
        self.last_taken = if written > 0 { now } else { self.last_taken };
        self.refused |= written < bytes.len();
        written
    }

    fn write_out(&mut self, ladder: &LadderSettings, now: Time) {
        let Some(mut delivery) = self.delivery.take() else { return };
        loop {
            delivery.prepare(&Format::Json);
            if delivery.is_empty() {
                delivery.drained(&mut self.stats.delivery, now);
                break;
            }
            let bytes: Vec<u8> = delivery.chunks().flatten().copied().collect();
            let written = self.write(&bytes, now);
            if written == 0 {
                delivery.refused();
                break;
            }
            delivery.advance(written, ladder, &mut self.stats.delivery, now, |_, _| ());
        }
        self.delivery = Some(delivery);
    }
}

/// Tight bounds, so that every one is met.
fn ladder(rng: &mut Rng) -> LadderSettings {
    let (frames, bytes) = (rng.between(2, 12) as usize, rng.between(1_000, 8_000) as usize);
    let age = Duration::from_millis(rng.between(100, 800));
    let bounds =
        [1, 2, 3, 4].map(|n| Bounds { frames: n * frames, bytes: n * bytes, age: age * n as u32 });
    let recover = Duration::from_millis(rng.between(50, 400));
    LadderSettings { bounds, recover, recover_percent: 25, drain: Duration::from_secs(2) }
}
