//! Rooms flush at different moments, so that load is level.
//!
//! If every room waited a full interval after its first event, a burst that hits
//! many rooms at once (a programme on all of them, a shared publisher's batch)
//! would be flushed by all of them at once, one interval later, and again one
//! interval after that. So each room has a grid of ticks, one interval apart,
//! whose phase is a keyed hash of its name, and flushes at the next tick. The
//! wait is then at most the interval, and half of it on average.

use std::time::Duration;

use super::ids::RoomId;
use super::level::{LevelKey, Use};
use super::time::Time;

/// The grid of one room.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticks {
    /// Microseconds; 0: no grid, every moment is a tick.
    interval: u64,
    /// Below `interval`.
    phase: u64,
}

impl Ticks {
    /// The grid of `room`.
    pub(super) fn new(room: &RoomId, key: LevelKey, interval: Duration) -> Self {
        let interval = u64::try_from(interval.as_micros()).unwrap_or(u64::MAX / 4);
        let phase = key.hash64(Use::Phase, room.as_str()).checked_rem(interval).unwrap_or(0);
        Self { interval, phase }
    }

    /// The first tick after `time`, at most one interval later.
    pub(super) fn after(self, time: Time) -> Time {
        let since_tick =
            (time.as_micros() + self.interval - self.phase).checked_rem(self.interval).unwrap_or(0);
        time + Duration::from_micros(self.interval - since_tick)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::START;

    fn ticks(room: usize, ms: u64) -> Ticks {
        let room = RoomId::new(&format!("r{room}")).expect("a valid name");
        Ticks::new(&room, LevelKey::from_seed(7), Duration::from_millis(ms))
    }

    #[test]
    fn the_next_tick_is_at_most_one_interval_away_and_on_the_rooms_own_grid() {
        let grid = ticks(1, 100);
        let first = grid.after(START);
        for us in (0..300_000).step_by(77) {
            let now = START + Duration::from_micros(us);
            let tick = grid.after(now);
            assert!(tick > now && tick.since(now) <= Duration::from_millis(100));
            assert_eq!((tick.as_micros() - first.as_micros()) % 100_000, 0);
        }
    }

    #[test]
    fn rooms_spread_over_the_interval() {
        let mut tenths = [0; 10];
        for room in 0..1_000 {
            let wait = ticks(room, 100).after(START).since(START).as_micros();
            tenths[(wait as usize - 1) / 10_000] += 1;
        }
        assert!(tenths.iter().all(|n| (60..150).contains(n)), "{tenths:?}");
    }

    #[test]
    fn without_an_interval_nothing_waits() {
        assert_eq!(ticks(1, 0).after(START), START);
    }
}
