//! Whether important events have arrived: what one room's viewers on one shard
//! have acknowledged, what is carried along to those who are behind, and how
//! many were reached in time.
//!
//! A frame with important events tells viewers how to acknowledge them
//! ([`Asked`]): one in so many, each after a random delay, so that a room of
//! 200,000 does not answer with 200,000 packets at once. Which viewers that
//! concerns follows from a number that each was given when it connected
//! ([`Slot`]), so both sides know without another word.
//!
//! Who was asked and is silent a second later is sent the events again, up to
//! [`Settings::carries`] times, and is then told to pull. Only viewers that said
//! they acknowledge are asked; of the others the transport's word is taken.
//!
//! **Arrival.** Of the events due to viewers, the share that was confirmed
//! within 1, 3 and 10 s of the server's receiving them. With one viewer in N
//! asked, each stands for N (Horvitz and Thompson, *JASA* 47, 1952). A viewer
//! that misses one event is likely to miss the next too, so the errors of the
//! events of one room are added, not their squares: [`Arrival::deviation`] is an
//! upper bound of the standard deviation.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::event::{Frame, Numbered};
use super::ids::ImportantNo;
use super::kind::Kind;
use super::time::Time;

/// A viewer's number for drawing samples, uniform.
pub type Slot = u16;

/// How viewers are to acknowledge the important events of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Viewers whose slot is below 65,536 ÷ this answer. A power of two.
    pub one_in: u32,
    /// Each after a random delay below this, in milliseconds.
    pub within_ms: u32,
}

impl Asked {
    /// Everybody, at once.
    pub const ALL: Asked = Asked { one_in: 1, within_ms: 0 };

    /// Whether it concerns a viewer.
    #[must_use]
    pub fn concerns(self, slot: Slot) -> bool {
        u32::from(slot) < 65_536 / self.one_in.max(1)
    }
}

/// Limits of the score keeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// A viewer that was asked is behind when this has passed since the answer
    /// was due.
    pub patience: Duration,
    /// How often it is sent the events again before it is told to pull.
    pub carries: u8,
    /// Frames with important events that are kept to be carried along.
    pub frames: usize,
}

/// Ages at which arrival is told.
pub const HORIZONS: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(10)];

/// How one kind's events have arrived, at one horizon. All counts are of pairs
/// of a viewer and an event.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Arrival {
    /// Due, each sampled one standing for its share.
    pub due: f64,
    /// Of these, confirmed in time.
    pub confirmed: f64,
    /// Upper bound of the standard deviation of `confirmed`.
    pub deviation: f64,
    /// Due to viewers that were asked.
    pub asked: u64,
}

impl Arrival {
    /// Adds what another shard or room counted.
    pub fn absorb(&mut self, other: &Arrival) {
        self.due += other.due;
        self.confirmed += other.confirmed;
        self.deviation += other.deviation;
        self.asked += other.asked;
    }
}

/// One horizon's verdict on one event.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// Its kind.
    pub kind: Arc<Kind>,
    /// Index into [`HORIZONS`].
    pub horizon: usize,
    /// What it adds.
    pub arrival: Arrival,
}

/// What a viewer that is behind is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Everything after this number, as far as it is kept.
    Carry(ImportantNo),
    /// It missed these for good, first and last: it is told to pull.
    Missed(ImportantNo, ImportantNo),
}

/// One viewer's score. 24 bytes.
#[derive(Debug, Clone, Copy)]
struct Score {
    /// Everything up to here is confirmed, or was never owed.
    acked: ImportantNo,
    /// Up to here it was told to pull what it has not confirmed.
    told: ImportantNo,
    slot: Slot,
    acks: bool,
    carried: u8,
}

/// An important event that went out.
#[derive(Debug)]
struct Sent {
    event: Arc<Numbered>,
    asked: Asked,
    /// When silence means being behind.
    deadline: Time,
    /// Viewers that were asked and are still owed an account of.
    due: u32,
    /// Of these, confirmed at any time.
    confirmed: u32,
    /// Of these, within each horizon.
    in_time: [u32; HORIZONS.len()],
    /// Horizons that have passed.
    judged: usize,
    /// Those behind were looked for.
    chased: bool,
}

/// See the module's documentation. Scores stand in the order of the members of
/// a room; whoever keeps that array tells every change.
#[derive(Debug)]
pub struct Confirmations {
    settings: Settings,
    scores: Vec<Score>,
    sent: VecDeque<Sent>,
    /// When something is next due.
    next_chase: Option<Time>,
}

impl Confirmations {
    /// Nobody is there.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, scores: Vec::new(), sent: VecDeque::new(), next_chase: None }
    }

    /// A viewer was appended; it has everything up to `base`.
    pub fn joined(&mut self, slot: Slot, acks: bool, base: ImportantNo) {
        self.scores.push(Score { acked: base, told: base, slot, acks, carried: 0 });
    }

    /// The viewer at `index` is gone of its own accord, or with its connection:
    /// what it has not confirmed is no longer due. Call once, before it is
    /// [`removed`](Self::removed).
    pub fn left(&mut self, index: usize) {
        let Some(score) = self.scores.get_mut(index) else { return };
        score.acks = false;
        let score = *score;
        for sent in &mut self.sent {
            let number = sent.event.important.unwrap_or_default();
            if sent.asked.concerns(score.slot) && number > score.acked {
                sent.due = sent.due.saturating_sub(1);
            }
        }
    }

    /// The viewer at `index` was taken out, and the last one put in its place.
    pub fn removed(&mut self, index: usize) {
        self.scores.swap_remove(index);
        if self.scores.is_empty() {
            self.scores = Vec::new();
        }
    }

    /// A frame has gone to the first `members` members. Without a word about
    /// acknowledgements in it nothing is expected.
    pub fn sent(&mut self, frame: &Frame, members: usize, now: Time) {
        let Some(asked) = frame.ack else { return };
        for event in frame.events.iter().filter(|event| event.important.is_some()) {
            let number = event.important.unwrap_or_default();
            let members = &self.scores[..members.min(self.scores.len())];
            let owed = |score: &&Score| {
                score.acks && score.acked < number && asked.concerns(score.slot)
            };
            let answer = Duration::from_millis(u64::from(asked.within_ms));
            self.sent.push_back(Sent {
                event: Arc::clone(event),
                asked,
                deadline: now + answer + self.settings.patience,
                due: members.iter().filter(owed).count() as u32,
                confirmed: 0,
                in_time: [0; HORIZONS.len()],
                judged: 0,
                chased: false,
            });
        }
        while self.sent.len() > self.settings.frames {
            // Judged before its time rather than kept without bound.
            self.sent.pop_front();
        }
        self.plan();
    }

    /// The viewer at `index` has everything up to `number`. A number that was
    /// never sent counts as the last that was. Returns what is new to us.
    pub fn acknowledged(&mut self, index: usize, number: ImportantNo, now: Time) -> u64 {
        let last = self.sent.back().and_then(|sent| sent.event.important).unwrap_or_default();
        let Some(score) = self.scores.get_mut(index) else { return 0 };
        let number = number.min(last);
        if number <= score.acked {
            return 0;
        }
        let before = std::mem::replace(&mut score.acked, number);
        let (slot, acks) = (score.slot, score.acks);
        (score.acks, score.carried) = (true, 0);
        for sent in &mut self.sent {
            let this = sent.event.important.unwrap_or_default();
            let counts = this > before && this <= number;
            if !counts || !sent.asked.concerns(slot) {
                continue;
            }
            if !acks {
                // It acknowledges after all: from now on it is asked.
                sent.due += 1;
            }
            sent.confirmed += 1;
            let age = now.since(sent.event.event.received);
            for (count, horizon) in sent.in_time.iter_mut().zip(HORIZONS) {
                *count += u32::from(age <= horizon);
            }
        }
        number.0 - before.0
    }

    /// When [`chase`](Self::chase) has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.next_chase
    }

    /// Passes verdicts whose time has come, and says what the viewers that are
    /// behind are to be sent, by index.
    pub fn chase(
        &mut self,
        now: Time,
        verdicts: &mut Vec<Verdict>,
        remedies: &mut Vec<(usize, Remedy)>,
    ) {
        self.judge(now, verdicts);
        let due = self.sent.iter().filter(|sent| !sent.chased && sent.deadline <= now);
        if due.clone().any(|sent| sent.confirmed < sent.due) {
            let newest = due.last().map(|sent| (sent.event.important.unwrap_or_default(), sent.asked));
            if let Some((newest, asked)) = newest {
                self.remedy(newest, asked, remedies);
            }
        }
        let again = now + self.settings.patience;
        for sent in self.sent.iter_mut().filter(|sent| !sent.chased && sent.deadline <= now) {
            if sent.confirmed < sent.due {
                sent.deadline = again;
            } else {
                sent.chased = true;
            }
        }
        while self.sent.front().is_some_and(|sent| sent.judged == HORIZONS.len()) {
            self.sent.pop_front();
        }
        self.plan();
    }

    /// The event after this number, and those behind it, if they are kept.
    #[must_use]
    pub fn after(&self, number: ImportantNo) -> Vec<Arc<Numbered>> {
        let kept = self.sent.iter().map(|sent| &sent.event);
        kept.filter(|event| event.important > Some(number)).map(Arc::clone).collect()
    }

    fn remedy(
        &mut self,
        newest: ImportantNo,
        asked: Asked,
        remedies: &mut Vec<(usize, Remedy)>,
    ) {
        let carries = self.settings.carries;
        for (index, score) in self.scores.iter_mut().enumerate() {
            let silent = score.acks && score.acked < newest && score.told < newest;
            if !silent || !asked.concerns(score.slot) {
                continue;
            }
            if score.carried < carries {
                score.carried += 1;
                remedies.push((index, Remedy::Carry(score.acked)));
            } else {
                let first = ImportantNo(score.acked.max(score.told).0 + 1);
                remedies.push((index, Remedy::Missed(first, newest)));
                (score.told, score.carried) = (newest, 0);
            }
        }
    }

    fn judge(&mut self, now: Time, verdicts: &mut Vec<Verdict>) {
        for sent in &mut self.sent {
            let age = now.since(sent.event.event.received);
            while sent.judged < HORIZONS.len() && age > HORIZONS[sent.judged] {
                let each = f64::from(sent.asked.one_in);
                let (due, confirmed) = (sent.due, sent.in_time[sent.judged].min(sent.due));
                let arrival = Arrival {
                    due: f64::from(due) * each,
                    confirmed: f64::from(confirmed) * each,
                    deviation: deviation(sent.asked.one_in, due - confirmed),
                    asked: u64::from(due),
                };
                if due > 0 {
                    let kind = Arc::clone(&sent.event.event.kind);
                    verdicts.push(Verdict { kind, horizon: sent.judged, arrival });
                }
                sent.judged += 1;
            }
        }
    }

    fn plan(&mut self) {
        let chases = self.sent.iter().filter(|sent| !sent.chased).map(|sent| sent.deadline);
        let verdicts = self.sent.iter().filter_map(|sent| {
            let horizon = HORIZONS.get(sent.judged)?;
            Some(sent.event.event.received + *horizon + Duration::from_millis(1))
        });
        self.next_chase = chases.chain(verdicts).min();
    }

    /// Bytes held beside the events.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.scores.capacity() * size_of::<Score>() + self.sent.capacity() * size_of::<Sent>()
    }
}

/// Added to the viewers missing in a sample before the error is estimated from
/// them. A sample that happens to contain few of them also claims to be exact:
/// without this, intervals of 95 % hold the truth in as few as 80 % of all
/// cases (the plain interval's known fault, Agresti and Coull, *Am. Stat.* 52,
/// 1998); with it in 94 %, whatever the number missing.
const UNSEEN: f64 = 3.0;

/// Standard deviation of the estimated number of viewers that miss an event, with
/// one in so many asked and so many of these missing.
fn deviation(one_in: u32, missing: u32) -> f64 {
    let each = f64::from(one_in);
    (each * (each - 1.0) * (f64::from(missing) + UNSEEN)).sqrt()
}

/// How many acknowledgements a second a home shard asks for, over all its rooms.
#[derive(Debug)]
pub struct Budget {
    per_second: f64,
    left: f64,
    filled: Time,
}

/// A sample is not smaller than this, whatever the budget says: fewer viewers
/// tell nothing.
const LEAST_SAMPLE: u32 = 64;
/// Longest delay that is asked for: half of the first of [`HORIZONS`], so that
/// who has an event at once does not count as late for doing as it was told.
const LONGEST: Duration = Duration::from_millis(500);
/// Answers of fewer viewers than this need no spreading.
const AT_ONCE: u32 = 100;

impl Budget {
    /// A full second's worth.
    #[must_use]
    pub fn new(per_second: u32, now: Time) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, left: per_second, filled: now }
    }

    /// How `viewers` are to acknowledge what is sent now.
    pub fn ask(&mut self, viewers: u32, now: Time) -> Asked {
        let refill = now.since(self.filled).as_secs_f64() * self.per_second;
        (self.left, self.filled) = ((self.left + refill).min(self.per_second), now);
        let mut one_in = 1;
        while f64::from(viewers / one_in) > self.left.max(0.0)
            && viewers / (one_in * 2) >= LEAST_SAMPLE
            && one_in < 65_536
        {
            one_in *= 2;
        }
        let answers = viewers / one_in;
        self.left -= f64::from(answers);
        let spread = Duration::from_secs_f64(f64::from(answers) / self.per_second.max(1.0));
        let within = if answers < AT_ONCE { Duration::ZERO } else { spread.min(LONGEST) };
        Asked { one_in, within_ms: within.as_millis() as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chance that a sample of one in `one_in` has `missing` of `all` missing.
    fn chance(all: u32, one_in: u32, missing: u32) -> f64 {
        let each = 1.0 / f64::from(one_in);
        let ways: f64 = (0..missing)
            .map(|i| (f64::from(all - i) / f64::from(missing - i)).ln())
            .sum();
        let rest = f64::from(all - missing);
        (ways + f64::from(missing) * each.ln() + rest * (1.0 - each).ln()).exp()
    }

    #[test]
    fn intervals_hold_the_truth_however_few_are_missing() {
        for one_in in [2, 4, 8, 16, 64] {
            for all in 1..300 {
                let inside = |missing: &u32| {
                    let estimate = f64::from(one_in) * f64::from(*missing);
                    (estimate - f64::from(all)).abs() <= 1.96 * deviation(one_in, *missing)
                };
                let held: f64 =
                    (0..=all).filter(inside).map(|missing| chance(all, one_in, missing)).sum();
                assert!(held > 0.94, "one in {one_in}, {all} missing: {held}");
            }
        }
        assert!(deviation(1, 7) == 0.0, "who asks everybody knows");
    }

    #[test]
    fn answers_are_asked_for_well_within_the_first_horizon() {
        for viewers in [1, 99, 100, 5_000, 200_000] {
            let asked = Budget::new(5_000, Time::default()).ask(viewers, Time::default());
            assert!(viewers / asked.one_in <= 5_000, "{asked:?}");
            assert!(Duration::from_millis(u64::from(asked.within_ms)) <= HORIZONS[0] / 2);
        }
    }
}
