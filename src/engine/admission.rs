//! Overload control: what a shard takes on when more arrives than it can do.
//!
//! In the tradition of DAGOR (Zhou et al., *Overload Control for Scaling WeChat
//! Microservices*, SoCC 2018; errata in arXiv 1806.04075 v3): every request has
//! a [`Priority`] that its sender cannot choose, the server admits what lies
//! before its [`AdmissionLevel`] and tells its callers the level, and the sign
//! of overload is queueing time, which unlike response time says nothing of
//! slow downstreams and unlike utilisation is not at its limit on a good day.
//!
//! Its parts, each in a file:
//! - `queue`, a short priority queue measured in work. What a level decides too
//!   late or too coarsely, the queue decides at once: it evicts the worst, as `overflow`
//!   says.
//! - `controller`, which moves the level from what a window showed, with
//!   `demand`, the histogram it reads it from.
//! - `scale`, from which callers are told, with every answer, how much the queue
//!   can take at this moment.
//! - `fairness`, by which a room that takes more than its share yields first.
//! - `capacity`, how fast work gets done, which says at once when that changes.
//! - `slowdown`, which tells a server that got slower from a load that grew.
//! - `retry`, when to come back.
//! - `recent`, by which asking again at once is not asking anew, and what was let in
//!   once is seen through.
//!
//! Everything is counted in *cost*: estimated microseconds of work. The
//! estimate may be off by a factor, as long as it is off alike for all: what
//! the server gets done is measured in the same unit.

mod capacity;
mod controller;
pub mod cost;
mod demand;
mod entry;
mod fairness;
mod overflow;
mod queue;
mod recent;
mod retry;
mod scale;
mod slowdown;

use std::time::Duration;

use self::controller::Controller;
pub use self::controller::Verdict;
pub use self::entry::{AdmissionStats, Entry, Shed};
use self::fairness::Fairness;
use self::queue::{Waiting, WorkQueue};
use self::recent::Recent;
pub use self::retry::retry_after;
use super::ids::Tier;
use super::priority::{AdmissionLevel, Priority};
use super::time::Time;

/// Constants of the law. The defaults are the paper's where it names one.
#[derive(Debug, Clone)]
pub struct AdmissionSettings {
    /// Work that may wait under overload, or eight requests of the mean cost if that is
    /// more: a queue of a few is full and empty by chance.
    pub queue: Duration,
    /// Work that may wait while there is no overload: a queue that is empty
    /// again soon does no harm, and chance alone fills a server at 90 % of its
    /// capacity beyond [`queue`](Self::queue) every few seconds. In the simulation
    /// 120 ms refuses none of that load in the median seed; more only delays the onset.
    pub burst: Duration,
    /// Entries that may wait in any case: the bound on memory.
    pub max_entries: usize,
    /// Longest window (paper: 1 s).
    pub window: Duration,
    /// Requests that end a window early (paper: 2,000).
    pub window_requests: u64,
    /// Requests below which a window never tightens the level.
    pub min_requests: u64,
    /// Mean queueing time that counts as overload (paper: 20 ms).
    pub threshold: Duration,
    /// Share of the admitted work given up when only queueing time speaks for
    /// it (paper: 5 %).
    pub alpha: f64,
    /// Share of the arrived work added when nothing speaks against it (paper: 1 %).
    pub beta: f64,
    /// Work admitted beyond the measured capacity, as a share of it, for the
    /// queue to choose from.
    pub margin: f64,
    /// The margin grows up to this while the server rests although it refuses.
    pub max_margin: f64,
    /// Least important tier that a room's use does not send to the end, that waits
    /// behind no other, and that is not refused for having waited.
    pub protected_tier: Tier,
    /// How long callers may hold a level.
    pub level_ttl: Duration,
    /// Only count what would be refused. The bound on entries still holds.
    pub dry_run: bool,
}

impl Default for AdmissionSettings {
    fn default() -> Self {
        Self {
            queue: Duration::from_millis(40),
            burst: Duration::from_millis(120),
            max_entries: 65_536,
            window: Duration::from_secs(1),
            window_requests: 2_000,
            min_requests: 50,
            threshold: Duration::from_millis(20),
            alpha: 0.05,
            beta: 0.01,
            margin: 0.1,
            max_margin: 0.5,
            protected_tier: Tier(0),
            level_ttl: Duration::from_secs(2),
            dry_run: false,
        }
    }
}

/// See the module's documentation.
pub struct Admission<T> {
    settings: AdmissionSettings,
    queue: WorkQueue<T>,
    controller: Controller,
    fairness: Fairness,
    /// Refused by the level a moment ago, and served.
    refused: Recent,
    served: Recent,
    /// What requests cost, on average of late.
    mean_cost: f64,
    /// Work that may wait under overload, as of the last offer, and as a multiple of what
    /// the settings say.
    short_bound: Duration,
    stretched: f64,
    /// The short bound holds: the long one was reached, and the queue has not
    /// been empty under an open level since.
    strict: bool,
    /// When the queue last kept its short bound.
    kept_bound: Time,
    /// When it last outgrew the long one, if that went fast.
    onset: Option<Time>,
    pinned: Option<AdmissionLevel>,
    /// The server got slower, as of the last tick.
    slowed: bool,
    /// Every other turn under an open level is of the oldest, if it is late.
    oldest_first: bool,
    /// Since when there has been nothing to do.
    resting: Option<Time>,
    /// The last look for something to process found nothing.
    starved: bool,
    /// Requests that may still be shed at this moment, and when that is.
    allowance: u32,
    allowed: Time,
    /// Since when something waits and nothing was taken.
    stalled: Option<Time>,
    /// What it did.
    pub stats: AdmissionStats,
}

impl<T> Admission<T> {
    /// Open, empty and at rest.
    #[must_use]
    pub fn new(settings: AdmissionSettings, now: Time) -> Self {
        Self {
            controller: Controller::new(&settings, now),
            queue: WorkQueue::new(),
            fairness: Fairness::new(now),
            refused: Recent::new(REFUSED),
            served: Recent::new(SERVED),
            mean_cost: 0.0,
            short_bound: settings.queue,
            stretched: 1.0,
            strict: false,
            kept_bound: now,
            onset: None,
            pinned: None,
            slowed: false,
            oldest_first: false,
            resting: Some(now),
            starved: true,
            allowance: MOST_SHED,
            allowed: now,
            stalled: None,
            stats: AdmissionStats::default(),
            settings,
        }
    }

    /// Takes a request in, or not. Everything that does not stay goes into
    /// `shed`, the newcomer included.
    pub fn offer(&mut self, entry: Entry<T>, now: Time, shed: &mut Vec<(Entry<T>, Shed)>) {
        self.stats.offered[tier(&entry)] += 1;
        self.allow(now);
        self.allowance += SHED_PER_OFFER;
        self.mean_cost += (entry.cost - self.mean_cost) * MEAN_WEIGHT;
        self.stretch();
        let place = self.fairness.place(&self.settings, entry.room, entry.priority);
        self.settle_rest(now);
        let before = now.since(entry.arrived);
        self.controller.arrived(place, entry.cost, before, self.pressure());
        self.fairness.arrived(entry.room, entry.cost);
        let begun = self.served.holds(entry.priority, now);
        let again = !begun && self.refused.holds(entry.priority, now);
        if !self.admits(place, entry.room, again) {
            if !self.settings.dry_run {
                self.refused.note(entry.priority, now);
                return self.refuse(entry, Shed::Level, shed);
            }
            self.stats.would_shed[Shed::Level as usize][tier(&entry)] += 1;
        }
        self.controller.admitted(entry.cost);
        if self.queue.len() == 0 {
            self.stalled = Some(now);
        }
        let place = if begun { Priority::at(place.tier(), 0.0) } else { place };
        self.queue.push(place, entry, now);
        if self.queue.len() > 1 {
            self.controller.waits();
        }
        self.bound(now, shed);
    }

    /// The next to process. What has expired goes into `shed`. `None`: nothing waits,
    /// and the caller has something else to do or calls [`rest`](Self::rest); or, if the
    /// queue is not empty, so much was shed that others should have their turn first.
    pub fn take(&mut self, now: Time, shed: &mut Vec<(Entry<T>, Shed)>) -> Option<Entry<T>> {
        self.allow(now);
        loop {
            let Some(Waiting { place, since, entry }) = self.pop(now) else {
                self.stalled = None;
                self.starved = true;
                self.controller.drained(now);
                self.strict &= !self.controller.level().is_open();
                return None;
            };
            if entry.deadline.is_some_and(|deadline| deadline < now) {
                self.controller.evicted(entry.cost);
                if !self.settings.dry_run {
                    self.refuse(entry, Shed::Expired, shed);
                    if self.allowance == 0 {
                        return None;
                    }
                    continue;
                }
                self.stats.would_shed[Shed::Expired as usize][tier(&entry)] += 1;
            }
            // What comes fresh now fills the gap as well, and its caller has not
            // given up yet; and another server may have room for this one.
            let late = now.since(since) > self.patience(place, now);
            if late && !self.level().is_open() && !self.spares(place, entry.room) {
                self.controller.evicted(entry.cost);
                if !self.settings.dry_run {
                    self.refuse(entry, Shed::Evicted, shed);
                    if self.allowance == 0 {
                        return None;
                    }
                    continue;
                }
                self.stats.would_shed[Shed::Evicted as usize][tier(&entry)] += 1;
            }
            let waited = now.since(entry.arrived);
            self.wake(now);
            self.starved = false;
            self.stalled = (self.queue.len() > 0).then_some(now);
            self.controller.started(entry.cost, waited, now);
            self.served.note(entry.priority, now);
            self.stats.started[tier(&entry)] += 1;
            return Some(entry);
        }
    }

    /// The best, except that nobody waits in vain. At the capacity the best first
    /// means the last never: behind the protected tiers, what is late goes first
    /// while the queue keeps its bound, and every other time while there is no
    /// level once it waits longer than the bound and a quarter: sooner, and at the first
    /// moments of an overload half of all turns are of those who have waited longest.
    /// A queue beyond its bound is an onset: then only what matters most can be saved.
    /// In a server that got slower whoever has waited for the bound goes first in any case:
    /// what is safe is served then, and the rest refused.
    fn pop(&mut self, now: Time) -> Option<Waiting<T>> {
        self.oldest_first = !self.oldest_first;
        let waited = self.queue.oldest().map_or(Duration::ZERO, |since| now.since(since));
        let bound = self.short_bound;
        let late = if self.level().is_open() {
            self.oldest_first && waited > bound + bound / LATE_PART
        } else {
            let full = FULL * bound.as_micros() as f64;
            let overdue = waited > bound && self.controller.is_slowed(now);
            overdue || waited > bound / 2 && self.backlog_micros() <= full
        };
        let spared = |(place, entry): (Priority, &Entry<T>)| self.spares(place, entry.room);
        let spared = self.queue.best().is_some_and(spared);
        if late && !spared { self.queue.pop_oldest() } else { self.queue.pop_best() }
    }

    /// How long an entry may have waited under a level. While the level is new, what is
    /// safe waits its turn, and so does what has begun: everybody sends again then, and no
    /// other server has room.
    fn patience(&self, place: Priority, now: Time) -> Duration {
        let bound = self.short_bound;
        let safe = self.controller.safe().admits(place);
        if safe && self.is_patient(now) {
            bound * LONG_PATIENCE
        } else if (safe || has_begun(place)) && self.controller.is_unsettled(now) {
            bound + bound / NEW_PART
        } else {
            bound
        }
    }

    /// Whether what is safe may wait for long: a steep onset was a moment ago, or the server
    /// got slower.
    fn is_patient(&self, now: Time) -> bool {
        self.onset.is_some_and(|at| now.since(at) < ONSET) || self.controller.is_slowed(now)
    }

    /// Works out what may wait under overload: what the settings say, or eight requests of
    /// the mean cost if that is more, for a queue that holds but a few requests is full and
    /// empty by chance.
    fn stretch(&mut self) {
        let queue = self.settings.queue.as_micros().max(1) as f64;
        let few = FEW * self.mean_cost / self.controller.capacity().max(LEAST_CAPACITY);
        let stretches = self.controller.has_measured() && few > queue;
        (self.short_bound, self.stretched) = if stretches {
            (Duration::from_micros(few as u64), few / queue)
        } else {
            (self.settings.queue, 1.0)
        };
    }

    /// How long the queue is, as microseconds of one that may hold what the settings say.
    fn pressure(&self) -> f64 {
        self.backlog_micros() / self.stretched
    }

    /// Whether it waits behind nothing that is late, and is not refused for having waited.
    fn spares(&self, place: Priority, room: u64) -> bool {
        place.tier() <= self.settings.protected_tier || self.fairness.is_within(room)
    }

    /// All that was taken is done, and took `time` of the server. For servers that take
    /// many at once and do other things as well; from others, what follows tells.
    pub fn processed(&mut self, time: Duration, now: Time) {
        self.controller.processed(time, now);
    }

    /// There is nothing to do from `now` on, until [`take`](Self::take) gives
    /// something. For servers that do nothing but this; others measure their
    /// rest by themselves and say so by [`rested`](Self::rested).
    pub fn rest(&mut self, now: Time) {
        self.resting.get_or_insert(now);
    }

    /// The server had nothing to do for `time` since the last call.
    pub fn rested(&mut self, time: Duration) {
        self.resting = None;
        self.controller.rested(time);
    }

    /// Counts a rest up to `now`.
    fn settle_rest(&mut self, now: Time) {
        if let Some(since) = &mut self.resting {
            self.controller.rested(now.since(*since));
            *since = now;
        }
    }

    fn wake(&mut self, now: Time) {
        if let Some(since) = self.resting.take() {
            self.controller.rested(now.since(since));
        }
    }

    /// Mean queueing time at this moment, as far as the window under way tells.
    #[must_use]
    pub fn queueing_now(&self, now: Time) -> Duration {
        let stalled = self.stalled.map_or(Duration::ZERO, |since| now.since(since));
        self.controller.queueing_now().max(stalled)
    }

    /// Ends the window when it is time. Call at
    /// [`next_deadline`](Self::next_deadline) at the latest, and often while
    /// requests come.
    pub fn tick(&mut self, now: Time) {
        self.settle_rest(now);
        self.slowed = self.controller.is_slowed(now);
        let stalled = self.stalled.map_or(Duration::ZERO, |since| now.since(since));
        let closed = self.controller.tick(&self.settings, self.queue.work(), stalled, now);
        if closed {
            let overloaded = self.controller.verdict().overloaded || !self.level().is_open();
            self.share_out(overloaded, now);
        }
    }

    /// When [`tick`](Self::tick) has something to do, unless much happens.
    #[must_use]
    pub fn next_deadline(&self) -> Time {
        self.controller.deadline(&self.settings)
    }

    /// Whether requests took half as long again, or longer, within the last minute, and
    /// still do, as of the last [`tick`](Self::tick).
    #[must_use]
    pub fn is_slowed(&self) -> bool {
        self.slowed
    }

    /// What is admitted.
    #[must_use]
    pub fn level(&self) -> AdmissionLevel {
        self.pinned.unwrap_or_else(|| self.controller.level())
    }

    /// What callers are told to keep to with new work, at this moment: it follows
    /// the queue, and lies before the level unless the server has nothing to do.
    /// Open if the level is only tried out.
    #[must_use]
    pub fn advised(&self) -> AdmissionLevel {
        if self.settings.dry_run {
            return AdmissionLevel::OPEN;
        }
        self.pinned.unwrap_or_else(|| self.controller.advised(self.pressure()))
    }

    /// The same as callers of one room should apply it.
    #[must_use]
    pub fn advised_for(&self, room: u64) -> AdmissionLevel {
        if self.pinned.is_some() {
            self.advised()
        } else {
            self.fairness.level_for(self.advised(), room)
        }
    }

    /// A request was refused elsewhere on the word of the level here: it counts
    /// as one that arrived.
    pub fn shunned(&mut self, room: u64, priority: Priority, cost: f64) {
        let tier = usize::from(priority.tier().0);
        self.stats.offered[tier] += 1;
        self.stats.shed[Shed::Level as usize][tier] += 1;
        let place = self.fairness.place(&self.settings, room, priority);
        self.controller.arrived(place, cost, Duration::ZERO, self.pressure());
        self.fairness.arrived(room, cost);
    }

    /// Rooms that yield to others at present.
    #[must_use]
    pub fn rooms_beyond_share(&self) -> usize {
        self.fairness.beyond()
    }

    /// An operator's level instead of the computed one; `None` gives it back.
    pub fn pin(&mut self, level: Option<AdmissionLevel>) {
        self.pinned = level;
    }

    /// Whether an operator's level is in force.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.pinned.is_some()
    }

    /// What the last window came to.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.controller.verdict()
    }

    /// Requests waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.len() == 0
    }

    /// Work done per busy microsecond, in the units of the estimates.
    #[must_use]
    pub fn capacity(&self) -> f64 {
        self.controller.capacity()
    }

    /// Time that what waits will take, at the measured capacity.
    #[must_use]
    pub fn backlog(&self) -> Duration {
        Duration::from_micros(self.backlog_micros().min(MOST_BACKLOG) as u64)
    }

    fn backlog_micros(&self) -> f64 {
        self.queue.work() / self.controller.capacity().max(LEAST_CAPACITY)
    }

    /// When a refused caller should come back: the more the load exceeds the
    /// capacity the later, drawn with full jitter from `draw`, 64 random bits.
    /// 50 ms to 10 s.
    #[must_use]
    pub fn retry_after(&self, draw: u64) -> Duration {
        retry_after(self.controller.verdict().load, draw)
    }

    /// Whether the request gets past the level, or past what callers are told; not
    /// if it was refused a moment ago and asks `again`, unless it is safe. A
    /// server that has nothing to do refuses nothing: a level is a forecast, and
    /// this is a fact.
    fn admits(&self, priority: Priority, room: u64, again: bool) -> bool {
        // An operator's level holds for every room.
        if self.pinned.is_none() && self.fairness.is_within(room) {
            return true;
        }
        if self.pinned.is_none() && self.starved && self.queue.len() == 0 {
            return true;
        }
        if again && !self.level().is_open() && !self.controller.safe().admits(priority) {
            return false;
        }
        let told = || self.controller.advised(self.pressure());
        self.level().admits(priority) || self.pinned.is_none() && told().admits(priority)
    }

    /// Works out anew which rooms keep to their share.
    fn share_out(&mut self, overloaded: bool, now: Time) {
        self.fairness.share_out(self.controller.throughput(), overloaded, self.mean_cost, now);
    }

    /// What may be shed anew at every moment.
    fn allow(&mut self, now: Time) {
        if now != self.allowed {
            (self.allowed, self.allowance) = (now, MOST_SHED);
        }
    }

    fn refuse(&mut self, entry: Entry<T>, why: Shed, shed: &mut Vec<(Entry<T>, Shed)>) {
        self.allowance = self.allowance.saturating_sub(1);
        self.stats.shed[why as usize][tier(&entry)] += 1;
        shed.push((entry, why));
    }
}

/// A queue is beyond its bound, by estimates that are never exact, when it is
/// this many times as long.
const FULL: f64 = 1.1;
/// Part of the bound beyond it at which an entry under an open level counts as late. In the
/// simulation at 0.9 of the capacity as many are refused as with none, and on a ramp to
/// five times the capacity the 99th percentile of queueing falls by a fifth; with three
/// times the bound, tasks at 0.9 missed their deadlines.
const LATE_PART: u32 = 4;
/// For how long after an onset what is safe may wait for long, alone in the queue or not:
/// for so many times the bound. In a server that got slower as well: while half of its
/// speed is gone, twice as much loses 2 tasks and 10 of four calls each, this none and 6.
const ONSET: Duration = Duration::from_secs(1);
const LONG_PATIENCE: u32 = 4;
/// Part of the bound beyond it for which the same, and what has begun, may wait while the
/// level is new: half. With three bounds more nothing else became better that could be
/// told from chance, and on a ramp, where the level is new for long, the 99th percentile
/// of queueing was 20 ms higher.
const NEW_PART: u32 = 2;
/// Requests that the queue holds at least, whatever they cost.
const FEW: f64 = 8.0;
/// Weight of a request in the mean cost.
const MEAN_WEIGHT: f64 = 1.0 / 64.0;
/// Requests shed at one moment, and more for every one that is offered. When many wait, all
/// of them may be late at once, or beyond a bound that just became the short one: to shed
/// 40,000 takes 12 ms.
const MOST_SHED: u32 = 1_024;
const SHED_PER_OFFER: u32 = 4;
/// How long a refusal stands: what [`retry_after`] asks for at least.
const REFUSED: Duration = Duration::from_millis(50);
/// For how long the next call of what was served is recognised. Tasks of the simulation
/// take 100 to 200 ms.
const SERVED: Duration = Duration::from_millis(300);
/// A capacity below this is no measurement, in work per microsecond.
const LEAST_CAPACITY: f64 = 1e-3;
/// A backlog is told up to this, in microseconds.
const MOST_BACKLOG: f64 = 3.6e9;

/// Whether a place is the front of its tier, where the next calls of what has begun stand.
fn has_begun(place: Priority) -> bool {
    place == Priority::at(place.tier(), 0.0)
}

fn tier<T>(entry: &Entry<T>) -> usize {
    usize::from(entry.priority.tier().0)
}

#[cfg(test)]
mod tests;
