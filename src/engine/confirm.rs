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

mod budget;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::event::{Frame, Numbered};
use super::ids::ImportantNo;
use super::kind::Kind;
use super::time::Time;
pub use budget::Budget;

/// A viewer's number for drawing samples, uniform.
pub type Slot = u16;

/// How viewers are to acknowledge the important events of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Viewers whose slot is below 65,536 ÷ this answer. A power of two.
    pub one_in: u32,
    /// Each after a random delay below this, in milliseconds.
    pub within_ms: u32,
    /// With it they send a digest of what they received from this number on.
    pub digest_from: Option<ImportantNo>,
}

impl Asked {
    /// Everybody, at once.
    pub const ALL: Asked = Asked { one_in: 1, within_ms: 0, digest_from: None };

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
        if !std::mem::replace(&mut score.acks, false) {
            return; // Nothing was due to it.
        }
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
            let owed =
                |score: &&Score| score.acks && score.acked < number && asked.concerns(score.slot);
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
    /// never sent counts as the last that was. Returns what is new to us, and
    /// tells `aged` how old each event was that it was asked about.
    pub fn acknowledged(
        &mut self,
        index: usize,
        number: ImportantNo,
        now: Time,
        mut aged: impl FnMut(Duration),
    ) -> u64 {
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
            if this <= before || !sent.asked.concerns(slot) {
                continue;
            }
            // Who acknowledges after all is asked for everything from now on.
            sent.due += u32::from(!acks);
            if this > number {
                continue;
            }
            sent.confirmed += 1;
            let age = now.since(sent.event.event.received);
            aged(age);
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
        let mut due = self.sent.iter().filter(|sent| !sent.chased && sent.deadline <= now);
        if due.clone().any(|sent| sent.confirmed < sent.due) {
            let newest =
                due.next_back().map(|sent| (sent.event.important.unwrap_or_default(), sent.asked));
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

    fn remedy(&mut self, newest: ImportantNo, asked: Asked, remedies: &mut Vec<(usize, Remedy)>) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ids::{Epoch, RoomId, Seq};
    use crate::engine::testing::{START, red_packet};

    const SETTINGS: Settings = Settings { patience: Duration::from_secs(1), carries: 2, frames: 8 };

    fn at(ms: u64) -> Time {
        START + Duration::from_millis(ms)
    }

    /// A frame with one important event, received at the start.
    fn frame(important: u64, asked: Asked) -> Frame {
        let event = red_packet(&format!("p{important}")).event();
        let important = ImportantNo(important);
        let event = Numbered { event, seq: Some(Seq(important.0)), important: Some(important) };
        Frame {
            room: RoomId::new("r").unwrap(),
            epoch: Epoch(1),
            first_seq: Seq(important.0),
            last_seq: Seq(important.0),
            important,
            time: START,
            oldest: START,
            events: vec![Arc::new(event)],
            totals: Vec::new(),
            dropped: Vec::new(),
            online: None,
            ack: Some(asked),
            represents: 1,
        }
    }

    fn room(viewers: usize) -> Confirmations {
        let mut room = Confirmations::new(SETTINGS);
        (0..viewers)
            .for_each(|i| room.joined((i * 65_536 / viewers) as Slot, true, ImportantNo(0)));
        room
    }

    fn chase(room: &mut Confirmations, now: Time) -> (Vec<Verdict>, Vec<(usize, Remedy)>) {
        let (mut verdicts, mut remedies) = (Vec::new(), Vec::new());
        room.chase(now, &mut verdicts, &mut remedies);
        (verdicts, remedies)
    }

    #[test]
    fn who_is_silent_is_sent_it_again_and_then_told_to_pull() {
        let mut room = room(3);
        room.sent(&frame(1, Asked::ALL), 3, START);
        assert_eq!(room.acknowledged(0, ImportantNo(1), at(100), |_| ()), 1);
        assert_eq!(room.acknowledged(1, ImportantNo(1), at(200), |_| ()), 1);
        assert!(chase(&mut room, at(999)).1.is_empty(), "not yet");
        assert_eq!(chase(&mut room, at(1_000)).1, [(2, Remedy::Carry(ImportantNo(0)))]);
        assert!(chase(&mut room, at(1_500)).1.is_empty(), "once a second");
        assert_eq!(chase(&mut room, at(2_000)).1.len(), 1);
        let missed = Remedy::Missed(ImportantNo(1), ImportantNo(1));
        assert_eq!(chase(&mut room, at(3_000)).1, [(2, missed)]);
        for second in 4..15 {
            assert!(chase(&mut room, at(second * 1_000)).1.is_empty(), "told once");
        }
        assert_eq!(room.next_deadline(), None);
    }

    #[test]
    fn a_word_in_time_ends_the_chase() {
        let mut room = room(1);
        room.sent(&frame(1, Asked::ALL), 1, START);
        room.sent(&frame(2, Asked::ALL), 1, at(10));
        assert_eq!(chase(&mut room, at(1_000)).1, [(0, Remedy::Carry(ImportantNo(0)))]);
        assert_eq!(room.after(ImportantNo(0)).len(), 2);
        assert_eq!(room.acknowledged(0, ImportantNo(2), at(1_100), |_| ()), 2);
        assert!(chase(&mut room, at(2_500)).1.is_empty());
    }

    #[test]
    fn arrival_counts_who_confirmed_within_each_horizon() {
        let mut room = room(4);
        room.sent(&frame(1, Asked::ALL), 4, START);
        room.acknowledged(0, ImportantNo(1), at(500), |_| ());
        room.acknowledged(1, ImportantNo(1), at(2_000), |_| ());
        room.acknowledged(2, ImportantNo(1), at(5_000), |_| ());
        let (verdicts, _) = chase(&mut room, at(10_001));
        let shares: Vec<_> =
            verdicts.iter().map(|v| (v.arrival.confirmed, v.arrival.due)).collect();
        assert_eq!(shares, [(1.0, 4.0), (2.0, 4.0), (3.0, 4.0)]);
        assert!(verdicts.iter().all(|v| v.arrival.deviation == 0.0), "all were asked");
    }

    #[test]
    fn a_sample_stands_for_all_and_says_how_sure_it_is() {
        let mut room = room(1_000);
        let asked = Asked { one_in: 4, within_ms: 100, digest_from: None };
        room.sent(&frame(1, asked), 1_000, START);
        let (mut answered, mut silent) = (0, 0);
        for i in 0..1_000 {
            if asked.concerns((i * 65_536 / 1_000) as Slot) {
                answered += 1;
                if i % 10 == 0 {
                    silent += 1;
                } else {
                    room.acknowledged(i, ImportantNo(1), at(200), |_| ());
                }
            }
        }
        assert_eq!((answered, silent), (250, 25));
        let (verdicts, _) = chase(&mut room, at(1_001));
        let Arrival { due, confirmed, deviation, asked } = verdicts[0].arrival;
        assert_eq!((due, confirmed, asked), (1_000.0, 900.0, 250));
        // The square root of 4 x 3 x (25 + 3).
        assert!((deviation - 18.33).abs() < 0.01, "{deviation}");
        let behind = chase(&mut room, at(1_101)).1;
        assert_eq!(behind.len(), 25, "only who was asked is behind");
    }

    #[test]
    fn who_leaves_owes_nothing_and_who_comes_later_neither() {
        let mut room = room(2);
        room.sent(&frame(1, Asked::ALL), 2, START);
        room.joined(9, true, ImportantNo(1));
        room.left(0);
        room.removed(0);
        // The newcomer has moved to the place of the one that left.
        room.acknowledged(1, ImportantNo(1), at(10), |_| ());
        let (verdicts, remedies) = chase(&mut room, at(1_001));
        assert_eq!((verdicts[0].arrival.due, verdicts[0].arrival.confirmed), (1.0, 1.0));
        assert!(remedies.is_empty());
    }

    #[test]
    fn who_never_said_it_would_answer_is_not_asked() {
        let mut room = Confirmations::new(SETTINGS);
        room.joined(0, false, ImportantNo(0));
        room.sent(&frame(1, Asked::ALL), 1, START);
        let (verdicts, remedies) = chase(&mut room, at(20_000));
        assert!(verdicts.is_empty() && remedies.is_empty());
        room.sent(&frame(2, Asked::ALL), 1, at(20_000));
        assert_eq!(
            room.acknowledged(0, ImportantNo(2), at(20_100), |_| ()),
            2,
            "it does after all"
        );
        room.sent(&frame(3, Asked::ALL), 1, at(20_200));
        assert_eq!(chase(&mut room, at(21_200)).1.len(), 1);
    }

    #[test]
    fn who_was_not_asked_takes_nobody_s_due_with_it() {
        let mut room = room(1);
        room.joined(0, false, ImportantNo(0));
        room.sent(&frame(1, Asked::ALL), 2, at(0));
        room.left(1);
        room.removed(1);
        assert_eq!(room.sent[0].due, 1);
    }

    #[test]
    fn who_answers_after_all_is_due_all_that_was_sent() {
        let mut room = room(0);
        room.joined(0, false, ImportantNo(0));
        (1..=2).for_each(|number| room.sent(&frame(number, Asked::ALL), 1, at(0)));
        room.acknowledged(0, ImportantNo(1), at(100), |_| ());
        assert_eq!((room.sent[1].due, room.sent[1].confirmed), (1, 0));
    }

    #[test]
    fn a_number_that_was_never_sent_confirms_no_more_than_was() {
        let mut room = room(1);
        room.sent(&frame(1, Asked::ALL), 1, START);
        assert_eq!(room.acknowledged(0, ImportantNo(u64::MAX), at(1), |_| ()), 1);
        room.sent(&frame(2, Asked::ALL), 1, at(2));
        assert_eq!(chase(&mut room, at(1_002)).1, [(0, Remedy::Carry(ImportantNo(1)))]);
    }

    /// Chance that a sample of one in `one_in` has `missing` of `all` missing.
    fn chance(all: u32, one_in: u32, missing: u32) -> f64 {
        let each = 1.0 / f64::from(one_in);
        let ways: f64 =
            (0..missing).map(|i| (f64::from(all - i) / f64::from(missing - i)).ln()).sum();
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
}
