//! Fixed limits beside the adaptive admission control: so many events a second,
//! with a burst, per room, user, client type and publishing application.
//!
//! Admission control shares out a capacity and lets everything pass while there
//! is some; a fixed limit holds at any load and says what one party may use at
//! all. [`keyed`] holds the law and the bound on memory.

pub mod keyed;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use self::keyed::{Exceeded, KeyedLimiter, Rate};
use crate::engine::time::Time;

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
        let limiter =
            |rate: Option<Rate>| Some(KeyedLimiter::new(rate?, settings.keys, settings.seed));
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
        let limiter = |rate: Option<Rate>| {
            Some(Mutex::new(KeyedLimiter::new(rate?, settings.keys, settings.seed)))
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> LimitSettings {
        LimitSettings {
            user: Rate::new(10, 20),
            room: Rate::new(100, 50),
            client: None,
            application: None,
            keys: 100,
            seed: 7,
        }
    }

    fn at(millis: u64) -> Time {
        Time::from_millis(1_800_000_000_000 + millis)
    }

    #[test]
    fn a_user_in_excess_takes_nothing_from_the_room() {
        let mut limits = RoomLimits::new(&settings());
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
            ..settings()
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
