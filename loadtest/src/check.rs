//! What a checking viewer does with every message: read all of it, and hold the
//! server to its promises. Numbers are gapless, nothing comes twice, running
//! sums add up. A recording viewer also keeps what it saw, for the exact balance
//! that `ledger` draws at the end.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Errors kept in words per stream; the rest are counted.
const MAX_ERRORS: usize = 5;

/// A frame as JSON.
#[derive(Debug, Deserialize)]
pub(crate) struct FrameMessage<'a> {
    epoch: u64,
    first_seq: u64,
    last_seq: u64,
    #[serde(default)]
    important: u64,
    #[serde(borrow, default)]
    events: Vec<EventMessage<'a>>,
    #[serde(borrow, default)]
    totals: Vec<TotalMessage<'a>>,
    #[serde(default)]
    dropped: BTreeMap<String, u64>,
}

/// An event as JSON.
#[derive(Debug, Deserialize)]
struct EventMessage<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    user: Option<Cow<'a, str>>,
    #[serde(default)]
    seq: Option<u64>,
    #[serde(default)]
    important: Option<u64>,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
    #[serde(borrow, default)]
    key: Option<Cow<'a, str>>,
    #[serde(default)]
    amount: Option<i64>,
    #[serde(default)]
    time_ms: u64,
}

/// A running total as JSON.
#[derive(Debug, Deserialize)]
struct TotalMessage<'a> {
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    user: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    key: Option<Cow<'a, str>>,
    sum: i64,
    #[serde(default)]
    delta: i64,
}

/// The answer to a join as JSON.
#[derive(Debug, Deserialize)]
pub(crate) struct JoinedMessage<'a> {
    epoch: u64,
    seq: u64,
    #[serde(default)]
    important: u64,
    #[serde(borrow, default)]
    totals: Vec<TotalMessage<'a>>,
    /// It replaces what a slow viewer holds.
    #[serde(default)]
    rebased: bool,
}

/// A gap notice as JSON.
#[derive(Debug, Deserialize)]
pub(crate) struct GapMessage {
    first_seq: u64,
    last_seq: u64,
    #[serde(default)]
    dropped: BTreeMap<String, u64>,
}

impl GapMessage {
    /// Events it names.
    pub(crate) fn count(&self) -> u64 {
        self.dropped.values().sum()
    }
}

/// The account of one viewer's stream.
#[derive(Debug, Default)]
pub(crate) struct StreamCheck {
    epoch: u64,
    last_seq: u64,
    /// Numbers that the last gap notice spans, without those that came since: what
    /// is important among them was not lost, and comes after the notice.
    owed: std::ops::Range<u64>,
    important: u64,
    sums: HashMap<(String, String, String), i64>,
    ids: HashSet<u64>,
    recording: Option<Box<Recording>>,
    /// Frames read.
    pub(crate) frames: u64,
    /// Broken promises in words.
    pub(crate) errors: Vec<String>,
    /// All broken promises.
    pub(crate) error_count: u64,
    /// What frames said the room dropped.
    pub(crate) dropped: BTreeMap<String, u64>,
}

/// All that one viewer saw.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Recording {
    /// Events in order of arrival.
    pub(crate) events: Vec<Seen>,
    /// Per (kind, user, key): sum of deltas.
    pub(crate) sums: Vec<(String, String, String, i64)>,
    /// Dropped by the room, by kind.
    pub(crate) dropped: BTreeMap<String, u64>,
    /// Lost by this viewer alone, by kind.
    pub(crate) gaps: BTreeMap<String, u64>,
    /// Sums that began anew (a combo that had ended).
    pub(crate) restarts: u64,
    /// Milliseconds from acceptance to arrival: (ms, events).
    pub(crate) age_ms: BTreeMap<u64, u64>,
    /// Frames.
    pub(crate) frames: u64,
    #[serde(skip)]
    deltas: HashMap<(String, String, String), i64>,
}

/// One event as a viewer saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// Publisher's id.
    pub(crate) id: String,
    /// Kind.
    pub(crate) kind: String,
    /// Number in the room.
    pub(crate) seq: Option<u64>,
    /// Number among the important ones.
    pub(crate) important: Option<u64>,
    /// Digest of what it says, see [`content`].
    pub(crate) content: u64,
}

/// Digest of what an event says. An absent payload is `null`, an absent user or
/// key is empty, an absent amount is 1.
pub(crate) fn content(kind: &str, user: &str, key: &str, amount: i64, payload: &str) -> u64 {
    let mut digest = fnv(0xcbf2_9ce4_8422_2325, kind.as_bytes());
    for part in [user, key, &amount.to_string(), payload] {
        digest = fnv(fnv(digest, &[0xff]), part.as_bytes());
    }
    // Survives readers of JSON that hold numbers as doubles.
    digest >> 11
}

fn fnv(digest: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(digest, |digest, &byte| {
        (digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

impl StreamCheck {
    /// A check that also keeps what it sees, if `record`.
    pub(crate) fn new(record: bool) -> Self {
        Self { recording: record.then(Box::default), ..Self::default() }
    }

    /// What was recorded so far.
    pub(crate) fn recording(&self) -> Option<Recording> {
        let mut recording = (**self.recording.as_ref()?).clone();
        recording.frames = self.frames;
        recording.sums = recording
            .deltas
            .iter()
            .map(|((kind, user, key), sum)| (kind.clone(), user.clone(), key.clone(), *sum))
            .collect();
        recording.sums.sort();
        Some(recording)
    }

    /// The room as it stood when the viewer joined.
    pub(crate) fn joined(&mut self, message: &JoinedMessage<'_>) {
        let here = (self.last_seq, self.important);
        if message.rebased && (message.seq, message.important) != here {
            self.fail(format!("goes on from {} without a word, after {here:?}", message.seq));
        }
        self.sums.clear();
        self.epoch = message.epoch;
        self.last_seq = message.seq;
        self.important = message.important;
        for total in &message.totals {
            self.sums.insert(total.key(), total.sum);
        }
    }

    /// What this viewer alone lost.
    pub(crate) fn gap(&mut self, gap: &GapMessage) {
        if gap.first_seq != self.last_seq + 1 {
            self.fail(format!(
                "gap begins at {} after sequence number {}",
                gap.first_seq, self.last_seq
            ));
        }
        self.last_seq = gap.last_seq.max(self.last_seq);
        self.owed = gap.first_seq..gap.last_seq + 1;
        // What the viewer lost it cannot add up.
        self.sums.clear();
        if let Some(recording) = &mut self.recording {
            for (kind, count) in &gap.dropped {
                *recording.gaps.entry(kind.clone()).or_default() += count;
            }
        }
    }

    /// One frame; `wall_ms` is now.
    pub(crate) fn frame(&mut self, frame: &FrameMessage<'_>, wall_ms: u64) {
        self.frames += 1;
        if frame.epoch != self.epoch {
            self.fail(format!("epoch {} instead of {}", frame.epoch, self.epoch));
            self.epoch = frame.epoch;
        }
        // Without numbers of its own a frame brings what is older.
        let numbered = frame.first_seq <= frame.last_seq;
        if frame.first_seq >= self.owed.start && frame.last_seq < self.owed.end {
            self.owed.start = frame.last_seq + 1;
            if frame.events.iter().any(|event| event.seq.is_some() && event.important.is_none()) {
                self.fail(format!("frame {} was told as lost", frame.first_seq));
            }
        } else if frame.first_seq != self.last_seq + 1 || frame.last_seq + 1 < frame.first_seq {
            self.fail(format!(
                "frame {}..={} after sequence number {}",
                frame.first_seq, frame.last_seq, self.last_seq
            ));
        }
        self.last_seq = self.last_seq.max(frame.last_seq);
        let mut previous = if numbered { frame.first_seq.saturating_sub(1) } else { 0 };
        for event in &frame.events {
            self.event(event, frame, &mut previous, wall_ms);
        }
        if frame.important != self.important {
            self.fail(format!(
                "frame says important {}, its events lead to {}",
                frame.important, self.important
            ));
            self.important = frame.important;
        }
        for total in &frame.totals {
            self.total(total);
        }
        for (kind, count) in &frame.dropped {
            *self.dropped.entry(kind.clone()).or_default() += count;
            if let Some(recording) = &mut self.recording {
                *recording.dropped.entry(kind.clone()).or_default() += count;
            }
        }
    }

    fn event(
        &mut self,
        event: &EventMessage<'_>,
        frame: &FrameMessage<'_>,
        previous: &mut u64,
        wall_ms: u64,
    ) {
        if let Some(seq) = event.seq {
            if seq <= *previous || seq > frame.last_seq {
                self.fail(format!(
                    "event {seq} after {previous} in frame {}..={}",
                    frame.first_seq, frame.last_seq
                ));
            }
            *previous = seq;
        }
        if let Some(number) = event.important {
            if number != self.important + 1 {
                self.fail(format!("important {number} after {}", self.important));
            }
            self.important = number;
        }
        if !self.ids.insert(fnv(0xcbf2_9ce4_8422_2325, event.id.as_bytes())) {
            self.fail(format!("event {} came twice", event.id));
        }
        if let Some(recording) = &mut self.recording {
            *recording.age_ms.entry(wall_ms.saturating_sub(event.time_ms)).or_default() += 1;
            recording.events.push(event.seen());
        }
    }

    fn total(&mut self, total: &TotalMessage<'_>) {
        let key = total.key();
        if let Some(recording) = &mut self.recording {
            *recording.deltas.entry(key.clone()).or_default() += total.delta;
        }
        let before = self.sums.insert(key, total.sum);
        // Without a delta it makes up for totals that a slow viewer was not sent.
        if total.delta == 0 || before.is_none_or(|before| before + total.delta == total.sum) {
            return;
        }
        if total.delta == total.sum {
            if let Some(recording) = &mut self.recording {
                recording.restarts += 1;
            }
            return;
        }
        self.fail(format!(
            "total of {} {}: {} plus {} is not {}",
            total.kind,
            total.key.as_deref().unwrap_or_default(),
            before.unwrap_or_default(),
            total.delta,
            total.sum
        ));
    }

    pub(crate) fn fail(&mut self, error: String) {
        self.error_count += 1;
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(error);
        }
    }
}

impl TotalMessage<'_> {
    fn key(&self) -> (String, String, String) {
        let text = |part: &Option<Cow<'_, str>>| part.as_deref().unwrap_or_default().to_owned();
        (self.kind.clone().into_owned(), text(&self.user), text(&self.key))
    }
}

impl EventMessage<'_> {
    fn seen(&self) -> Seen {
        let text = |part: &Option<Cow<'_, str>>| part.as_deref().unwrap_or_default().to_owned();
        let payload = self.payload.map_or("null", RawValue::get);
        Seen {
            id: self.id.clone().into_owned(),
            kind: self.kind.clone().into_owned(),
            seq: self.seq,
            important: self.important,
            content: content(
                &self.kind,
                &text(&self.user),
                &text(&self.key),
                self.amount.unwrap_or(1),
                payload,
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(frames: &[&str]) -> StreamCheck {
        let mut check = StreamCheck::new(true);
        let joined = r#"{"epoch":7,"seq":10,"important":2,"totals":[{"kind":"like","key":"","sum":5,"delta":0}]}"#;
        check.joined(&serde_json::from_str(joined).unwrap());
        for frame in frames {
            check.frame(&serde_json::from_str(frame).unwrap(), 1_000);
        }
        check
    }

    const GOOD: &str = r#"{"room":"r","epoch":7,"first_seq":11,"last_seq":13,"important":3,"time_ms":990,
        "events":[{"id":"a","kind":"chat","user":"u","seq":11,"payload":"hi","time_ms":900},
                  {"id":"b","kind":"coupon","user":"","seq":13,"important":3,"payload":null,"time_ms":900}],
        "totals":[{"kind":"like","key":"","sum":9,"delta":4}],"dropped":{"chat":1},"online":3}"#;

    #[test]
    fn a_right_stream_passes() {
        let next = r#"{"epoch":7,"first_seq":14,"last_seq":13,"important":3}"#;
        let check = run(&[GOOD, next]);
        assert_eq!(check.error_count, 0, "{:?}", check.errors);
        let recording = check.recording().unwrap();
        assert_eq!(recording.events.len(), 2);
        assert_eq!(recording.events[0].content, content("chat", "u", "", 1, "\"hi\""));
        assert_eq!(recording.events[1].content, content("coupon", "", "", 1, "null"));
        assert_eq!(recording.sums, [("like".into(), String::new(), String::new(), 4)]);
        assert_eq!(recording.dropped["chat"], 1);
        assert_eq!(recording.frames, 2);
    }

    fn complains(frames: &[&str], about: &str) {
        let check = run(frames);
        assert!(check.error_count > 0, "no complaint about {about}");
        assert!(check.errors.iter().any(|error| error.contains(about)), "{:?}", check.errors);
    }

    #[test]
    fn a_frame_that_was_skipped_is_noticed() {
        complains(&[r#"{"epoch":7,"first_seq":12,"last_seq":12,"important":2}"#], "12..=12 after");
    }

    #[test]
    fn a_frame_that_comes_twice_is_noticed() {
        complains(&[GOOD, GOOD], "11..=13 after sequence number 13");
        complains(&[GOOD, GOOD], "came twice");
    }

    #[test]
    fn another_epoch_is_noticed() {
        complains(&[r#"{"epoch":8,"first_seq":11,"last_seq":10,"important":2}"#], "epoch 8");
    }

    #[test]
    fn events_out_of_order_are_noticed() {
        let swapped = GOOD.replace(r#""seq":11,"#, r#""seq":13,"#);
        complains(&[&swapped], "event 13 after 13");
    }

    #[test]
    fn a_missing_important_event_is_noticed() {
        let jumped = GOOD.replace(r#""important":3"#, r#""important":4"#);
        complains(&[&jumped], "important 4 after 2");
        let silent = r#"{"epoch":7,"first_seq":11,"last_seq":11,"important":3}"#;
        complains(&[silent], "frame says important 3");
    }

    #[test]
    fn a_wrong_sum_is_noticed() {
        let wrong = GOOD.replace(r#""sum":9"#, r#""sum":10"#);
        complains(&[&wrong], "5 plus 4 is not 10");
    }

    #[test]
    fn what_is_important_within_a_gap_follows_it_and_nothing_else_does() {
        let frame = |seq: u64, important: &str| {
            let event = format!(r#"{{"id":"{seq}","kind":"k","seq":{seq}{important}}}"#);
            format!(
                r#"{{"epoch":7,"first_seq":{seq},"last_seq":{seq},"important":3,"events":[{event}]}}"#
            )
        };
        let run_with = |frames: &[String]| {
            let mut check = run(&[]);
            let gap = r#"{"room":"r","first_seq":11,"last_seq":15,"dropped":{"chat":3}}"#;
            check.gap(&serde_json::from_str(gap).unwrap());
            for frame in frames {
                check.frame(&serde_json::from_str(frame).unwrap(), 0);
            }
            check
        };
        let (owed, lost) = (frame(13, r#","important":3"#), frame(14, ""));
        let check = run_with(&[owed.clone(), frame(16, "")]);
        assert_eq!(check.error_count, 0, "{:?}", check.errors);
        for (frames, about) in [
            (vec![owed.clone(), lost], "14 was told as lost"),
            (vec![owed.clone(), owed], "13..=13 after"),
        ] {
            let check = run_with(&frames);
            assert!(check.errors.iter().any(|e| e.contains(about)), "{:?}", check.errors);
        }
    }

    #[test]
    fn a_gap_bridges_what_was_lost_and_nothing_else() {
        let gap = r#"{"room":"r","first_seq":11,"last_seq":13,"dropped":{"chat":3}}"#;
        let mut check = run(&[]);
        check.gap(&serde_json::from_str(gap).unwrap());
        let next = r#"{"epoch":7,"first_seq":14,"last_seq":14,"important":2}"#;
        check.frame(&serde_json::from_str(next).unwrap(), 0);
        assert_eq!(check.error_count, 0, "{:?}", check.errors);
        check.gap(&serde_json::from_str(gap).unwrap());
        assert_eq!(check.error_count, 1);
        assert_eq!(check.recording().unwrap().gaps["chat"], 6);
    }
}
