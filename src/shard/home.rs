//! The rooms whose home is this shard: they are numbered, merged and encoded
//! here, and their frames handed to every shard that has viewers of them.
//!
//! A room's next frame is made when all shards are done with the last one; what
//! arrives meanwhile is merged. So the flush interval stretches by itself when
//! fan-out takes longer than the interval.

mod durable;
mod presence;
mod read;
mod reconcile;
mod rest;
mod resume;
mod traces;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

pub use self::presence::Announce;
use super::intake::{Intake, IntakeSettings, Queued};
use super::peers::{Answered, Message, Origin, Path};
use super::stats::ShardStats;
use crate::clock::Clock;
use crate::engine::confirm::Budget;
use crate::engine::event::Event;
use crate::engine::ids::{Epoch, RoomId, ShardId};
use crate::engine::level::LevelKey;
use crate::engine::outcome::{Outcome, Refusal};
use crate::engine::priority::Advice;
use crate::engine::room::Room;
use crate::engine::settings::RoomSettings;
use crate::engine::stats::RoomStats;
use crate::engine::time::Time;
use crate::trace::Recorder;
use crate::wire::Format;
use crate::wire::message::ServerMessage;
use crate::wire::shared::{Compression, SharedFrame, SharedSnapshot, message};

/// A cached snapshot whose viewer count is older than this is made anew: in a
/// join storm it is encoded ten times a second, not for every viewer.
const SNAPSHOT_AGE: Duration = Duration::from_millis(100);

/// Events numbered between two looks at the clock and at the rooms that are due.
const BATCH: usize = 64;

/// Important events one `pull` brings at most.
const MAX_PULL: u64 = 200;

/// Limits of the rooms of a shard.
#[derive(Debug, Clone)]
pub struct HomeSettings {
    /// Of each room.
    pub room: Arc<RoomSettings>,
    /// How frames are compressed.
    pub compression: Compression,
    /// Rooms open at once.
    pub max_rooms: usize,
    /// Missed events that somebody who comes back is sent at most.
    pub resume_events: usize,
    /// Acknowledgements that viewers are asked for, over all rooms.
    pub acks_per_second: u32,
    /// Kinds of the events that tell of users who came and left.
    pub announce: Announce,
    /// Pulls answered, over all rooms.
    pub pulls_per_second: u32,
    /// The numbering of a room that the log knows is kept for this.
    pub retention: Duration,
    /// A room without viewers and events falls asleep after this, or is
    /// forgotten when the log does not know it.
    pub idle: Duration,
    /// Of what stands in front of them.
    pub intake: IntakeSettings,
    /// Seeds room epochs and user levels.
    pub seed: u128,
}

struct HomeRoom {
    room: Room,
    shards: Vec<Subscriber>,
    /// Shards still sending the last frame.
    awaited: usize,
    /// Valid entry of the timer heap.
    scheduled: Option<Time>,
    snapshot: Option<(Time, Arc<SharedSnapshot>)>,
    entrances: Vec<resume::Cached>,
    pulled: Vec<read::Pulled>,
    dirty: bool,
    /// Events that wait until the log has set numbers aside for a room that goes
    /// on after a restart.
    waking: Option<Vec<Queued>>,
    /// When the log was last told that the room is alive.
    logged_at: Time,
    /// Publishers whose events are being logged.
    waiters: Vec<durable::Waiter>,
    /// Of its bytes, those in the shard's sum.
    counted_bytes: usize,
}

#[derive(Debug, Clone, Copy)]
struct Subscriber {
    shard: ShardId,
    viewers: u32,
    formats: u8,
}

/// See the module's documentation.
pub struct Homes {
    settings: HomeSettings,
    level_key: LevelKey,
    /// What stands in front of the rooms.
    pub intake: Intake,
    rooms: HashMap<RoomId, HomeRoom>,
    timers: BinaryHeap<Reverse<(Time, RoomId)>>,
    dirty: Vec<RoomId>,
    rest: rest::Rest,
    opened: u64,
    /// What all rooms have counted, and those that are not dirty hold.
    counted: RoomStats,
    room_bytes: usize,
    /// Which shard it is.
    shard: ShardId,
    durable: Option<durable::Durable>,
    acks: Budget,
    pulls: read::Pulls,
    digests: reconcile::Digests,
    /// Events of its own that it has made.
    announced: u64,
    /// Notes the steps of events that are followed.
    pub tracer: Option<Box<Recorder>>,
}

impl Homes {
    /// No rooms yet.
    #[must_use]
    pub fn new(shard: ShardId, settings: HomeSettings, now: Time) -> Self {
        let HomeSettings { acks_per_second, pulls_per_second, .. } = settings;
        Self {
            level_key: LevelKey::from_seed(settings.seed),
            intake: Intake::new(settings.intake.clone(), now),
            settings,
            rooms: HashMap::new(),
            timers: BinaryHeap::new(),
            dirty: Vec::new(),
            rest: rest::Rest::default(),
            opened: 0,
            counted: RoomStats::default(),
            room_bytes: 0,
            shard,
            durable: None,
            acks: Budget::new(acks_per_second, now),
            pulls: read::Pulls::new(pulls_per_second, now),
            digests: reconcile::Digests::new(now),
            announced: 0,
            tracer: None,
        }
    }

    /// Takes events in, to be numbered when it is their turn.
    pub fn publish(
        &mut self,
        id: &RoomId,
        events: Vec<Event>,
        parsed: Duration,
        origin: Origin,
        path: &dyn Path,
        now: Time,
    ) {
        let room = self.rooms.get(id).map(|home| &home.room);
        let viewers =
            |event: &Event| room.map_or(0, |room| room.viewers_of_a_flush(event.kind.lane));
        let marks = traces::marks(&events);
        self.intake.offer(id, events, origin, parsed, viewers, now);
        self.trace_offered(&marks);
        self.answer(path);
    }

    /// Numbers and merges what waits, for about `slice`.
    pub fn work(&mut self, path: &dyn Path, stats: &mut ShardStats, clock: Clock, slice: Duration) {
        let begun = clock.now();
        let mut now = begun;
        while now.since(begun) < slice {
            let mut done = 0;
            while done < BATCH
                && let Some(queued) = self.intake.next(now)
            {
                self.take(queued, now);
                done += 1;
            }
            self.trace_shed();
            self.submit(now);
            self.answer(path);
            // What is enough for a frame leaves now, not when all is taken in.
            self.flush_dirty(path, stats, now);
            let after = clock.now();
            self.intake.processed(done, after.since(now), after);
            // Little was taken from many: the rest of the step was for refusing others.
            if self.intake.is_empty() || after <= now {
                break;
            }
            now = after;
        }
    }

    fn answer(&mut self, path: &dyn Path) {
        for reply in self.intake.take_replies() {
            match reply.origin {
                // A requester that gave up does not hear the answer.
                Origin::Request(sender) => drop(sender.send(reply.answer)),
                Origin::Viewer(asker) => {
                    let Answered { outcomes, advice } = reply.answer;
                    for (id, outcome) in reply.ids.iter().zip(outcomes) {
                        let bytes = message(asker.format, &outcome_message(id, &outcome, advice));
                        path.send(asker.shard, Message::Direct { viewer: asker.viewer, bytes });
                    }
                }
                Origin::Nobody => {}
            }
        }
    }

    /// A shard is done with the last frame.
    pub fn frame_out(&mut self, id: &RoomId, now: Time) {
        let Some(home) = self.rooms.get_mut(id) else { return };
        home.awaited = home.awaited.saturating_sub(1);
        if home.awaited == 0 && home.room.is_going_out() {
            home.room.frame_out(now);
            self.mark_dirty(id);
        }
    }

    /// When [`tick`](Self::tick) has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Time {
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        let next = self.intake.next_deadline();
        [timer, self.rest.next_look()].into_iter().flatten().fold(next, Time::min)
    }

    /// Flushes the rooms that are due.
    pub fn tick(&mut self, path: &dyn Path, stats: &mut ShardStats, now: Time) {
        while let Some(Reverse((at, _))) = self.timers.peek()
            && *at <= now
        {
            let Some(Reverse((at, id))) = self.timers.pop() else { break };
            if let Some(home) = self.rooms.get_mut(&id)
                && home.scheduled == Some(at)
            {
                home.scheduled = None;
                self.mark_dirty(&id);
            }
        }
        self.wake_late(now);
        self.answer(path);
        self.flush_dirty(path, stats, now);
        if self.rest.next_look().is_some_and(|at| at <= now) {
            self.look_after(now);
        }
    }

    fn flush_dirty(&mut self, path: &dyn Path, stats: &mut ShardStats, now: Time) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for id in dirty.drain(..) {
            self.pump(&id, path, stats, now, false);
        }
        // Nothing becomes dirty while rooms are pumped.
        self.dirty = dirty;
    }

    /// Flushes every room that has anything pending, due or not.
    pub fn flush_all(&mut self, path: &dyn Path, stats: &mut ShardStats, now: Time) {
        let ids: Vec<RoomId> = self.rooms.keys().cloned().collect();
        for id in ids {
            self.pump(&id, path, stats, now, true);
        }
    }

    /// Whether any room still holds events that have not left.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        !self.intake.is_empty()
            || self.rooms.values().any(|HomeRoom { room, waking, .. }| {
                room.is_going_out()
                    || room.awaits_log()
                    || room.next_flush().is_some()
                    || waking.as_ref().is_some_and(|parked| !parked.is_empty())
            })
    }

    /// Adds what the rooms counted.
    pub fn count(&mut self, stats: &mut ShardStats) {
        for id in &self.dirty {
            let Some(home) = self.rooms.get_mut(id) else { continue };
            rest::settle(home, &mut self.counted, &mut self.room_bytes);
        }
        stats.rooms = self.counted.clone();
        for (sum, refused) in stats.rooms.refused.iter_mut().zip(self.intake.refused) {
            *sum += refused;
        }
        stats.open_rooms = self.rooms.len() as u64;
        self.intake.count(stats);
        stats.pulls = self.pulls.results;
        stats.digests = self.digests.results;
        stats.trace = self.tracer.as_ref().map(|tracer| tracer.stats()).unwrap_or_default();
        stats.asleep_rooms = self.rest.len() as u64;
        stats.room_bytes = (self.room_bytes + self.rest.bytes()) as u64;
    }

    fn open(&mut self, id: &RoomId, now: Time) -> Option<&mut HomeRoom> {
        if !self.rooms.contains_key(id) {
            if self.rooms.len() >= self.settings.max_rooms {
                return None;
            }
            self.opened += 1;
            let settings = Arc::clone(&self.settings.room);
            let woken = self.rest.wake(id);
            // To wake is no word to the log, which forgets what it does not hear of.
            let logged_at = woken.as_ref().map(|(_, at)| *at);
            let room = match woken {
                Some((asleep, _)) => Room::woken(id.clone(), asleep, self.level_key, settings, now),
                None => {
                    let epoch = epoch(now, self.opened, self.settings.seed as u64);
                    Room::new(id.clone(), epoch, self.level_key, settings, now)
                }
            };
            // Numbers may be given as soon as some are set aside.
            let waking = (logged_at.is_some() && room.wants_log()).then(Vec::new);
            let home = HomeRoom {
                room,
                shards: Vec::new(),
                awaited: 0,
                scheduled: None,
                snapshot: None,
                entrances: Vec::new(),
                pulled: Vec::new(),
                dirty: false,
                waiters: Vec::new(),
                logged_at: logged_at.unwrap_or(now),
                waking,
                counted_bytes: 0,
            };
            let wakes = home.waking.is_some();
            self.rooms.insert(id.clone(), home);
            self.rest.opened(id.clone(), now + self.look_interval());
            if wakes {
                self.set_aside(id, now);
            }
        }
        self.rooms.get_mut(id)
    }

    /// Whether a room is open or can be woken.
    fn knows(&self, id: &RoomId) -> bool {
        self.rooms.contains_key(id) || self.rest.knows(id)
    }

    fn mark_dirty(&mut self, id: &RoomId) {
        if let Some(home) = self.rooms.get_mut(id)
            && !home.dirty
        {
            home.dirty = true;
            self.dirty.push(id.clone());
        }
    }

    /// Flushes a room if it is due, and otherwise notes when it will be.
    fn pump(
        &mut self,
        id: &RoomId,
        path: &dyn Path,
        stats: &mut ShardStats,
        now: Time,
        at_once: bool,
    ) {
        let compression = self.settings.compression;
        let strain = self.intake.ladder().rung().strain();
        let Some(home) = self.rooms.get_mut(id) else { return };
        home.dirty = false;
        home.room.set_strain(strain);
        // A room without viewers may flush several times here: nobody holds up
        // its next frame.
        loop {
            let frame = if at_once { home.room.flush_now(now) } else { home.room.flush(now) };
            let Some(frame) = frame else { break };
            let mut frame = frame;
            if frame.events.iter().any(|event| event.important.is_some()) {
                frame.ack = self
                    .acks
                    .ask(home.room.online(), now)
                    .map(|asked| reconcile::with_digest(asked, &frame));
            }
            let frame = SharedFrame::new(frame, compression);
            home.broadcast(frame, path, stats, self.tracer.as_deref_mut());
            if home.awaited > 0 {
                break;
            }
            home.room.frame_out(now);
        }
        traces::fates(&mut home.room, self.tracer.as_deref_mut());
        rest::settle(home, &mut self.counted, &mut self.room_bytes);
        // A strain that has grown moves the flush back, one that has gone forward.
        let next = home.room.next_flush();
        if let Some(at) = next
            && home.scheduled != Some(at)
        {
            home.scheduled = Some(at);
            self.timers.push(Reverse((at, id.clone())));
        }
    }
}

impl HomeRoom {
    /// Nobody is in it or on the way to it, and nothing waits.
    fn is_quiet(&self) -> bool {
        self.shards.is_empty()
            && self.awaited == 0
            && self.waking.is_none()
            && self.waiters.is_empty()
            && self.room.is_quiet()
    }

    fn subscriber(&mut self, shard: ShardId) -> &mut Subscriber {
        let index = match self.shards.iter().position(|s| s.shard == shard) {
            Some(index) => index,
            None => {
                self.shards.push(Subscriber { shard, viewers: 0, formats: 0 });
                self.shards.len() - 1
            }
        };
        &mut self.shards[index]
    }

    fn broadcast(
        &mut self,
        frame: SharedFrame,
        path: &dyn Path,
        stats: &mut ShardStats,
        tracer: Option<&mut Recorder>,
    ) {
        let tracer = traces::flushed(tracer, &frame);
        self.snapshot = None;
        self.entrances.clear();
        self.pulled.clear();
        self.awaited = self.shards.len();
        let used = self.shards.iter().fold(0, |mask, s| mask | s.formats);
        // Encoded here, before it is shared: the other shards must not find
        // themselves waiting for one another over who encodes.
        for format in Format::ALL {
            if used & 1 << format.index() != 0 {
                stats.frame_bytes[format.index()] += frame.prepare(format) as u64;
            }
        }
        traces::encoded(tracer, &frame, used);
        let frame = Arc::new(frame);
        for subscriber in &self.shards {
            path.send(subscriber.shard, Message::Frame(Arc::clone(&frame)));
        }
    }
}

/// Unique across rooms, restarts and shards, and below 2^53: milliseconds since
/// 2020 in the high bits (good until 2090), eleven bits that tell apart
/// what was opened within one.
fn epoch(now: Time, opened: u64, seed: u64) -> Epoch {
    const START_OF_2020_MS: u64 = 1_577_836_800_000;
    let millis = now.as_millis().saturating_sub(START_OF_2020_MS) & ((1 << 42) - 1);
    Epoch(millis << 11 | (opened ^ seed) & 0x7ff)
}

/// What a viewer hears of its own event.
#[must_use]
pub fn outcome_message<'a>(id: &'a str, outcome: &Outcome, advice: Advice) -> ServerMessage<'a> {
    // Most of the time there is nothing to say, and viewers are many.
    let admission = (!advice.level.is_open()).then_some(advice);
    match outcome {
        Outcome::Accepted { seq } | Outcome::Duplicate { seq } => {
            ServerMessage::Accepted { id, seq: *seq, admission }
        }
        Outcome::Rejected(refusal) => ServerMessage::Rejected {
            id,
            code: refusal.code(),
            reason: refusal_reason(*refusal),
            retry_after_ms: refusal.retry_after_ms().map(u64::from),
            admission,
        },
    }
}

/// The refusal in words that need no buffer of their own.
fn refusal_reason(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::BufferFull => "the room takes no more important events at the moment",
        Refusal::TooManyKeys => "the room keeps no further keys of this kind",
        Refusal::AmountOverflow => "the amount takes the sum beyond 2^53",
        Refusal::PayloadTooLarge(_) => "the payload is larger than its kind allows",
        Refusal::Expired => "the event had expired when it arrived",
        Refusal::TooManyRooms => "the server has as many rooms open as it may have",
        Refusal::Overloaded { .. } => "the server is overloaded and takes what matters more",
        Refusal::Silenced { .. } => "an operator has silenced this kind in the room",
        Refusal::RoomLimited { .. } => "the room has used up its rate of events",
        Refusal::UserLimited { .. } => "the user has used up its rate of events",
        Refusal::LogUnavailable => "the log cannot take the event at present",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_exact_in_a_double_and_differs_between_rooms() {
        let now = Time::from_millis(1_800_000_000_000);
        assert!(epoch(now, 5, u64::MAX).0 < 1 << 53);
        assert_ne!(epoch(now, 1, 9), epoch(now, 2, 9));
        assert!(epoch(now + Duration::from_millis(1), 1, 9).0 > epoch(now, 1, 9).0);
    }
}
