//! The deadlines of a shard's connections.
//!
//! Most deadlines are never met: an acknowledgement comes, and the next one is
//! half a minute away. So entries are not taken back: one that comes up early
//! has its connection looked at, which then says what it waits for now. Two
//! entries per connection are known, so that a near deadline that passes falls
//! back on the far one instead of leaving another entry behind with every packet.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// The entries of one connection, the earlier first.
#[derive(Debug, Clone, Copy, Default)]
pub struct Entries([Option<Instant>; 2]);

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Timers(BinaryHeap<Reverse<(Instant, u32)>>);

impl Timers {
    /// A connection wants to be looked at by `at`.
    pub fn set(&mut self, index: u32, entries: &mut Entries, at: Instant) {
        if entries.0[0].is_some_and(|first| first <= at) {
            return;
        }
        entries.0 = [Some(at), entries.0[0].or(entries.0[1])];
        self.0.push(Reverse((at, index)));
    }

    /// When the first entry comes up.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse((at, _))| *at)
    }

    /// The next connection whose entry has come up, and when it should have.
    pub fn expired(&mut self, now: Instant) -> Option<(Instant, u32)> {
        self.next().filter(|at| *at <= now)?;
        self.0.pop().map(|Reverse(entry)| entry)
    }

    /// Entries there are, in use or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Entries {
    /// An entry has come up. False if it is one that nobody waits for any more.
    pub fn passed(&mut self, at: Instant) -> bool {
        let known = self.0.contains(&Some(at));
        match self.0 {
            [Some(first), second] if first == at => self.0 = [second, None],
            [first, Some(second)] if second == at => self.0 = [first, None],
            _ => {}
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn a_connection_is_looked_at_no_later_than_it_asked() {
        let start = crate::clock::Clock::start().instant(Default::default());
        let (mut timers, mut entries) = (Timers::default(), Entries::default());
        timers.set(7, &mut entries, at(start, 500));
        timers.set(7, &mut entries, at(start, 100));
        timers.set(7, &mut entries, at(start, 300));
        assert_eq!(timers.expired(at(start, 99)), None);
        let (due, index) = timers.expired(at(start, 100)).expect("due");
        assert!(index == 7 && entries.passed(due));
        assert_eq!(timers.expired(at(start, 499)), None, "300 was covered by 100");
        // What was covered is asked for again by whoever was looked at.
        timers.set(7, &mut entries, at(start, 300));
        let (due, _) = timers.expired(at(start, 300)).expect("due");
        assert!(entries.passed(due));
        assert!(timers.expired(at(start, 500)).is_some());
    }

    #[test]
    fn a_packet_a_second_leaves_no_entries_behind() {
        let start = crate::clock::Clock::start().instant(Default::default());
        let (mut timers, mut entries) = (Timers::default(), Entries::default());
        timers.set(1, &mut entries, at(start, 60_000));
        for second in 0..3_600 {
            let now = second * 1_000;
            while let Some((due, _)) = timers.expired(at(start, now)) {
                if entries.passed(due) {
                    timers.set(1, &mut entries, at(start, now + 60_000));
                }
            }
            timers.set(1, &mut entries, at(start, now + 300));
            assert!(timers.len() <= 3, "{} entries at {second} s", timers.len());
        }
    }
}
