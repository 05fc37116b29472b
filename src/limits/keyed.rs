//! One rate for each of any number of keys, in bounded memory.
//!
//! The law is the generic cell rate algorithm, a token bucket that keeps one
//! number per key: when its bucket will be full again (`governor`).
//!
//! A key is kept as 128 bits of a keyed hash, so names of any length cost the
//! same and nobody can choose two that meet. Up to a limit keys have a state of
//! their own. Those that have recovered in full are swept out when room is
//! needed, for they are as good as new. What still finds no room shares as many
//! overflow cells, chosen by the hash: a million names cost what a hundred
//! thousand do, and the late ones are limited together with a few strangers that
//! nobody can pick.
//!
//! Time is handed in. One that goes back stands still until the former moment
//! is reached again; one that goes back far counts on from there.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::state::keyed::ShrinkableKeyedStateStore;
use governor::{Quota, RateLimiter};
use siphasher::sip128::SipHasher13;

use crate::engine::time::Time;

/// Pause between two sweeps of a store that is full: a sweep looks at every key.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// A time that goes back further than this is a new beginning; less is two
/// threads that read their clocks in one order and came here in the other.
const NEW_BEGINNING: Duration = Duration::from_secs(1);

/// A leap ahead counts as this at most; every bucket is full long before.
const LONGEST_LEAP: Duration = Duration::from_secs(1_000 * 24 * 3_600);

/// So many events a second on average, and so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    per_second: NonZeroU32,
    burst: NonZeroU32,
}

impl Rate {
    /// `None`, no limit, for 0 a second. A burst is at least one event.
    #[must_use]
    pub fn new(per_second: u32, burst: u32) -> Option<Self> {
        let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
        Some(Self { per_second: NonZeroU32::new(per_second)?, burst })
    }
}

/// What [`KeyedLimiter::take`] did not grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exceeded {
    /// How many of the events may still pass.
    pub granted: u32,
    /// One more may pass after this, if nobody else takes it.
    pub retry_after: Duration,
}

/// See the module's documentation.
pub struct KeyedLimiter {
    limiter: RateLimiter<u128, Cells, Elapsed, NoOpMiddleware<Nanos>>,
    limit: usize,
    seed: u128,
    last: Option<Time>,
    swept: Nanos,
}

impl KeyedLimiter {
    /// No key has sent anything. `keys` of them have a state of their own; `seed`
    /// is random, so that nobody outside knows who shares a cell with whom.
    #[must_use]
    pub fn new(rate: Rate, keys: usize, seed: u128) -> Self {
        let quota = Quota::per_second(rate.per_second).allow_burst(rate.burst);
        let limit = keys.max(1);
        let limiter = RateLimiter::new(quota, Cells::new(limit), Elapsed::default());
        Self { limiter, limit, seed, last: None, swept: Nanos::from(0) }
    }

    /// Grants `events` to `key`, or as many as it has left.
    ///
    /// # Errors
    /// Fewer are granted than were asked for; those are taken all the same.
    pub fn take(&mut self, key: &str, events: u32, now: Time) -> Result<(), Exceeded> {
        self.advance(now);
        let key = hash(self.seed, key);
        let Some(wanted) = NonZeroU32::new(events) else { return Ok(()) };
        if self.grant(key, wanted) {
            return Ok(());
        }
        // What is left is less than that: its binary digits, highest first.
        let mut granted = 0;
        for digit in (0..=wanted.ilog2()).rev() {
            let part = 1_u32 << digit;
            if NonZeroU32::new(part).is_some_and(|part| self.grant(key, part)) {
                granted += part;
            }
        }
        let retry_after = match self.limiter.check_key(&key) {
            Ok(()) => {
                granted += 1;
                Duration::ZERO
            }
            Err(not_until) => not_until.wait_time_from(self.limiter.clock().now()),
        };
        Err(Exceeded { granted, retry_after })
    }

    /// Keys with a state of their own.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.limiter.len()
    }

    fn grant(&self, key: u128, events: NonZeroU32) -> bool {
        matches!(self.limiter.check_key_n(&key, events), Ok(Ok(())))
    }

    fn advance(&mut self, now: Time) {
        let clock = self.limiter.clock();
        let last = self.last.unwrap_or(now);
        if now >= last || last.since(now) > NEW_BEGINNING {
            clock.0.set(clock.now() + Nanos::from(now.since(last).min(LONGEST_LEAP)));
            self.last = Some(now);
        }
        let full = self.limiter.len() >= self.limit;
        if full && clock.now() >= self.swept + Nanos::from(SWEEP_PAUSE) {
            self.swept = clock.now();
            self.limiter.retain_recent();
        }
    }
}

impl fmt::Debug for KeyedLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedLimiter").field("keys", &self.keys()).finish_non_exhaustive()
    }
}

/// What stands for a key. Two keys meet so rarely (about 2^-64 after 2^32 of
/// them) that the hash can take their place.
fn hash(seed: u128, key: &str) -> u128 {
    let hasher = SipHasher13::new_with_keys(seed as u64, (seed >> 64) as u64);
    hasher.hash(key.as_bytes()).as_u128()
}

/// Time since the first event, which moves when it is told to.
#[derive(Debug, Default)]
struct Elapsed(Cell<Nanos>);

impl Clock for Elapsed {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.get()
    }
}

/// One number per key: when its bucket will be full again.
struct Cells {
    exact: RefCell<HashMap<u128, Nanos, foldhash::fast::FixedState>>,
    /// Made when the first key finds no room.
    overflow: RefCell<Box<[Nanos]>>,
    limit: usize,
}

impl Cells {
    fn new(limit: usize) -> Self {
        // The keys are keyed hashes: a second secret would add nothing.
        let exact = HashMap::with_hasher(foldhash::fast::FixedState::default());
        Self { exact: RefCell::new(exact), overflow: RefCell::default(), limit }
    }
}

impl StateStore for Cells {
    type Key = u128;

    fn measure_and_replace<T, F, E>(&self, key: &u128, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut exact = self.exact.borrow_mut();
        if let Some(full) = exact.get_mut(key) {
            let (allowed, then) = decide(Some(*full))?;
            *full = then;
            return Ok(allowed);
        }
        if exact.len() < self.limit {
            let (allowed, then) = decide(None)?;
            exact.insert(*key, then);
            return Ok(allowed);
        }
        let mut overflow = self.overflow.borrow_mut();
        if overflow.is_empty() {
            *overflow = vec![Nanos::from(0); self.limit].into();
        }
        let index = (key % overflow.len() as u128) as usize;
        let (allowed, then) = decide(Some(overflow[index]))?;
        overflow[index] = then;
        Ok(allowed)
    }
}

impl ShrinkableKeyedStateStore<u128> for Cells {
    fn retain_recent(&self, drop_below: Nanos) {
        self.exact.borrow_mut().retain(|_, full| *full > drop_below);
    }

    fn len(&self) -> usize {
        self.exact.borrow().len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(per_second: u32, burst: u32, keys: usize) -> KeyedLimiter {
        KeyedLimiter::new(Rate::new(per_second, burst).expect("a rate"), keys, 7)
    }

    fn at(millis: u64) -> Time {
        Time::from_millis(1_800_000_000_000 + millis)
    }

    /// How many of `events` single ones pass at once.
    fn passed(limiter: &mut KeyedLimiter, key: &str, events: u32, now: Time) -> u32 {
        (0..events).filter(|_| limiter.take(key, 1, now).is_ok()).count() as u32
    }

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate_holds() {
        let mut limiter = limiter(10, 20, 100);
        assert_eq!(passed(&mut limiter, "a", 100, at(0)), 20);
        let refused = limiter.take("a", 1, at(0)).expect_err("used up");
        assert_eq!((refused.granted, refused.retry_after), (0, Duration::from_millis(100)));
        // For ten seconds, asked every 10 ms: ten a second.
        let over_time: u32 = (1..=1_000).map(|i| passed(&mut limiter, "a", 5, at(i * 10))).sum();
        assert_eq!(over_time, 100);
        // A long silence earns one burst, not more.
        assert_eq!(passed(&mut limiter, "a", 100, at(3_600_000)), 20);
    }

    #[test]
    fn the_advice_when_to_return_is_right_to_the_millisecond() {
        let mut limiter = limiter(8, 1, 100);
        assert!(limiter.take("a", 1, at(0)).is_ok());
        let refused = limiter.take("a", 1, at(25)).expect_err("too early");
        assert_eq!(refused.retry_after, Duration::from_millis(100));
        assert!(limiter.take("a", 1, at(124)).is_err());
        assert!(limiter.take("a", 1, at(125)).is_ok());
    }

    #[test]
    fn of_many_events_as_many_are_granted_as_are_left() {
        for left in [0, 1, 5, 21, 64, 99] {
            let mut limiter = limiter(10, 100, 100);
            assert!(limiter.take("a", 100 - left, at(0)).is_ok());
            let refused = limiter.take("a", 1_000, at(0)).expect_err("more than are left");
            assert_eq!(refused.granted, left);
            assert_eq!(refused.retry_after, Duration::from_millis(100));
            assert_eq!(passed(&mut limiter, "a", 1, at(0)), 0, "those granted are taken");
        }
        let mut limiter = limiter(10, 100, 100);
        assert_eq!(limiter.take("a", u32::MAX, at(0)).expect_err("too many").granted, 100);
        assert!(limiter.take("a", 0, at(0)).is_ok());
    }

    #[test]
    fn keys_do_not_touch_each_other() {
        let mut limiter = limiter(10, 20, 100);
        assert_eq!(passed(&mut limiter, "a", 100, at(0)), 20);
        assert_eq!(passed(&mut limiter, "b", 100, at(0)), 20);
        assert_eq!(passed(&mut limiter, "", 100, at(0)), 20);
    }

    #[test]
    fn a_million_keys_take_bounded_memory_and_known_ones_keep_their_rate() {
        let mut limiter = limiter(10, 20, 1_000);
        assert_eq!(passed(&mut limiter, "known", 100, at(0)), 20);
        let mut granted = 0;
        for i in 0..1_000_000 {
            // All within a second, so that nothing recovers in full.
            granted += passed(&mut limiter, &format!("user-{i}"), 1, at(i / 2_000));
        }
        assert!(limiter.keys() <= 1_000, "{} keys", limiter.keys());
        assert_eq!(limiter.limiter.into_state_store().overflow.borrow().len(), 1_000);
        // Late names share cells, so they get less than their own would give.
        assert!((1_000..60_000).contains(&granted), "{granted} granted");
    }

    #[test]
    fn who_has_recovered_makes_room_and_who_has_not_stays() {
        let mut limiter = limiter(10, 20, 1_000);
        for i in 0..999 {
            assert!(limiter.take(&format!("first-{i}"), 1, at(0)).is_ok());
        }
        assert_eq!(passed(&mut limiter, "flooder", 1_000, at(1_900)), 20);
        assert!(limiter.take("second", 1, at(2_000)).is_ok());
        assert_eq!(limiter.keys(), 2, "those with a full bucket are gone");
        assert_eq!(passed(&mut limiter, "flooder", 1_000, at(2_000)), 1);
    }

    #[test]
    fn an_attacker_with_a_million_names_leaves_known_users_alone() {
        let mut limiter = limiter(10, 20, 1_000);
        assert!(limiter.take("known", 1, at(0)).is_ok());
        for i in 0..100_000 {
            // A user who speaks twice a second has not recovered in full when
            // the next sweep comes, or is let in again afterwards.
            if i % 10_000 == 0 {
                assert!(limiter.take("known", 4, at(i / 20)).is_ok(), "at {i}");
            }
            let _ = limiter.take(&format!("name-{i}"), 1, at(i / 20));
        }
    }

    #[test]
    fn a_clock_that_stands_goes_back_or_leaps_gives_nothing_away_and_locks_nobody_out() {
        let mut limiter = limiter(10, 20, 100);
        assert_eq!(passed(&mut limiter, "a", 1_000, at(5_000_000)), 20);
        assert_eq!(passed(&mut limiter, "a", 1_000, at(5_000_000)), 0, "it stands");
        // Two threads that meet in the wrong order gain nothing by it.
        for i in 0..100 {
            let jitter = if i % 2 == 0 { 0 } else { 900 };
            assert_eq!(passed(&mut limiter, "a", 10, at(5_000_000 - jitter)), 0);
        }
        // An hour back: the rate goes on from there at once.
        assert_eq!(passed(&mut limiter, "a", 1_000, at(1_400_000)), 0);
        assert_eq!(passed(&mut limiter, "a", 1_000, at(1_401_000)), 10);
        // To the end of time and back: one burst.
        assert_eq!(passed(&mut limiter, "a", 1_000, Time::from_micros(u64::MAX)), 20);
        assert_eq!(passed(&mut limiter, "a", 1_000, at(0)), 0);
        assert_eq!(passed(&mut limiter, "a", 1_000, at(1_000)), 10);
    }
}
