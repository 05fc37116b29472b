//! Moves the level: what one window showed decides what the next one admits.
//!
//! DAGOR lowers the level so that 5 % less is admitted after a window with a
//! mean queueing time above 20 ms, and raises it by 1 % of what arrived after
//! any other (SoCC 2018, algorithm 1). From far away that takes dozens of
//! windows, and near the goal it swings around it. Here the goal itself is
//! measured: work done per busy microsecond is the capacity, in the same units
//! in which arrivals are counted, so an estimate of cost that is wrong by a
//! factor cancels out. The level is set to admit the capacity and a margin;
//! the queue, which evicts the worst, and advice that follows the queue
//! ([`scale`](super::scale)) take the margin off again, and the server neither
//! starves nor queues. The paper's two steps remain where there
//! is no better evidence than queueing time alone.

use std::time::Duration;

use super::AdmissionSettings;
use super::capacity::Capacity;
use super::demand::Demand;
use super::scale::Scale;
use super::slowdown::Slowdown;
use crate::engine::priority::{AdmissionLevel, Priority};
use crate::engine::time::Time;

/// A window may end this early when its evidence is overwhelming.
const SHORTEST: Duration = Duration::from_millis(20);
/// Evidence of spare capacity is looked at this often.
const SPARE_CHECK: Duration = Duration::from_millis(100);
/// Share of a window without work that counts as spare capacity.
const SPARE: f64 = 0.1;
/// So much rest, in microseconds, is evidence enough before that: a queue that is
/// kept filled is not empty for two services by chance, but it is when what mattered
/// most has become the least.
const SPARE_REST: f64 = 8_000.0;
/// Evicted work, as a share of admitted work, that is no noise.
const EVICTED: f64 = 0.02;
/// Multiples of that, beyond the margin, which contradict the level.
const SURPRISE: f64 = 3.0;
/// Share of a window without work from which on the margin grows, and how much.
const RESTED: f64 = 0.01;
const MARGIN_STEP: f64 = 1.25;
/// Steps of the paper that one window may take at once.
const MOST_STEPS: f64 = 6.0;
/// What one window may admit more than the last while requests still arrive late.
const CATCH_UP: f64 = 1.1;
/// Time over which their wait is averaged, in microseconds. A busy window ends after 8 ms
/// (2,000 events), which is a round or two of the shard's thread: by such windows alone
/// 17 ms of wait were more than 20 every now and then.
const BEFORE_MEMORY: f64 = 100_000.0;
/// Share of the work done that is admitted however late requests arrive. Callers
/// that listen come down to it, and the wait is gone; for those that do not, half
/// of it refused half of the events for nothing, since reading them is the work.
const LEAST_DONE: f64 = 0.94;
/// Share of the capacity below which what is done here is not what others wait for: a
/// shard that reads for the rooms of other shards has next to no work of its own, and
/// refusing a part of that would spare nobody anything.
const TRIFLE: f64 = 0.02;
/// Tiers that together ask for no more than this share of the capacity are safe.
const SAFE: f64 = 0.9;
/// The same in a server that got slower, once the level is not new. What resends add to a
/// tier that is refused makes 0.88 of the capacity look like 0.85 to 1.25 of it: while half
/// of the speed is gone 4 tasks are lost with 0.95 and 20 with 0.9, and none with this.
const SAFE_SLOWED: f64 = 1.0;
/// Time constant of the histogram while windows agree, in microseconds.
const HISTOGRAM_MEMORY: f64 = 5_000_000.0;
/// Part of it that lives on at most when a window contradicts the level. With half, a tenth
/// of a second of such windows was soon all that was known, and an order of priorities
/// that came back had to be learned anew; with nine tenths, more of what is safe was
/// refused in the first second of a steep onset.
const KEEP: f64 = 0.7;
/// The same of a histogram that was scaled to what an onset brings.
const KEEP_SURGE: f64 = 0.3;
/// Requests that an onset's rate is told from at least, and the standard deviations of
/// their number that are chance.
const SURGE_SAMPLES: u64 = 10;
const SURGE_CHANCE: f64 = 2.0;
/// Multiples of the capacity that come at an onset worth waiting through. A slow rise
/// fills the queue at less: all who wait would wait long, and lose nothing elsewhere.
const STORM: f64 = 1.5;
/// Evicted work, as a share of admitted work, that no choice from a margin explains: what
/// comes is not what the level was read from.
const SWEPT: f64 = 0.3;
/// For how long after an onset, or a change of the capacity, the level is new.
const UNSETTLED: Duration = Duration::from_secs(2);

/// Requests done together from which on a server that says how long it took tells how fast
/// it is. Fewer are done in calm moments and are seldom alike: where each made a small room
/// send, a server was taken for one 30 times as fast, and its queue held 40,000 events
/// before it seemed long; and one that took long for having lost its processor was the rule.
const MANY: u64 = 64;

/// What has come since the queue last kept its short bound: busy microseconds, in how
/// many requests, since when, and for how long one of them had waited to be read.
#[derive(Debug, Clone, Copy, Default)]
struct Surge {
    work: f64,
    requests: u64,
    since: Time,
    before: Duration,
}

impl Surge {
    /// As a multiple of the capacity. What a late turn reads all at once has come over
    /// all the time that it was late.
    fn rate(&self, now: Time) -> f64 {
        let time = now.since(self.since) + self.before;
        self.work / (time.as_micros() as f64).max(1.0)
    }
}

/// What happened in one window. Work in estimated microseconds.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    began: Time,
    arrived: f64,
    requests: u64,
    admitted: f64,
    evicted: f64,
    evictions: u64,
    started: f64,
    starts: u64,
    /// Sum of queueing times.
    waited: f64,
    /// Sum of what requests had waited before they were offered.
    before: f64,
    /// Time without anything to do.
    rested: f64,
}

/// What the last window came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Verdict {
    /// Mean queueing time of what was started, or how long nothing was.
    pub queueing: Duration,
    /// That was above the threshold, or work was evicted.
    pub overloaded: bool,
    /// Work that arrived, as a multiple of the capacity. Counts what was refused.
    pub load: f64,
}

/// See the module's documentation.
pub(super) struct Controller {
    window: Window,
    demand: Demand,
    level: AdmissionLevel,
    safe: AdmissionLevel,
    scale: Scale,
    /// The queue has outgrown what it may hold while the level is open.
    overfull: bool,
    /// Work per busy microsecond.
    capacity: Capacity,
    /// The capacity is another than in the windows before.
    changed: bool,
    /// What has come since the queue last kept its short bound.
    surge: Surge,
    /// When something last changed that no level could know of.
    unsettled: Option<Time>,
    /// What is admitted beyond the capacity, as a share of it.
    margin: f64,
    /// Work begun and not yet known to be done, in how many requests, and since when.
    /// Unless the server says how long it took, only what is followed by other work
    /// tells that.
    begun: Option<(f64, u64, Time)>,
    told: bool,
    /// While requests wait before they get here: the most work per microsecond
    /// that was done since that began.
    behind: Option<f64>,
    /// For how long they wait before that, in microseconds.
    before: f64,
    /// Work per microsecond in the last window, and the share of it without work.
    done: f64,
    rested: f64,
    verdict: Verdict,
    slowdown: Slowdown,
}

impl Controller {
    pub(super) fn new(settings: &AdmissionSettings, now: Time) -> Self {
        Self {
            window: Window { began: now, ..Window::default() },
            demand: Demand::new(),
            level: AdmissionLevel::OPEN,
            safe: AdmissionLevel::SHUT,
            scale: Scale::new(),
            overfull: false,
            capacity: Capacity::new(),
            changed: false,
            surge: Surge { since: now, ..Surge::default() },
            unsettled: None,
            margin: settings.margin,
            begun: None,
            told: false,
            behind: None,
            before: 0.0,
            done: 0.0,
            rested: 0.0,
            verdict: Verdict::default(),
            slowdown: Slowdown::new(),
        }
    }

    pub(super) fn level(&self) -> AdmissionLevel {
        self.level
    }

    /// Tiers before this are not held back and not evicted before the others:
    /// together they need no more than [`SAFE`] of the capacity, or [`SAFE_SLOWED`].
    /// Nothing, as long as no level is in force.
    pub(super) fn safe(&self) -> AdmissionLevel {
        if self.level.is_open() { AdmissionLevel::SHUT } else { self.safe }
    }

    /// Whether the capacity has been measured; until then, work has no meaning.
    pub(super) fn has_measured(&self) -> bool {
        self.capacity.is_measured()
    }

    /// The queue has outgrown its bound under an open level.
    pub(super) fn overfull(&mut self) {
        self.overfull = true;
    }

    /// What callers should keep to while `backlog` microseconds of work wait.
    pub(super) fn advised(&self, backlog: f64) -> AdmissionLevel {
        self.scale.advised(backlog, self.level, self.safe)
    }

    /// More than one waits.
    pub(super) fn waits(&mut self) {
        self.scale.waits();
    }

    pub(super) fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Work per microsecond that was done in the last window, or could have been while
    /// the server rested; no more than the capacity.
    pub(super) fn throughput(&self) -> f64 {
        (self.done + self.rested * self.capacity.rate()).min(self.capacity.rate())
    }

    /// Work per busy microsecond.
    pub(super) fn capacity(&self) -> f64 {
        self.capacity.rate()
    }

    /// A request came while `backlog` microseconds of work waited, and had
    /// waited elsewhere `before`.
    pub(super) fn arrived(
        &mut self,
        priority: Priority,
        cost: f64,
        before: Duration,
        backlog: f64,
    ) {
        self.scale.arrived(backlog);
        // In time, so that what is remembered stays true when the capacity changes.
        let time = cost / self.capacity.rate();
        self.demand.arrived(priority, time);
        self.surge.work += time;
        self.surge.requests += 1;
        self.surge.before = self.surge.before.max(before);
        self.window.arrived += cost;
        self.window.before += before.as_micros() as f64;
        self.window.requests += 1;
    }

    /// The queue keeps its short bound.
    pub(super) fn kept_bound(&mut self, now: Time) {
        self.surge = Surge { since: now, ..Surge::default() };
    }

    /// Whether the level is too new to be kept to closely.
    pub(super) fn is_unsettled(&self, now: Time) -> bool {
        self.unsettled.is_some_and(|at| now.since(at) < UNSETTLED)
    }

    /// Whether the server got slower a while ago.
    pub(super) fn is_slowed(&self, now: Time) -> bool {
        self.slowdown.is_slowed(now)
    }

    pub(super) fn admitted(&mut self, cost: f64) {
        self.window.admitted += cost;
    }

    pub(super) fn evicted(&mut self, cost: f64) {
        self.window.evicted += cost;
        self.window.evictions += 1;
    }

    pub(super) fn started(&mut self, cost: f64, waited: Duration, now: Time) {
        self.window.started += cost;
        self.window.starts += 1;
        self.window.waited += waited.as_micros() as f64;
        self.done_until(now);
        let (work, requests, since) = self.begun.unwrap_or((0.0, 0, now));
        self.begun = Some((work + cost, requests + 1, since));
    }

    /// All that was begun is done, and took the server so long.
    pub(super) fn processed(&mut self, time: Duration, now: Time) {
        self.told = true;
        let Some((work, requests, _)) = self.begun.take() else { return };
        if requests >= MANY {
            self.measured(work, requests, time, now);
        }
    }

    /// What was begun before `now` is done.
    fn done_until(&mut self, now: Time) {
        if self.told {
            return;
        }
        if let Some((work, requests, since)) = self.begun.filter(|begun| begun.2 < now) {
            self.begun = None;
            self.measured(work, requests, now.since(since), now);
        }
    }

    fn measured(&mut self, work: f64, requests: u64, time: Duration, now: Time) {
        let before = self.capacity.rate();
        let time = time.as_micros() as f64;
        self.slowdown.measured(requests as f64, time, now);
        if self.capacity.measured(work, requests as f64, time) {
            self.changed = true;
            self.demand.scale(before / self.capacity.rate());
        }
    }

    /// Nothing is left to start.
    pub(super) fn drained(&mut self, now: Time) {
        // Without the last of a row, what is measured is what others had to wait for,
        // the longer half: at half of the capacity a fifth too little. If no time has
        // passed, nobody knows when it was done.
        self.done_until(now);
        self.begun = self.begun.filter(|_| self.told);
    }

    pub(super) fn rested(&mut self, time: Duration) {
        self.scale.rested(time);
        self.window.rested += time.as_micros() as f64;
    }

    /// Mean queueing time of what was started in the window under way.
    pub(super) fn queueing_now(&self) -> Duration {
        let window = &self.window;
        Duration::from_micros((window.waited / window.starts.max(1) as f64) as u64)
    }

    /// When the window ends if nothing else ends it.
    pub(super) fn deadline(&self, settings: &AdmissionSettings) -> Time {
        let length = if self.level.is_open() { settings.window } else { SPARE_CHECK };
        self.window.began + length.min(settings.window)
    }

    /// Ends the window if it is time, or if what happened leaves no doubt.
    /// `stalled`: for how long work has waited and none was started.
    /// Returns whether it did.
    pub(super) fn tick(
        &mut self,
        settings: &AdmissionSettings,
        queue_work: f64,
        stalled: Duration,
        now: Time,
    ) -> bool {
        if now < self.window.began {
            // A clock that went back: what was measured means nothing.
            self.window = Window { began: now, ..Window::default() };
        }
        let window = &self.window;
        let age = now.since(window.began);
        let full = age >= settings.window || window.requests >= settings.window_requests;
        // Twice the queue was thrown out of it, or it overflowed: whoever waits for
        // the window's end refuses at its own cost what could be shed for free.
        let queue = settings.queue.as_micros() as f64 * self.capacity.rate();
        let onset = window.evictions >= settings.min_requests && window.evicted >= 2.0 * queue;
        let spare = !self.level.is_open()
            && (age >= SPARE_CHECK || age >= SHORTEST && window.rested >= SPARE_REST)
            && window.rested >= SPARE * age.as_micros() as f64;
        let first = self.capacity.is_new();
        let changed = self.changed && !self.level.is_open();
        let storm = self.overfull && self.surge.rate(now) >= STORM;
        let swept = onset && window.evicted >= SWEPT * window.admitted;
        if age >= SHORTEST && (changed || storm || swept) {
            self.unsettled = Some(now);
        }
        let news = changed || self.overfull || onset || first;
        if full || age >= SHORTEST && news || spare {
            self.close(settings, queue_work, stalled, now);
            return true;
        }
        false
    }

    fn close(
        &mut self,
        settings: &AdmissionSettings,
        queue_work: f64,
        stalled: Duration,
        now: Time,
    ) {
        let window =
            std::mem::replace(&mut self.window, Window { began: now, ..Window::default() });
        let elapsed = (now.since(window.began).as_micros() as f64).max(1.0);
        self.changed = false;
        if let Some(times) = self.capacity.settle() {
            self.demand.scale(times);
        }
        let mut queueing =
            Duration::from_micros((window.waited / window.starts.max(1) as f64) as u64);
        if queue_work > 0.0 {
            queueing = queueing.max(stalled);
        }
        self.done = window.started / elapsed;
        self.rested = window.rested / elapsed;
        let waiting = queueing > settings.threshold;
        let overfull = std::mem::take(&mut self.overfull);
        let evicting = overfull || window.evicted > EVICTED * window.admitted;
        self.verdict = Verdict {
            queueing,
            overloaded: waiting || evicting,
            load: window.arrived / elapsed / self.capacity.rate(),
        };
        self.adapt_margin(settings, &window, elapsed);
        let thin = window.requests < settings.min_requests;
        let admitted = window.admitted / elapsed;
        let goal = self.capacity.rate() * (1.0 + self.margin);
        let before = window.before / window.requests.max(1) as f64;
        self.before += (before - self.before) * (1.0 - (-elapsed / BEFORE_MEMORY).exp());
        let behind = self.before / settings.threshold.as_micros().max(1) as f64;
        let trifle = window.arrived / elapsed < TRIFLE * self.capacity.rate();
        let behind = if trifle { 0.0 } else { behind };
        let target = if let Some(target) = self.catch_up(settings, &window, elapsed, behind) {
            target.min(goal)
        } else if evicting {
            goal
        } else if waiting {
            goal.max(admitted * (1.0 - settings.alpha))
        } else {
            goal.max(admitted + settings.beta * window.arrived / elapsed)
        };
        let surged = overfull && self.level.is_open() && self.follow_surge(elapsed, now);
        let next = self.look(&window, elapsed, target, surged, now);
        let tighter = next.0 < self.level;
        if !tighter || !thin && (waiting || evicting || behind > 1.0 || !self.level.is_open()) {
            (self.level, self.safe, self.scale) = next;
        }
    }

    /// Requests that wait before they even get here are not this queue's to
    /// refuse: reading them is what takes the time, and less must be sent. Nothing
    /// here tells how much less, so the paper's step is taken, the larger the
    /// longer they waited, and taken back by tenths, or by what the server rests.
    /// Callers that do not listen are no reason to serve nobody: never much below
    /// what was done.
    fn catch_up(
        &mut self,
        settings: &AdmissionSettings,
        window: &Window,
        elapsed: f64,
        behind: f64,
    ) -> Option<f64> {
        let admitted = window.admitted / elapsed;
        if behind > 1.0 {
            let done = self.behind.unwrap_or(0.0).max(window.started / elapsed);
            self.behind = Some(done);
            let less = admitted * (1.0 - settings.alpha * behind.min(MOST_STEPS));
            return Some(less.max(done * LEAST_DONE));
        }
        let done = self.behind?;
        let spare = window.rested / elapsed;
        if self.level.is_open() || spare > 0.5 {
            self.behind = None;
            return None;
        }
        Some((admitted * (1.0 / (1.0 - spare)).max(CATCH_UP)).max(done * LEAST_DONE))
    }

    /// An open level's queue has outgrown its bound: what came since it began to grow
    /// tells how much comes now, and the histogram of the seconds before, how it is
    /// spread over tiers and users. Returns whether that is news.
    fn follow_surge(&mut self, elapsed: f64, now: Time) -> bool {
        let requests = self.surge.requests;
        let times = self.surge.rate(now) / self.demand.rate(elapsed).max(f64::MIN_POSITIVE);
        let news =
            requests >= SURGE_SAMPLES && times > 1.0 + SURGE_CHANCE / (requests as f64).sqrt();
        if news {
            self.demand.scale(times);
        }
        news
    }

    /// Reads level, safe tiers and scale from the demand.
    fn look(
        &mut self,
        window: &Window,
        elapsed: f64,
        target: f64,
        surged: bool,
        now: Time,
    ) -> (AdmissionLevel, AdmissionLevel, Scale) {
        let rests = window.rested > SPARE * elapsed && !self.level.is_open();
        if rests {
            self.demand.doubt();
        }
        let seen = self.scale.kept_to(self.level);
        self.demand.see(seen, elapsed);
        let next = self.demand.level(target / self.capacity.rate(), seen);
        let slowed = self.is_slowed(now) && !self.is_unsettled(now);
        let safe = self.demand.whole_tiers(if slowed { SAFE_SLOWED } else { SAFE });
        let scale = self.scale.read(&self.demand, seen, 1.0);
        // A window that contradicts the level makes the past worth less.
        let surprise =
            rests || window.evicted > (SURPRISE * EVICTED + self.margin) * window.admitted;
        let most = match (surged, surprise) {
            (true, _) => KEEP_SURGE,
            (_, true) => KEEP,
            _ => 1.0,
        };
        self.demand.fade(most.min((-elapsed / HISTOGRAM_MEMORY).exp()));
        (next, safe, scale)
    }

    /// A server that rests while it refuses needs more margin; one that evicts
    /// much needs less.
    fn adapt_margin(&mut self, settings: &AdmissionSettings, window: &Window, elapsed: f64) {
        if self.level.is_open() {
            self.margin = settings.margin;
        } else if window.rested > RESTED * elapsed {
            self.margin = (self.margin * MARGIN_STEP).min(settings.max_margin);
        } else {
            self.margin += (settings.margin - self.margin) * 0.1;
        }
    }
}
