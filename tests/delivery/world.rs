//! The world of one seed: publishers, a server that dies and comes back, a log,
//! connections and viewers, all as entries in one queue of virtual time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate::engine::event::{Event, Payload};
use tidegate::engine::ids::ImportantNo;
use tidegate::engine::kind::{Kind, Merge};
use tidegate::engine::outcome::{Outcome, Refusal};
use tidegate::engine::time::Time;

use super::client::Message;
use super::judge::Judge;
use super::log::Log;
use super::rng::Rng;
use super::scenario::{IMPORTANT_KINDS, Scenario, kinds};
use super::seen::Seen;
use super::server::{Effect, Server, Wanted};
use super::viewer::{Conn, Viewer};

const START: Time = Time::from_millis(1_700_000_000_000);
pub(crate) const ROOMS: usize = 2;
/// How long things go wrong.
const TROUBLE: Duration = Duration::from_secs(8);
/// And how long the scores are kept after that.
const CALM: Duration = Duration::from_secs(14);
/// By then everybody has everything, and nobody has anything left to do.
const REST: Duration = Duration::from_secs(30);
const MS: u64 = 1_000;

#[derive(Debug)]
pub(crate) enum Step {
    Publish(usize),
    Flood(usize),
    Request(usize),
    Answered(usize, Outcome),
    Submit(u64),
    SyncDone(u64),
    Logged(u64, u64, bool),
    Recover(u64),
    Read(u64, usize, ImportantNo, usize, Wanted),
    Flush(u64, usize, Time),
    FrameOut(u64, usize),
    Chase(usize),
    End,
    Stopping(u64, Time),
    Begin,
    Calm,
    Arrive(usize),
    Cut(usize),
    Cutting(usize),
    Noticed(usize),
    Deliver(usize, Message),
    AckDue(usize),
    Acked(usize, u64),
    Check(usize),
    Pull(usize, u64, u64),
}

/// One event of a publisher, sent until it is answered.
#[derive(Debug)]
struct Op {
    room: usize,
    event: Event,
    done: bool,
}

pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) now: Time,
    queue: BTreeMap<(Time, u64), Step>,
    queued: u64,
    pub(crate) with: Scenario,
    kinds: Vec<Arc<Kind>>,
    pub(crate) calm: bool,
    log: Log,
    pub(crate) server: Option<Server>,
    /// Which process it is.
    pub(crate) process: u64,
    submitting: bool,
    ops: Vec<Op>,
    pub(crate) viewers: Vec<Viewer>,
    pub(crate) conns: Vec<Conn>,
    pub(crate) judges: Vec<Judge>,
    pub(crate) seen: Seen,
}

/// One run: the same seed gives the same run, to the last count.
pub(crate) fn run(seed: u64) -> Seen {
    let mut world = World::new(seed);
    while let Some(((now, _), step)) = world.queue.pop_first() {
        world.now = now;
        assert!(now < START + TROUBLE + REST, "it does not come to rest: {step:?}");
        world.step(step);
        world.settle();
    }
    world.close()
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let with = Scenario::new(&mut rng);
        let mut world = Self {
            now: START,
            queue: BTreeMap::new(),
            queued: 0,
            kinds: kinds(),
            calm: false,
            log: Log::new(with.retained),
            server: None,
            process: 0,
            submitting: false,
            ops: Vec::new(),
            viewers: Vec::new(),
            conns: Vec::new(),
            judges: (0..ROOMS).map(|_| Judge::default()).collect(),
            seen: Seen::default(),
            with,
            rng,
        };
        world.begin();
        for room in 0..ROOMS {
            world.after(0, Step::Publish(room));
            world.after(100 * MS, Step::Chase(room));
            if world.with.floods {
                let at = world.rng.between(0, 7_000 * MS);
                world.after(at, Step::Flood(room));
                world.after(at + 500 * MS, Step::Flood(room));
            }
            for _ in 0..world.with.viewers {
                world.new_viewer(room);
            }
        }
        if world.with.restart_every > 0 {
            let at = world.rng.between(1, 2 * world.with.restart_every);
            world.after(at, Step::End);
        }
        world.queue(START + TROUBLE, Step::Calm);
        world
    }

    pub(crate) fn queue(&mut self, at: Time, step: Step) {
        self.queued += 1;
        self.queue.insert((at.max(self.now), self.queued), step);
    }

    pub(crate) fn after(&mut self, micros: u64, step: Step) {
        self.queue(self.now + Duration::from_micros(micros), step);
    }

    /// Within `from` to `to` milliseconds.
    pub(crate) fn within(&mut self, from: u64, to: u64, step: Step) {
        let micros = self.rng.between(from * MS, to * MS);
        self.after(micros, step);
    }

    fn step(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Publish(room) => self.publish(room),
            Step::Flood(room) => self.flood(room),
            Step::Request(op) => self.request(op),
            Step::Answered(op, outcome) => self.answered(op, outcome),
            Step::Submit(process) if process == self.process => {
                self.submitting = false;
                self.submit();
            }
            Step::SyncDone(process) if process == self.process => self.sync_done(),
            Step::Logged(process, ticket, ok) if process == self.process => {
                if let Some(server) = self.server.as_mut() {
                    server.logged(ticket, ok, &self.log, self.now);
                }
            }
            Step::Recover(process) if process == self.process => self.log.recover(),
            Step::Read(process, room, after, max, wanted) if process == self.process => {
                self.read(room, after, max, wanted);
            }
            Step::Flush(process, room, at) if process == self.process => self.flush(room, at),
            Step::FrameOut(process, room) if process == self.process => {
                if let Some(server) = self.server.as_mut() {
                    server.frame_out(room, self.now);
                }
            }
            Step::Chase(room) => self.chase(room),
            Step::End => self.end(),
            Step::Stopping(process, since) if process == self.process => self.stopping(since),
            Step::Begin => self.begin(),
            Step::Calm => self.calm = true,
            Step::Arrive(viewer) => self.arrive(viewer),
            Step::Cut(viewer) => self.cut_sometimes(viewer),
            Step::Cutting(conn) => self.cut(conn),
            Step::Noticed(conn) => self.noticed(conn),
            Step::Deliver(conn, message) => self.deliver(conn, &message),
            Step::AckDue(conn) => self.ack_due(conn),
            Step::Acked(conn, number) => {
                if let Some((server, room)) = self.at_server(conn) {
                    server.acknowledged(room, conn, number, now);
                }
            }
            Step::Check(conn) => self.check_holes(conn),
            Step::Pull(conn, from, to) => {
                if let Some((server, room)) = self.at_server(conn) {
                    server.pull(room, conn, (from, to), now);
                }
            }
            // Meant for a process that is no more.
            _ => {}
        }
    }

    /// Does what the server wants done, and notes when its rooms are due.
    fn settle(&mut self) {
        let Some(server) = self.server.as_mut() else { return };
        server.check();
        let effects = std::mem::take(&mut server.effects);
        for effect in effects {
            self.effect(effect);
        }
        let Some(server) = self.server.as_mut() else { return };
        let mut due = Vec::new();
        for (room, home) in server.homes.iter_mut().enumerate() {
            let next = home.room.next_flush();
            if next.is_some() && next != home.scheduled {
                home.scheduled = next;
                due.extend(next.map(|at| (room, at)));
            }
        }
        for (room, at) in due {
            self.queue(at, Step::Flush(self.process, room, at));
        }
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Send { conn, message } => self.send(conn, message),
            Effect::Answer { room, op, outcome } => self.tell(room, op, outcome),
            Effect::Counted { room, event } => self.judges[room].counted(&event.event),
            Effect::Framed { room, frame, members } => {
                self.judges[room].framed(&frame);
                self.seen.framed(&frame);
                if members > 0 {
                    let wait = match self.rng.below(20) {
                        0 => self.rng.between(5 * MS, 400 * MS),
                        _ => self.rng.below(3 * MS),
                    };
                    self.after(wait, Step::FrameOut(self.process, room));
                }
            }
            Effect::Read { room, after, max, wanted } => {
                match wanted {
                    Wanted::Pull { .. } => self.seen.log_pulls += 1,
                    Wanted::Resume { .. } => self.seen.log_resumes += 1,
                }
                let step = Step::Read(self.process, room, after, max, wanted);
                self.within(1, 40, step);
            }
            Effect::Resumed { from, sent, missed, important } => {
                Judge::resumed(from, &sent, missed, important);
            }
            Effect::Carried => self.seen.carried += 1,
            Effect::ToldToPull => self.seen.told_to_pull += 1,
            Effect::Verdict(arrival) => {
                assert!(arrival.confirmed <= arrival.due && arrival.deviation >= 0.0);
                self.seen.verdicts += 1;
            }
        }
    }

    fn publish(&mut self, room: usize) {
        if self.calm {
            return;
        }
        let wait = self.rng.between(1, 2 * self.with.pace);
        self.after(wait, Step::Publish(room));
        let event = self.event();
        self.ops.push(Op { room, event, done: false });
        self.within(1, 30, Step::Request(self.ops.len() - 1));
    }

    fn event(&mut self) -> Event {
        let rng = &mut self.rng;
        let index = if rng.percent(35) {
            rng.below(IMPORTANT_KINDS)
        } else {
            rng.between(IMPORTANT_KINDS, self.kinds.len() as u64 - 1)
        };
        let kind = Arc::clone(&self.kinds[index as usize]);
        let payload = match (kind.merge, rng.below(100)) {
            (Merge::Latest(_), 0..10) => "null".to_owned(),
            (_, 99) => "x".repeat(301),
            (_, size) => "x".repeat(1 + size as usize),
        };
        Event {
            id: format!("e{}", self.ops.len()).into(),
            user: format!("u{}", rng.below(5)).into(),
            payload: Payload { bytes: Bytes::from(payload), json: true },
            key: Some(format!("k{}", rng.below(4)).into()),
            amount: rng.percent(50).then(|| rng.between(0, 40) as i64 - 10),
            ttl: None,
            received: self.now,
            mark: None,
            kind,
        }
    }

    /// Gifts by the thousand, each of which takes a number.
    fn flood(&mut self, room: usize) {
        let kind = self.kinds.iter().find(|kind| &*kind.name == "gift").map(Arc::clone);
        let Some(kind) = kind else { return };
        for _ in 0..1_400 {
            let event = Event { kind: Arc::clone(&kind), ..self.event() };
            let event = Event { payload: Payload { bytes: "1".into(), json: true }, ..event };
            self.ops.push(Op { room, event: event.clone(), done: true });
            if let Some(server) = self.server.as_mut().filter(|server| !server.stopping) {
                server.offer(room, event, self.ops.len() - 1, self.now);
            }
        }
        self.seen.floods += 1;
        self.submit_soon();
    }

    fn request(&mut self, op: usize) {
        let Op { room, event, done } = &self.ops[op];
        if *done {
            return;
        }
        let (room, event) = (*room, Event { received: self.now, ..event.clone() });
        self.within(300, 1_500, Step::Request(op));
        let now = self.now;
        let Some(server) = self.server.as_mut().filter(|server| !server.stopping) else { return };
        server.offer(room, event, op, now);
        self.submit_soon();
    }

    fn submit_soon(&mut self) {
        if !std::mem::replace(&mut self.submitting, true) {
            let wait = self.rng.below(300);
            self.after(wait, Step::Submit(self.process));
        }
    }

    /// The server answers a publisher, who may not hear it.
    fn tell(&mut self, room: usize, op: usize, outcome: Outcome) {
        let Some(server) = self.server.as_ref() else { return };
        let event = &self.ops[op].event;
        self.judges[room].answered(server.homes[room].room.epoch(), event, outcome);
        self.seen.answered(outcome);
        if !self.calm && self.rng.below(1_000) < self.with.answers_lost {
            self.seen.answers_lost += 1;
            return;
        }
        self.within(1, 30, Step::Answered(op, outcome));
    }

    fn answered(&mut self, op: usize, outcome: Outcome) {
        let final_refusal = |refusal: &Refusal| refusal.retry_after_ms().is_none();
        match outcome {
            Outcome::Rejected(refusal) if !final_refusal(&refusal) => return,
            Outcome::Rejected(_) => {
                let Op { room, event, .. } = &self.ops[op];
                self.judges[*room].refused(&event.id);
            }
            Outcome::Accepted { .. } | Outcome::Duplicate { .. } => {}
        }
        self.ops[op].done = true;
    }

    fn submit(&mut self) {
        if let Some(server) = self.server.as_mut() {
            server.submit(&mut self.log);
            if self.rng.percent(20) {
                self.seen.slept += server.rest(self.now);
            }
            self.sync();
        }
    }

    fn sync(&mut self) {
        if self.log.begin_sync() {
            let stalls = !self.calm && self.rng.below(1_000) < self.with.sync_stalls;
            self.seen.stalls += u64::from(stalls);
            let (from, to) = if stalls { (100, 2_500) } else { (1, 8) };
            self.within(from, to, Step::SyncDone(self.process));
        }
    }

    fn sync_done(&mut self) {
        let ok = self.calm || self.rng.below(1_000) >= self.with.sync_fails;
        let wait = self.rng.below(500);
        for ticket in self.log.end_sync(ok) {
            self.after(wait, Step::Logged(self.process, ticket, ok));
        }
        if ok {
            self.sync();
        } else {
            self.seen.sync_failures += 1;
            self.within(20, 1_500, Step::Recover(self.process));
        }
    }

    fn read(&mut self, room: usize, after: ImportantNo, max: usize, wanted: Wanted) {
        let (Wanted::Pull { conn, .. } | Wanted::Resume { conn, .. }) = wanted;
        let Some(server) = self.server.as_mut().filter(|_| !self.conns[conn].noticed) else {
            return;
        };
        let answer = self.log.read(room, after, max);
        server.read(room, wanted, answer, self.now);
    }

    fn flush(&mut self, room: usize, at: Time) {
        let Some(server) = self.server.as_mut() else { return };
        if server.homes[room].scheduled == Some(at) {
            server.homes[room].scheduled = None;
            server.flush(room, false, self.now);
        }
    }

    fn chase(&mut self, room: usize) {
        if let Some(server) = self.server.as_mut() {
            server.chase(room, self.now);
        }
        if self.now < START + TROUBLE + CALM {
            self.after(100 * MS, Step::Chase(room));
        }
    }

    /// The server ends, as an operator or an accident wants it.
    fn end(&mut self) {
        if self.calm {
            return;
        }
        let again = self.rng.between(1, 2 * self.with.restart_every);
        self.after(again, Step::End);
        let Some(server) = self.server.as_mut().filter(|server| !server.stopping) else { return };
        if self.rng.percent(self.with.orderly_percent) {
            server.stopping = true;
            self.seen.orderly_ends += 1;
            self.after(MS, Step::Stopping(self.process, self.now));
        } else {
            self.seen.crashes += 1;
            self.over();
        }
    }

    /// Waits for the log, sends what is left, and ends.
    fn stopping(&mut self, since: Time) {
        let now = self.now;
        let Some(server) = self.server.as_mut() else { return };
        let patient = now.since(since) < Duration::from_secs(1);
        if patient && server.awaits_log() {
            self.submit();
            return self.after(MS, Step::Stopping(self.process, since));
        }
        let out = |server: &Server| server.homes.iter().any(|home| home.room.is_going_out());
        if patient && out(server) {
            return self.after(MS, Step::Stopping(self.process, since));
        }
        for room in 0..ROOMS {
            server.flush(room, true, now);
        }
        server.reserve_exactly(&mut self.log);
        // The log is closed when it has written what it was given.
        if self.log.begin_sync() {
            self.log.end_sync(true);
        }
        self.settle();
        self.over();
    }

    /// The process is gone, and with it all connections.
    fn over(&mut self) {
        self.server = None;
        self.process += 1;
        self.submitting = false;
        self.seen.survivors += self.log.crash(&mut self.rng);
        for conn in 0..self.conns.len() {
            if self.conns[conn].open {
                self.within(0, 50, Step::Cutting(conn));
            }
        }
        self.within(5, 1_500, Step::Begin);
    }

    fn begin(&mut self) {
        self.process += 1;
        let seed = self.rng.next();
        self.server = Some(Server::start(ROOMS, &mut self.log, &self.with, seed, self.now));
        self.judges.iter_mut().for_each(Judge::restarted);
    }

    /// Everything has come to rest: the books must balance.
    fn close(mut self) -> Seen {
        let now = self.now;
        let Some(server) = self.server.as_mut() else { panic!("it ends and never comes back") };
        assert!(self.ops.iter().all(|op| op.done), "every publisher has its answer");
        for room in 0..ROOMS {
            let home = &mut server.homes[room];
            assert!(!home.room.awaits_log() && !home.room.is_going_out());
            assert_eq!(home.room.next_flush(), None, "nothing is left to say");
            for lane in tidegate::engine::kind::Lane::ALL {
                assert_eq!(home.room.stats().pending(lane), 0, "{}", lane.name());
            }
            let snapshot = home.room.snapshot(now);
            assert_eq!(home.room.sent_important(), home.room.important());
            let judge = &self.judges[room];
            judge.close(room, &self.log);
            judge.close_sums(&snapshot);
            for viewer in self.viewers.iter().filter(|viewer| viewer.room == room && !viewer.gone) {
                judge.close_viewer(room, &self.log, &viewer.client, &viewer.shown, &snapshot);
                self.seen.stayed += 1;
            }
            self.seen.stats.absorb(home.room.stats());
            self.seen.stats.absorb(&home.counted);
        }
        self.seen
    }

    /// The log, for the judge.
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }
}
