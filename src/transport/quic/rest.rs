//! Which connections rest, and which are at work.
//!
//! Packing a connection and making it whole again takes more than a microsecond, both
//! together (1.1 µs at best for as many words as a connection has, half of them
//! zero), and a frame would pay that twice, for its acknowledgement as well. So a
//! connection that sends again and again stays whole in between, and pays nothing;
//! who sends seldom is packed after each turn. What it sends counts, not what it
//! receives: a frame is one burst, whenever its acknowledgement comes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A connection whose bursts come less than this apart stays whole between them.
pub const REST: Duration = Duration::from_secs(2);

/// What is sent this soon after a burst has begun is part of it: a message that
/// takes several turns, or what a viewer is told when it joins.
const BURST: Duration = Duration::from_millis(500);

/// From its beginning until then a connection is never at work: through a storm of
/// joins all of them would be whole at once, and that is memory that an allocator
/// gives back late.
const YOUNG: Duration = Duration::from_secs(5);

/// One connection.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// When its last burst began. The first one is its youth, and what counts is its
    /// end.
    began: Instant,
    row: Row,
    /// It has an entry in the queue.
    queued: bool,
}

/// Bursts in a row, less than [`REST`] apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Row {
    None,
    One,
    /// It is at work.
    More,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Paces {
    of: Vec<Pace>,
    /// Who is at work, and when that was last seen.
    busy: VecDeque<(Instant, u32)>,
}

impl Paces {
    /// A connection begins.
    pub(super) fn begin(&mut self, index: u32, now: Instant) {
        let index = index as usize;
        let fresh = Pace { began: now + YOUNG, row: Row::None, queued: false };
        if self.of.len() <= index {
            self.of.resize(index + 1, fresh);
        }
        // Of the one that was here before, an entry may be left.
        self.of[index] = Pace { queued: self.of[index].queued, ..fresh };
    }

    /// It has sent something. It must have begun.
    pub(super) fn sent(&mut self, index: u32, now: Instant) {
        let pace = &mut self.of[index as usize];
        let since = now.saturating_duration_since(pace.began);
        if since < BURST {
            return;
        }
        pace.began = now;
        pace.row = if pace.row == Row::None || since >= REST { Row::One } else { Row::More };
        if pace.row == Row::More && !pace.queued {
            pace.queued = true;
            self.busy.push_back((now, index));
        }
    }

    /// Whether it stays whole.
    pub(super) fn is_busy(&self, index: u32) -> bool {
        self.of[index as usize].row == Row::More
    }

    /// When [`rested`](Self::rested) wants to be called.
    pub(super) fn next(&self) -> Option<Instant> {
        self.busy.front().map(|(seen, _)| *seen + REST)
    }

    /// A connection that has come to rest: at least [`REST`] after its last burst, at
    /// most twice that.
    pub(super) fn rested(&mut self, now: Instant) -> Option<u32> {
        while let Some((_, index)) = self.busy.pop_front_if(|(seen, _)| *seen + REST <= now) {
            let pace = &mut self.of[index as usize];
            pace.queued = false;
            if pace.row != Row::More {
                continue;
            }
            if pace.began + REST <= now {
                pace.row = Row::None;
                return Some(index);
            }
            pace.queued = true;
            self.busy.push_back((pace.began, index));
        }
        if self.busy.is_empty() {
            self.busy = VecDeque::new();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    /// Sends every so many milliseconds from then on, and returns whether it was at
    /// work at the end, and how much later it came to rest.
    fn paced(from: u64, every: u64, times: u64) -> (bool, Option<u64>) {
        let start = Clock::start().instant(Default::default());
        let mut paces = Paces::default();
        paces.begin(3, start);
        let at = |ms| start + Duration::from_millis(ms);
        let last = from + every * (times - 1);
        let mut busy = false;
        for now in from..last + 10_000 {
            if now <= last && (now - from).is_multiple_of(every) {
                paces.sent(3, at(now));
                busy = paces.is_busy(3);
            }
            let due = paces.next().is_some_and(|next| next <= at(now));
            if let Some(index) = paces.rested(at(now)) {
                assert!(due, "nobody would have asked");
                assert_eq!((index, paces.is_busy(3)), (3, false));
                assert!(now > last, "at rest between two bursts");
                assert_eq!(paces.next(), None);
                return (busy, Some(now - last));
            }
        }
        (busy, None)
    }

    #[test]
    fn who_sends_every_second_stays_whole_and_rests_afterwards() {
        for every in [10, 100, 499, 500, 1_000, 1_999] {
            for from in [0, 5_000, 60_000] {
                let (busy, rested) = paced(from, every, 3 + 8_000 / every);
                assert!(busy, "every {every} ms");
                let rested = rested.expect("at rest");
                assert!((1_000..=4_000).contains(&rested), "after {rested} ms");
            }
        }
        // The second frame is enough.
        assert!(paced(6_000, 1_000, 2).0);
    }

    #[test]
    fn who_sends_seldom_or_once_is_at_rest_at_once() {
        assert_eq!(paced(0, 2_000, 10), (false, None));
        assert_eq!(paced(60_000, 30_000, 5), (false, None));
        assert_eq!(paced(60_000, 1_000, 1), (false, None));
        assert_eq!(paced(60_000, 50, 10), (false, None));
    }

    #[test]
    fn who_has_just_joined_is_at_rest_however_much_it_is_told() {
        assert_eq!(paced(0, 50, 100), (false, None));
        assert_eq!(paced(0, 600, 9), (false, None));
        assert_eq!(paced(0, 1_000, 7), (false, None));
    }

    #[test]
    fn a_place_that_is_used_again_begins_at_rest() {
        let start = Clock::start().instant(Default::default());
        let at = |ms| start + Duration::from_millis(ms);
        let mut paces = Paces::default();
        paces.begin(0, at(0));
        for ms in [10_000, 11_000] {
            paces.sent(0, at(ms));
        }
        assert!(paces.is_busy(0));
        paces.begin(0, at(11_000));
        assert!(!paces.is_busy(0));
        assert_eq!(paces.next(), Some(at(13_000)), "the entry of the one before");
        for ms in [16_500, 17_500] {
            paces.sent(0, at(ms));
        }
        assert!(paces.is_busy(0));
        assert_eq!(paces.next(), Some(at(13_000)), "and no second one beside it");
        assert_eq!(paces.rested(at(18_000)), None);
        assert_eq!(paces.rested(at(19_500)), Some(0));
        assert_eq!(paces.rested(at(30_000)), None);
    }
}
