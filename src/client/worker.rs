//! The publisher's task: judges, sends, learns, sends again.
//!
//! One task drives everything, requests included: they are futures it polls, not
//! tasks of their own, so that whatever ends the task ends all of them. (A gRPC
//! stream has a task that reads it; the transport owns it, and this one that.)

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};

use super::PublisherSettings;
use super::event::NewEvent;
use super::later::Later;
use super::levels::{Known, Levels};
use super::outcome::{Failure, Outcome};
use super::places::{Bounds, Places, Waits};
use super::priorities::{Priorities, Table};
use super::queue::{Limits, Queue};
use super::stats::Shared;
use super::transport::{Answer, EventResult, Transport, Whole};
use crate::clock::Clock;
use crate::engine::caller::{Caller, Verdict};
use crate::engine::ids::RoomId;
use crate::engine::priority::{AdmissionLevel, Priority};
use crate::engine::time::Time;

/// Events taken over from `publish` in one turn.
const ARRIVALS: usize = 256;
/// Longest wait before the first attempt after a failure; doubles with each.
const BACKOFF: Duration = Duration::from_millis(100);

/// An event on its way, from `publish` to its outcome.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) room: RoomId,
    pub(super) event: NewEvent,
    /// See [`NewEvent::bytes`].
    pub(super) bytes: usize,
    pub(super) arrived: Time,
    /// Place in the order of arrival, from when the task has it.
    pub(super) order: u64,
    /// How often it was sent.
    pub(super) attempts: u32,
    /// What its last attempt came to.
    pub(super) last: Option<Outcome>,
    pub(super) reply: oneshot::Sender<Outcome>,
    /// Its share of the queue's bounds.
    pub(super) places: Places,
    /// There while it waits, and may give way.
    pub(super) waits: Option<Waits>,
}

impl Held {
    fn age(&self, now: Time) -> Duration {
        now.since(self.arrived)
    }

    /// Whether its time to live is over at `time`.
    fn expired(&self, time: Time) -> bool {
        self.event.ttl.is_some_and(|ttl| self.age(time) >= ttl)
    }
}

/// A request that is over.
enum Done {
    Table(Result<Option<Table>, Failure>),
    Batch { room: RoomId, batch: Vec<Held>, answer: Result<Answer, Failure> },
}

type Request = Pin<Box<dyn Future<Output = Done> + Send>>;

/// See the module's documentation.
pub(super) struct Worker {
    settings: PublisherSettings,
    clock: Clock,
    transport: Transport,
    shared: Arc<Shared>,
    bounds: Arc<Bounds>,
    inbox: mpsc::Receiver<Held>,
    arrivals: u64,
    queue: Queue<Held>,
    /// Events to be sent again.
    later: Later<Held>,
    /// Parts of batches that were too large, last part first.
    parts: HashMap<RoomId, Vec<Vec<Held>>>,
    requests: FuturesUnordered<Request>,
    /// Batches and events in `requests`.
    batches: usize,
    events: usize,
    asking: bool,
    caller: Caller,
    levels: Levels,
    priorities: Priorities,
    /// Nothing new comes; until when to wait for what is left.
    closing: Option<Time>,
}

impl Worker {
    pub(super) fn new(
        settings: PublisherSettings,
        clock: Clock,
        transport: Transport,
        (shared, bounds): (Arc<Shared>, Arc<Bounds>),
        inbox: mpsc::Receiver<Held>,
    ) -> Self {
        let now = clock.now();
        let limits = Limits {
            events: settings.batch_events.max(1),
            bytes: settings.batch_bytes.max(1),
            linger: settings.linger,
        };
        Self {
            clock,
            transport,
            shared,
            bounds,
            inbox,
            arrivals: 0,
            queue: Queue::new(limits),
            later: Later::default(),
            parts: HashMap::new(),
            requests: FuturesUnordered::new(),
            batches: 0,
            events: 0,
            asking: false,
            caller: Caller::new(settings.caller, now),
            levels: Levels::new(settings.max_levels),
            priorities: Priorities::new(now),
            closing: None,
            settings,
        }
    }

    /// Works until the publisher is closed and everything has its outcome.
    pub(super) async fn run(mut self) {
        let mut arrivals = Vec::with_capacity(ARRIVALS);
        loop {
            let now = self.clock.now();
            self.wake(now);
            self.ask(now);
            self.dispatch(now);
            self.shared.count(|stats| stats.caller = *self.caller.stats());
            if self.finished(now) {
                break;
            }
            let wake_at = tokio::time::Instant::from_std(self.clock.instant(self.next_turn(now)));
            tokio::select! {
                biased;
                Some(done) = self.requests.next(), if !self.requests.is_empty() => self.over(done),
                count = self.inbox.recv_many(&mut arrivals, ARRIVALS), if self.closing.is_none() => {
                    let now = self.clock.now();
                    if count == 0 {
                        self.close(now);
                    }
                    for held in arrivals.drain(..) {
                        self.arrive(held, now);
                    }
                }
                () = tokio::time::sleep_until(wake_at) => {}
            }
        }
        self.abandon();
    }

    fn arrive(&mut self, mut held: Held, now: Time) {
        held.order = self.arrivals;
        self.arrivals += 1;
        if !held.places.beyond {
            return self.enqueue(held, now);
        }
        match self.make_way(&held, now) {
            Some(places) => {
                held.places = places;
                self.enqueue(held, now);
            }
            None => self.end(held, Outcome::Displaced),
        }
    }

    fn enqueue(&mut self, mut held: Held, now: Time) {
        let tier = self.priorities.tier(&held.event.kind);
        held.waits = Some(self.bounds.wait(tier));
        let room = held.room.clone();
        self.queue.push(&room, (tier, held.order), held.bytes, held, now);
    }

    /// Places for a newcomer, of what is less important than it: the least
    /// important first, and of that what waits to be sent again. `None` if what is
    /// there does not make as much free; then nothing gives way.
    fn make_way(&mut self, newcomer: &Held, now: Time) -> Option<Places> {
        let tier = self.priorities.tier(&newcomer.event.kind);
        let (mut going, mut bytes) = (Vec::new(), 0);
        while bytes < newcomer.bytes {
            let (queue, later) = (self.queue.worst(), self.later.worst());
            let worst = queue.max(later).filter(|worst| *worst > tier);
            let next = match worst {
                Some(_) if later >= queue => {
                    self.later.pop_worst().map(|(due, held)| (Some(due), held))
                }
                Some(_) => self.queue.pop_worst().map(|held| (None, held)),
                None => None,
            };
            let Some((due, held)) = next else {
                // Rare: one that is larger than all that is less important.
                for (due, held) in going {
                    match due {
                        Some(due) => self.postpone(held, due),
                        None => self.enqueue(held, now),
                    }
                }
                return None;
            };
            bytes += held.places.bytes();
            going.push((due, held));
        }
        let places = going.into_iter().map(|(_, held)| self.give_way(held)).collect();
        Places::of(places, newcomer.bytes)
    }

    /// Ends an event and hands over its places.
    fn give_way(&self, held: Held) -> Places {
        let Held { places, reply, last, .. } = held;
        // If it was sent before, that attempt's end says more.
        let outcome = last.unwrap_or(Outcome::Displaced);
        self.shared.count(|stats| stats.end(&outcome));
        // Whoever dropped the receipt does not want to know.
        let _ = reply.send(outcome);
        places
    }

    /// Puts back in line what is to be sent again now.
    fn wake(&mut self, now: Time) {
        while let Some(held) = self.later.pop_due(now) {
            self.enqueue(held, now);
        }
    }

    /// Asks for the table of priorities if it is time to.
    fn ask(&mut self, now: Time) {
        if self.asking || self.closing.is_some() || self.priorities.ask_at() > now {
            return;
        }
        self.asking = true;
        self.priorities.asking(now);
        let transport = self.transport.clone();
        self.requests.push(Box::pin(async move { Done::Table(transport.table().await) }));
    }

    /// Starts requests while there are places for them.
    fn dispatch(&mut self, now: Time) {
        while self.batches < self.settings.in_flight.max(1) {
            let Some((room, batch)) = self.queue.take(now) else { return };
            let known = self.levels.of(&room, now);
            let mut going = Vec::with_capacity(batch.len());
            for held in batch {
                going.extend(self.judge(held, known, now));
            }
            if going.is_empty() {
                self.queue.free(&room, now);
            } else {
                self.send(room, going, now);
            }
        }
    }

    /// Whether an event is sent; otherwise it has its outcome.
    fn judge(&mut self, mut held: Held, known: Known, now: Time) -> Option<Held> {
        if held.expired(now) {
            // If it was sent before, that attempt's end says more.
            let outcome = held.last.take().unwrap_or(Outcome::Expired);
            self.end(held, outcome);
            return None;
        }
        let event = &held.event;
        let (level, priority) = match self.priorities.of(&event.kind, &event.user, &event.id, now) {
            Some(priority) => (known.level(now), priority),
            None => (AdmissionLevel::OPEN, Priority::LOWEST),
        };
        if let Some(last) = held.last.take() {
            if self.caller.retry_below(level, priority, now) {
                return Some(held);
            }
            self.end(held, last);
            return None;
        }
        let draw = match known {
            // Nothing is known of this very room, so it is probed first.
            Known::Widest(_) => 0,
            _ => rand::random(),
        };
        if self.caller.send_below(level, priority, now, draw) == Verdict::Shed {
            let left = match known {
                Known::Own(level) | Known::Widest(level) => level.left(now),
                Known::Nothing => Duration::ZERO,
            };
            self.end(held, Outcome::ShedLocally { retry_after: left + jitter(left) });
            return None;
        }
        Some(held)
    }

    fn send(&mut self, room: RoomId, mut batch: Vec<Held>, now: Time) {
        self.batches += 1;
        self.events += batch.len();
        for held in &mut batch {
            held.attempts += 1;
            held.waits = None;
        }
        self.shared.count(|stats| stats.requests += 1);
        let transport = self.transport.clone();
        self.requests.push(Box::pin(async move {
            let events = batch.iter().map(|held| (&held.event, held.age(now)));
            let answer = transport.publish(&room, events).await;
            Done::Batch { room, batch, answer }
        }));
    }

    /// A request is over.
    fn over(&mut self, done: Done) {
        let now = self.clock.now();
        let (room, batch, answer) = match done {
            Done::Batch { room, batch, answer } => (room, batch, answer),
            Done::Table(answer) => {
                self.asking = false;
                match answer {
                    Ok(Some(table)) => {
                        self.shared.count(|stats| stats.tables += 1);
                        self.bounds.learn(Arc::clone(&table.tiers));
                        self.priorities.received(table, now);
                    }
                    Ok(None) => self.priorities.missing(false, now),
                    Err(failure) => self.priorities.missing(failure.temporary(), now),
                }
                return;
            }
        };
        self.batches -= 1;
        self.events -= batch.len();
        match answer {
            Ok(answer) => {
                self.learn(&room, answer.level, now);
                match answer.results {
                    Ok(results) => self.results(batch, results, now),
                    Err(whole) if whole.too_large && batch.len() > 1 => self.split(&room, batch),
                    Err(whole) => self.refused(batch, &whole, now),
                }
            }
            Err(failure) => {
                self.shared.count(|stats| stats.requests_failed += 1);
                self.priorities.doubt();
                for held in batch {
                    let outcome = Outcome::Failed(failure.clone());
                    if failure.temporary() {
                        let most = BACKOFF * 2u32.saturating_pow(held.attempts - 1);
                        self.again(held, outcome, jitter(most), now);
                    } else {
                        self.end(held, outcome);
                    }
                }
            }
        }
        self.next_part(room, now);
    }

    fn learn(&mut self, room: &RoomId, level: Option<(AdmissionLevel, Duration)>, now: Time) {
        let Some((level, ttl)) = level else { return };
        let learned = self.caller.learned(level, ttl, now);
        self.levels.learn(room, learned, now);
        self.shared.count(|stats| stats.level = Some(learned));
    }

    fn results(&mut self, batch: Vec<Held>, results: Vec<EventResult>, now: Time) {
        for (held, result) in batch.into_iter().zip(results) {
            match result {
                EventResult::Accepted { seq } => {
                    // What was accepted pays for retries.
                    self.caller.accepted(1, now);
                    self.end(held, Outcome::Accepted { seq });
                }
                EventResult::Rejected(refusal) => {
                    let wait = refusal.retry_after;
                    self.rejected(held, Outcome::Rejected(refusal), wait, now);
                }
            }
        }
    }

    fn refused(&mut self, batch: Vec<Held>, whole: &Whole, now: Time) {
        let wait = whole.temporary.then(|| whole.refusal.retry_after.unwrap_or(BACKOFF));
        for held in batch {
            self.rejected(held, Outcome::Rejected(whole.refusal.clone()), wait, now);
        }
    }

    /// `wait`: when the server wants it again, if it may succeed then.
    fn rejected(&mut self, held: Held, outcome: Outcome, wait: Option<Duration>, now: Time) {
        match wait.filter(|wait| *wait <= self.settings.max_retry_wait) {
            // Never before the time; one answer gives many events the same, so
            // they are spread over as long again.
            Some(wait) => self.again(held, outcome, wait + jitter(wait), now),
            None => self.end(held, outcome),
        }
    }

    /// Sends an event again after `wait`, if that is worth it. The budget is asked
    /// when the time has come, by the level that holds then.
    fn again(&mut self, mut held: Held, outcome: Outcome, wait: Duration, now: Time) {
        let due = now + wait;
        let too_late = self.closing.is_some_and(|deadline| due >= deadline);
        if held.attempts > self.settings.max_resends || held.expired(due) || too_late {
            self.end(held, outcome);
            return;
        }
        held.last = Some(outcome);
        self.postpone(held, due);
    }

    fn postpone(&mut self, mut held: Held, due: Time) {
        let tier = self.priorities.tier(&held.event.kind);
        held.waits = Some(self.bounds.wait(tier));
        self.later.push(due, held.order, tier, held);
    }

    /// A batch was too large: its halves go one after the other. The queue's own
    /// bounds stay, as it may have been a single event.
    fn split(&mut self, room: &RoomId, mut batch: Vec<Held>) {
        for held in &mut batch {
            held.attempts -= 1;
        }
        let second = batch.split_off(batch.len() / 2);
        let parts = self.parts.entry(room.clone()).or_default();
        parts.extend([second, batch]);
    }

    /// The room's next part, or its next turn.
    fn next_part(&mut self, room: RoomId, now: Time) {
        let part = self.parts.get_mut(&room).and_then(Vec::pop);
        match part {
            Some(part) => self.send(room, part, now),
            None => {
                self.parts.remove(&room);
                self.queue.free(&room, now);
            }
        }
    }

    fn end(&self, held: Held, outcome: Outcome) {
        self.shared.count(|stats| stats.end(&outcome));
        // Whoever dropped the receipt does not want to know.
        let _ = held.reply.send(outcome);
    }

    fn close(&mut self, now: Time) {
        let deadline = now + self.settings.close_timeout;
        self.closing = Some(deadline);
        self.queue.hurry(now);
        for held in self.later.split_off(deadline) {
            self.end_with_last(held);
        }
    }

    /// Whether there is nothing left to do, or no time left for it.
    fn finished(&self, now: Time) -> bool {
        let empty = self.queue.len() == 0 && self.later.is_empty() && self.batches == 0;
        self.closing.is_some_and(|deadline| empty || now >= deadline)
    }

    /// What is left has no outcome of its own any more.
    fn abandon(&mut self) {
        let parts = std::mem::take(&mut self.parts).into_values().flatten().flatten();
        let later = self.later.drain();
        for held in self.queue.drain().into_iter().chain(parts).chain(later) {
            self.end_with_last(held);
        }
        // Their receipts learn it when the requests are dropped.
        let under_way = self.events as u64;
        self.shared.count(|stats| {
            stats.abandoned += under_way;
            stats.caller = *self.caller.stats();
        });
    }

    fn end_with_last(&self, mut held: Held) {
        let outcome = held.last.take().unwrap_or(Outcome::Abandoned);
        self.end(held, outcome);
    }

    /// When there is something to do that no request and no arrival starts.
    fn next_turn(&self, now: Time) -> Time {
        let room_to_send = self.batches < self.settings.in_flight.max(1);
        let line = self.queue.next_due().filter(|_| room_to_send);
        let again = self.later.next_due();
        let asking = self.asking || self.closing.is_some();
        let table = (!asking).then(|| self.priorities.ask_at());
        // Something to wait for, however long.
        let idle = now + Duration::from_secs(60);
        [line, again, table, self.closing].into_iter().flatten().fold(idle, Time::min)
    }
}

/// Full jitter: anything from nothing to `most`, so that callers who were turned
/// away together do not come back together.
fn jitter(most: Duration) -> Duration {
    most.mul_f64(rand::random::<f64>())
}
