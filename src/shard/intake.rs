//! What stands in front of the rooms at home on a shard: fixed limits, the
//! admission queue, and the callers that wait for their answers.
//!
//! While little waits, everything is taken in the order in which it came. Only
//! when more waits than will be done in a moment does importance decide what is
//! taken next; what is taken together still goes to the rooms in the order of
//! its arrival.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::time::Duration;

use super::peers::{Answered, Origin};
use super::stats::{AGE_BOUNDS, Histogram, IntakeStats, ShardStats};
use crate::engine::admission::cost::CostModel;
use crate::engine::admission::{Admission, AdmissionSettings, Entry, Shed};
use crate::engine::event::Event;
use crate::engine::ids::RoomId;
use crate::engine::ladder::{Ladder, Pressure, Rung};
use crate::engine::level::{HourKey, LevelKey};
use crate::engine::mark::Mark;
use crate::engine::outcome::{Outcome, Refusal};
use crate::engine::priority::{AdmissionLevel, Advice, Priority};
use crate::engine::time::Time;
use crate::limits::{LimitKind, LimitSettings, RoomLimits};

/// While less than this waits, it is taken in the order of arrival.
const IN_ORDER: Duration = Duration::from_millis(10);
/// The same once rooms have begun to give something up: what is taken out in order is
/// overtaken by nobody, and small rooms' events wait for it. With requests of 500 events
/// at ten times the capacity their 99th percentile is 17 ms so, and 20 ms with the other
/// (medians of two runs each).
const IN_ORDER_PRESSED: Duration = Duration::from_micros(2_500);
/// Events taken together when more waits.
const BATCH: usize = 64;
/// Between two ticks that nothing but time calls for.
const LEAST_SLEEP: Duration = Duration::from_millis(10);
/// Kinds that operators may have silenced at once.
const MAX_SILENCED: usize = 1_024;

/// An event on its way to its room.
#[derive(Debug)]
pub struct Queued {
    /// Where to.
    pub room: RoomId,
    /// What.
    pub event: Event,
    caller: u32,
    position: u32,
    order: u64,
}

/// Somebody who waits for the outcome of some events.
struct Caller {
    origin: Origin,
    room: u64,
    /// Ids of a viewer's events; requests know theirs.
    ids: Vec<Arc<str>>,
    outcomes: Vec<Outcome>,
    open: u32,
}

/// Limits of the intake.
#[derive(Debug, Clone)]
pub struct IntakeSettings {
    /// Of the queue and the level.
    pub admission: AdmissionSettings,
    /// Fixed rates.
    pub limits: LimitSettings,
    /// Seeds user levels and retry times.
    pub seed: u128,
}

/// An answer that is complete.
pub struct Reply {
    /// Whose.
    pub origin: Origin,
    /// Ids of a viewer's events.
    pub ids: Vec<Arc<str>>,
    /// What became of the events, in order, and what else would be taken.
    pub answer: Answered,
}

/// See the module's documentation.
pub struct Intake {
    admission: Admission<Queued>,
    ladder: Ladder,
    limits: RoomLimits,
    /// How long callers may rely on what they are told.
    level_ttl: Duration,
    threshold: Duration,
    level_key: LevelKey,
    hour: HourKey,
    hasher: foldhash::fast::RandomState,
    /// What events cost, learned.
    pub cost: CostModel,
    callers: Vec<Option<Caller>>,
    free: Vec<u32>,
    order: u64,
    ticked: Time,
    draws: u64,
    shed: Vec<(Entry<Queued>, Shed)>,
    ready: VecDeque<Queued>,
    taken: Vec<Queued>,
    /// Time that what was taken has needed so far.
    spent: Duration,
    replies: Vec<Reply>,
    silenced: HashMap<(RoomId, Arc<str>), Time>,
    /// Refused here, by [`Refusal::index`]; the rooms never heard of it.
    pub refused: [u64; Refusal::COUNT],
    /// Of these, events that are followed, for whoever notes it.
    pub refused_marks: Vec<(Arc<Mark>, Refusal)>,
    /// From the socket to the room.
    pub queueing: Histogram,
    evictions_seen: u64,
}

impl Intake {
    /// Nothing waits.
    #[must_use]
    pub fn new(settings: IntakeSettings, now: Time) -> Self {
        let level_key = LevelKey::from_seed(settings.seed);
        Self {
            level_ttl: settings.admission.level_ttl,
            threshold: settings.admission.threshold,
            admission: Admission::new(settings.admission, now),
            ladder: Ladder::new(now),
            limits: RoomLimits::new(&settings.limits),
            hour: level_key.hour(now),
            level_key,
            hasher: foldhash::fast::RandomState::default(),
            cost: CostModel::default(),
            callers: Vec::new(),
            free: Vec::new(),
            order: 0,
            ticked: now,
            draws: settings.seed as u64,
            shed: Vec::new(),
            ready: VecDeque::new(),
            taken: Vec::new(),
            spent: Duration::ZERO,
            replies: Vec::new(),
            silenced: HashMap::new(),
            refused: [0; Refusal::COUNT],
            refused_marks: Vec::new(),
            queueing: Histogram::new(AGE_BOUNDS),
            evictions_seen: 0,
        }
    }

    /// Takes the events of one publish in, or refuses some. `parsed`: what
    /// reading them took; `viewers`: whom the first that forces a flush makes
    /// the room send to.
    pub fn offer(
        &mut self,
        room: &RoomId,
        events: Vec<Event>,
        origin: Origin,
        parsed: Duration,
        mut viewers: impl FnMut(&Event) -> u32,
        now: Time,
    ) {
        if now >= self.hour.ends() {
            self.hour = self.level_key.hour(now);
        }
        let count = events.len() as u32;
        let hash = self.hasher.hash_one(room.as_str());
        let caller = self.open(origin, hash, &events);
        let parsed = parsed / count.max(1);
        let mut charged = false;
        for (position, event) in events.into_iter().enumerate() {
            let position = position as u32;
            if let Some(refusal) = self.refusal(room, &event, now) {
                self.refuse(&event, refusal);
                self.settle(caller, position, Outcome::Rejected(refusal));
                continue;
            }
            // The first that forces a flush takes the others with it.
            let sends = if charged { 0 } else { viewers(&event) };
            charged |= sends > 0;
            self.order += 1;
            let entry = Entry {
                priority: self.hour.priority(event.kind.tier, &event.user, &event.id),
                room: hash,
                cost: self.cost.event(parsed, sends, event.weight()),
                arrived: event.received,
                deadline: event.expires(),
                item: Queued { room: room.clone(), event, caller, position, order: self.order },
            };
            self.admission.offer(entry, now, &mut self.shed);
        }
        if count == 0 {
            self.finish(caller);
        }
        self.answer_shed();
    }

    /// Why an event is not even weighed.
    fn refusal(&mut self, room: &RoomId, event: &Event, now: Time) -> Option<Refusal> {
        if !self.silenced.is_empty()
            && let Some(until) = self.silenced_until(room, &event.kind.name)
        {
            if now < until {
                return Some(Refusal::Silenced { retry_after_ms: millis(until.since(now)) });
            }
            self.silenced.retain(|_, until| now < *until);
        }
        let limited = self.limits.check_event(room.as_str(), &event.user, now).err()?;
        let retry_after_ms = millis(limited.retry_after);
        Some(match limited.by {
            LimitKind::User => Refusal::UserLimited { retry_after_ms },
            _ => Refusal::RoomLimited { retry_after_ms },
        })
    }

    /// Events that were refused on this intake's behalf.
    pub fn shunned(&mut self, room: &RoomId, priorities: &[Priority]) {
        let hash = self.hasher.hash_one(room.as_str());
        let cost = self.cost.event(Duration::ZERO, 0, 0);
        for priority in priorities {
            self.admission.shunned(hash, *priority, cost);
        }
        let refused = Refusal::Overloaded { retry_after_ms: 0 };
        self.refused[refused.index()] += priorities.len() as u64;
    }

    /// The next event for its room. `None`: nothing waits.
    pub fn next(&mut self, now: Time) -> Option<Queued> {
        if self.ready.is_empty() {
            let calm = self.ladder.rung() == Rung::Normal;
            let in_order = if calm { IN_ORDER } else { IN_ORDER_PRESSED };
            let most = if self.admission.backlog() <= in_order { usize::MAX } else { BATCH };
            while self.taken.len() < most
                && let Some(entry) = self.admission.take(now, &mut self.shed)
            {
                self.queueing.observe(now.since(entry.arrived), 1);
                self.taken.push(entry.item);
            }
            self.taken.sort_unstable_by_key(|queued| queued.order);
            self.ready.extend(self.taken.drain(..));
            self.answer_shed();
        }
        self.ready.pop_front()
    }

    /// The last `events` it gave took so long.
    pub fn processed(&mut self, events: usize, time: Duration, now: Time) {
        self.cost.processed(events, time);
        self.spent += time;
        if self.ready.is_empty() {
            self.admission.processed(std::mem::take(&mut self.spent), now);
        }
    }

    /// What became of an event.
    pub fn done(&mut self, caller: CallerKey, outcome: Outcome) {
        self.settle(caller.caller, caller.position, outcome);
    }

    /// The answers that are complete.
    pub fn take_replies(&mut self) -> Vec<Reply> {
        std::mem::take(&mut self.replies)
    }

    /// Whether anything waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.admission.is_empty() && self.ready.is_empty()
    }

    /// Events that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.admission.len() + self.ready.len()
    }

    /// Ends windows and takes steps on the ladder. `idle`: time without work
    /// since the last call. Returns whether the rung changed.
    pub fn tick(&mut self, idle: Duration, now: Time) -> bool {
        self.ticked = now;
        self.admission.rested(idle);
        self.admission.tick(now);
        if now < self.ladder.next_step() {
            return false;
        }
        let queueing = self.admission.queueing_now(now).as_secs_f64();
        let evicted = self.admission.stats.shed[Shed::Evicted as usize].iter().sum();
        // An operator's level says nothing of pressure.
        let tight = !self.admission.is_pinned() && !self.admission.level().is_open();
        let refusing = tight || evicted > self.evictions_seen;
        self.evictions_seen = evicted;
        let queueing = queueing / self.threshold.as_secs_f64().max(1e-6);
        self.ladder.step(Pressure { queueing, refusing }, now)
    }

    /// When [`tick`](Self::tick) has something to do: soon, unless all is quiet.
    #[must_use]
    pub fn next_deadline(&self) -> Time {
        let next = if self.ladder.rung() == Rung::Normal && self.admission.level().is_open() {
            self.admission.next_deadline()
        } else {
            self.admission.next_deadline().min(self.ladder.next_step())
        };
        // A deadline that has passed and changed nothing must not keep the thread awake.
        next.max(self.ticked + LEAST_SLEEP)
    }

    /// What the shard gives up at present.
    #[must_use]
    pub fn ladder(&self) -> &Ladder {
        &self.ladder
    }

    /// For an operator.
    pub fn ladder_mut(&mut self) -> &mut Ladder {
        &mut self.ladder
    }

    /// The gate.
    #[must_use]
    pub fn admission(&self) -> &Admission<Queued> {
        &self.admission
    }

    /// For an operator.
    pub fn pin(&mut self, level: Option<AdmissionLevel>) {
        self.admission.pin(level);
    }

    /// Refuses a kind in a room until a time; a time that has passed gives it
    /// back. Returns false when too many are silenced.
    pub fn silence(&mut self, room: RoomId, kind: Arc<str>, until: Time, now: Time) -> bool {
        self.silenced.retain(|_, until| now < *until);
        if until <= now {
            self.silenced.remove(&(room, kind));
            return true;
        }
        if self.silenced.len() >= MAX_SILENCED {
            return false;
        }
        self.silenced.insert((room, kind), until);
        true
    }

    /// What is silenced, and until when.
    pub fn silenced(&self) -> impl Iterator<Item = (&RoomId, &Arc<str>, Time)> {
        self.silenced.iter().map(|((room, kind), until)| (room, kind, *until))
    }

    /// Adds what it did and where it stands.
    pub fn count(&self, stats: &mut ShardStats) {
        let (event_micros, write_micros) = self.cost.parts(512);
        stats.queueing = self.queueing.clone();
        stats.intake = IntakeStats {
            admission: self.admission.stats.clone(),
            level: self.admission.level(),
            pinned: self.admission.is_pinned(),
            slowed: self.admission.is_slowed(),
            rung: self.ladder.rung(),
            waiting: self.len() as u64,
            backlog_micros: self.admission.backlog().as_micros() as u64,
            load: self.admission.verdict().load,
            capacity: self.admission.capacity(),
            event_micros,
            write_micros,
            rooms_beyond_share: self.admission.rooms_beyond_share() as u64,
        };
    }

    /// A time for a refused caller to come back.
    pub fn retry_after(&mut self) -> Duration {
        let draw = self.draw();
        self.admission.retry_after(draw)
    }

    fn refuse(&mut self, event: &Event, refusal: Refusal) {
        self.refused[refusal.index()] += 1;
        if let Some(mark) = &event.mark {
            self.refused_marks.push((Arc::clone(mark), refusal));
        }
    }

    fn silenced_until(&self, room: &RoomId, kind: &Arc<str>) -> Option<Time> {
        // Rare enough that a clone of two references is no matter.
        self.silenced.get(&(room.clone(), Arc::clone(kind))).copied()
    }

    fn answer_shed(&mut self) {
        let mut shed = std::mem::take(&mut self.shed);
        for (entry, why) in shed.drain(..) {
            let refusal = match why {
                Shed::Expired => Refusal::Expired,
                Shed::Level | Shed::Evicted => {
                    Refusal::Overloaded { retry_after_ms: millis(self.retry_after()) }
                }
            };
            self.refuse(&entry.item.event, refusal);
            self.settle(entry.item.caller, entry.item.position, Outcome::Rejected(refusal));
        }
        self.shed = shed;
    }

    fn open(&mut self, origin: Origin, room: u64, events: &[Event]) -> u32 {
        let ids = match origin {
            Origin::Viewer(_) => events.iter().map(|event| Arc::clone(&event.id)).collect(),
            Origin::Request(_) | Origin::Nobody => Vec::new(),
        };
        // Every place is overwritten before the answer leaves.
        let outcomes = vec![Outcome::Rejected(Refusal::Expired); events.len()];
        let caller = Some(Caller { origin, room, ids, outcomes, open: events.len() as u32 });
        match self.free.pop() {
            Some(index) => {
                self.callers[index as usize] = caller;
                index
            }
            None => {
                self.callers.push(caller);
                (self.callers.len() - 1) as u32
            }
        }
    }

    fn settle(&mut self, caller: u32, position: u32, outcome: Outcome) {
        let Some(waiting) = self.callers[caller as usize].as_mut() else { return };
        waiting.outcomes[position as usize] = outcome;
        waiting.open -= 1;
        if waiting.open == 0 {
            self.finish(caller);
        }
    }

    fn finish(&mut self, caller: u32) {
        let Some(waiting) = self.callers[caller as usize].take() else { return };
        self.free.push(caller);
        let level = self.admission.advised_for(waiting.room);
        let advice = Advice { level, ttl: self.level_ttl };
        let answer = Answered { outcomes: waiting.outcomes, advice };
        self.replies.push(Reply { origin: waiting.origin, ids: waiting.ids, answer });
    }

    /// SplitMix64 (Steele et al., 2014): spreads retries, guards nothing.
    fn draw(&mut self) -> u64 {
        self.draws = self.draws.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.draws;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Which event of which caller.
#[derive(Debug, Clone, Copy)]
pub struct CallerKey {
    caller: u32,
    position: u32,
}

impl Queued {
    /// Where its outcome goes.
    #[must_use]
    pub fn key(&self) -> CallerKey {
        CallerKey { caller: self.caller, position: self.position }
    }
}

/// Rounded up: who comes back a moment early is refused again.
fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros().div_ceil(1_000)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::chat;

    const START: Time = Time::from_millis(1_700_000_000_000);

    fn intake() -> Intake {
        let none = LimitSettings {
            room: None,
            user: None,
            client: None,
            application: None,
            keys: 16,
            seed: 1,
        };
        let admission = AdmissionSettings::default();
        Intake::new(IntakeSettings { admission, limits: none, seed: 1 }, START)
    }

    fn events(count: u32, now: Time) -> Vec<Event> {
        let event = |n: u32| Event { received: now, ..chat(&n.to_string()).event() };
        (0..count).map(event).collect()
    }

    /// Offers, and takes all that waits in steps of 64; an event takes `each`.
    fn round(intake: &mut Intake, count: u32, viewers: u32, each: Duration, now: Time) -> Time {
        let room = RoomId::new("r").expect("a name");
        let parsed = Duration::from_micros(4) * count;
        intake.offer(&room, events(count, now), Origin::Nobody, parsed, |_| viewers, now);
        let mut now = now;
        while !intake.is_empty() {
            let mut done = 0;
            while done < BATCH
                && let Some(queued) = intake.next(now)
            {
                intake.done(queued.key(), Outcome::Duplicate { seq: None });
                done += 1;
            }
            let took = each * done as u32;
            now = now + took;
            intake.processed(done, took, now);
        }
        intake.tick(Duration::ZERO, now);
        now
    }

    #[test]
    fn calm_moments_do_not_tell_how_long_the_queue_may_be() {
        let mut intake = intake();
        let mut now = START;
        // Each event of a small room makes it send to 20 viewers; that takes the fan-out
        // its time and not the intake.
        for _ in 0..1_000 {
            now = round(&mut intake, 1, 20, Duration::from_micros(5), now);
            now = now + Duration::from_millis(15);
        }
        for _ in 0..200 {
            now = round(&mut intake, 500, 0, Duration::from_micros(1), now);
            now = now + Duration::from_millis(2);
        }
        let cost = intake.cost.event(Duration::from_micros(4), 0, 0);
        let each = cost / intake.admission.capacity();
        assert!((0.7..1.4).contains(&each), "an event takes a microsecond, not {each}");
    }

    #[test]
    fn order_holds_for_longer_while_no_room_gives_anything_up() {
        let mut intake = intake();
        let room = RoomId::new("r").expect("a name");
        let order = |intake: &mut Intake| {
            let parsed = Duration::from_millis(3);
            let mut events = events(500, START);
            events.iter_mut().for_each(|event| event.user = Arc::clone(&event.id));
            intake.offer(&room, events, Origin::Nobody, parsed, |_| 0, START);
            let backlog = intake.admission.backlog();
            assert!((IN_ORDER_PRESSED..IN_ORDER).contains(&backlog), "{backlog:?} waits");
            let mut ids = Vec::new();
            while let Some(queued) = intake.next(START) {
                ids.push(queued.event.id.parse::<u32>().expect("a number"));
                intake.done(queued.key(), Outcome::Duplicate { seq: None });
            }
            ids
        };
        assert_eq!(order(&mut intake), (0..500).collect::<Vec<_>>());
        let mut now = START;
        while intake.ladder.rung() == Rung::Normal {
            now = now + Duration::from_secs(1);
            intake.ladder.step(Pressure { queueing: 2.0, refusing: true }, now);
        }
        let mut ids = order(&mut intake);
        assert!(!ids.is_sorted(), "the more important first");
        ids.sort_unstable();
        assert_eq!(ids, (0..500).collect::<Vec<_>>());
    }
}
