//! One shard: its viewers, its share of every room that they watch, and the
//! rooms whose home it is. It belongs to one thread, takes no lock, and knows
//! no transport: transports read, decode and call it; it writes encoded bytes
//! to sockets, or has a carrier do so (see `outlet`).
//!
//! Whoever drives it (see `worker`) calls, in turns: [`Shard::handle`] for
//! every message of its mailbox; the viewer calls ([`open`](Shard::open),
//! [`join`](Shard::join), …) for what transports read; [`Shard::tick`] when
//! [`next_deadline`](Shard::next_deadline) has come; [`Shard::work`] for one
//! slice of fan-out while [`has_work`](Shard::has_work).

pub mod arrival;
pub mod asks;
pub mod carrier_stats;
pub mod connection;
mod drain;
pub mod fanout;
pub mod held;
pub mod home;
pub mod intake;
pub mod journal;
pub mod outlet;
pub mod peers;
mod pending;
pub mod rebase;
mod receipts;
pub mod room;
pub mod secure;
pub mod stats;
mod traces;
mod viewer;
pub mod wheel;

pub use self::viewer::{Entry, JoinError, Speech};

use std::collections::{HashMap, VecDeque};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tracing::debug;

use self::connection::{Connections, LINGER, ViewerKey};
use self::drain::Drain;
use self::fanout::{Fanout, Finished};
use self::held::{HoldSettings, Line};
use self::home::{HomeSettings, Homes};
use self::journal::Journal;
use self::outlet::Link;
use self::peers::{
    AdmissionView, Asker, LocalShards, Message, Override, Path as _, Placement as _, Standing,
};
use self::rebase::Rebases;
use self::receipts::{Chase, ack_slot};
use self::room::LocalRoom;
use self::stats::ShardStats;
use self::viewer::Entering;
use self::wheel::Wheel;
use crate::clock::Clock;
use crate::engine::confirm;
use crate::engine::delivery::LadderSettings;
use crate::engine::ids::{RoomId, ShardId};
use crate::engine::room::Restored;
use crate::engine::time::Time;
use crate::wire::Format;
use crate::wire::close::CloseReason;
use crate::wire::message::ServerMessage;
use crate::wire::shared::{SharedFrame, message};

/// Work that waits in front of the rooms and is no passing moment's: with less,
/// only the home itself may refuse.
const PRESSED: Duration = Duration::from_millis(5);

/// Limits and rhythm of one shard.
#[derive(Debug, Clone)]
pub struct ShardSettings {
    /// Of the rooms with their home here.
    pub homes: HomeSettings,
    /// What becomes of a slow viewer.
    pub ladder: LadderSettings,
    /// Length of a fan-out slice.
    pub slice: Duration,
    /// Rooms one connection may be in.
    pub max_rooms_per_connection: usize,
    /// Messages a connection may send per second, on average.
    pub messages_per_second: u32,
    /// Messages it may send at once after a silence.
    pub message_burst: u32,
    /// It must have joined something within this.
    pub join_timeout: Duration,
    /// Silence towards a viewer that makes the server ping.
    pub ping_interval: Duration,
    /// A ping must be answered within this.
    pub pong_timeout: Duration,
    /// How new joins wait under overload.
    pub hold: HoldSettings,
    /// How acknowledgements are kept score of.
    pub confirm: confirm::Settings,
    /// In a drain, viewers come back at random moments within this.
    pub reconnect_spread: Duration,
    /// Seeds reconnect delays and session names.
    pub seed: u64,
}

/// See the module's documentation.
pub struct Shard {
    id: ShardId,
    settings: ShardSettings,
    clock: Clock,
    peers: Arc<LocalShards>,
    /// Public to transports, which read its sockets.
    pub viewers: Connections,
    rooms: Vec<Option<Box<LocalRoom>>>,
    free_rooms: Vec<u32>,
    by_name: HashMap<RoomId, u32>,
    dirty_rooms: Vec<u32>,
    homes: Homes,
    fanout: Fanout,
    finished: Finished,
    wheel: Wheel,
    /// Viewers whose time to be looked at has come.
    fired: VecDeque<(ViewerKey, u32)>,
    drain: Option<Drain>,
    held: Line,
    entering: Entering,
    more_joins: bool,
    rebases: Rebases,
    /// What the other shards know of this one.
    told: Standing,
    draws: u64,
    chase: Chase,
    /// What it did. Gauges are filled in when asked for.
    pub stats: ShardStats,
}

impl Shard {
    /// An empty shard.
    #[must_use]
    pub fn new(
        id: ShardId,
        settings: ShardSettings,
        clock: Clock,
        peers: Arc<LocalShards>,
    ) -> Self {
        let now = clock.now();
        Self {
            id,
            viewers: Connections::new(settings.ladder, now),
            homes: Homes::new(id, settings.homes.clone(), now),
            draws: settings.seed,
            settings,
            clock,
            peers,
            rooms: Vec::new(),
            free_rooms: Vec::new(),
            by_name: HashMap::new(),
            dirty_rooms: Vec::new(),
            fanout: Fanout::default(),
            finished: Finished::new(),
            wheel: Wheel::default(),
            fired: VecDeque::new(),
            drain: None,
            held: Line::default(),
            entering: Entering::default(),
            more_joins: false,
            rebases: Rebases::default(),
            told: Standing::OPEN,
            chase: Chase::new(now),
            stats: ShardStats::default(),
        }
    }

    /// Rooms at home here go by way of a log, and those it knows go on where
    /// they stopped. Call before anything else.
    pub fn attach_log(&mut self, journal: Arc<dyn Journal>, rooms: Vec<(RoomId, Restored, Time)>) {
        self.homes.attach(self.id, journal, rooms, self.clock.now());
    }

    /// Which shard it is.
    #[must_use]
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// Takes over a connected, non-blocking socket.
    pub fn open(&mut self, stream: TcpStream, format: Format) -> ViewerKey {
        let now = self.clock.now();
        let key = self.viewers.open(stream, format, self.settings.message_burst, now);
        self.schedule(key, self.settings.join_timeout);
        key
    }

    /// Takes over a viewer that the carrier brings.
    pub fn open_carried(&mut self, link: Link) -> ViewerKey {
        let now = self.clock.now();
        let key = self.viewers.open_carried(link, self.settings.message_burst, now);
        self.schedule(key, self.settings.join_timeout);
        key
    }

    /// The first message to a viewer; the only one but `goaway` in a drain.
    pub fn welcome(&mut self, key: ViewerKey) {
        let draw = self.draw() >> 32;
        let ack_slot = ack_slot(key);
        let session = format!("{:x}-{:x}-{draw:x}", self.id.0, key.index);
        let ping_interval_ms = self.settings.ping_interval.as_millis() as u64;
        self.reply(key, &ServerMessage::Welcome { session: &session, ping_interval_ms, ack_slot });
        if self.is_draining() {
            self.dismiss(key);
        }
    }

    /// One message of the mailbox.
    pub fn handle(&mut self, message: Message) {
        let now = self.clock.now();
        let peers = Arc::clone(&self.peers);
        let path = peers.as_ref();
        let shared: Arc<dyn peers::Path> = Arc::clone(&peers) as _;
        match message {
            Message::Publish { room, events, parsed, origin } => {
                self.homes.publish(&room, events, parsed, origin, path, now);
            }
            Message::Shunned { room, priorities } => self.homes.intake.shunned(&room, &priorities),
            Message::Subscribe { room, shard, formats, resume } => {
                self.homes.subscribe(&room, (shard, formats), resume, &shared, now);
            }
            Message::Presence { room, shard, viewers, formats, moves } => {
                self.homes.presence(&room, (shard, viewers, formats), &moves, now);
            }
            Message::FrameOut { room } => self.homes.frame_out(&room, now),
            Message::Pull { room, from, to, viewer } => {
                self.homes.pull(&room, (from, to), viewer, &shared, now);
            }
            // Whoever asked may have given up; then nobody hears the answer.
            Message::ReadRoom { room, reply } => {
                let _ = reply.send(self.homes.read_room(&room, now));
            }
            Message::ReadEvents { room, after, limit, reply } => {
                self.homes.read_events(&room, after, limit, reply, &shared, now);
            }
            Message::Reconcile(reconcile) => self.homes.reconcile(reconcile, &shared, now),
            Message::Locate { viewer, ask } => self.homes.locate(viewer, ask, &shared, now),
            Message::Located(position) => self.located(*position),
            Message::Logged(logged) => {
                self.homes.logged(&logged, path, &mut self.stats, now);
            }
            Message::LogRead(read) => self.homes.log_read(*read, path, now),
            Message::Enter(entrance) => self.complete_joins(&entrance, now),
            Message::SubscribeRefused { room, code } => self.refuse_joins(&room, code),
            Message::Frame(frame) => self.begin_frame(frame, now),
            Message::Direct { viewer, bytes } => self.send(viewer, bytes),
            Message::Override(what, reply) => {
                let _ = reply.send(self.overrule(what, now));
            }
            Message::ReadAdmission(reply) => {
                let _ = reply.send(Box::new(self.admission_view(now)));
            }
            Message::TracedRefusal(mark, why) => self.homes.trace_refusal(&mark, why),
            Message::ReadTraces(query, reply) => {
                let _ = reply.send(self.homes.traces(&query));
            }
            Message::Stats(reply) => {
                self.count_gauges();
                let _ = reply.send(self.stats.clone());
            }
            Message::Flush(done) => self.drain = Some(Drain::Flushing(done)),
            Message::Leave(done) => {
                let everyone = self.viewers.open_keys().collect();
                self.drain = Some(Drain::Leaving(done, everyone));
            }
        }
    }

    /// When [`tick`](Self::tick) wants to be called at the latest.
    #[must_use]
    pub fn next_deadline(&self, started: Time) -> Time {
        if self.is_leaving() || self.more_joins || !self.fired.is_empty() || self.newcomers_wait() {
            return started;
        }
        let second = started + Duration::from_secs(u64::from(self.wheel.next_second()));
        let next = self.homes.next_deadline().min(second);
        let others = [self.next_late_join(), self.chase.next_deadline()];
        others.into_iter().flatten().fold(next, Time::min)
    }

    /// Flushes due rooms, checks viewers whose time has come, tidies up.
    /// `idle`: time the thread had nothing to do since the last call. `pressed`: requests
    /// wait to be read, and newcomers take less time.
    pub fn tick(&mut self, idle: Duration, pressed: bool) {
        let now = self.clock.now();
        let peers = Arc::clone(&self.peers);
        let slice = self.settings.slice;
        self.let_newcomers_enter(if pressed { slice / 4 } else { slice });
        self.tick_intake(idle, now);
        self.more_joins = self.release_joins(now);
        self.chase_receipts(now);
        self.tick_traces(now);
        self.homes.tick(peers.as_ref(), &mut self.stats, now);
        let second = self.viewers.second(now);
        if second >= self.wheel.next_second() {
            self.wheel.advance(second, &mut self.fired);
        }
        self.check_viewers(now);
        self.settle(now);
        self.step_drain(now);
    }

    /// One slice of events from outside. Returns whether there were any: then its
    /// frames are in the mailbox, and slices are half as long, since the senders
    /// of the next events wait for both. Twice as long when much waits: with requests of
    /// 500 events at ten times the capacity small rooms' 99th percentile is 22 ms so, and
    /// 28 ms with one slice.
    pub fn take_in(&mut self) -> bool {
        if self.homes.intake.is_empty() {
            return false;
        }
        let peers = Arc::clone(&self.peers);
        let pressed = self.homes.intake.admission().backlog() >= PRESSED;
        let slice = if pressed { self.settings.slice * 2 } else { self.settings.slice / 2 };
        self.homes.work(peers.as_ref(), &mut self.stats, self.clock, slice);
        self.settle(self.clock.now());
        true
    }

    /// One slice of fan-out, half as long if events were taken in, and a quarter
    /// while requests wait to be read: the longer a round, the longer each of the
    /// steps that a small room's event waits for. Returns whether there was
    /// anything to do.
    pub fn fan_out(&mut self, took_in: bool, requests_wait: bool) -> bool {
        if self.fanout.is_idle() && !self.has_answers() {
            return false;
        }
        let slice = match (requests_wait, took_in) {
            (true, _) => self.settings.slice / 4,
            (false, true) => self.settings.slice / 2,
            (false, false) => self.settings.slice,
        };
        let begun = self.clock.now();
        let (writes, bytes) = (self.stats.socket_writes, self.stats.socket_bytes);
        let mut finished = std::mem::take(&mut self.finished);
        self.fanout.slice(
            &mut self.rooms,
            &mut self.viewers,
            &mut self.stats,
            self.clock,
            slice,
            &mut finished,
        );
        let now = self.clock.now();
        let (writes, bytes) = (self.stats.socket_writes - writes, self.stats.socket_bytes - bytes);
        self.homes.intake.cost.sent(writes, bytes, now.since(begun));
        self.trace_written();
        for index in finished.drain(..) {
            self.frame_done(index, now);
        }
        self.finished = finished;
        self.give_answers(slice);
        self.settle(now);
        true
    }

    /// Bytes for one viewer.
    pub fn send(&mut self, key: ViewerKey, bytes: Bytes) {
        let now = self.clock.now();
        self.viewers.send(key, bytes, &mut self.stats, now);
    }

    /// A message for one viewer, in its format.
    pub fn reply(&mut self, key: ViewerKey, reply: &ServerMessage<'_>) {
        let Some(row) = self.viewers.get(key) else { return };
        let bytes = message(row.format, reply);
        self.send(key, bytes);
    }

    /// The socket takes bytes again.
    pub fn writable(&mut self, key: ViewerKey) {
        self.viewers.flush(key, &mut self.stats, self.clock.now());
    }

    /// Ends a connection with the close frame of `reason`.
    pub fn close(&mut self, key: ViewerKey, reason: CloseReason) {
        self.viewers.end(key, reason);
    }

    /// The peer's end was read, or the socket is broken: nothing more to say.
    pub fn hung_up(&mut self, key: ViewerKey) {
        if self.viewers.is_open(key) {
            self.viewers.end(key, CloseReason::Broken);
        } else {
            self.release(key);
        }
    }

    /// Frees the row of a connection that has ended. That may have been in this
    /// very turn, by what was written to it: it leaves its rooms before its row
    /// is another viewer's.
    fn release(&mut self, key: ViewerKey) {
        self.settle(self.clock.now());
        self.viewers.release(key);
    }

    /// Cleans up after what the last calls ended or blocked; marks change only
    /// here, never inside the fan-out loop.
    pub fn settle(&mut self, now: Time) {
        while let Some((key, reason)) = self.viewers.ended.pop() {
            self.finish_connection(key, reason, now);
        }
        while let Some(index) = self.viewers.changed_backlog.pop() {
            self.mark_backlog(index, now);
        }
        self.attend_slow(now);
        self.report_presence();
    }

    fn finish_connection(&mut self, key: ViewerKey, reason: CloseReason, now: Time) {
        self.stats.closes[reason as usize] += 1;
        self.leave_all(key, reason != CloseReason::Slow);
        if reason == CloseReason::Broken {
            self.viewers.release(key);
            return;
        }
        self.viewers.begin_close(key, reason, &mut self.stats, now);
        self.schedule(key, LINGER);
    }

    fn begin_frame(&mut self, frame: Arc<SharedFrame>, now: Time) {
        let room_id = frame.frame().room.clone();
        let Some(&index) = self.by_name.get(&room_id) else {
            return self.send_home(&room_id, Message::FrameOut { room: room_id.clone() });
        };
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        room.queue.push_back(frame);
        // Who is a member now gets it, also where it waits for answers.
        if room.job.is_none() && room.begin_job(now) && !room.answers.are_due() {
            self.fanout.enqueue(index);
            self.expect_receipts(index);
        }
    }

    fn frame_done(&mut self, index: u32, now: Time) {
        let second = self.viewers.second(now);
        let Some(room) = self.rooms[index as usize].as_mut() else { return };
        room.last_frame = second;
        self.frame_is_out(index, now);
    }

    fn send_home(&self, room: &RoomId, message: Message) {
        self.peers.send(self.peers.home_of(room), message);
    }

    fn report_presence(&mut self) {
        while let Some(index) = self.dirty_rooms.pop() {
            let Some(room) = self.rooms[index as usize].as_mut() else { continue };
            if !std::mem::take(&mut room.presence_dirty) {
                continue;
            }
            room.count_viewers(&mut self.stats.viewers);
            // While a snapshot is awaited the subscription must stand, even
            // when the last viewer has left again.
            if !(room.viewers() == 0 && room.is_subscribing()) {
                let report = Message::Presence {
                    room: room.id.clone(),
                    shard: self.id,
                    viewers: room.viewers(),
                    formats: room.formats(),
                    moves: std::mem::take(&mut room.moves),
                };
                self.peers.send(room.home, report);
            }
            self.drop_if_idle(index);
        }
    }

    fn drop_if_idle(&mut self, index: u32) {
        let Some(room) = self.rooms[index as usize].as_ref() else { return };
        if room.is_idle() {
            self.by_name.remove(&room.id);
            self.rooms[index as usize] = None;
            self.free_rooms.push(index);
        }
    }

    fn count_gauges(&mut self) {
        let slow = self.viewers.slow_totals();
        let stats = &mut self.stats;
        stats.connections = self.viewers.len() as u64;
        stats.backlogged = slow.viewers;
        stats.backlog_frames = slow.frames;
        stats.backlog_bytes = slow.bytes;
        stats.slow_viewers = slow.rungs;
        stats.transports = self.viewers.by_transport();
        stats.carrier = self.viewers.carrier_stats();
        for &index in &self.dirty_rooms {
            let Some(room) = self.rooms[index as usize].as_mut() else { continue };
            room.count_viewers(&mut stats.viewers);
        }
        stats.joins_waiting = self.held.len() as u64;
        self.homes.count(stats);
    }

    fn tick_intake(&mut self, idle: Duration, now: Time) {
        let intake = &mut self.homes.intake;
        let before = intake.ladder().rung();
        if intake.tick(idle, now) {
            let rung = intake.ladder().rung();
            let verdict = intake.admission().verdict();
            let level = intake.admission().level();
            debug!(
                shard = self.id.0,
                from = before.name(),
                to = rung.name(),
                queueing_us = verdict.queueing.as_micros() as u64,
                load = verdict.load,
                business = level.business(),
                user = level.user(),
                "ladder"
            );
        }
        let standing = Standing {
            level: intake.admission().advised(),
            pressed: intake.admission().backlog() >= PRESSED,
            load: intake.admission().verdict().load,
        };
        if standing != self.told {
            self.told = standing;
            self.peers.set_standing(self.id, standing);
        }
    }

    fn overrule(&mut self, what: Override, now: Time) -> Result<(), &'static str> {
        let intake = &mut self.homes.intake;
        match what {
            Override::Pin(level) => intake.pin(level),
            Override::HoldJoins(hold) => intake.ladder_mut().hold_joins(hold),
            Override::Silence { room, kind, until } => {
                if !intake.silence(room, kind, until, now) {
                    return Err("too many kinds are silenced already");
                }
            }
        }
        Ok(())
    }

    fn admission_view(&self, now: Time) -> AdmissionView {
        let intake = &self.homes.intake;
        let verdict = intake.admission().verdict();
        AdmissionView {
            level: intake.admission().level(),
            pinned: intake.admission().is_pinned(),
            rung: intake.ladder().rung(),
            joins_held: intake.ladder().is_held(),
            joins_waiting: self.held.len(),
            waiting: intake.len(),
            queueing: verdict.queueing,
            load: verdict.load,
            silenced: intake
                .silenced()
                .filter(|(.., until)| now < *until)
                .map(|(room, kind, until)| (room.clone(), Arc::clone(kind), until))
                .collect(),
        }
    }

    /// The next number of this shard's own sequence (SplitMix64, Steele et al.,
    /// OOPSLA 2014): for spreading, not for secrets.
    fn draw(&mut self) -> u64 {
        self.draws = self.draws.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.draws;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn asker(&self, key: ViewerKey) -> Option<Asker> {
        self.viewers.key_of(key.index).filter(|k| *k == key).map(|viewer| Asker {
            shard: self.id,
            viewer,
            format: self.viewers.row(key.index).format,
        })
    }
}
