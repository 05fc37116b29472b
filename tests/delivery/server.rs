//! The server's process: rooms driven as their home shards drive them, and the
//! members of each as a shard keeps them. What it wants done comes back as
//! [`Effect`]s. It dies as a whole.

use std::collections::VecDeque;
use std::sync::Arc;

use tidegate::engine::confirm::{Arrival, Asked, Budget, Confirmations, Remedy, Slot};
use tidegate::engine::event::{Event, Frame, Numbered};
use tidegate::engine::ids::{Epoch, ImportantNo, RoomId, Seq};
use tidegate::engine::level::LevelKey;
use tidegate::engine::outcome::{Outcome, Refusal};
use tidegate::engine::room::{Offered, Position, Resumed, Room};
use tidegate::engine::settings::RoomSettings;
use tidegate::engine::stats::RoomStats;
use tidegate::engine::time::Time;

use super::client::Message;
use super::log::{Answer, Batch, Entry, Log};
use super::scenario::Scenario;

/// Important events one `pull` brings at most, as in the home shard.
const MAX_PULL: u64 = 200;

/// What the server wants done.
#[derive(Debug)]
pub(crate) enum Effect {
    Send {
        conn: usize,
        message: Message,
    },
    /// The publisher of an operation is told.
    Answer {
        room: usize,
        op: usize,
        outcome: Outcome,
    },
    /// An event became part of the room.
    Counted {
        room: usize,
        event: Arc<Numbered>,
    },
    Framed {
        room: usize,
        frame: Arc<Frame>,
        members: usize,
    },
    Read {
        room: usize,
        after: ImportantNo,
        max: usize,
        wanted: Wanted,
    },
    /// A viewer that has important events up to `from` is sent some, and told
    /// of others that it missed.
    Resumed {
        from: u64,
        sent: Vec<u64>,
        missed: Option<(u64, u64)>,
        important: u64,
    },
    Carried,
    ToldToPull,
    Verdict(Arrival),
}

/// What a read of the log is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted {
    Pull { conn: usize, after: ImportantNo, events: usize },
    Resume { conn: usize, slot: Slot, acks: bool, from: Position },
}

#[derive(Debug, Clone, Copy)]
struct Member {
    conn: usize,
    gone: bool,
}

#[derive(Debug)]
struct Waiter {
    important: ImportantNo,
    op: usize,
    answer: Outcome,
}

/// A room, its publishers who wait and its members.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) room: Room,
    /// What it counted before it last slept.
    pub(crate) counted: RoomStats,
    waiters: Vec<Waiter>,
    /// Handed to the log, oldest first.
    in_log: VecDeque<Arc<Numbered>>,
    members: Vec<Member>,
    pub(crate) confirmations: Confirmations,
    stands_at: (Epoch, Seq),
    /// When the world will next ask it to flush.
    pub(crate) scheduled: Option<Time>,
}

/// A batch on its way: what of each room is in it.
#[derive(Debug)]
struct Ticket {
    number: u64,
    rooms: Vec<(usize, ImportantNo, ImportantNo)>,
}

#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) homes: Vec<Home>,
    key: LevelKey,
    settings: Arc<RoomSettings>,
    resume_events: usize,
    acks: Budget,
    tickets: VecDeque<Ticket>,
    next_ticket: u64,
    generation: u64,
    pub(crate) stopping: bool,
    pub(crate) effects: Vec<Effect>,
}

impl Server {
    /// Starts with what the log has. `seed` is the process's own.
    pub(crate) fn start(
        rooms: usize,
        log: &mut Log,
        with: &Scenario,
        seed: u64,
        now: Time,
    ) -> Self {
        let key = LevelKey::from_seed(u128::from(seed));
        let homes = (0..rooms).map(|index| {
            let id = RoomId::new(&format!("live:{index}")).expect("a valid name");
            let settings = Arc::clone(&with.settings);
            let room = match log.restored(index, &with.settings) {
                Some(restored) => Room::restored(id, &restored, key, settings, now),
                // As a home shard does: the time, and a word apart within it.
                None => Room::new(id, epoch(now, index), key, settings, now),
            };
            Home {
                stands_at: (room.epoch(), room.sent_seq()),
                room,
                counted: RoomStats::default(),
                waiters: Vec::new(),
                in_log: VecDeque::new(),
                members: Vec::new(),
                confirmations: Confirmations::new(with.confirm),
                scheduled: None,
            }
        });
        Self {
            homes: homes.collect(),
            key,
            settings: Arc::clone(&with.settings),
            resume_events: with.resume_events,
            acks: Budget::new(with.acks_per_second, now),
            tickets: VecDeque::new(),
            next_ticket: 0,
            generation: log.generation,
            stopping: false,
            effects: Vec::new(),
        }
    }

    pub(crate) fn offer(&mut self, room: usize, event: Event, op: usize, now: Time) {
        let home = &mut self.homes[room];
        let counts = Arc::new(Numbered { event: event.clone(), seq: None, important: None });
        match home.room.offer(event, now) {
            Offered::Done(outcome) => {
                if matches!(outcome, Outcome::Accepted { .. }) {
                    self.effects.push(Effect::Counted { room, event: counts });
                }
                self.effects.push(Effect::Answer { room, op, outcome });
            }
            Offered::Staged { answer, at_once: true, .. } => {
                self.effects.push(Effect::Answer { room, op, outcome: answer });
            }
            Offered::Staged { important, answer, .. } => {
                home.waiters.push(Waiter { important, op, answer });
            }
        }
    }

    /// Hands everything that is staged to the log, in one batch.
    pub(crate) fn submit(&mut self, log: &mut Log) {
        let (mut entries, mut rooms) = (Vec::new(), Vec::new());
        for (index, home) in self.homes.iter_mut().enumerate() {
            let epoch = home.room.epoch();
            let last = home.room.important();
            let events = home.room.take_unlogged();
            let reservation = home.room.take_reservation();
            let first = events.first().and_then(|event| event.important);
            // A reservation alone concerns no number, and its room all the same.
            if first.is_some() || reservation.is_some() {
                rooms.push((index, first.unwrap_or(ImportantNo(last.0 + 1)), last));
            }
            if let Some(seq) = reservation {
                entries.push(Entry::Reserve { room: index, epoch, seq });
            }
            home.in_log.extend(events.iter().cloned());
            let events = events.into_iter();
            entries.extend(events.map(|event| Entry::Event { room: index, epoch, event }));
        }
        if entries.is_empty() {
            return;
        }
        self.next_ticket += 1;
        let number = self.next_ticket;
        if log.submit(Batch { ticket: number, entries }, self.generation) {
            self.tickets.push_back(Ticket { number, rooms });
        } else {
            self.generation = log.generation;
            self.lose(&rooms);
        }
    }

    /// Rooms that nobody is in fall asleep, and are awake when the next comes.
    /// Returns how many.
    pub(crate) fn rest(&mut self, now: Time) -> u64 {
        let mut slept = 0;
        for home in &mut self.homes {
            let known = home.room.last_reservation().is_some();
            let nobody = home.members.is_empty() && home.waiters.is_empty();
            if !known || !nobody || !home.room.is_quiet() {
                continue;
            }
            home.counted.absorb(&home.room.take_stats());
            let (id, settings) = (home.room.id().clone(), &self.settings);
            let empty = Room::new(id.clone(), home.room.epoch(), self.key, settings.clone(), now);
            let asleep = std::mem::replace(&mut home.room, empty).fall_asleep();
            home.room = Room::woken(id, asleep, self.key, settings.clone(), now);
            slept += 1;
        }
        slept
    }

    /// The log has decided on a batch.
    pub(crate) fn logged(&mut self, ticket: u64, ok: bool, log: &Log, now: Time) {
        if self.tickets.front().is_none_or(|first| first.number != ticket) {
            return; // Given up with an earlier one.
        }
        if ok {
            let rooms = self.tickets.pop_front().map(|ticket| ticket.rooms);
            for (room, _, last) in rooms.unwrap_or_default() {
                self.settle(room, last, now);
            }
        } else {
            self.generation = log.generation;
            let lost: Vec<_> = self.tickets.drain(..).flat_map(|ticket| ticket.rooms).collect();
            self.lose(&lost);
        }
    }

    fn settle(&mut self, room: usize, upto: ImportantNo, now: Time) {
        let home = &mut self.homes[room];
        home.room.logged(upto, now);
        while home.in_log.front().is_some_and(|event| event.important <= Some(upto)) {
            let Some(event) = home.in_log.pop_front() else { break };
            self.effects.push(Effect::Counted { room, event });
        }
        for waiter in home.waiters.extract_if(.., |waiter| waiter.important <= upto) {
            let Waiter { op, answer, .. } = waiter;
            self.effects.push(Effect::Answer { room, op, outcome: answer });
        }
    }

    fn lose(&mut self, rooms: &[(usize, ImportantNo, ImportantNo)]) {
        for &(room, first, _) in rooms {
            let home = &mut self.homes[room];
            home.room.log_failed(first);
            home.in_log.retain(|event| event.important < Some(first));
            for waiter in home.waiters.extract_if(.., |waiter| waiter.important >= first) {
                let outcome = Outcome::Rejected(Refusal::LogUnavailable);
                self.effects.push(Effect::Answer { room, op: waiter.op, outcome });
            }
        }
    }

    /// Whether anything waits for the log.
    pub(crate) fn awaits_log(&self) -> bool {
        self.homes.iter().any(|home| home.room.awaits_log())
    }

    /// Where numbers end, for an orderly end.
    pub(crate) fn reserve_exactly(&mut self, log: &mut Log) {
        let homes = self.homes.iter().enumerate();
        let entries = homes.filter_map(|(room, Home { room: home, .. })| {
            let seq = home.last_reservation()?;
            Some(Entry::Reserve { room, epoch: home.epoch(), seq })
        });
        let entries = entries.collect();
        self.next_ticket += 1;
        log.submit(Batch { ticket: self.next_ticket, entries }, self.generation);
    }

    /// The next frame, if one is due or `at_once`. Returns whether it is on its
    /// way to somebody.
    pub(crate) fn flush(&mut self, room: usize, at_once: bool, now: Time) -> bool {
        let home = &mut self.homes[room];
        let frame = if at_once { home.room.flush_now(now) } else { home.room.flush(now) };
        let Some(mut frame) = frame else { return false };
        if frame.events.iter().any(|event| event.important.is_some()) {
            frame.ack = self.acks.ask(home.room.online(), now);
        }
        let frame = Arc::new(frame);
        home.stands_at = (frame.epoch, frame.last_seq);
        home.confirmations.sent(&frame, home.members.len(), now);
        let there: Vec<usize> =
            home.members.iter().filter(|member| !member.gone).map(|member| member.conn).collect();
        let framed = Effect::Framed { room, frame: Arc::clone(&frame), members: there.len() };
        self.effects.push(framed);
        let send = there.iter().map(|&conn| {
            let message = Message::Frame(Arc::clone(&frame));
            Effect::Send { conn, message }
        });
        self.effects.extend(send);
        if there.is_empty() {
            self.homes[room].room.frame_out(now);
        }
        !there.is_empty()
    }

    pub(crate) fn frame_out(&mut self, room: usize, now: Time) {
        self.homes[room].room.frame_out(now);
        self.homes[room].close_holes();
    }

    /// Somebody joins, perhaps from a position.
    pub(crate) fn subscribe(
        &mut self,
        room: usize,
        (conn, slot, acks): (usize, Slot, bool),
        resume: Option<Position>,
        now: Time,
    ) {
        let limit = self.resume_events;
        let home = &mut self.homes[room];
        let resumed = resume.and_then(|from| Some((from, home.room.resume(from, limit)?)));
        let Some((from, resumed)) = resumed else {
            return self.enter(room, (conn, slot, acks), None, now);
        };
        if resumed.missed_to > from.important {
            let last = resumed.missed_to;
            let newest = last.0.saturating_sub(limit.saturating_sub(resumed.events.len()) as u64);
            let after = ImportantNo(newest.max(from.important.0));
            if after < last {
                let wanted = Wanted::Resume { conn, slot, acks, from };
                return self.effects.push(Effect::Read { room, after, max: limit, wanted });
            }
        }
        self.enter(room, (conn, slot, acks), Some((from, resumed)), now);
    }

    fn enter(
        &mut self,
        room: usize,
        (conn, slot, acks): (usize, Slot, bool),
        resumed: Option<(Position, Resumed)>,
        now: Time,
    ) {
        let home = &mut self.homes[room];
        let snapshot = Arc::new(home.room.snapshot(now));
        let (mut recovered, mut missed, mut replay) = (false, None, None);
        if let Some((from, resumed)) = resumed {
            let Resumed { events, missed_to, .. } = resumed;
            recovered = resumed.recovered;
            missed = (missed_to > from.important).then(|| (from.important.0 + 1, missed_to.0));
            let sent = events.iter().filter_map(|event| Some(event.important?.0)).collect();
            let (has, important) = (from.important.0, snapshot.important.0);
            self.effects.push(Effect::Resumed { from: has, sent, missed, important });
            let first = if recovered { from.seq } else { snapshot.seq };
            let mut frame = home.beside(events, None, now);
            frame.first_seq = Seq(first.0 + 1);
            replay = (first < snapshot.seq || !frame.events.is_empty()).then(|| Arc::new(frame));
        }
        home.members.push(Member { conn, gone: false });
        home.confirmations.joined(slot, acks, snapshot.important);
        home.count_online(now);
        let message = Message::Joined { snapshot, recovered, missed };
        self.effects.push(Effect::Send { conn, message });
        if let Some(frame) = replay {
            self.effects.push(Effect::Send { conn, message: Message::Frame(frame) });
        }
    }

    /// A viewer wants important events again.
    pub(crate) fn pull(&mut self, room: usize, conn: usize, (from, to): (u64, u64), now: Time) {
        let events = (to + 1).saturating_sub(from).min(MAX_PULL) as usize;
        let after = ImportantNo(from.saturating_sub(1));
        let home = &self.homes[room];
        let replay = home.room.history_after_important(after, events);
        if replay.complete {
            let frame = Arc::new(home.beside(replay.events, None, now));
            let message = Message::Pulled { frame, complete: true };
            return self.effects.push(Effect::Send { conn, message });
        }
        let wanted = Wanted::Pull { conn, after, events };
        self.effects.push(Effect::Read { room, after, max: events, wanted });
    }

    /// The log has answered.
    pub(crate) fn read(&mut self, room: usize, wanted: Wanted, answer: Answer, now: Time) {
        let home = &self.homes[room];
        match wanted {
            Wanted::Pull { conn, after, events } => {
                let complete = answer.complete;
                let found = home.joined_up(after, answer, events);
                let frame = Arc::new(home.beside(found, None, now));
                let message = Message::Pulled { frame, complete };
                self.effects.push(Effect::Send { conn, message });
            }
            Wanted::Resume { conn, slot, acks, from } => {
                let resumed = home.room.resume(from, self.resume_events);
                let resumed = resumed.map(|mut resumed| {
                    let mut events = answer.events;
                    events.retain(|event| event.important <= Some(resumed.missed_to));
                    let last = events.last().and_then(|event| event.important);
                    if last == Some(resumed.missed_to) {
                        let first = events.first().and_then(|event| event.important);
                        resumed.missed_to = ImportantNo(first.unwrap_or_default().0 - 1);
                        events.append(&mut resumed.events);
                        resumed.events = events;
                    }
                    (from, resumed)
                });
                self.enter(room, (conn, slot, acks), resumed, now);
            }
        }
    }

    pub(crate) fn acknowledged(&mut self, room: usize, conn: usize, number: u64, now: Time) {
        let home = &mut self.homes[room];
        if let Some(index) = home.position(conn) {
            home.confirmations.acknowledged(index, ImportantNo(number), now, |_| ());
        }
    }

    /// A viewer is seen to be gone.
    pub(crate) fn left(&mut self, room: usize, conn: usize, now: Time) {
        let home = &mut self.homes[room];
        let Some(index) = home.position(conn) else { return };
        home.members[index].gone = true;
        home.confirmations.left(index);
        if !home.room.is_going_out() {
            home.close_holes();
        }
        home.count_online(now);
    }

    /// Looks for those who are behind.
    pub(crate) fn chase(&mut self, room: usize, now: Time) {
        let home = &mut self.homes[room];
        if home.confirmations.next_deadline().is_none_or(|due| due > now) {
            return;
        }
        let (mut verdicts, mut remedies) = (Vec::new(), Vec::new());
        home.confirmations.chase(now, &mut verdicts, &mut remedies);
        for verdict in verdicts {
            self.effects.push(Effect::Verdict(verdict.arrival));
        }
        for (index, remedy) in remedies {
            let Some(member) = home.members.get(index).filter(|member| !member.gone) else {
                continue;
            };
            let message = match remedy {
                Remedy::Carry(after) => {
                    self.effects.push(Effect::Carried);
                    Message::Frame(Arc::new(home.carrying(after, now)))
                }
                Remedy::Missed(_, to) => {
                    self.effects.push(Effect::ToldToPull);
                    Message::Missed { to: to.0, within_ms: 50 }
                }
            };
            self.effects.push(Effect::Send { conn: member.conn, message });
        }
    }

    /// What holds after every step.
    pub(crate) fn check(&self) {
        for home in &self.homes {
            assert!(home.room.memory_bytes() <= Room::memory_bound(&self.settings));
            assert!(home.room.sent_important() <= home.room.important());
            assert!(home.room.sent_seq() <= home.room.seq());
        }
    }
}

impl Home {
    /// A frame that carries events and covers no new numbers.
    fn beside(&self, events: Vec<Arc<Numbered>>, ack: Option<Asked>, now: Time) -> Frame {
        let seq = self.room.sent_seq();
        Frame {
            room: self.room.id().clone(),
            epoch: self.room.epoch(),
            first_seq: Seq(seq.0 + 1),
            last_seq: seq,
            important: self.room.sent_important(),
            time: now,
            oldest: now,
            represents: events.len() as u64,
            events,
            totals: Vec::new(),
            dropped: Vec::new(),
            online: None,
            ack,
        }
    }

    /// The kept events after a number, for who is behind.
    fn carrying(&self, after: ImportantNo, now: Time) -> Frame {
        let events = self.confirmations.after(after);
        let important = events.last().and_then(|event| event.important).unwrap_or(after);
        let (epoch, last_seq) = self.stands_at;
        let first_seq = Seq(last_seq.0 + 1);
        Frame {
            epoch,
            first_seq,
            last_seq,
            important,
            ..self.beside(events, Some(Asked::ALL), now)
        }
    }

    /// What the log brought and, where it ends, what memory has after that.
    fn joined_up(&self, after: ImportantNo, answer: Answer, limit: usize) -> Vec<Arc<Numbered>> {
        let sent = Some(self.room.sent_important());
        let mut events = answer.events;
        events.retain(|event| event.important <= sent);
        let last = events.last().and_then(|event| event.important).unwrap_or(after);
        if !answer.more && events.len() < limit {
            let rest = self.room.history_after_important(last, limit - events.len());
            if rest.complete {
                events.extend(rest.events);
            }
        }
        events
    }

    fn position(&self, conn: usize) -> Option<usize> {
        self.members.iter().position(|member| member.conn == conn && !member.gone)
    }

    fn count_online(&mut self, now: Time) {
        let there = self.members.iter().filter(|member| !member.gone).count();
        self.room.set_online(there as u32, now);
    }

    /// Takes leavers out, from the back, so that what is moved is none.
    fn close_holes(&mut self) {
        for index in (0..self.members.len()).rev() {
            if self.members[index].gone {
                self.members.swap_remove(index);
                self.confirmations.removed(index);
            }
        }
    }
}

fn epoch(now: Time, index: usize) -> Epoch {
    Epoch((now.as_millis() - 1_577_836_800_000) << 11 | index as u64)
}
