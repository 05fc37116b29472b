//! Fixed limits beside the adaptive admission control: so many events a second,
//! with a burst, per room, user, client type and publishing application.
//!
//! Admission control shares out a capacity and lets everything pass while there
//! is some; a fixed limit holds at any load and says what one party may use at
//! all. The law is the generic cell rate algorithm, a token bucket that keeps
//! one number per key (`governor`).
//!
//! # Bounds
//! A key is kept as 128 bits of a keyed hash, so names of any length cost the
//! same and nobody can choose two that meet. Up to [`LimitSettings::keys`] keys
//! have a state of their own. Those that have recovered in full are swept out
//! when room is needed, for they are as good as new. What still finds no room
//! shares as many overflow cells, chosen by the hash: a million names cost what
//! a hundred thousand do, and the late ones are limited together with a few
//! strangers that nobody can pick.
//!
//! Time is handed in. One that goes back stands still until the former moment
//! is reached again; one that goes back far counts on from there.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
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

/// Every limit; `None`: there is none of this sort.
#[derive(Debug, Clone, Copy)]
pub struct LimitSettings {
    /// Of one room.
    pub room: Option<Rate>,
    /// Of one user, in all rooms of one home shard.
    pub user: Option<Rate>,
    /// Of all callers of one client type, in all of the server.
    pub client: Option<Rate>,
    /// Of one publishing application, in all of the server.
    pub application: Option<Rate>,
    /// Keys of each sort that have a state of their own; about 50 bytes each.
    pub keys: usize,
    /// Of the hash of keys. Random, so that nobody outside knows who shares an
    /// overflow cell with whom.
    pub seed: u128,
}

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitKind {
    /// [`LimitSettings::room`].
    Room,
    /// [`LimitSettings::user`].
    User,
    /// [`LimitSettings::client`].
    Client,
    /// [`LimitSettings::application`].
    Application,
}

impl LimitKind {
    /// Code on the wire and in metrics.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            LimitKind::Room => "room_limited",
            LimitKind::User => "user_limited",
            LimitKind::Client => "client_limited",
            LimitKind::Application => "application_limited",
        }
    }

    /// For people.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            LimitKind::Room => "the room takes no more events a second",
            LimitKind::User => "the user has sent as many events a second as one may",
            LimitKind::Client => "clients of this type send as many events a second as they may",
            LimitKind::Application => "the application sends as many events a second as it may",
        }
    }
}

/// A limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limited {
    /// Which one.
    pub by: LimitKind,
    /// How many of the events may still pass; the rest may not.
    pub granted: u32,
    /// One more may pass after this, if nobody else takes it.
    pub retry_after: Duration,
}

/// What [`KeyedLimiter::take`] did not grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exceeded {
    /// How many of the events may still pass.
    pub granted: u32,
    /// One more may pass after this, if nobody else takes it.
    pub retry_after: Duration,
}

/// The limits of rooms and users, for their home shard alone.
#[derive(Debug)]
pub struct RoomLimits {
    users: Option<KeyedLimiter>,
    rooms: Option<KeyedLimiter>,
}

impl RoomLimits {
    /// Nobody has sent anything.
    #[must_use]
    pub fn new(settings: &LimitSettings) -> Self {
        let limiter = |rate: Option<Rate>| Some(KeyedLimiter::new(rate?, settings));
        Self { users: limiter(settings.user), rooms: limiter(settings.room) }
    }

    /// Counts one event of `user` (empty: nobody in particular, no limit of a
    /// user) in `room`. The user comes first, so that what one user sends too
    /// much takes nothing from the room.
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn check_event(&mut self, room: &str, user: &str, now: Time) -> Result<(), Limited> {
        if let Some(users) = self.users.as_mut().filter(|_| !user.is_empty()) {
            users.take(user, 1, now).map_err(|exceeded| exceeded.of(LimitKind::User))?;
        }
        if let Some(rooms) = &mut self.rooms {
            rooms.take(room, 1, now).map_err(|exceeded| exceeded.of(LimitKind::Room))?;
        }
        Ok(())
    }
}

/// The limits of applications and client types, shared by all shards. Checked
/// once per request, not per event; without such limits no lock is taken.
#[derive(Debug)]
pub struct CallerLimits {
    applications: Option<Mutex<KeyedLimiter>>,
    clients: Option<Mutex<KeyedLimiter>>,
}

impl CallerLimits {
    /// Nobody has sent anything.
    #[must_use]
    pub fn new(settings: &LimitSettings) -> Self {
        let limiter = |rate: Option<Rate>| Some(Mutex::new(KeyedLimiter::new(rate?, settings)));
        Self { applications: limiter(settings.application), clients: limiter(settings.client) }
    }

    /// Counts `events` of a caller: the first of them may pass, as many as both
    /// limits grant. A viewer is no application: `None`. What the client type's
    /// limit then refuses has still been taken from the application's.
    ///
    /// # Errors
    /// The limit that is reached, the client type's if both are.
    pub fn take(
        &self,
        application: Option<&str>,
        client: &str,
        events: u32,
        now: Time,
    ) -> Result<(), Limited> {
        let mut outcome = Ok(());
        let mut left = events;
        let limits = [(LimitKind::Application, application), (LimitKind::Client, Some(client))];
        for ((by, key), limiter) in limits.into_iter().zip([&self.applications, &self.clients]) {
            let (Some(key), Some(limiter)) = (key, limiter) else { continue };
            // A limiter is whole after a panic too: its numbers are plain.
            let mut limiter = limiter.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(exceeded) = limiter.take(key, left, now) {
                left = exceeded.granted;
                outcome = Err(exceeded.of(by));
            }
        }
        outcome
    }
}

/// The client types of a shard's viewers, by number: a viewer keeps a byte
/// instead of a name.
#[derive(Debug, Default)]
pub struct ClientTypes(Vec<Box<str>>);

impl ClientTypes {
    /// The number of a type; those after the 255th share one. Looked for from
    /// the first to the last, since there are few and one joins seldom.
    pub fn number(&mut self, name: &str) -> u8 {
        let known = self.0.iter().position(|known| **known == *name);
        let number = known.unwrap_or_else(|| {
            if self.0.len() < usize::from(u8::MAX) {
                self.0.push(name.into());
                self.0.len() - 1
            } else {
                self.0.len()
            }
        });
        number as u8
    }

    /// The name of a number.
    #[must_use]
    pub fn name(&self, number: u8) -> &str {
        self.0.get(usize::from(number)).map_or("other", |name| name)
    }
}

impl Exceeded {
    fn of(self, by: LimitKind) -> Limited {
        Limited { by, granted: self.granted, retry_after: self.retry_after }
    }
}

/// One rate for each of any number of keys, in bounded memory. See the module's
/// documentation.
pub struct KeyedLimiter {
    limiter: RateLimiter<u128, Cells, Elapsed, NoOpMiddleware<Nanos>>,
    limit: usize,
    seed: u128,
    last: Option<Time>,
    swept: Nanos,
}

impl KeyedLimiter {
    /// No key has sent anything.
    #[must_use]
    pub fn new(rate: Rate, settings: &LimitSettings) -> Self {
        let quota = Quota::per_second(rate.per_second).allow_burst(rate.burst);
        let limit = settings.keys.max(1);
        let limiter = RateLimiter::new(quota, Cells::new(limit), Elapsed::default());
        Self { limiter, limit, seed: settings.seed, last: None, swept: Nanos::from(0) }
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

    fn settings(keys: usize) -> LimitSettings {
        let none = LimitSettings {
            room: None,
            user: None,
            client: None,
            application: None,
            keys,
            seed: 7,
        };
        LimitSettings { user: Rate::new(10, 20), room: Rate::new(100, 50), ..none }
    }

    fn limiter(per_second: u32, burst: u32, keys: usize) -> KeyedLimiter {
        KeyedLimiter::new(Rate::new(per_second, burst).expect("a rate"), &settings(keys))
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

    #[test]
    fn a_user_in_excess_takes_nothing_from_the_room() {
        let mut limits = RoomLimits::new(&settings(100));
        let mut by = [0; 3];
        for _ in 0..1_000 {
            match limits.check_event("r", "loud", at(0)) {
                Ok(()) => by[0] += 1,
                Err(limited) if limited.by == LimitKind::User => by[1] += 1,
                Err(_) => by[2] += 1,
            }
        }
        assert_eq!(by, [20, 980, 0]);
        // Nobody in particular has no limit but the room's: 50 less 20.
        let unnamed = (0..100).filter(|_| limits.check_event("r", "", at(0)).is_ok()).count();
        assert_eq!(unnamed, 30);
        let refused = limits.check_event("r", "quiet", at(0)).expect_err("the room is full");
        assert_eq!(refused.by.code(), "room_limited");
        assert!(limits.check_event("other", "quiet", at(0)).is_ok());
    }

    #[test]
    fn client_types_have_numbers_and_the_256th_shares_one() {
        let mut types = ClientTypes::default();
        let numbers: Vec<u8> = (0..300).map(|i| types.number(&format!("type-{i}"))).collect();
        assert_eq!(numbers[..255], (0..255).collect::<Vec<u8>>());
        assert!(numbers[255..].iter().all(|number| *number == 255));
        assert_eq!(
            (types.number("type-7"), types.name(7), types.name(255)),
            (7, "type-7", "other")
        );
    }

    #[test]
    fn callers_are_limited_by_application_and_by_client_type() {
        let settings = LimitSettings {
            application: Rate::new(10, 100),
            client: Rate::new(10, 150),
            ..settings(100)
        };
        let limits = CallerLimits::new(&settings);
        assert_eq!(limits.take(Some("im"), "publisher", 80, at(0)), Ok(()));
        let refused = limits.take(Some("im"), "publisher", 80, at(0)).expect_err("80 + 80 > 100");
        assert_eq!((refused.by, refused.granted), (LimitKind::Application, 20));
        let refused = limits.take(Some("gifts"), "publisher", 80, at(0)).expect_err("180 > 150");
        assert_eq!((refused.by, refused.granted), (LimitKind::Client, 50));
        assert_eq!(limits.take(None, "ios", 80, at(0)), Ok(()));
        let open =
            CallerLimits::new(&LimitSettings { application: None, client: None, ..settings });
        assert_eq!(open.take(Some("im"), "publisher", u32::MAX, at(0)), Ok(()));
    }
}
