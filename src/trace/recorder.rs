//! What one shard notes of the events that are followed.
//!
//! It belongs to the shard's thread and takes no lock. Whoever has a marked
//! event in hand tells it; all else asks first whether anything is open here
//! ([`Recorder::is_logging`], [`Recorder::awaits_receipts`],
//! [`Recorder::is_following`]), so that events nobody follows cost a comparison.

mod again;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub use self::again::Again;
use self::again::{Bursts, Numbers};
use super::otlp::{Span, Spans};
use super::step::{Detail, Noted, Step};
use super::watch::span;
use crate::clock::Clock;
use crate::engine::event::Frame;
use crate::engine::ids::{ImportantNo, RoomId, Seq, ShardId};
use crate::engine::mark::{Fate, Fated, Mark};
use crate::engine::outcome::{Outcome, Refusal};
use crate::engine::room::Offered;
use crate::engine::stats::DropReason;
use crate::engine::time::Time;

/// Steps of one trace on one shard; a repeated id adds more each time, and so
/// does every burst of viewers that get it again.
const MOST_STEPS: usize = 64;

/// How long acknowledgements are counted: the last horizon of the arrival rate.
const RECEIPTS_FOR: Duration = Duration::from_secs(10);

/// Limits of a shard's recorder.
#[derive(Debug, Clone, Copy)]
pub struct RecorderSettings {
    /// Traces kept; the oldest goes first. 2 KiB each, until an id is repeated
    /// or the event is sent again; 9 KiB with all the steps a trace may have.
    /// See the tests.
    pub kept: usize,
}

/// What it did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TraceStats {
    /// Traces kept now.
    pub kept: u64,
    /// Arrivals of events that were followed here.
    pub arrivals: u64,
    /// Traces that gave way to newer ones.
    pub forgotten: u64,
    /// Steps beyond what one trace keeps.
    pub cut_steps: u64,
    /// Spans that found the exporter's queue full.
    pub dropped_spans: u64,
}

impl TraceStats {
    /// Adds another shard's.
    pub fn absorb(&mut self, other: &TraceStats) {
        self.kept += other.kept;
        self.arrivals += other.arrivals;
        self.forgotten += other.forgotten;
        self.cut_steps += other.cut_steps;
        self.dropped_spans += other.dropped_spans;
    }
}

/// Which traces are wanted.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Of this room only.
    pub room: Option<RoomId>,
    /// Of this event only.
    pub id: Option<String>,
    /// The newest so many of a shard.
    pub limit: usize,
}

/// One shard's notes of one event.
#[derive(Debug, Clone)]
pub struct View {
    /// Whose; of the last arrival.
    pub mark: Arc<Mark>,
    /// On which shard.
    pub shard: ShardId,
    /// In order of noting.
    pub steps: Vec<Noted>,
    /// Steps that were not kept.
    pub cut: u32,
}

/// How a frame went out on a shard.
#[derive(Debug, Clone, Copy)]
pub struct Written {
    /// When its first viewer's turn came.
    pub begun: Time,
    /// When its last viewer's turn was over.
    pub ended: Time,
    /// Viewers whose socket took it whole.
    pub whole: u32,
    /// Viewers who will get it, or the rest of it, from their backlog.
    pub backlogged: u32,
    /// The room's home is here, where its traces began.
    pub at_home: bool,
}

#[derive(Debug)]
struct Trace {
    mark: Arc<Mark>,
    steps: Vec<Noted>,
    cut: u32,
    last: Time,
    /// Its number, once it has been sent.
    important: Option<ImportantNo>,
}

/// An event that the log has not decided on.
#[derive(Debug)]
struct Logging {
    mark: Arc<Mark>,
    important: ImportantNo,
    /// Its publisher was told that it is accepted.
    answered: bool,
}

/// An important event that viewers here may acknowledge.
#[derive(Debug)]
struct Receipt {
    mark: Arc<Mark>,
    important: ImportantNo,
    until: Time,
    count: u64,
    first: Time,
    last: Time,
}

impl Receipt {
    fn noted(&self) -> Option<Noted> {
        (self.count > 0).then(|| Noted {
            step: Step::Confirmed,
            at: self.last,
            since: self.first,
            details: vec![("acknowledgements", Detail::Count(self.count))],
        })
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Recorder {
    shard: ShardId,
    clock: Clock,
    settings: RecorderSettings,
    traces: HashMap<u128, Trace>,
    order: VecDeque<u128>,
    /// Events here that the log has not decided on.
    logging: Vec<Logging>,
    receipts: VecDeque<Receipt>,
    bursts: Bursts,
    numbers: Numbers,
    spans: Option<Spans>,
    stats: TraceStats,
}

impl Recorder {
    /// Nothing noted yet. Spans go to `spans`, if there is one.
    #[must_use]
    pub fn new(
        shard: ShardId,
        clock: Clock,
        settings: RecorderSettings,
        spans: Option<Spans>,
    ) -> Self {
        Self {
            shard,
            clock,
            settings,
            traces: HashMap::new(),
            order: VecDeque::new(),
            logging: Vec::new(),
            receipts: VecDeque::new(),
            bursts: Bursts::default(),
            numbers: Numbers::default(),
            spans,
            stats: TraceStats::default(),
        }
    }

    /// An event has come in.
    pub fn arrived(&mut self, mark: &Arc<Mark>) {
        self.stats.arrivals += 1;
        match self.traces.get_mut(&mark.key) {
            // It is sent again.
            Some(trace) => (trace.mark, trace.last) = (Arc::clone(mark), mark.received),
            None => self.begin(mark),
        }
        let way = [("way", Detail::Word(mark.way.name()))];
        self.note_at(mark, Step::Received, &way, mark.received, mark.received);
    }

    /// It waits for its turn, behind so many.
    pub fn admitted(&mut self, mark: &Arc<Mark>, waiting: usize) {
        self.note(mark, Step::Admitted, &[("waiting", Detail::Count(waiting as u64))]);
    }

    /// It is not taken.
    pub fn refused(&mut self, mark: &Arc<Mark>, code: &'static str) {
        self.note(mark, Step::Refused, &[("why", Detail::Word(code))]);
    }

    /// Its turn has come.
    pub fn taken(&mut self, mark: &Arc<Mark>) {
        self.note(mark, Step::Queued, &[]);
    }

    /// Its room has answered.
    pub fn answered(&mut self, mark: &Arc<Mark>, offered: &Offered) {
        let (outcome, staged) = match *offered {
            Offered::Done(outcome) => (outcome, None),
            Offered::Staged { important, answer, at_once } => (answer, Some((important, at_once))),
        };
        let number = |seq: Option<Seq>| seq.map(|seq| ("seq", Detail::Count(seq.0)));
        match outcome {
            Outcome::Accepted { seq } => {
                let important = staged.map(|(number, _)| ("important", Detail::Count(number.0)));
                let numbers: Vec<_> = number(seq).into_iter().chain(important).collect();
                self.note(mark, Step::Numbered, &numbers);
                if let Some((important, answered)) = staged {
                    let mark = Arc::clone(mark);
                    self.logging.push(Logging { mark, important, answered });
                }
            }
            Outcome::Duplicate { seq } => {
                let numbers: Vec<_> = number(seq).into_iter().collect();
                self.note(mark, Step::Repeated, &numbers);
            }
            Outcome::Rejected(refusal) => self.refused(mark, refusal.code()),
        }
    }

    /// Whether anything here waits for the log.
    #[must_use]
    pub fn is_logging(&self) -> bool {
        !self.logging.is_empty()
    }

    /// A room's events up to this number are on disk.
    pub fn logged(&mut self, room: &RoomId, upto: ImportantNo) {
        let done = self.decided(room, |important| important <= upto);
        for Logging { mark, .. } in done {
            self.note(&mark, Step::Logged, &[]);
        }
    }

    /// The log has failed for a room's events from this number on.
    pub fn log_failed(&mut self, room: &RoomId, from: ImportantNo) {
        let lost = self.decided(room, |important| important >= from);
        for Logging { mark, answered, .. } in lost {
            if answered {
                self.fate(&(mark, Fate::Dropped(DropReason::Unlogged)));
            } else {
                self.refused(&mark, Refusal::LogUnavailable.code());
            }
        }
    }

    fn decided(&mut self, room: &RoomId, is: impl Fn(ImportantNo) -> bool) -> Vec<Logging> {
        let those = |one: &mut Logging| one.mark.room == *room && is(one.important);
        self.logging.extract_if(.., those).collect()
    }

    /// It will be in no frame.
    pub fn fate(&mut self, (mark, fate): &Fated) {
        let (step, detail) = match fate {
            Fate::Summed => (Step::Merged, ("into", Detail::Word("total"))),
            Fate::Overtaken => (Step::Merged, ("into", Detail::Word("newer"))),
            Fate::Dropped(reason) => (Step::Dropped, ("why", Detail::Word(reason.name()))),
        };
        self.note(mark, step, &[detail]);
    }

    /// A frame with marked events was made.
    pub fn flushed(&mut self, frame: &Frame) {
        for (mark, important) in marked(frame) {
            let important = important.map(|number| ("important", Detail::Count(number.0)));
            let details = [
                ("first_seq", Detail::Count(frame.first_seq.0)),
                ("last_seq", Detail::Count(frame.last_seq.0)),
                ("events", Detail::Count(frame.events.len() as u64)),
            ];
            let details: Vec<_> = details.into_iter().chain(important).collect();
            self.note(mark, Step::Flushed, &details);
        }
        self.learn(frame);
    }

    /// It has its bytes, so many in each format that is in use.
    pub fn encoded(&mut self, frame: &Frame, bytes: &[(&'static str, Detail)]) {
        for (mark, _) in marked(frame) {
            self.note(mark, Step::Encoded, bytes);
        }
    }

    /// A frame begins to go out here: viewers may acknowledge it from now on.
    pub fn expect_receipts(&mut self, frame: &Frame) {
        let now = self.clock.now();
        for (mark, important) in marked(frame) {
            let Some(important) = important else { continue };
            if self.receipts.len() >= self.settings.kept
                && let Some(oldest) = self.receipts.pop_front()
            {
                self.close(&oldest);
            }
            let (mark, until) = (Arc::clone(mark), now + RECEIPTS_FOR);
            let receipt = Receipt { mark, important, until, count: 0, first: now, last: now };
            self.receipts.push_back(receipt);
        }
    }

    /// A frame has gone to all viewers here.
    pub fn written(&mut self, frame: &Frame, written: Written) {
        let Written { begun, ended, whole, backlogged, at_home } = written;
        let details = [
            ("whole", Detail::Count(whole.into())),
            ("backlogged", Detail::Count(backlogged.into())),
        ];
        for (mark, _) in marked(frame) {
            if !at_home && !self.traces.contains_key(&mark.key) {
                self.begin(mark);
            }
            self.note_at(mark, Step::Written, &details, begun, ended);
        }
        if !at_home {
            self.learn(frame);
        }
    }

    /// Whether acknowledgements are counted.
    #[must_use]
    pub fn awaits_receipts(&self) -> bool {
        !self.receipts.is_empty()
    }

    /// A viewer has acknowledged the numbers after the first, up to the last.
    pub fn confirmed(&mut self, room: &RoomId, after: ImportantNo, upto: ImportantNo) {
        let now = self.clock.now();
        for receipt in &mut self.receipts {
            let counts = receipt.important > after && receipt.important <= upto;
            if counts && receipt.mark.room == *room {
                if receipt.count == 0 {
                    receipt.first = now;
                }
                receipt.count += 1;
                receipt.last = now;
            }
        }
    }

    /// Ends the counting of acknowledgements whose time is over, and bursts.
    pub fn tick(&mut self, now: Time) {
        while self.receipts.front().is_some_and(|oldest| oldest.until <= now) {
            let Some(oldest) = self.receipts.pop_front() else { break };
            self.close(&oldest);
        }
        let ended = self.bursts.over(now);
        self.close_bursts(ended);
    }

    fn close(&mut self, receipt: &Receipt) {
        if let Some(Noted { step, at, since, details }) = receipt.noted() {
            self.note_at(&receipt.mark, step, &details, since, at);
        }
    }

    /// What it has of the wanted events, newest first.
    #[must_use]
    pub fn views(&self, query: &Query) -> Vec<View> {
        let newest = self.order.iter().rev().filter_map(|key| self.traces.get(key));
        let wanted = newest.filter(|trace| {
            query.room.as_ref().is_none_or(|room| trace.mark.room == *room)
                && query.id.as_ref().is_none_or(|id| *trace.mark.id == **id)
        });
        let view = |trace: &Trace| {
            let open = self.receipts.iter().filter(|receipt| receipt.mark.key == trace.mark.key);
            let open = open.filter_map(Receipt::noted).chain(self.bursts.of(trace.mark.key));
            let steps = trace.steps.iter().cloned().chain(open);
            let (mark, steps) = (Arc::clone(&trace.mark), steps.collect());
            View { mark, shard: self.shard, steps, cut: trace.cut }
        };
        wanted.take(query.limit).map(view).collect()
    }

    /// What it did.
    #[must_use]
    pub fn stats(&self) -> TraceStats {
        TraceStats { kept: self.traces.len() as u64, ..self.stats }
    }

    /// A step that began when the last one ended; a span of one whose trace has
    /// given way begins with the event.
    fn note(&mut self, mark: &Arc<Mark>, step: Step, details: &[(&'static str, Detail)]) {
        let before = self.traces.get(&mark.key).map_or(mark.received, |trace| trace.last);
        self.note_at(mark, step, details, before, self.clock.now());
    }

    fn note_at(
        &mut self,
        mark: &Arc<Mark>,
        step: Step,
        details: &[(&'static str, Detail)],
        since: Time,
        at: Time,
    ) {
        // One that has given way stays away: what is left of it would push out
        // others in turn, and none would be whole.
        if let Some(trace) = self.traces.get_mut(&mark.key) {
            // What was counted for a while may end before what was noted meanwhile.
            trace.last = trace.last.max(at);
            if trace.steps.len() < MOST_STEPS {
                trace.steps.push(Noted { step, at, since, details: details.to_vec() });
            } else {
                trace.cut += 1;
                self.stats.cut_steps += 1;
            }
        }
        if self.spans.is_some() {
            self.send(self.step_span(mark, step, details, since, at));
            if step.is_end() {
                self.send(Span::whole(mark, step, details, at));
            }
        }
    }

    fn begin(&mut self, mark: &Arc<Mark>) {
        while self.traces.len() >= self.settings.kept.max(1) {
            let Some(oldest) = self.order.pop_front() else { break };
            if let Some(Trace { mark, important: Some(number), .. }) = self.traces.remove(&oldest) {
                self.numbers.forget(number, &mark);
            }
            self.stats.forgotten += 1;
        }
        self.order.push_back(mark.key);
        let (steps, last) = (Vec::with_capacity(8), mark.received);
        let trace = Trace { mark: Arc::clone(mark), steps, cut: 0, last, important: None };
        self.traces.insert(mark.key, trace);
    }

    fn step_span(
        &self,
        mark: &Arc<Mark>,
        step: Step,
        details: &[(&'static str, Detail)],
        since: Time,
        at: Time,
    ) -> Span {
        let (arrival, shard) = (mark.span.to_le_bytes(), self.shard.0.to_le_bytes());
        // The times tell bursts of one step apart, the words its ways.
        let times = [since.as_micros().to_le_bytes(), at.as_micros().to_le_bytes()];
        let word = details.iter().find_map(|(_, detail)| match detail {
            Detail::Word(word) => Some(*word),
            Detail::Count(_) => None,
        });
        let word = word.unwrap_or_default().as_bytes();
        let name = step.name().as_bytes();
        let own = span(mark.key, &[&arrival, name, &shard, &times[0], &times[1], word]);
        Span::of_step(mark, own, step, self.shard, details, since, at)
    }

    fn send(&mut self, span: Span) {
        if let Some(spans) = &self.spans
            && spans.try_send(span).is_err()
        {
            self.stats.dropped_spans += 1;
        }
    }
}

impl Drop for Recorder {
    /// The shard ends: what was acknowledged so far is what is exported.
    fn drop(&mut self) {
        while let Some(oldest) = self.receipts.pop_front() {
            self.close(&oldest);
        }
        let ended = self.bursts.end();
        self.close_bursts(ended);
    }
}

fn marked(frame: &Frame) -> impl Iterator<Item = (&Arc<Mark>, Option<ImportantNo>)> {
    let events = frame.events.iter();
    events.filter_map(|event| Some((event.event.mark.as_ref()?, event.important)))
}

#[cfg(test)]
mod tests;
