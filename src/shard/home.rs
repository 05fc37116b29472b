//! The rooms whose home is this shard: they are numbered, merged and encoded
//! here, and their frames handed to every shard that has viewers of them.
//!
//! A room's next frame is made when all shards are done with the last one; what
//! arrives meanwhile is merged. So the flush interval stretches by itself when
//! fan-out takes longer than the interval.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::intake::{Intake, IntakeSettings};
use super::peers::{After, Answered, Asker, Events, Message, Origin, Path};
use super::rebase::Position;
use super::stats::ShardStats;
use crate::clock::Clock;
use crate::engine::delivery::{Ask, Cut};
use crate::engine::event::{Event, Frame};
use crate::engine::ids::{Epoch, ImportantNo, RoomId, Seq, ShardId};
use crate::engine::level::LevelKey;
use crate::engine::outcome::{Outcome, Refusal};
use crate::engine::priority::Advice;
use crate::engine::room::Room;
use crate::engine::settings::RoomSettings;
use crate::engine::stats::RoomStats;
use crate::engine::time::Time;
use crate::wire::Format;
use crate::wire::message::ServerMessage;
use crate::wire::shared::{Compression, SharedFrame, SharedSnapshot, message};

/// A cached snapshot whose viewer count is older than this is made anew: in a
/// join storm it is encoded ten times a second, not for every viewer.
const SNAPSHOT_AGE: Duration = Duration::from_millis(100);

/// How often rooms without viewers and events are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

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
    /// A room without viewers and events is forgotten after this.
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
    dirty: bool,
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
    next_sweep: Time,
    opened: u64,
    forgotten: RoomStats,
}

impl Homes {
    /// No rooms yet.
    #[must_use]
    pub fn new(settings: HomeSettings, now: Time) -> Self {
        Self {
            level_key: LevelKey::from_seed(settings.seed),
            intake: Intake::new(settings.intake.clone(), now),
            settings,
            rooms: HashMap::new(),
            timers: BinaryHeap::new(),
            dirty: Vec::new(),
            next_sweep: now + SWEEP_INTERVAL,
            opened: 0,
            forgotten: RoomStats::default(),
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
        self.intake.offer(id, events, origin, parsed, viewers, now);
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
                let key = queued.key();
                let outcome = match self.open(&queued.room, now) {
                    Some(home) => home.room.publish(queued.event, now),
                    None => {
                        let refused = Refusal::TooManyRooms;
                        self.intake.refused[refused.index()] += 1;
                        Outcome::Rejected(refused)
                    }
                };
                self.mark_dirty(&queued.room);
                self.intake.done(key, outcome);
                done += 1;
            }
            self.answer(path);
            // What is enough for a frame leaves now, not when all is taken in.
            self.flush_dirty(path, stats, now);
            let after = clock.now();
            self.intake.cost.processed(done, after.since(now));
            now = after;
            if done < BATCH {
                break;
            }
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

    /// A shard has viewers that want to join.
    pub fn subscribe(
        &mut self,
        id: &RoomId,
        shard: ShardId,
        formats: u8,
        path: &dyn Path,
        now: Time,
    ) {
        let compression = self.settings.compression;
        let Some(home) = self.open(id, now) else {
            let refused = Message::SubscribeRefused { room: id.clone(), code: "too_many_rooms" };
            return path.send(shard, refused);
        };
        let subscriber = home.subscriber(shard);
        subscriber.formats |= formats;
        let snapshot = home.snapshot(compression, now);
        path.send(shard, Message::Snapshot(snapshot));
    }

    /// A shard's viewers of a room came or went.
    pub fn presence(&mut self, id: &RoomId, shard: ShardId, viewers: u32, formats: u8, now: Time) {
        let Some(home) = self.rooms.get_mut(id) else { return };
        if viewers == 0 {
            home.shards.retain(|s| s.shard != shard);
        } else {
            *home.subscriber(shard) = Subscriber { shard, viewers, formats };
        }
        let online = home.shards.iter().map(|s| s.viewers).sum();
        home.room.set_online(online, now);
        self.mark_dirty(id);
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

    /// Sends a viewer the important events it asks for, as far as memory has them.
    pub fn pull(
        &mut self,
        id: &RoomId,
        from: ImportantNo,
        to: ImportantNo,
        asker: Asker,
        path: &dyn Path,
        now: Time,
    ) {
        let compression = self.settings.compression;
        let Some(home) = self.rooms.get(id) else { return };
        let wanted = (to.0 + 1).saturating_sub(from.0).min(MAX_PULL) as usize;
        let after = ImportantNo(from.0.saturating_sub(1));
        let replay = home.room.history_after_important(after, wanted);
        let send = |bytes| path.send(asker.shard, Message::Direct { viewer: asker.viewer, bytes });
        if !replay.complete {
            let error = ServerMessage::Error {
                code: "history_gone",
                reason: "some of the important events asked for are no longer held",
                temporary: false,
                room: Some(id.as_str()),
                retry_after_ms: None,
            };
            send(message(asker.format, &error));
        }
        let seq = home.room.seq();
        let frame = Frame {
            room: id.clone(),
            epoch: home.room.epoch(),
            first_seq: Seq(seq.0 + 1),
            last_seq: seq,
            important: home.room.important(),
            time: now,
            oldest: now,
            represents: replay.events.len() as u64,
            events: replay.events,
            totals: Vec::new(),
            dropped: Vec::new(),
            online: None,
        };
        send(SharedFrame::new(frame, compression).bytes(asker.format, Cut::Full).clone());
    }

    /// Tells a slow viewer's shard where a room stands.
    pub fn locate(&mut self, viewer: Asker, ask: Ask, path: &dyn Path, now: Time) {
        let compression = self.settings.compression;
        let Some(home) = self.rooms.get_mut(&ask.room) else { return };
        let owed = ask.from.map(|from| {
            let after = ImportantNo(from.0.saturating_sub(1));
            home.room.history_after_important(after, MAX_PULL as usize)
        });
        let snapshot = home.snapshot(compression, now);
        let position = Position { viewer: viewer.viewer, ask, snapshot, owed };
        path.send(viewer.shard, Message::Located(Box::new(position)));
    }

    /// Where a room stands, if it is open.
    pub fn read_room(&mut self, id: &RoomId, now: Time) -> Option<Arc<SharedSnapshot>> {
        let compression = self.settings.compression;
        Some(self.rooms.get_mut(id)?.snapshot(compression, now))
    }

    /// What a room remembers after a number, if it is open.
    #[must_use]
    pub fn read_events(&self, id: &RoomId, after: After, limit: usize) -> Option<Events> {
        let room = &self.rooms.get(id)?.room;
        let replay = match after {
            After::Seq(seq) => room.history_after_seq(seq, limit),
            After::Important(important) => room.history_after_important(important, limit),
        };
        Some(Events {
            epoch: room.epoch(),
            seq: room.seq(),
            important: room.important(),
            events: replay.events,
            complete: replay.complete,
            more: replay.more,
        })
    }

    /// When [`tick`](Self::tick) has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Time {
        let timer = self.timers.peek().map_or(self.next_sweep, |Reverse((at, _))| *at);
        timer.min(self.next_sweep).min(self.intake.next_deadline())
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
        self.flush_dirty(path, stats, now);
        if self.next_sweep <= now {
            self.sweep(now);
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
            || self.rooms.values().any(|h| h.room.is_going_out() || h.room.next_flush().is_some())
    }

    /// Adds what the rooms counted.
    pub fn count(&self, stats: &mut ShardStats) {
        stats.rooms = self.forgotten.clone();
        for (sum, refused) in stats.rooms.refused.iter_mut().zip(self.intake.refused) {
            *sum += refused;
        }
        stats.open_rooms = self.rooms.len() as u64;
        self.intake.count(stats);
        stats.room_bytes = 0;
        for home in self.rooms.values() {
            stats.rooms.absorb(home.room.stats());
            stats.room_bytes += home.room.memory_bytes() as u64;
        }
    }

    fn open(&mut self, id: &RoomId, now: Time) -> Option<&mut HomeRoom> {
        if !self.rooms.contains_key(id) {
            if self.rooms.len() >= self.settings.max_rooms {
                return None;
            }
            self.opened += 1;
            let epoch = epoch(now, self.opened, self.settings.seed as u64);
            let settings = Arc::clone(&self.settings.room);
            let room = Room::new(id.clone(), epoch, self.level_key, settings, now);
            let home = HomeRoom {
                room,
                shards: Vec::new(),
                awaited: 0,
                scheduled: None,
                snapshot: None,
                dirty: false,
            };
            self.rooms.insert(id.clone(), home);
        }
        self.rooms.get_mut(id)
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
            home.broadcast(SharedFrame::new(frame, compression), path, stats);
            if home.awaited > 0 {
                break;
            }
            home.room.frame_out(now);
        }
        // A strain that has grown moves the flush back, one that has gone forward.
        let next = home.room.next_flush();
        if let Some(at) = next
            && home.scheduled != Some(at)
        {
            home.scheduled = Some(at);
            self.timers.push(Reverse((at, id.clone())));
        }
    }

    fn sweep(&mut self, now: Time) {
        self.next_sweep = now + SWEEP_INTERVAL;
        let idle = self.settings.idle;
        let forgotten = &mut self.forgotten;
        self.rooms.retain(|_, home| {
            let keep = !home.shards.is_empty()
                || home.awaited > 0
                || !home.room.is_quiet()
                || now.since(home.room.last_activity()) < idle;
            if !keep {
                forgotten.absorb(home.room.stats());
            }
            keep
        });
    }
}

impl HomeRoom {
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

    fn snapshot(&mut self, compression: Compression, now: Time) -> Arc<SharedSnapshot> {
        if let Some((made, snapshot)) = &self.snapshot
            && now.since(*made) < SNAPSHOT_AGE
        {
            return Arc::clone(snapshot);
        }
        let snapshot = Arc::new(SharedSnapshot::new(self.room.snapshot(now), compression));
        self.snapshot = Some((now, Arc::clone(&snapshot)));
        snapshot
    }

    fn broadcast(&mut self, frame: SharedFrame, path: &dyn Path, stats: &mut ShardStats) {
        self.snapshot = None;
        self.awaited = self.shards.len();
        let used = self.shards.iter().fold(0, |mask, s| mask | s.formats);
        // Encoded here, before it is shared: the other shards must not find
        // themselves waiting for one another over who encodes.
        for format in Format::ALL {
            if used & 1 << format.index() != 0 {
                let bytes = frame.bytes(format, Cut::Full).len();
                stats.frame_bytes[format.index()] += bytes as u64;
            }
        }
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
