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
//!   are paid from a bucket into which first attempts pay, so that they can never
//!   be more than a marginal part of the load. Instead of a ring of time slots
//!   that expire, the bucket's size follows a fading count of what was sent: what
//!   is not used in a few seconds is gone, without memory for it. A request that
//!   would be refused for its level is not worth a retry, whatever the budget.
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
    /// Retries per first attempt. Default 0.2 (Finagle).
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
/// Call [`learn`](Self::learn) for every answer, [`send`](Self::send) before
/// every first attempt and [`retry`](Self::retry) before every other; what they
/// allow counts as sent. A clock that stands still or goes backwards counts as
/// standing still at the latest time seen: the level stays, no budget grows, and
/// the share of probes goes on, so that new levels are still learned.
#[derive(Debug, Clone)]
pub struct Caller {
    settings: CallerSettings,
    level: LearnedLevel,
    latest: Time,
    /// What would have been shed, and first attempts sent: fading counts, which
    /// at a steady rate are rate times span.
    would_shed: f64,
    sent: f64,
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
            latest: now,
            would_shed: 0.0,
            sent: 0.0,
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
            self.pay_in();
            return Verdict::Send;
        }
        self.would_shed += 1.0;
        self.probes = (self.probes + self.settings.probe_share).min(PROBE_BURST);
        let rate = self.would_shed / SHED_SPAN;
        let wanted = PROBE_CHANCE * self.settings.probes_per_second / rate;
        if self.probes >= 1.0 && unit(draw) < wanted.max(self.settings.probe_share) {
            self.probes -= 1.0;
            self.stats.probes += 1;
            self.pay_in();
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
        self.advance(now);
        if !level.admits(priority) {
            self.stats.retries_shed += 1;
            return false;
        }
        if self.retries < 1.0 {
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
        self.sent *= (-passed / self.settings.retry_span.as_secs_f64()).exp();
        self.probes = (self.probes + passed * self.settings.probes_per_second).min(PROBE_BURST);
        let retries = self.retries + passed * self.settings.retries_per_second;
        self.retries = retries.min(self.retry_limit());
    }

    /// A first attempt was sent.
    fn pay_in(&mut self) {
        self.sent += 1.0;
        self.retries = (self.retries + self.settings.retry_share).min(self.retry_limit());
    }

    /// What the budget amounts to over its span; at least one, or it could never
    /// be used.
    fn retry_limit(&self) -> f64 {
        let span = self.settings.retry_span.as_secs_f64();
        (self.settings.retries_per_second * span + self.settings.retry_share * self.sent).max(1.0)
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::ids::Tier;

    const START: Time = Time::from_millis(1_700_000_000_000);
    const SECOND: Duration = Duration::from_secs(1);

    fn caller() -> Caller {
        Caller::new(CallerSettings::default(), START)
    }

    fn tier(tier: u8) -> Priority {
        Priority::new(Tier(tier), 64, 0)
    }

    /// Everything below tier 3.
    fn tier_three() -> AdmissionLevel {
        AdmissionLevel::from_wire(3, 0, Some(0.0))
    }

    /// Spreads consecutive numbers over 64 bits (SplitMix64's finalizer).
    fn mixed(n: u64) -> u64 {
        let z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    #[test]
    fn a_level_is_kept_to_until_its_time_is_over() {
        let mut caller = caller();
        assert_eq!(caller.send(Priority::LOWEST, START, u64::MAX), Verdict::Send);
        caller.learn(tier_three(), SECOND, START);
        assert_eq!(caller.send(tier(2), START, u64::MAX), Verdict::Send);
        let first = caller.send(tier(3), START, u64::MAX);
        assert_eq!(first, Verdict::Probe, "so little is shed that all of it may be probes");
        for _ in 0..50 {
            caller.send(tier(3), START, u64::MAX);
        }
        assert_eq!(caller.send(tier(3), START + SECOND / 2, u64::MAX), Verdict::Shed);
        assert_eq!(caller.send(tier(3), START + SECOND, u64::MAX), Verdict::Send);
        assert_eq!(caller.level(START + SECOND), AdmissionLevel::OPEN);
        let stats = *caller.stats();
        assert_eq!((stats.sent, stats.shed + stats.probes), (3, 52));
    }

    #[test]
    fn nobody_is_silenced_for_long_by_a_forged_time_to_live() {
        let mut caller = caller();
        caller.learn(AdmissionLevel::SHUT, Duration::MAX, START);
        let believed = CallerSettings::default().max_ttl;
        assert_eq!(caller.level(START + believed - SECOND), AdmissionLevel::SHUT);
        assert_eq!(caller.level(START + believed), AdmissionLevel::OPEN);
    }

    /// Sends `count` batches of `size`, one each 100 ms, nothing of it admitted;
    /// returns how often each place in the batch was probed.
    fn probed(caller: &mut Caller, count: u64, size: u64) -> Vec<u64> {
        let mut places = vec![0; size as usize];
        for batch in 0..count {
            let now = START + Duration::from_millis(100 * batch);
            caller.learn(AdmissionLevel::SHUT, SECOND, now);
            for (place, probes) in places.iter_mut().enumerate() {
                let draw = mixed(batch * size + place as u64);
                *probes += u64::from(caller.send(tier(0), now, draw) == Verdict::Probe);
            }
        }
        places
    }

    #[test]
    fn probes_are_ten_a_second_or_one_in_a_hundred() {
        for (size, least, most) in [(1, 590, 600), (10, 540, 680), (1_000, 5_400, 6_700)] {
            let mut caller = caller();
            let probes: u64 = probed(&mut caller, 600, size).iter().sum();
            assert!((least..=most).contains(&probes), "batches of {size}: {probes} in a minute");
            assert_eq!(caller.stats().shed, 600 * size - probes);
        }
    }

    #[test]
    fn every_place_in_a_batch_is_probed() {
        let places = probed(&mut caller(), 6_000, 100);
        let tenths: Vec<u64> = places.chunks(10).map(|tenth| tenth.iter().sum()).collect();
        let mean = tenths.iter().sum::<u64>() / 10;
        assert!(mean > 500, "{tenths:?}");
        assert!(tenths.iter().all(|&n| n > mean / 2 && n < mean * 2), "{tenths:?}");
    }

    #[test]
    fn a_retry_that_would_be_refused_costs_no_budget() {
        let mut caller = caller();
        caller.learn(tier_three(), SECOND, START);
        for _ in 0..1_000 {
            assert!(!caller.retry(tier(3), START));
        }
        let allowed = (0..1_000).filter(|_| caller.retry(tier(2), START)).count();
        assert_eq!(allowed, 30, "three seconds of ten");
        assert_eq!(caller.stats().retries_shed, 1_000);
        assert_eq!(caller.stats().retries_exhausted, 970);
    }

    #[test]
    fn retries_add_a_fifth_to_a_steady_load_and_what_is_unused_fades() {
        let mut caller = caller();
        let mut retries = 0;
        for n in 0..60_000u64 {
            let now = START + Duration::from_millis(n);
            caller.send(tier(1), now, 0);
            retries += u64::from(caller.retry(tier(1), now));
        }
        // A fifth of 60,000, ten for each of 60 s, and thirty to begin with.
        assert!((12_600..=12_631).contains(&retries), "{retries}");
        for n in 60_000..90_000u64 {
            caller.send(tier(1), START + Duration::from_millis(n), 0);
        }
        let mut at_once = caller.clone();
        let now = START + Duration::from_secs(90);
        let burst = (0..10_000).filter(|_| at_once.retry(tier(1), now)).count();
        assert!((600..=631).contains(&burst), "three seconds' worth, not thirty: {burst}");
        let now = START + Duration::from_secs(120);
        let left = (0..10_000).filter(|_| caller.retry(tier(1), now)).count();
        assert_eq!(left, 30, "what was sent half a minute ago pays for nothing");
    }

    #[test]
    fn odd_settings_do_no_harm() {
        let settings = CallerSettings {
            probe_share: f64::NAN,
            probes_per_second: -1.0,
            retry_share: f64::INFINITY,
            retries_per_second: f64::NAN,
            retry_span: Duration::ZERO,
            max_ttl: Duration::MAX,
        };
        let mut caller = Caller::new(settings, START);
        caller.learn(AdmissionLevel::SHUT, Duration::MAX, START);
        let later = START + SECOND;
        assert!((0..100).all(|_| caller.send(tier(0), later, 0) == Verdict::Shed));
        caller.learn(AdmissionLevel::OPEN, SECOND, later);
        for _ in 0..10 {
            caller.send(tier(0), later, 0);
        }
        let allowed = (0..100).filter(|_| caller.retry(tier(0), later)).count();
        assert!(allowed <= 11, "at most one for each first attempt: {allowed}");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Learn(u32, u64),
        Send(u8, u8, u64),
        Retry(u8, u8),
    }

    /// A step, and by how many milliseconds the clock moves before it; it may
    /// stand still or go back.
    fn steps() -> impl Strategy<Value = Vec<(i64, Step)>> {
        let step = prop_oneof![
            1 => (any::<u32>(), 0..20_000u64).prop_map(|(level, ttl)| Step::Learn(level, ttl)),
            6 => (0..8u8, any::<u8>(), any::<u64>()).prop_map(|(t, u, d)| Step::Send(t, u, d)),
            4 => (0..8u8, any::<u8>()).prop_map(|(t, u)| Step::Retry(t, u)),
        ];
        let passes = prop_oneof![6 => Just(0i64), 3 => 0..50i64, 1 => -5_000..5_000i64];
        prop::collection::vec((passes, step), 1..300)
    }

    /// What one step amounted to.
    #[derive(Debug, Clone, Copy, Default)]
    struct Done {
        /// Seconds, never going backwards.
        at: f64,
        first: f64,
        retry: f64,
        probe: f64,
        refusable: f64,
    }

    /// Runs the steps and checks each verdict against the level.
    fn run(steps: &[(i64, Step)]) -> Result<Vec<Done>, TestCaseError> {
        let mut caller = caller();
        let (mut clock, mut latest) = (START.as_millis() as i64, START);
        let mut done = Vec::new();
        for (passes, step) in steps {
            clock += passes;
            let now = Time::from_millis(clock as u64);
            latest = latest.max(now);
            let mut this = Done { at: latest.since(START).as_secs_f64(), ..Done::default() };
            let level = caller.level(now);
            match *step {
                Step::Learn(bits, ttl) => {
                    let level = AdmissionLevel::from_bits(bits % (1 << 26));
                    caller.learn(level, Duration::from_millis(ttl), now);
                }
                Step::Send(tier, user, draw) => {
                    let priority = Priority::new(Tier(tier * 9), user, 7);
                    let verdict = caller.send(priority, now, draw);
                    prop_assert_eq!(verdict == Verdict::Send, level.admits(priority));
                    this.first = f64::from(u8::from(verdict != Verdict::Shed));
                    this.probe = f64::from(u8::from(verdict == Verdict::Probe));
                    this.refusable = f64::from(u8::from(verdict != Verdict::Send));
                }
                Step::Retry(tier, user) => {
                    let priority = Priority::new(Tier(tier * 9), user, 7);
                    let retried = caller.retry(priority, now);
                    prop_assert!(!retried || level.admits(priority));
                    this.retry = f64::from(u8::from(retried));
                }
            }
            done.push(this);
        }
        Ok(done)
    }

    proptest! {
        #[test]
        fn no_interval_has_more_retries_or_probes_than_its_budget(steps in steps()) {
            let done = run(&steps)?;
            for (i, start) in done.iter().enumerate() {
                let before = done[..i].iter().map(|d| d.first * ((d.at - start.at) / 3.0).exp());
                let (mut retries, mut probes) = (30.0 + 0.2 * before.sum::<f64>(), PROBE_BURST);
                for end in &done[i..] {
                    retries += 0.2 * end.first - end.retry;
                    probes += 0.01 * end.refusable - end.probe;
                    let grown = 10.0 * (end.at - start.at) + 1e-6;
                    prop_assert!(retries + grown >= 0.0, "retries from {start:?} to {end:?}");
                    prop_assert!(probes + grown >= 0.0, "probes from {start:?} to {end:?}");
                }
            }
        }

        #[test]
        fn what_a_level_admits_a_wider_one_admits_too(
            bits in any::<[u32; 2]>(), tier in 0..64u8, user in any::<u8>(), fine in any::<u16>(),
        ) {
            let [narrow, wide] = [bits[0].min(bits[1]), bits[0].max(bits[1])];
            let priority = Priority::new(Tier(tier), user, fine);
            let verdict = |bits| {
                let mut caller = caller();
                caller.learn(AdmissionLevel::from_bits(bits), SECOND, START);
                caller.send(priority, START, u64::MAX)
            };
            prop_assert!(verdict(narrow) != Verdict::Send || verdict(wide) == Verdict::Send);
        }
    }
}
