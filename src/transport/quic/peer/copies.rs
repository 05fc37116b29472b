//! Copies of important events, for a viewer whose path loses packets.
//!
//! A lost packet costs what was in it a retransmission, and the last packet of all
//! most: nothing behind it tells of the loss before the next event is acknowledged, or
//! a probe timeout (RFC 9002, section 6.2), which `quinn-proto` answers with a probe
//! that holds no stream data. With 200 ms there and back an event came after 550 ms
//! either way (measured). So on a path that loses, an important event goes out a second
//! time in a datagram (RFC 9221), a moment later and so in another packet: what comes
//! first counts, and viewers know the rest by its number. Should both be lost, a probe
//! timeout brings another copy.
//!
//! Whether a path loses is told by a cumulative sum (Page, 1954): a lost packet adds
//! [`Rules::one_in`], a packet sent takes one off, and above zero it loses. The sum
//! drifts upwards exactly where more than one packet in so many is lost, one loss is
//! enough to begin, and there is no window over which to average: a viewer of whom
//! a packet is sent every second has none. It ends some hundred packets after the
//! last loss, so a path of which one packet is lost now and then gets a few copies.
//!
//! The sum of a path of which nothing is known begins above zero: viewers on a bad
//! line should not have to lose an event before they are helped.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

/// So many packets without a loss make a new path a good one. One that loses 5 % has
/// shown it by then in 96 of 100 cases.
const UNKNOWN: u64 = 64;

/// The sum's bound, in multiples of [`Rules::one_in`]: so many losses are remembered.
const MOST_LOSSES: u64 = 4;

/// Events that wait for their copy, or may need another.
const MOST_KEPT: usize = 8;

/// An event older than so many round trips has come, or more than copies can help is
/// the matter.
const KEPT_ROUND_TRIPS: u32 = 4;

/// When copies are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Between an event and its copy. Losses come in bursts: what is sent at once is
    /// lost at once.
    pub after: Duration,
    /// A path that takes less than this there and back repairs its losses soon
    /// enough.
    pub min_rtt: Duration,
    /// A path loses where more than one packet in so many is lost.
    pub one_in: u32,
    /// Bytes of copies per second and viewer, a second's worth at once; 0: no copies.
    pub bytes_per_second: u32,
}

/// What is known of a path's packets since its connection began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets sent.
    pub sent: u64,
    /// Of them lost.
    pub lost: u64,
    /// Probes sent for want of an acknowledgement.
    pub probes: u64,
}

/// An important event that went out.
#[derive(Debug)]
struct Kept {
    message: Bytes,
    at: Instant,
    /// When a copy goes out.
    due: Option<Instant>,
}

/// What a path that loses, or of which nothing is known, needs beside its connection.
///
/// Calls: [`begin`](Self::begin) when [`suspicious`] says so, then
/// [`observe`](Self::observe) and, while that says that the path loses,
/// [`keep`](Self::keep) for every event; [`take_due`](Self::take_due) when
/// [`next_due`](Self::next_due) has come, with [`afford`](Self::afford) for each.
#[derive(Debug)]
pub struct Copies {
    sum: u64,
    seen: Counts,
    kept: VecDeque<Kept>,
    /// Bytes that copies may take now.
    budget: u32,
    filled: Instant,
}

/// Whether a path that passed for a good one needs [`Copies`]. `known_losses`: those
/// that are forgiven.
#[must_use]
pub fn suspicious(counts: Counts, known_losses: u32) -> bool {
    counts.sent < UNKNOWN || counts.lost != u64::from(known_losses)
}

impl Copies {
    /// Of a path that was good up to `known_losses`.
    #[must_use]
    pub fn begin(counts: Counts, known_losses: u32, rules: &Rules, now: Instant) -> Self {
        let lost = u64::from(known_losses);
        let mut copies = Self {
            sum: UNKNOWN.saturating_sub(counts.sent),
            // What was sent before is no reason for trust: the loss is new.
            seen: Counts { lost, ..counts },
            kept: VecDeque::new(),
            budget: rules.bytes_per_second,
            filled: now,
        };
        copies.observe(counts, rules);
        copies
    }

    /// Takes note of what became of packets. Returns whether the path loses.
    pub fn observe(&mut self, counts: Counts, rules: &Rules) -> bool {
        let one_in = u64::from(rules.one_in);
        let lost = counts.lost.saturating_sub(self.seen.lost);
        let sent = counts.sent.saturating_sub(self.seen.sent);
        let sum = self.sum.saturating_add(lost.saturating_mul(one_in)).saturating_sub(sent);
        self.sum = sum.min(MOST_LOSSES * one_in);
        (self.seen.sent, self.seen.lost) = (counts.sent, counts.lost);
        self.sum > 0
    }

    /// An important event goes out now.
    pub fn keep(&mut self, message: &Bytes, rules: &Rules, now: Instant) {
        if self.kept.len() == MOST_KEPT {
            self.kept.pop_front();
        }
        let due = Some(now + rules.after);
        self.kept.push_back(Kept { message: message.clone(), at: now, due });
    }

    /// Whether events are kept.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.kept.is_empty()
    }

    /// Forgets what has come by now, by a round trip of `rtt`. If a probe was sent
    /// since the last call, something has not: everything else is due at once.
    pub fn review(&mut self, probes: u64, rtt: Duration, now: Instant) {
        let age = rtt.saturating_mul(KEPT_ROUND_TRIPS);
        let old = |kept: &Kept| kept.due.is_none() && now.saturating_duration_since(kept.at) > age;
        while self.kept.front().is_some_and(old) {
            self.kept.pop_front();
        }
        if std::mem::replace(&mut self.seen.probes, probes) < probes {
            for kept in &mut self.kept {
                kept.due.get_or_insert(now);
            }
        }
    }

    /// When [`take_due`](Self::take_due) has something.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.kept.iter().filter_map(|kept| kept.due).min()
    }

    /// A message whose copy goes out now.
    pub fn take_due(&mut self, now: Instant) -> Option<Bytes> {
        let kept = self.kept.iter_mut().find(|kept| kept.due.is_some_and(|due| due <= now))?;
        kept.due = None;
        Some(kept.message.clone())
    }

    /// Whether the budget has room for a copy of so many bytes, which it takes.
    pub fn afford(&mut self, bytes: usize, rules: &Rules, now: Instant) -> bool {
        let rate = u64::from(rules.bytes_per_second).max(1);
        let passed = now.saturating_duration_since(self.filled).as_micros();
        let earned = u64::try_from(passed).unwrap_or(u64::MAX).saturating_mul(rate) / 1_000_000;
        if earned > 0 {
            let filled = earned.saturating_add(u64::from(self.budget));
            self.budget = filled.min(u64::from(rules.bytes_per_second)) as u32;
            // What earned no whole byte earns later.
            self.filled += Duration::from_micros(earned.saturating_mul(1_000_000) / rate);
        }
        let left = u32::try_from(bytes).ok().and_then(|bytes| self.budget.checked_sub(bytes));
        self.budget = left.unwrap_or(self.budget);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    const RULES: Rules = Rules {
        after: Duration::from_millis(20),
        min_rtt: Duration::ZERO,
        one_in: 100,
        bytes_per_second: 1_000,
    };
    const RTT: Duration = Duration::from_millis(200);

    /// How many of `packets` a path with this loss spends with copies, and how often
    /// that changes. It begins as one that is known and good.
    fn share(loss: f64, packets: u64, seed: u64) -> (f64, u32) {
        let mut random = SmallRng::seed_from_u64(seed);
        let now = Instant::now();
        let mut counts = Counts { sent: 1_000, lost: 3, probes: 0 };
        let (mut known, mut copies, mut with, mut changes) = (3, None, 0_u64, 0);
        for _ in 0..packets {
            counts.sent += 1;
            counts.lost += u64::from(random.random_bool(loss));
            let before = copies.is_some();
            if copies.is_none() && suspicious(counts, known) {
                copies = Some(Copies::begin(counts, known, &RULES, now));
            }
            if copies.as_mut().is_some_and(|copies| !copies.observe(counts, &RULES)) {
                copies = None;
                known = counts.lost as u32;
            }
            with += u64::from(copies.is_some());
            changes += u32::from(copies.is_some() != before);
        }
        (with as f64 / packets as f64, changes)
    }

    #[test]
    fn a_path_that_loses_gets_copies_and_one_that_hardly_does_gets_few() {
        for seed in 0..10 {
            let (none, changes) = share(0.0, 10_000, seed);
            assert_eq!((none, changes), (0.0, 0), "nothing lost, seed {seed}");
            let (rare, _) = share(0.0005, 20_000, seed);
            assert!(rare < 0.15, "{rare} at one in 2,000, seed {seed}");
            let (bad, _) = share(0.05, 10_000, seed);
            assert!(bad > 0.97, "{bad} at 5 %, seed {seed}");
        }
    }

    #[test]
    fn between_good_and_bad_it_does_not_flutter() {
        for seed in 0..10 {
            let (_, changes) = share(0.02, 10_000, seed);
            assert!(changes < 40, "{changes} changes in 10,000 packets, seed {seed}");
        }
    }

    #[test]
    fn an_unknown_path_gets_copies_until_it_has_shown_itself() {
        let now = Instant::now();
        let counts = |sent| Counts { sent, ..Counts::default() };
        assert!(suspicious(counts(10), 0));
        let mut copies = Copies::begin(counts(10), 0, &RULES, now);
        assert!(copies.observe(counts(UNKNOWN - 1), &RULES));
        assert!(!copies.observe(counts(UNKNOWN), &RULES));
        assert!(!suspicious(counts(UNKNOWN), 0));
    }

    #[test]
    fn one_loss_is_answered_for_a_hundred_packets_and_many_for_four_hundred() {
        let now = Instant::now();
        let counts = |sent, lost| Counts { sent, lost, probes: 0 };
        assert!(suspicious(counts(5_000, 1), 0));
        for (lost, lasts) in [(1, 100), (3, 300), (50, 400)] {
            let mut copies = Copies::begin(counts(5_000, lost), 0, &RULES, now);
            assert!(copies.observe(counts(5_000 + lasts - 1, lost), &RULES), "{lost} lost");
            assert!(!copies.observe(counts(5_000 + lasts, lost), &RULES), "{lost} lost");
        }
    }

    #[test]
    fn a_copy_is_due_once_and_a_probe_brings_another() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut copies = Copies::begin(Counts::default(), 0, &RULES, start);
        let (one, two) = (Bytes::from_static(b"one"), Bytes::from_static(b"two"));
        copies.keep(&one, &RULES, start);
        copies.keep(&two, &RULES, at(10));
        assert_eq!((copies.next_due(), copies.take_due(at(19))), (Some(at(20)), None));
        assert_eq!((copies.take_due(at(20)), copies.take_due(at(20))), (Some(one.clone()), None));
        assert_eq!(copies.take_due(at(30)), Some(two.clone()));
        copies.review(0, RTT, at(240));
        assert_eq!(copies.next_due(), None, "no probe, no copy");
        copies.review(2, RTT, at(250));
        assert_eq!(copies.take_due(at(250)), Some(one));
        assert_eq!(copies.take_due(at(250)), Some(two));
        copies.review(2, RTT, at(260));
        assert_eq!(copies.next_due(), None, "it was answered");
        copies.review(4, RTT, at(900));
        assert!(copies.is_idle(), "too old to matter");
        assert_eq!(copies.next_due(), None);
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_newest_stay() {
        let now = Instant::now();
        let mut copies = Copies::begin(Counts::default(), 0, &RULES, now);
        for n in 0..20_u8 {
            copies.keep(&Bytes::copy_from_slice(&[n]), &RULES, now);
        }
        let due: Vec<u8> =
            std::iter::from_fn(|| copies.take_due(now + RULES.after)).map(|m| m[0]).collect();
        assert_eq!(due, (12..20).collect::<Vec<u8>>());
    }

    #[test]
    fn the_budget_is_a_seconds_worth_and_fills_again() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut copies = Copies::begin(Counts::default(), 0, &RULES, start);
        assert!(copies.afford(600, &RULES, start));
        assert!(!copies.afford(600, &RULES, start));
        assert!(copies.afford(400, &RULES, start));
        // Many looks, none of which earns a byte by itself, earn as much as one.
        for tenth in 1..=1_000 {
            let moment = start + Duration::from_micros(100 * tenth);
            assert!(!copies.afford(101, &RULES, moment), "{tenth}");
        }
        assert!(copies.afford(100, &RULES, at(101)));
        assert!(copies.afford(1_000, &RULES, at(10_000)) && !copies.afford(1, &RULES, at(10_000)));
    }
}
