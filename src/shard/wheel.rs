//! One timer wheel per shard instead of a timer per viewer: slots of one
//! second, an entry of eight bytes for each viewer.
//!
//! A viewer has exactly one valid entry, the one whose second equals its row's
//! `due`. Rescheduling to an earlier second adds an entry and leaves the old
//! one to be recognised as stale: cheaper than finding it (hashed wheels,
//! Varghese and Lauck, SOSP 1987).

use std::collections::VecDeque;

use super::connection::ViewerKey;

/// Seconds one turn covers; later ones wait for further turns.
const SLOTS: usize = 64;

/// See the module's documentation.
#[derive(Debug)]
pub struct Wheel {
    slots: Vec<Vec<(ViewerKey, u32)>>,
    second: u32,
}

impl Default for Wheel {
    fn default() -> Self {
        Self { slots: vec![Vec::new(); SLOTS], second: 0 }
    }
}

impl Wheel {
    /// Wake `key` in second `due` (or the next one, if that has passed).
    pub fn insert(&mut self, key: ViewerKey, due: u32) -> u32 {
        let due = due.max(self.second + 1);
        self.slots[due as usize % SLOTS].push((key, due));
        due
    }

    /// Everything due up to `second`.
    pub fn advance(&mut self, second: u32, fired: &mut VecDeque<(ViewerKey, u32)>) {
        let turns = (second.saturating_sub(self.second) as usize).min(SLOTS);
        for step in 0..turns {
            let slot = &mut self.slots[(self.second as usize + 1 + step) % SLOTS];
            slot.retain(|entry| {
                let due = entry.1 <= second;
                if due {
                    fired.push_back(*entry);
                }
                !due
            });
        }
        self.second = self.second.max(second);
    }

    /// The next second to advance to.
    #[must_use]
    pub fn next_second(&self) -> u32 {
        self.second + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_fires_once_and_not_early() {
        let mut wheel = Wheel::default();
        let key = |index| ViewerKey { index, generation: 0 };
        for due in 1..300 {
            wheel.insert(key(due), due);
        }
        let mut seen = Vec::new();
        for second in (0..400).step_by(7) {
            let mut fired = VecDeque::new();
            wheel.advance(second, &mut fired);
            for (key, due) in fired {
                assert_eq!(key.index, due);
                assert!(due <= second && due + 7 > second, "{due} at {second}");
                seen.push(due);
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (1..300).collect::<Vec<_>>());
    }

    #[test]
    fn a_long_pause_fires_everything_that_passed() {
        let mut wheel = Wheel::default();
        for due in [1, 63, 64, 65, 200] {
            wheel.insert(ViewerKey { index: due, generation: 0 }, due);
        }
        let mut fired = VecDeque::new();
        wheel.advance(10_000, &mut fired);
        assert_eq!(fired.len(), 5);
    }
}
