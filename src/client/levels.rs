//! Which level to keep to in which room.
//!
//! A level is that of the shard that is the room's home, and the shards of one
//! server may stand differently: one with a storm in it is overloaded, the others
//! are not. So levels are kept by room. A publisher does not know which rooms
//! share a home, and therefore a room without a level of its own is held to the
//! *widest* level of the others: it is shed only if no home that is known would
//! take it, and when the whole server is overloaded, it is. And because even that
//! may be wrong, its events are the first to be sent as probes.

use std::collections::HashMap;

use crate::engine::caller::LearnedLevel;
use crate::engine::ids::RoomId;
use crate::engine::priority::AdmissionLevel;
use crate::engine::time::Time;

/// Levels of rooms, the newest of each.
#[derive(Debug)]
pub(super) struct Levels {
    rooms: HashMap<RoomId, LearnedLevel>,
    most: usize,
}

/// What is known of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// The level of its home.
    Own(LearnedLevel),
    /// That of the most open home there is news of.
    Widest(LearnedLevel),
    /// Nothing holds: everything may be sent.
    Nothing,
}

impl Levels {
    /// Remembers up to `most` rooms, about 100 bytes each beside their names.
    pub(super) fn new(most: usize) -> Self {
        Self { rooms: HashMap::new(), most }
    }

    /// An answer from the room's home carried this. With too many rooms a new one
    /// is not remembered, and is held to what is known of the others.
    pub(super) fn learn(&mut self, room: &RoomId, level: LearnedLevel, now: Time) {
        if let Some(known) = self.rooms.get_mut(room) {
            *known = level;
            return;
        }
        if self.rooms.len() >= self.most {
            self.rooms.retain(|_, level| level.holds(now));
        }
        if self.rooms.len() < self.most {
            self.rooms.insert(room.clone(), level);
        }
    }

    pub(super) fn of(&self, room: &RoomId, now: Time) -> Known {
        if let Some(level) = self.rooms.get(room).filter(|level| level.holds(now)) {
            return Known::Own(*level);
        }
        let held = self.rooms.values().filter(|level| level.holds(now));
        match held.max_by_key(|level| level.at(now)) {
            Some(level) => Known::Widest(*level),
            None => Known::Nothing,
        }
    }
}

impl Known {
    /// The level to keep to.
    pub(super) fn level(&self, now: Time) -> AdmissionLevel {
        match self {
            Known::Own(level) | Known::Widest(level) => level.at(now),
            Known::Nothing => AdmissionLevel::OPEN,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const NOW: Time = Time::from_millis(1_700_000_000_000);

    fn room(name: &str) -> RoomId {
        RoomId::new(name).unwrap()
    }

    fn tier(tier: u8) -> LearnedLevel {
        LearnedLevel::new(AdmissionLevel::from_wire(tier, 127, None), SECOND, NOW)
    }

    #[test]
    fn a_room_keeps_to_its_own_level_and_an_unknown_one_to_the_widest() {
        let mut levels = Levels::new(10);
        assert_eq!(levels.of(&room("a"), NOW), Known::Nothing);
        levels.learn(&room("hot"), tier(1), NOW);
        levels.learn(&room("warm"), tier(4), NOW);
        assert_eq!(levels.of(&room("hot"), NOW), Known::Own(tier(1)));
        assert_eq!(levels.of(&room("new"), NOW), Known::Widest(tier(4)));
        levels.learn(&room("warm"), tier(2), NOW);
        assert_eq!(levels.of(&room("new"), NOW).level(NOW), tier(2).at(NOW));
        let later = NOW + SECOND;
        assert_eq!(levels.of(&room("hot"), later), Known::Nothing);
        assert!(levels.of(&room("hot"), later).level(later).is_open());
    }

    #[test]
    fn rooms_are_bounded_and_those_whose_time_is_over_make_way() {
        let mut levels = Levels::new(2);
        for name in ["a", "b", "c"] {
            levels.learn(&room(name), tier(1), NOW);
        }
        assert_eq!(levels.rooms.len(), 2);
        assert_eq!(levels.of(&room("c"), NOW), Known::Widest(tier(1)));
        let later = NOW + SECOND;
        let level = LearnedLevel::new(AdmissionLevel::SHUT, SECOND, later);
        levels.learn(&room("c"), level, later);
        assert_eq!((levels.rooms.len(), levels.of(&room("c"), later)), (1, Known::Own(level)));
    }
}
