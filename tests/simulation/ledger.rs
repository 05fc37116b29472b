//! The books of one room, kept from outside.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use tidegate::engine::event::{Event, Frame};
use tidegate::engine::ids::{ImportantNo, Seq};
use tidegate::engine::kind::{Kind, Lane, Merge, MergeBy};
use tidegate::engine::room::{Outcome, Room};
use tidegate::engine::stats::RoomStats;
use tidegate::engine::time::Time;

/// Kind, user, key.
type TotalKey = (String, Option<String>, String);

/// What one kind's events came to.
#[derive(Debug, Default)]
struct OfKind {
    accepted: u64,
    carried: u64,
    dropped: u64,
    rule: Option<(Lane, Merge)>,
}

/// Everything accepted, against everything that came out.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// What was answered for an id for the first time.
    answers: HashMap<String, Option<Seq>>,
    seq: u64,
    framed: u64,
    important_in: Vec<String>,
    important_out: Vec<String>,
    carried: HashSet<String>,
    kinds: BTreeMap<String, OfKind>,
    amounts: HashMap<TotalKey, i64>,
    deltas: HashMap<TotalKey, i64>,
    sums: HashMap<TotalKey, i64>,
    represents: u64,
    /// When each event since the last frame was accepted.
    waiting: Vec<Time>,
    last_out: Option<Time>,
}

impl Ledger {
    pub(crate) fn published(&mut self, event: &Event, outcome: Outcome, now: Time) {
        let seq = match outcome {
            Outcome::Accepted { seq } => seq,
            Outcome::Duplicate { seq } => {
                assert_eq!(self.answers.get(&*event.id), Some(&seq), "the first answer");
                return;
            }
            Outcome::Rejected(_) => return,
        };
        let known = self.answers.insert(event.id.to_string(), seq);
        assert_eq!(known, None, "{} was accepted twice", event.id);
        assert_eq!(seq.is_some(), event.kind.lane != Lane::Sampled);
        if let Some(seq) = seq {
            self.seq += 1;
            assert_eq!(seq, Seq(self.seq), "numbers increase by one");
        }
        if event.kind.lane == Lane::Important {
            self.important_in.push(event.id.to_string());
        }
        if let Some(key) = total_key(event) {
            *self.amounts.entry(key).or_default() += event.amount.unwrap_or(1);
        }
        let of_kind = self.kinds.entry(event.kind.name.to_string()).or_default();
        of_kind.accepted += 1;
        of_kind.rule = Some((event.kind.lane, event.kind.merge));
        self.waiting.push(now);
    }

    pub(crate) fn framed(&mut self, frame: &Frame, room: &Room) {
        assert_eq!(frame.first_seq, Seq(self.framed + 1), "no gap between frames");
        assert_eq!(frame.last_seq, Seq(self.seq), "a frame covers all numbers given");
        assert_eq!(frame.important, ImportantNo(self.important_in.len() as u64));
        self.framed = self.seq;
        self.check_waits(frame.time, room, frame);
        self.represents += frame.represents;
        let mut last = Seq(0);
        for event in &frame.events {
            assert!(self.carried.insert(event.event.id.to_string()), "carried twice");
            assert_eq!(self.answers.get(&*event.event.id), Some(&event.seq));
            if let Some(seq) = event.seq {
                assert!(seq > last && seq >= frame.first_seq && seq <= frame.last_seq);
                last = seq;
            }
            if let Some(ImportantNo(number)) = event.important {
                self.important_out.push(event.event.id.to_string());
                assert_eq!(number, self.important_out.len() as u64);
            }
            self.of(&event.event.kind).carried += 1;
        }
        for total in &frame.totals {
            let user = total.user.as_ref().map(ToString::to_string);
            let key = (total.kind.name.to_string(), user, total.key.to_string());
            *self.deltas.entry(key.clone()).or_default() += total.delta;
            let before = self.sums.insert(key, total.sum).unwrap_or(0);
            let starts_again = total.kind.idle_reset.is_some() && total.sum == total.delta;
            assert!(before + total.delta == total.sum || starts_again, "a sum goes on");
        }
        for dropped in &frame.dropped {
            assert!(dropped.count > 0);
            assert_ne!(dropped.kind.lane, Lane::Important);
            self.of(&dropped.kind).dropped += dropped.count;
        }
    }

    /// Counters balance at any time.
    pub(crate) fn check_counts(&self, stats: &RoomStats) {
        let accepted: u64 = stats.accepted.iter().sum();
        assert_eq!(accepted, self.kinds.values().map(|k| k.accepted).sum::<u64>());
        let pending: u64 = Lane::ALL.into_iter().map(|lane| stats.pending(lane)).sum();
        let dropped: u64 = stats.dropped.iter().flatten().sum();
        let announced: u64 = self.kinds.values().map(|k| k.dropped).sum();
        assert!(announced <= dropped && dropped <= announced + self.waiting.len() as u64);
        // What is neither open nor settled has vanished.
        assert_eq!(accepted, self.represents + dropped + pending);
    }

    pub(crate) fn frame_out(&mut self, now: Time) {
        self.last_out = Some(now);
    }

    /// After the last frame nothing is open.
    pub(crate) fn close(&self, stats: &RoomStats) {
        assert_eq!(self.important_in, self.important_out, "each once, in order");
        self.check_counts(stats);
        for lane in Lane::ALL {
            assert_eq!(stats.pending(lane), 0, "{}", lane.name());
        }
        let dropped: u64 = self.kinds.values().map(|k| k.dropped).sum();
        let accepted: u64 = self.kinds.values().map(|k| k.accepted).sum();
        assert_eq!(accepted, self.represents + dropped, "carried, merged or announced");
        assert_eq!(dropped, stats.dropped.iter().flatten().sum::<u64>());
        for (name, kind) in &self.kinds {
            match kind.rule {
                Some((Lane::Important, _)) => {
                    assert_eq!((kind.carried, kind.dropped), (kind.accepted, 0), "{name}");
                }
                Some((_, Merge::Append | Merge::Sample(_))) => {
                    assert_eq!(kind.accepted, kind.carried + kind.dropped, "{name}");
                }
                Some((_, Merge::Sum(_))) => {
                    assert_eq!((kind.carried, kind.dropped), (0, 0), "{name}");
                }
                Some((_, Merge::Latest(_))) => {
                    assert!(kind.carried + kind.dropped <= kind.accepted, "{name}");
                }
                None => panic!("{name} came out and never went in"),
            }
        }
        assert_eq!(self.amounts, self.deltas, "what went into a total came out of it");
    }

    /// Nobody waits longer than the interval, except behind a frame.
    fn check_waits(&mut self, now: Time, room: &Room, frame: &Frame) {
        let interval = super::world::settings_of(room).flush_interval;
        for accepted in self.waiting.drain(..) {
            let limit = (accepted + interval).max(self.last_out.unwrap_or_default());
            assert!(now <= limit, "waited {:?} for {}", now.since(accepted), frame.room);
        }
    }

    fn of(&mut self, kind: &Kind) -> &mut OfKind {
        self.kinds.entry(kind.name.to_string()).or_default()
    }
}

fn total_key(event: &Event) -> Option<TotalKey> {
    let Merge::Sum(by) = event.kind.merge else { return None };
    let user = (by == MergeBy::UserKey).then(|| event.user.to_string());
    let key = event.key.as_ref().map(Arc::to_string).unwrap_or_default();
    Some((event.kind.name.to_string(), user, key))
}
