//! The upstream's half of overload control: what is not worth sending, and how
//! often it is worth sending again.
//!
//! A request that will be refused still costs its server something, and at ten
//! times the load refusals alone can fill it. In DAGOR (Zhou et al., *Overload
//! Control for Scaling WeChat Microservices*, SoCC 2018, section 4.2.4) every
//! answer therefore carries the server's current admission level, and the
//! upstream drops by it before it sends. Three things must be added to make that
//! hold up:
//!
//! - **Probes.** Who sheds everything hears no answers, and would keep to a level
//!   of the past. So a small part of what would be shed is sent nevertheless: one
//!   in a hundred, or ten a second where that is more. It is drawn at random with
//!   a chance that follows the rate, not taken from the front of each second:
//!   upstreams often send in batches that have what matters most in front, and
//!   then the same kind would be probed for ever.
//! - **A time to live.** A level holds for as long as its answer said. After that
//!   everything may be sent: a level that is that old says nothing about a server
//!   that has meanwhile been replaced, and the probes' answers keep renewing it
//!   for as long as the server speaks at all. A server that has fallen silent is
//!   protected by what bounds the requests in flight, not by an old level.
//! - **A retry budget.** Retries multiply load exactly when there is none to
//!   spare. As in Finagle's `RetryBudget` (20 % of requests and ten a second; see
//!   also *Site Reliability Engineering*, chapter 21, "Handling Overload") they
//!   are paid from a bucket, so that they can never be more than a marginal part
//!   of the load. What pays in is not requests sent but requests accepted, as in
//!   gRPC's retry throttling (proposal A6): at ten times the capacity a fifth of
//!   what is sent is twice what the server can do. Instead of a ring of time slots
//!   that expire, the bucket's size follows a fading count of what was sent: what
//!   is not used in a few seconds is gone, without memory for it. A request that
//!   would be refused for its level is not worth a retry, whatever the budget.
//!
//! Work of several calls is worth least when it fails half way. The levels that
//! answers carry follow the server's queue from moment to moment; new work keeps
//! to the latest of them ([`Caller::send`]), and work that has begun to the widest
//! of the last half second ([`Caller::proceed`]), so that what was let in once is
//! seen through. Half of the retry budget is kept for it as well
//! ([`Caller::proceed_again`]), and the last tenth of it for what even the narrowest
//! level of the last half second admits: what a server asks for however full it is
//! must not be lost because retries that were hardly worth it have used up the budget.
//!
//! One [`Caller`] belongs to one server. A server whose rooms live in several
//! places may have several levels; [`LearnedLevel`] is one of them, and
//! [`Caller::send_below`] and [`Caller::retry_below`] take the one that applies.

use std::time::Duration;

use super::priority::{AdmissionLevel, Priority};
use super::time::Time;

/// Probes that may go out at once after a quiet time. Half a second's worth of
/// the default rate.
const PROBE_BURST: f64 = 5.0;
/// Over how many seconds the rate of what would be shed is estimated.
const SHED_SPAN: f64 = 1.0;
/// How long work that has begun may rely on a level that has been replaced by a
/// narrower one. Tasks of the simulation take 100 to 200 ms.
const STANDING: Duration = Duration::from_millis(500);
/// Part of a full retry budget that first attempts leave to work that has begun.
const RESERVED: f64 = 0.5;
/// Part of it that only what every level of late admits may use.
const RESERVED_FOR_SAFE: f64 = 0.1;
/// Chance of being drawn, relative to what the allowed rate asks for: the bucket
/// cuts what is too much, and with less than this it would not be used up.
const PROBE_CHANCE: f64 = 2.0;

/// What an upstream may do beyond the level. Shares outside 0 to 1 and negative
/// rates count as the nearest that makes sense, what is not a number as zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CallerSettings {
    /// Part of what would be shed that is sent nevertheless. Default 0.01.
    pub probe_share: f64,
    /// Probes a second that are allowed beside it. Default 10.
    pub probes_per_second: f64,
    /// Retries per accepted request. Default 0.2 (Finagle's, per request).
    pub retry_share: f64,
    /// Retries a second that are allowed beside it. Default 10 (Finagle).
    pub retries_per_second: f64,
    /// For how long an unused retry stays good. Default 3 s: Finagle's 10 s would
    /// let the whole of a 10 s burst come again when it is over.
    pub retry_span: Duration,
    /// Longest time for which a level is believed, whatever its answer says.
    /// Default 10 s.
    pub max_ttl: Duration,
}

impl Default for CallerSettings {
    fn default() -> Self {
        Self {
            probe_share: 0.01,
            probes_per_second: 10.0,
            retry_share: 0.2,
            retries_per_second: 10.0,
            retry_span: Duration::from_secs(3),
            max_ttl: Duration::from_secs(10),
        }
    }
}

/// What to do with a first attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The level admits it.
    Send,
    /// The level does not, but its answer will tell how things stand. Send it.
    Probe,
    /// Drop it here: it would be refused.
    Shed,
}

/// What was decided, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallerStats {
    /// First attempts that the level admitted.
    pub sent: u64,
    /// First attempts sent although it did not.
    pub probes: u64,
    /// First attempts dropped.
    pub shed: u64,
    /// Retries allowed.
    pub retries: u64,
    /// Retries refused because the budget was used up.
    pub retries_exhausted: u64,
    /// Retries refused because the level did not admit them.
    pub retries_shed: u64,
}

/// A level that an answer carried, and how long it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LearnedLevel {
    level: AdmissionLevel,
    until: Time,
}

impl LearnedLevel {
    /// `level`, from `now` for `ttl`.
    #[must_use]
    pub fn new(level: AdmissionLevel, ttl: Duration, now: Time) -> Self {
        Self { level, until: now + ttl }
    }

    /// The level; open once its time is over.
    #[must_use]
    pub fn at(&self, now: Time) -> AdmissionLevel {
        if self.holds(now) { self.level } else { AdmissionLevel::OPEN }
    }

    /// Whether its time is not over.
    #[must_use]
    pub fn holds(&self, now: Time) -> bool {
        now < self.until
    }

    /// How much of its time is left.
    #[must_use]
    pub fn left(&self, now: Time) -> Duration {
        self.until.since(now)
    }
}

/// What an upstream knows of one server. See the module's documentation.
///
/// Call [`learn`](Self::learn) for every answer and [`accepted`](Self::accepted)
/// for every one that is no refusal, [`send`](Self::send) before every first
/// attempt and [`retry`](Self::retry) before every other, or
/// [`proceed`](Self::proceed) and [`proceed_again`](Self::proceed_again) for work
/// of which the server has done a part; what they allow counts as sent. A clock that stands still or goes backwards counts as
/// standing still at the latest time seen: the level stays, no budget grows, and
/// the share of probes goes on, so that new levels are still learned.
#[derive(Debug, Clone)]
pub struct Caller {
    settings: CallerSettings,
    level: LearnedLevel,
    /// The widest of late.
    standing: LearnedLevel,
    /// The narrowest of late.
    narrowest: LearnedLevel,
    latest: Time,
    /// What would have been shed, and what was accepted: fading counts, which at a
    /// steady rate are rate times span.
    would_shed: f64,
    accepted: f64,
    /// Probes and retries that are paid for.
    probes: f64,
    retries: f64,
    stats: CallerStats,
}

impl Caller {
    /// Knows of no level: everything may be sent.
    #[must_use]
    pub fn new(settings: CallerSettings, now: Time) -> Self {
        let settings = CallerSettings {
            probe_share: at_least_zero(settings.probe_share).min(1.0),
            probes_per_second: at_least_zero(settings.probes_per_second),
            retry_share: at_least_zero(settings.retry_share).min(1.0),
            retries_per_second: at_least_zero(settings.retries_per_second),
            ..settings
        };
        let mut caller = Self {
            settings,
            level: LearnedLevel { level: AdmissionLevel::OPEN, until: now },
            standing: LearnedLevel { level: AdmissionLevel::OPEN, until: now },
            narrowest: LearnedLevel { level: AdmissionLevel::OPEN, until: now },
            latest: now,
            would_shed: 0.0,
            accepted: 0.0,
            probes: PROBE_BURST,
            retries: 0.0,
            stats: CallerStats::default(),
        };
        caller.retries = caller.retry_limit();
        caller
    }

    /// An answer carried this level; it holds for `ttl`.
    pub fn learn(&mut self, level: AdmissionLevel, ttl: Duration, now: Time) {
        self.level = self.learned(level, ttl, now);
        if level >= self.standing.level || !self.standing.holds(self.latest) {
            self.standing = LearnedLevel::new(level, STANDING, self.latest);
        }
        if level <= self.narrowest.level || !self.narrowest.holds(self.latest) {
            self.narrowest = LearnedLevel::new(level, STANDING, self.latest);
        }
    }

    /// The server has accepted `count` requests: they pay for retries.
    pub fn accepted(&mut self, count: u32, now: Time) {
        self.advance(now);
        let count = f64::from(count);
        self.accepted += count;
        let paid = self.retries + count * self.settings.retry_share;
        self.retries = paid.min(self.retry_limit());
    }

    /// The same, for those who keep levels themselves.
    pub fn learned(&mut self, level: AdmissionLevel, ttl: Duration, now: Time) -> LearnedLevel {
        self.advance(now);
        LearnedLevel::new(level, ttl.min(self.settings.max_ttl), self.latest)
    }

    /// The level to keep to; open if none was learned or its time is over.
    #[must_use]
    pub fn level(&self, now: Time) -> AdmissionLevel {
        self.level.at(now.max(self.latest))
    }

    /// The level for work that has begun: the widest of the last half second.
    #[must_use]
    pub fn standing(&self, now: Time) -> AdmissionLevel {
        let level = self.level(now);
        let standing = self.standing.holds(now.max(self.latest));
        if standing { level.max(self.standing.level) } else { level }
    }

    /// What to do with a first attempt at a call of work that has begun: this
    /// server, or one like it, has done a part of it.
    pub fn proceed(&mut self, priority: Priority, now: Time, draw: u64) -> Verdict {
        self.send_below(self.standing(now), priority, now, draw)
    }

    /// Whether a further attempt at such a call may be sent now. Nearly the whole
    /// budget is there for it.
    pub fn proceed_again(&mut self, priority: Priority, now: Time) -> bool {
        self.again(self.standing(now), priority, RESERVED_FOR_SAFE, now)
    }

    /// What to do with a first attempt at `priority`. `draw` is any 64 random
    /// bits, new ones for every call.
    pub fn send(&mut self, priority: Priority, now: Time, draw: u64) -> Verdict {
        self.send_below(self.level(now), priority, now, draw)
    }

    /// The same with a level of its own.
    pub fn send_below(
        &mut self,
        level: AdmissionLevel,
        priority: Priority,
        now: Time,
        draw: u64,
    ) -> Verdict {
        self.advance(now);
        if level.admits(priority) {
            self.stats.sent += 1;
            return Verdict::Send;
        }
        self.would_shed += 1.0;
        self.probes = (self.probes + self.settings.probe_share).min(PROBE_BURST);
        let rate = self.would_shed / SHED_SPAN;
        let wanted = PROBE_CHANCE * self.settings.probes_per_second / rate;
        if self.probes >= 1.0 && unit(draw) < wanted.max(self.settings.probe_share) {
            self.probes -= 1.0;
            self.stats.probes += 1;
            return Verdict::Probe;
        }
        self.stats.shed += 1;
        Verdict::Shed
    }

    /// Whether a further attempt at `priority` may be sent now. Takes from the
    /// budget; one that the level does not admit is refused and takes nothing.
    pub fn retry(&mut self, priority: Priority, now: Time) -> bool {
        self.retry_below(self.level(now), priority, now)
    }

    /// The same with a level of its own.
    pub fn retry_below(&mut self, level: AdmissionLevel, priority: Priority, now: Time) -> bool {
        self.again(level, priority, RESERVED, now)
    }

    /// A retry that leaves the `reserved` part of a full budget alone, unless every
    /// level of late admits it.
    fn again(
        &mut self,
        level: AdmissionLevel,
        priority: Priority,
        reserved: f64,
        now: Time,
    ) -> bool {
        self.advance(now);
        if !level.admits(priority) {
            self.stats.retries_shed += 1;
            return false;
        }
        // An open level is no word on what matters: everybody retries at an onset.
        let narrowest = self.narrowest.at(self.latest);
        let safe = !narrowest.is_open() && narrowest.admits(priority);
        let reserved = if safe { 0.0 } else { reserved };
        if self.retries < 1.0 + reserved * (self.retry_limit() - 1.0) {
            self.stats.retries_exhausted += 1;
            return false;
        }
        self.retries -= 1.0;
        self.stats.retries += 1;
        true
    }

    /// What was decided so far.
    #[must_use]
    pub const fn stats(&self) -> &CallerStats {
        &self.stats
    }

    fn advance(&mut self, now: Time) {
        let passed = now.since(self.latest).as_secs_f64();
        if passed <= 0.0 {
            return;
        }
        self.latest = now;
        self.would_shed *= (-passed / SHED_SPAN).exp();
        // A span of zero fades everything at once.
        self.accepted *= (-passed / self.settings.retry_span.as_secs_f64()).exp();
        self.probes = (self.probes + passed * self.settings.probes_per_second).min(PROBE_BURST);
        let retries = self.retries + passed * self.settings.retries_per_second;
        self.retries = retries.min(self.retry_limit());
    }

    /// What the budget amounts to over its span; at least one, or it could never
    /// be used.
    fn retry_limit(&self) -> f64 {
        let span = self.settings.retry_span.as_secs_f64();
        (self.settings.retries_per_second * span + self.settings.retry_share * self.accepted)
            .max(1.0)
    }
}

fn at_least_zero(value: f64) -> f64 {
    // `max` prefers a number to what is none.
    value.max(0.0)
}

/// 64 random bits as a number from 0 to just below 1.
fn unit(draw: u64) -> f64 {
    (draw >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests;
