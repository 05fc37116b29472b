//! The deadlines of a shard's connections: a wheel of milliseconds.
//!
//! Most deadlines are never met: an acknowledgement comes, and the next one is
//! half a minute away. So an entry is not taken back or moved. When it comes up,
//! what its connection waits for by then is looked up in a dense table, without
//! touching the connection, and either it is due or it gets another entry.

use std::time::{Duration, Instant};

/// Slots of a millisecond each. What is further away is looked at on the way.
const SLOTS: u64 = 4_096;

/// No deadline, or no entry.
const NONE: u64 = u64::MAX;

/// What one connection waits for, in milliseconds since the start.
#[derive(Debug, Clone, Copy)]
struct Due {
    wanted: u64,
    /// Its only valid entry in the wheel.
    entry: u64,
}

const NOTHING: Due = Due { wanted: NONE, entry: NONE };

/// See the module's documentation.
#[derive(Debug)]
pub struct Timers {
    started: Instant,
    /// Everything before this slot has come up.
    next: u64,
    slots: Vec<Vec<u32>>,
    /// A bit for every slot that holds something.
    filled: Vec<u64>,
    due: Vec<Due>,
}

impl Timers {
    /// Nobody waits for anything.
    #[must_use]
    pub fn new(started: Instant) -> Self {
        Self {
            started,
            next: 0,
            slots: vec![Vec::new(); SLOTS as usize],
            filled: vec![0; SLOTS as usize / 64],
            due: Vec::new(),
        }
    }

    /// A connection waits for this, and for nothing else. What lies in a millisecond
    /// that has [expired](Self::expire) comes up in the next.
    pub fn set(&mut self, index: u32, at: Option<Instant>) {
        let index = index as usize;
        if self.due.len() <= index {
            self.due.resize(index + 1, NOTHING);
        }
        // Rounded up: nothing comes up before its time.
        let wanted = at.map_or(NONE, |at| {
            at.saturating_duration_since(self.started).as_micros().div_ceil(1_000) as u64
        });
        self.due[index].wanted = wanted;
        self.enter(index);
    }

    fn enter(&mut self, index: usize) {
        let Due { wanted, entry } = self.due[index];
        if wanted == NONE {
            return;
        }
        let at = wanted.clamp(self.next, self.next + SLOTS - 1);
        if entry <= at {
            return;
        }
        self.due[index].entry = at;
        let slot = (at % SLOTS) as usize;
        self.slots[slot].push(index as u32);
        self.filled[slot / 64] |= 1 << (slot % 64);
    }

    /// When the first entry comes up.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        let first = self.next % SLOTS;
        let words = self.filled.len();
        let (word, bit) = ((first / 64) as usize, first % 64);
        // The word in which the present lies is looked at twice: behind it and,
        // at the end, before it.
        let ahead = (0..=words).find_map(|step| {
            let index = (word + step) % words;
            let mask = match step {
                0 => u64::MAX << bit,
                step if step == words => !(u64::MAX << bit),
                _ => u64::MAX,
            };
            let bits = self.filled[index] & mask;
            (bits != 0).then(|| index as u64 * 64 + u64::from(bits.trailing_zeros()))
        })?;
        let distance = (ahead + SLOTS - first) % SLOTS;
        Some(self.started + Duration::from_millis(self.next + distance))
    }

    /// Hands over every connection whose deadline has passed. It waits for nothing
    /// until it is [`set`](Self::set) again.
    pub fn expire(&mut self, now: Instant, mut each: impl FnMut(u32)) {
        let present = now.saturating_duration_since(self.started).as_millis() as u64;
        // After a long sleep every slot is looked at once.
        let last = present.min(self.next.saturating_add(SLOTS - 1));
        while self.next <= last {
            let tick = self.next;
            let slot = (tick % SLOTS) as usize;
            if self.filled[slot / 64] & 1 << (slot % 64) == 0 {
                self.next += 1;
                continue;
            }
            self.filled[slot / 64] &= !(1 << (slot % 64));
            let mut entered = std::mem::take(&mut self.slots[slot]);
            self.next += 1;
            for index in entered.drain(..) {
                let due = &mut self.due[index as usize];
                if due.entry != tick {
                    continue; // An earlier one took over.
                }
                due.entry = NONE;
                if due.wanted <= present {
                    due.wanted = NONE;
                    each(index);
                } else {
                    self.enter(index as usize);
                }
            }
            // The storage serves the next round.
            if self.slots[slot].is_empty() {
                self.slots[slot] = entered;
            }
        }
        self.next = self.next.max(present + 1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Clock;

    fn start() -> Instant {
        Clock::start().instant(Default::default())
    }

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    fn expired(timers: &mut Timers, now: Instant) -> Vec<u32> {
        let mut due = Vec::new();
        timers.expire(now, |index| due.push(index));
        due.sort_unstable();
        due
    }

    #[test]
    fn the_last_word_counts() {
        let start = start();
        let mut timers = Timers::new(start);
        timers.set(7, Some(at(start, 500)));
        timers.set(7, Some(at(start, 100)));
        timers.set(7, Some(at(start, 300)));
        assert_eq!(expired(&mut timers, at(start, 299)), Vec::<u32>::new());
        assert_eq!(expired(&mut timers, at(start, 300)), [7]);
        assert_eq!(expired(&mut timers, at(start, 900)), Vec::<u32>::new());
        timers.set(7, Some(at(start, 1_000)));
        timers.set(7, None);
        assert_eq!(expired(&mut timers, at(start, 2_000)), Vec::<u32>::new());
    }

    #[test]
    fn a_packet_a_second_leaves_few_entries_behind() {
        let start = start();
        let mut timers = Timers::new(start);
        for second in 0..600 {
            let now = second * 1_000;
            timers.set(1, Some(at(start, now + 300)));
            assert_eq!(expired(&mut timers, at(start, now + 20)), Vec::<u32>::new());
            timers.set(1, Some(at(start, now + 60_000)));
            assert_eq!(expired(&mut timers, at(start, now + 999)), Vec::<u32>::new());
            let held: usize = timers.slots.iter().map(Vec::len).sum();
            assert!(held <= 6, "{held} entries at {second} s");
        }
    }

    proptest! {
        /// Whatever is set, moved and slept over: everything comes up once, at its
        /// time, and `next` is never later than that.
        #[test]
        fn nothing_is_early_late_or_lost(
            steps in prop::collection::vec((0_u32..5, 0_u64..20_000, 0_u64..9_000), 1..60),
        ) {
            let start = start();
            let mut timers = Timers::new(start);
            let mut wanted: std::collections::BTreeMap<u32, u64> = Default::default();
            // The present, and the first millisecond that has not expired.
            let (mut now, mut open) = (0, 0);
            for (index, ahead, sleep) in steps {
                timers.set(index, Some(at(start, now + ahead)));
                wanted.insert(index, (now + ahead).max(open));
                let until = now + sleep;
                loop {
                    let next = timers.next().map(|next| (next - start).as_millis() as u64);
                    if let Some(first) = wanted.values().min() {
                        prop_assert!(next.is_some_and(|next| next <= (*first).max(now)));
                    }
                    now = next.map_or(until, |next| next.clamp(now, until));
                    let due: Vec<u32> =
                        wanted.iter().filter(|(_, at)| **at <= now).map(|(i, _)| *i).collect();
                    prop_assert_eq!(expired(&mut timers, at(start, now)), due.clone());
                    open = now + 1;
                    wanted.retain(|index, _| !due.contains(index));
                    if now == until {
                        break;
                    }
                    now += 1;
                    now = now.min(until);
                }
            }
        }
    }
}
