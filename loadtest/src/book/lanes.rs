//! Messages of QUIC viewers in the account: protobuf, on several streams.
//!
//! A frame is told by its first byte and searched for our marker like a JSON
//! one; only a sample of the viewers parses it, and holds the server to what it
//! promises where streams are not ordered one against another: each stream is
//! in order, numbers that the control stream passes over are those of important
//! events and come on the other stream, and no important event is missing.

use std::collections::{BTreeSet, HashMap};

use prost::Message as _;
use tidegate::wire::proto::v1;
use tidegate::wire::proto::v1::server_message::Message;

use super::{Answer, Book};
use crate::quic::Lane;
use crate::viewer::{MARKER, Phase, Viewer, numbers};

/// How a `frame` begins: field 3 of `ServerMessage`, length-delimited.
const FRAME_TAG: u8 = 3 << 3 | 2;
/// Numbers remembered that one stream has and the other has not.
const MAX_PENDING: usize = 1 << 16;
/// Errors kept in words per viewer; the rest are counted.
const MAX_ERRORS: usize = 5;

/// The account of one viewer's streams.
#[derive(Debug, Default)]
pub(super) struct LaneCheck {
    epoch: u64,
    /// Highest number that the control stream covered.
    seq: u64,
    /// Important events came without a hole up to this number.
    important: u64,
    /// Important numbers beyond it that came.
    ahead: BTreeSet<u64>,
    /// Sequence numbers that the control stream passed over.
    holes: BTreeSet<u64>,
    /// Sequence numbers of important events that it has not reached.
    early: BTreeSet<u64>,
    ids: HashMap<u64, Lane>,
    sums: HashMap<(String, Option<String>, String), i64>,
    /// Frames read.
    pub(super) frames: u64,
    /// Important events that came again, on whatever stream: that is allowed.
    pub(super) repeated: u64,
    pub(super) errors: Vec<String>,
    pub(super) error_count: u64,
}

impl LaneCheck {
    fn joined(&mut self, joined: &v1::Joined) {
        if joined.rebased {
            self.seq = self.seq.max(joined.seq);
        } else {
            self.epoch = joined.epoch;
            (self.seq, self.important) = (joined.seq, joined.important);
            // What the other stream brought before this answer is new if it is
            // beyond it.
            self.ahead = self.ahead.split_off(&(joined.important + 1));
            self.advance();
        }
        self.holes.clear();
        self.early = self.early.split_off(&(self.seq + 1));
        self.sums.clear();
    }

    fn advance(&mut self) {
        while self.ahead.remove(&(self.important + 1)) {
            self.important += 1;
        }
    }

    fn gap(&mut self, gap: &v1::Gap) {
        // What it names is told; what lies before it is not.
        self.passed_over(self.seq + 1, gap.first_seq);
        self.seq = self.seq.max(gap.last_seq);
        self.early = self.early.split_off(&(self.seq + 1));
        self.sums.clear();
    }

    /// The control stream leaves out `from..to`.
    fn passed_over(&mut self, from: u64, to: u64) {
        for seq in from..to.min(from + MAX_PENDING as u64) {
            if !self.early.remove(&seq) && self.holes.len() < MAX_PENDING {
                self.holes.insert(seq);
            }
        }
    }

    fn frame(&mut self, lane: Lane, frame: &v1::Frame) {
        self.frames += 1;
        // Before the answer to the join, important events are held, and datagrams
        // mean nothing.
        let waits = self.epoch == 0 && lane != Lane::Control;
        if waits && lane == Lane::Datagram {
            return;
        }
        if frame.epoch != self.epoch && !waits {
            self.fail(format!("epoch {} instead of {}", frame.epoch, self.epoch));
            self.epoch = frame.epoch;
        }
        let numbered = frame.first_seq <= frame.last_seq;
        if numbered && lane != Lane::Control {
            self.fail(format!(
                "a frame in lane {lane:?} covers {}..={}",
                frame.first_seq, frame.last_seq
            ));
        } else if numbered {
            if frame.first_seq <= self.seq {
                self.fail(format!(
                    "frame {}..={} after {}",
                    frame.first_seq, frame.last_seq, self.seq
                ));
            }
            self.passed_over(self.seq + 1, frame.first_seq);
            self.within(frame);
            self.seq = self.seq.max(frame.last_seq);
        }
        for event in &frame.events {
            self.event(lane, event);
        }
        // In datagrams the newest total wins, and any may be missing.
        if lane == Lane::Control {
            for total in &frame.totals {
                self.total(total);
            }
        }
    }

    /// Numbers inside a frame: events that are not there were merged, dropped by
    /// the room, or are important ones on the other stream.
    fn within(&mut self, frame: &v1::Frame) {
        let mut before = frame.first_seq - 1;
        for seq in frame.events.iter().filter_map(|event| event.seq) {
            if seq <= before || seq > frame.last_seq {
                self.fail(format!("event {seq} after {before} in ..={}", frame.last_seq));
            }
            before = seq;
        }
        self.early = self.early.split_off(&(frame.last_seq + 1));
    }

    fn event(&mut self, lane: Lane, event: &v1::Event) {
        let Some(number) = event.important else {
            if lane == Lane::Important {
                self.fail(format!("event {} on the stream of important ones", event.id));
            }
            if self.ids.insert(hash(&event.id), lane).is_some() {
                self.fail(format!("event {} came twice", event.id));
            }
            return;
        };
        if number <= self.important || !self.ahead.insert(number) {
            self.repeated += 1;
            return;
        }
        self.advance();
        if self.ids.insert(hash(&event.id), lane).is_some() {
            self.fail(format!("event {} has two numbers", event.id));
        }
        if let Some(seq) = event.seq
            && !self.holes.remove(&seq)
            && seq > self.seq
            && self.early.len() < MAX_PENDING
        {
            self.early.insert(seq);
        }
    }

    fn total(&mut self, total: &v1::Total) {
        let key = (total.kind.clone(), total.user.clone(), total.key.clone());
        let before = self.sums.insert(key, total.sum);
        let adds = before.is_none_or(|before| before + total.delta == total.sum);
        // Without a delta it makes up for some that were left out; one that is
        // all of the sum begins anew.
        if total.delta != 0 && total.delta != total.sum && !adds {
            self.fail(format!(
                "total of {} {}: {} plus {} is not {}",
                total.kind,
                total.key,
                before.unwrap_or_default(),
                total.delta,
                total.sum
            ));
        }
    }

    fn fail(&mut self, error: String) {
        self.error_count += 1;
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(error);
        }
    }

    /// What is owed when everything should have arrived, in words.
    pub(super) fn owed(&self) -> Option<String> {
        if self.holes.is_empty() && self.ahead.is_empty() {
            return None;
        }
        Some(format!(
            "{} numbers passed over that are no important event's, {} important ones after a hole \
             at {}",
            self.holes.len(),
            self.ahead.len(),
            self.important + 1
        ))
    }
}

/// Whether a datagram holds important events.
fn is_copy(message: &[u8]) -> bool {
    let Ok(v1::ServerMessage { message: Some(Message::Frame(frame)) }) =
        v1::ServerMessage::decode(message)
    else {
        return false;
    };
    frame.events.iter().any(|event| event.important.is_some())
}

fn hash(id: &str) -> u64 {
    id.bytes().fold(0xcbf2_9ce4_8422_2325, |digest, byte| {
        (digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

impl Book {
    /// One message of a QUIC viewer.
    pub(crate) fn lane_message(
        &mut self,
        viewer: &mut Viewer,
        lane: Lane,
        message: &[u8],
        now: u64,
    ) -> Answer {
        if message.first() != Some(&FRAME_TAG) {
            return self.rare_message(viewer, message);
        }
        if lane == Lane::Datagram && self.is_beyond(viewer, message) && is_copy(message) {
            self.copy(viewer, message, now);
        } else {
            self.marked(viewer, message, message.len(), now);
        }
        self.release(viewer, now);
        if let Some(check) = self.lanes.get_mut(viewer.check as usize) {
            match v1::ServerMessage::decode(message) {
                Ok(v1::ServerMessage { message: Some(Message::Frame(frame)) }) => {
                    check.frame(lane, &frame);
                }
                Ok(_) => check.fail("a frame and something else in one message".into()),
                Err(error) => check.fail(format!("frame is not as documented: {error}")),
            }
        }
        Answer::None
    }

    /// Whether something is missing before a message's first event of ours.
    fn is_beyond(&self, viewer: &Viewer, message: &[u8]) -> bool {
        let found = self.finder.find(message);
        let first = found.and_then(|at| numbers(&message[at + MARKER.len()..]));
        first.is_some_and(|[_, n, _]| n > viewer.next)
    }

    /// An important event that came in a datagram counts as delivered when
    /// everything before it has been.
    fn copy(&mut self, viewer: &mut Viewer, message: &[u8], now: u64) {
        let mut at = 0;
        while let Some(found) = self.finder.find(&message[at..]) {
            at += found + MARKER.len();
            let Some([_, n, intended]) = numbers(&message[at..]) else { continue };
            if n > viewer.next {
                viewer.ahead.insert(n, intended);
            } else {
                self.event(viewer, n, now.saturating_sub(intended), now);
            }
        }
    }

    /// Delivers what waited for what has come.
    fn release(&mut self, viewer: &mut Viewer, now: u64) {
        while !viewer.ahead.is_empty() {
            let next = viewer.next;
            viewer.ahead.retain(|n, _| *n >= next);
            let Some(intended) = viewer.ahead.remove(&next) else { return };
            self.event(viewer, next, now.saturating_sub(intended), now);
        }
    }

    fn rare_message(&mut self, viewer: &mut Viewer, message: &[u8]) -> Answer {
        let message = match v1::ServerMessage::decode(message) {
            Ok(v1::ServerMessage { message: Some(message) }) => message,
            Ok(_) => {
                self.fail("message is of no known kind".into());
                return Answer::None;
            }
            Err(error) => {
                self.fail(format!("message is not protobuf: {error}"));
                return Answer::None;
            }
        };
        let check = self.lanes.get_mut(viewer.check as usize);
        match message {
            Message::Ping(_) => Answer::Pong,
            Message::Joined(joined) => {
                if let Some(check) = check {
                    check.joined(&joined);
                }
                if viewer.phase == Phase::Joining { Answer::Joined } else { Answer::None }
            }
            Message::Gap(gap) => {
                if let Some(check) = check {
                    check.gap(&gap);
                }
                let counts = &mut self.groups[usize::from(viewer.group)].counts;
                counts.gaps += 1;
                counts.gap_dropped += gap.dropped.values().sum::<u64>();
                Answer::None
            }
            Message::Error(error) => match error.retry_after_ms {
                Some(wait) if viewer.phase == Phase::Joining => Answer::Later(wait),
                _ => Answer::Refused(format!("error {}: {}", error.code, error.reason)),
            },
            _ => Answer::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::viewer::UNCHECKED;

    fn event(seq: Option<u64>, important: Option<u64>) -> v1::Event {
        let id = format!("{seq:?}-{important:?}");
        v1::Event { id, seq, important, ..v1::Event::default() }
    }

    fn frame(first_seq: u64, last_seq: u64, events: Vec<v1::Event>) -> v1::Frame {
        v1::Frame { epoch: 7, first_seq, last_seq, events, ..v1::Frame::default() }
    }

    fn joined() -> LaneCheck {
        let mut check = LaneCheck::default();
        check.joined(&v1::Joined { epoch: 7, seq: 10, important: 2, ..v1::Joined::default() });
        check
    }

    #[test]
    fn important_events_fill_the_holes_of_the_control_stream_in_either_order() {
        let important = frame(14, 13, vec![event(Some(12), Some(3))]);
        let before = frame(11, 11, vec![event(Some(11), None)]);
        let after = frame(13, 13, vec![event(Some(13), None)]);
        for order in [[&before, &important, &after], [&before, &after, &important]] {
            let mut check = joined();
            for frame in order {
                let lane = if frame.first_seq == 14 { Lane::Important } else { Lane::Control };
                check.frame(lane, frame);
            }
            assert_eq!((check.error_count, check.owed()), (0, None), "{:?}", check.errors);
        }
    }

    #[test]
    fn a_datagram_before_the_answer_to_the_join_means_nothing() {
        let mut check = LaneCheck::default();
        check.frame(Lane::Datagram, &frame(1, 0, vec![event(None, None)]));
        check.joined(&v1::Joined { epoch: 7, ..v1::Joined::default() });
        check.frame(Lane::Datagram, &frame(1, 0, vec![event(None, None)]));
        assert_eq!(check.error_count, 0, "{:?}", check.errors);
    }

    #[test]
    fn an_important_event_may_come_before_the_answer_to_the_join() {
        let mut check = LaneCheck::default();
        for number in [2, 3, 4] {
            check.frame(Lane::Important, &frame(1, 0, vec![event(Some(number + 9), Some(number))]));
        }
        check.joined(&v1::Joined { epoch: 7, seq: 11, important: 2, ..v1::Joined::default() });
        assert_eq!((check.important, check.owed()), (4, None));
        check.frame(Lane::Control, &frame(14, 14, vec![]));
        assert_eq!((check.error_count, check.owed()), (0, None), "{:?}", check.errors);
    }

    #[test]
    fn a_number_that_nobody_fills_is_owed() {
        let mut check = joined();
        check.frame(Lane::Control, &frame(12, 12, vec![event(Some(12), None)]));
        assert!(check.owed().is_some());
        check.joined(&v1::Joined { epoch: 7, seq: 12, rebased: true, ..v1::Joined::default() });
        assert_eq!(check.owed(), None);
    }

    #[test]
    fn a_gap_tells_what_is_missing() {
        let mut check = joined();
        check.gap(&v1::Gap { first_seq: 11, last_seq: 15, ..v1::Gap::default() });
        check.frame(Lane::Control, &frame(16, 16, vec![event(Some(16), None)]));
        assert_eq!((check.error_count, check.owed()), (0, None));
    }

    #[test]
    fn a_missing_important_event_is_owed_until_it_comes_by_any_way() {
        let mut check = joined();
        check.frame(Lane::Important, &frame(1, 0, vec![event(None, Some(4))]));
        assert!(check.owed().is_some());
        check.frame(Lane::Control, &frame(1, 0, vec![event(None, Some(3))]));
        assert_eq!((check.error_count, check.owed()), (0, None));
        check.frame(Lane::Control, &frame(1, 0, vec![event(None, Some(4))]));
        assert_eq!((check.error_count, check.repeated), (0, 1));
    }

    #[test]
    fn broken_promises_are_counted() {
        let mut check = joined();
        check.frame(Lane::Control, &frame(9, 10, vec![]));
        check.frame(Lane::Important, &frame(11, 11, vec![event(Some(11), Some(3))]));
        check.frame(Lane::Important, &frame(12, 11, vec![event(None, None)]));
        check.frame(Lane::Datagram, &frame(12, 11, vec![event(None, None)]));
        assert_eq!(check.error_count, 4, "{:?}", check.errors);
    }

    #[test]
    fn a_copy_is_delivered_when_what_is_before_it_is() {
        let mut book = Book::new(1, 1, false);
        let mut viewer = Viewer::new(0, 0, false, UNCHECKED);
        book.joined(&mut viewer, 0);
        let message = |n: u64| {
            let payload = format!("{{{MARKER}0,{n},{}]}}", 100 * n).into_bytes().into();
            let event = v1::Event { payload, important: Some(n + 1), ..v1::Event::default() };
            let message = Some(Message::Frame(frame(1, 0, vec![event])));
            v1::ServerMessage { message }.encode_to_vec()
        };
        let mut take = |lane, n, now| {
            book.lane_message(&mut viewer, lane, &message(n), now);
            let counts = &book.groups[0].counts;
            (counts.deliveries, counts.duplicated, counts.skipped)
        };
        assert_eq!(take(Lane::Datagram, 1, 150), (0, 0, 0));
        assert_eq!(take(Lane::Datagram, 2, 250), (0, 0, 0));
        assert_eq!(take(Lane::Important, 0, 500), (3, 0, 0));
        assert_eq!(take(Lane::Important, 1, 600), (3, 1, 0));
        assert_eq!(take(Lane::Datagram, 3, 700), (4, 1, 0));
        assert!(viewer.ahead.is_empty());
        let latency = book.groups[0].latency.iter_recorded();
        let latencies: Vec<u64> = latency.map(|value| value.value_iterated_to()).collect();
        assert_eq!(latencies, [300, 400, 500], "two of 400");
    }

    #[test]
    fn frames_are_told_by_their_first_byte() {
        let message = Message::Frame(frame(1, 0, vec![]));
        let bytes = v1::ServerMessage { message: Some(message) }.encode_to_vec();
        assert_eq!(bytes[0], FRAME_TAG);
        let ping = v1::ServerMessage { message: Some(Message::Ping(v1::Ping {})) };
        assert_ne!(ping.encode_to_vec()[0], FRAME_TAG);
    }
}
