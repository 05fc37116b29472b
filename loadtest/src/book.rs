//! The account that a worker keeps of all its viewers.

mod lanes;

use std::collections::{BTreeMap, VecDeque};

use flate2::{Decompress, FlushDecompress};
use hdrhistogram::Histogram;
use memchr::memmem::Finder;

use self::lanes::LaneCheck;
use crate::check::{FrameMessage, GapMessage, JoinedMessage, StreamCheck};
use crate::hist::{self, Recorded};
use crate::protocol::{BIN_US, GroupStats, Stats};
use crate::viewer::{MARKER, Phase, UNCHECKED, Viewer, numbers};

/// How a frame and the answer to a join begin.
const FRAME_PREFIX: &[u8] = b"{\"frame\":";
const JOINED_PREFIX: &[u8] = b"{\"joined\":";
/// Events of one room that may be under way at once.
const MAX_OPEN_EVENTS: u64 = 1 << 20;
/// Longest message a viewer inflates.
const MAX_INFLATED: usize = 16 << 20;

/// What a message asks of its viewer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nothing.
    None,
    /// The viewer has joined.
    Joined,
    /// Say pong.
    Pong,
    /// The server refused.
    Refused(String),
    /// The server refused a join, and said after how many milliseconds to repeat it.
    Later(u64),
}

/// How far all reading viewers of a room are.
#[derive(Debug, Default)]
struct Progress {
    expected: u32,
    base: u64,
    counts: VecDeque<u32>,
    done: Option<u64>,
}

#[derive(Debug)]
struct Group {
    counts: GroupStats,
    latency: Histogram<u64>,
    join: Histogram<u64>,
}

/// The account.
#[derive(Debug)]
pub(crate) struct Book {
    groups: Vec<Group>,
    rooms: Vec<Progress>,
    checks: Vec<StreamCheck>,
    /// The same for QUIC viewers.
    lanes: Vec<LaneCheck>,
    bins: Vec<u64>,
    window_us: u64,
    closed: BTreeMap<String, u64>,
    errors: Vec<String>,
    error_count: u64,
    digest: bool,
    finder: Finder<'static>,
    inflate: Decompress,
    inflated: Vec<u8>,
}

impl Book {
    /// For so many groups and rooms; `digest`: fold the frames between event 0
    /// and event 1 into a digest.
    pub(crate) fn new(groups: usize, rooms: usize, digest: bool) -> Self {
        let group =
            || Group { counts: GroupStats::default(), latency: hist::new(), join: hist::new() };
        Self {
            groups: std::iter::repeat_with(group).take(groups).collect(),
            rooms: std::iter::repeat_with(Progress::default).take(rooms).collect(),
            checks: Vec::new(),
            lanes: Vec::new(),
            bins: Vec::new(),
            window_us: 0,
            closed: BTreeMap::new(),
            errors: Vec::new(),
            error_count: 0,
            digest,
            finder: Finder::new(MARKER),
            inflate: Decompress::new(false),
            inflated: Vec::new(),
        }
    }

    /// Adds a full check; returns its number for [`Viewer::check`].
    pub(crate) fn add_check(&mut self, record: bool) -> u32 {
        self.checks.push(StreamCheck::new(record));
        u32::try_from(self.checks.len() - 1).unwrap_or(UNCHECKED)
    }

    /// Adds a full check of a QUIC viewer; returns its number.
    pub(crate) fn add_lane_check(&mut self) -> u32 {
        self.lanes.push(LaneCheck::default());
        u32::try_from(self.lanes.len() - 1).unwrap_or(UNCHECKED)
    }

    /// A viewer became live.
    pub(crate) fn joined(&mut self, viewer: &mut Viewer, now: u64) {
        let group = &mut self.groups[usize::from(viewer.group)];
        group.join.saturating_record(now.saturating_sub(viewer.next));
        group.counts.viewers += 1;
        viewer.phase = Phase::Live;
        viewer.next = 0;
        viewer.ahead.clear();
        if !viewer.slow {
            self.rooms[usize::from(viewer.room)].expected += 1;
        }
    }

    /// A live viewer's connection ended.
    pub(crate) fn left(&mut self, viewer: &Viewer, reason: String) {
        self.groups[usize::from(viewer.group)].counts.viewers -= 1;
        *self.closed.entry(reason).or_default() += 1;
        if !viewer.slow {
            let room = &mut self.rooms[usize::from(viewer.room)];
            room.expected -= 1;
            for n in room.base..viewer.next {
                if let Some(count) =
                    room.counts.get_mut(usize::try_from(n - room.base).unwrap_or(0))
                {
                    *count = count.saturating_sub(1);
                }
            }
            room.settle();
        }
    }

    /// One successful `read(2)`, or one datagram.
    pub(crate) fn read(&mut self, viewer: &Viewer, bytes: usize) {
        let counts = &mut self.groups[usize::from(viewer.group)].counts;
        counts.reads += 1;
        counts.bytes += bytes as u64;
    }

    /// A broken promise outside the checked streams.
    pub(crate) fn fail(&mut self, error: String) {
        self.error_count += 1;
        if self.errors.len() < 20 {
            self.errors.push(error);
        }
    }

    /// One message from the server.
    pub(crate) fn message(
        &mut self,
        viewer: &mut Viewer,
        payload: &[u8],
        compressed: bool,
        now: u64,
    ) -> Answer {
        if !compressed {
            return self.text(viewer, payload, now);
        }
        let mut text = std::mem::take(&mut self.inflated);
        let answer = match self.inflate(payload, &mut text) {
            Ok(()) => self.text(viewer, &text, now),
            Err(error) => {
                self.fail(error);
                Answer::None
            }
        };
        self.inflated = text;
        answer
    }

    fn inflate(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        out.clear();
        self.inflate.reset(false);
        for part in [payload, &[0, 0, 0xff, 0xff]] {
            let start = self.inflate.total_in();
            loop {
                out.reserve(part.len() * 8 + 1024);
                let used = usize::try_from(self.inflate.total_in() - start).unwrap_or(0);
                let room = out.capacity() - out.len();
                self.inflate
                    .decompress_vec(&part[used..], out, FlushDecompress::Sync)
                    .map_err(|error| format!("inflate: {error}"))?;
                let used = usize::try_from(self.inflate.total_in() - start).unwrap_or(0);
                if used == part.len() && (out.len() < out.capacity() || room == 0) {
                    break;
                }
                if out.len() > MAX_INFLATED {
                    return Err("inflate: message too large".into());
                }
            }
        }
        Ok(())
    }

    fn text(&mut self, viewer: &mut Viewer, text: &[u8], now: u64) -> Answer {
        if let Some(body) = text.strip_prefix(FRAME_PREFIX) {
            self.frame(viewer, body, now);
            return Answer::None;
        }
        if let Some(body) = text.strip_prefix(JOINED_PREFIX) {
            return self.admitted(viewer, body);
        }
        if text.starts_with(b"{\"ping\"") {
            return Answer::Pong;
        }
        self.rare(viewer, text)
    }

    /// A `joined` message, which holds hundreds of totals where many gifts are under way:
    /// read only where it is checked.
    fn admitted(&mut self, viewer: &mut Viewer, body: &[u8]) -> Answer {
        if let Some(check) = self.checks.get_mut(viewer.check as usize) {
            match serde_json::from_slice::<JoinedMessage<'_>>(&body[..body.len().max(1) - 1]) {
                Ok(joined) => check.joined(&joined),
                Err(error) => check.fail(format!("joined is not as documented: {error}")),
            }
        }
        if viewer.phase == Phase::Joining { Answer::Joined } else { Answer::None }
    }

    fn frame(&mut self, viewer: &mut Viewer, body: &[u8], now: u64) {
        self.marked(viewer, body, body.len() + FRAME_PREFIX.len(), now);
        if let Some(check) = self.checks.get_mut(viewer.check as usize) {
            // The closing brace of the outer object is not part of the frame.
            match serde_json::from_slice::<FrameMessage<'_>>(&body[..body.len().max(1) - 1]) {
                Ok(frame) => check.frame(&frame, wall_ms()),
                Err(error) => check.fail(format!("frame is not as documented: {error}")),
            }
        }
    }

    /// Counts our events in a frame, whatever its format; `bytes`: of the message.
    fn marked(&mut self, viewer: &mut Viewer, body: &[u8], bytes: usize, now: u64) {
        self.groups[usize::from(viewer.group)].counts.frames += 1;
        let mut at = 0;
        let mut starts = false;
        let mut ends = false;
        while let Some(found) = self.finder.find(&body[at..]) {
            at += found + MARKER.len();
            let Some([_, n, intended]) = numbers(&body[at..]) else { continue };
            if self.digest {
                starts |= n == 0;
                ends |= n == 1;
            }
            self.event(viewer, n, now.saturating_sub(intended), now);
        }
        if at > 0 {
            let counts = &mut self.groups[usize::from(viewer.group)].counts;
            counts.marked_frames += 1;
            counts.marked_bytes += bytes as u64;
        }
        if self.digest && (viewer.digesting || starts) {
            if starts {
                (viewer.digest, viewer.digest_frames) = (0, 0);
            }
            viewer.digest = fold(viewer.digest, body);
            viewer.digest_frames += 1;
            viewer.digesting = !ends;
        }
    }

    fn event(&mut self, viewer: &mut Viewer, n: u64, latency: u64, now: u64) {
        let group = &mut self.groups[usize::from(viewer.group)];
        if n < viewer.next {
            group.counts.duplicated += 1;
            return;
        }
        group.counts.skipped += n - viewer.next;
        group.counts.deliveries += 1;
        group.latency.saturating_record(latency);
        let bin = usize::try_from(now.saturating_sub(self.window_us) / BIN_US).unwrap_or(0);
        if bin >= self.bins.len() && bin < 1 << 16 {
            self.bins.resize(bin + 1, 0);
        }
        if let Some(count) = self.bins.get_mut(bin) {
            *count += 1;
        }
        if !viewer.slow {
            self.rooms[usize::from(viewer.room)].advance(viewer.next, n);
        }
        viewer.next = n + 1;
    }

    fn rare(&mut self, viewer: &mut Viewer, text: &[u8]) -> Answer {
        let value: serde_json::Value = match serde_json::from_slice(text) {
            Ok(value) => value,
            Err(error) => {
                self.fail(format!("message is not JSON: {error}"));
                return Answer::None;
            }
        };
        let Some((name, body)) = value.as_object().and_then(|fields| fields.iter().next()) else {
            self.fail("message is not an object with one field".into());
            return Answer::None;
        };
        let check = self.checks.get_mut(viewer.check as usize);
        match name.as_str() {
            "gap" => {
                let counts = &mut self.groups[usize::from(viewer.group)].counts;
                counts.gaps += 1;
                if let Ok(gap) = serde_json::from_value::<GapMessage>(body.clone()) {
                    counts.gap_dropped += gap.count();
                    if let Some(check) = check {
                        check.gap(&gap);
                    }
                }
                Answer::None
            }
            "error" => {
                let code = body["code"].as_str().unwrap_or_default();
                if let Some(wait) = body["retry_after_ms"].as_u64()
                    && viewer.phase == Phase::Joining
                {
                    return Answer::Later(wait);
                }
                Answer::Refused(format!("error {code}: {}", body["reason"]))
            }
            _ => Answer::None,
        }
    }

    /// Rooms and events that all reading viewers newly have.
    pub(crate) fn newly_done(&mut self) -> Vec<(u16, u64)> {
        let mut done = Vec::new();
        for (index, room) in self.rooms.iter_mut().enumerate() {
            if let Some(n) = room.done.take() {
                done.push((u16::try_from(index).unwrap_or(u16::MAX), n));
            }
        }
        done
    }

    /// Forgets what was counted: a window begins.
    pub(crate) fn open_window(&mut self, now: u64) {
        for group in &mut self.groups {
            group.latency.reset();
            group.join.reset();
            let viewers = group.counts.viewers;
            group.counts = GroupStats { viewers, ..GroupStats::default() };
        }
        self.bins.clear();
        self.window_us = now;
        self.closed.clear();
    }

    /// What was counted since the window began.
    pub(crate) fn stats(&self, viewers: &[Viewer], recordings: bool) -> Stats {
        let mut stats = Stats {
            bins: self.bins.clone(),
            closed: self.closed.clone(),
            errors: self.errors.clone(),
            error_count: self.error_count,
            ..Stats::default()
        };
        for group in &self.groups {
            let mut counts = group.counts.clone();
            counts.latency = Recorded::of(&group.latency);
            counts.join = Recorded::of(&group.join);
            stats.groups.push(counts);
        }
        for check in &self.checks {
            let mut one = Stats {
                checked: 1,
                frames_checked: check.frames,
                errors: check.errors.clone(),
                error_count: check.error_count,
                room_dropped: check.dropped.clone(),
                ..Stats::default()
            };
            if recordings {
                one.recordings.extend(check.recording());
            }
            stats.absorb(one);
        }
        for check in &self.lanes {
            let owed = check.owed();
            stats.absorb(Stats {
                checked: 1,
                frames_checked: check.frames,
                errors: check.errors.iter().cloned().chain(owed.clone()).collect(),
                error_count: check.error_count + u64::from(owed.is_some()),
                ..Stats::default()
            });
        }
        if self.digest {
            let mut seen: BTreeMap<(u64, u64), u64> = BTreeMap::new();
            for viewer in viewers.iter().filter(|viewer| viewer.phase == Phase::Live) {
                // Survives readers of JSON that hold numbers as doubles.
                let digest = if viewer.digesting { 0 } else { viewer.digest >> 11 };
                *seen.entry((digest, u64::from(viewer.digest_frames))).or_default() += 1;
            }
            stats.digests = seen.into_iter().map(|((d, frames), n)| (d, frames, n)).collect();
        }
        stats
    }
}

impl Progress {
    /// A viewer moved on from `from` to have event `to`.
    fn advance(&mut self, from: u64, to: u64) {
        if to >= self.base + MAX_OPEN_EVENTS {
            return;
        }
        let last = usize::try_from(to.saturating_sub(self.base)).unwrap_or(0);
        if to >= self.base && last >= self.counts.len() {
            self.counts.resize(last + 1, 0);
        }
        for n in from.max(self.base)..=to {
            self.counts[usize::try_from(n - self.base).unwrap_or(0)] += 1;
        }
        self.settle();
    }

    fn settle(&mut self) {
        while self.counts.front().is_some_and(|&count| count >= self.expected) {
            self.done = Some(self.base);
            self.base += 1;
            self.counts.pop_front();
        }
    }
}

/// Folds bytes into a digest, eight at a time.
fn fold(digest: u64, bytes: &[u8]) -> u64 {
    const K: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |digest: u64, word: u64| (digest.rotate_left(23) ^ word).wrapping_mul(K);
    let (words, rest) = bytes.as_chunks::<8>();
    let mut digest = mix(digest, bytes.len() as u64);
    for word in words {
        digest = mix(digest, u64::from_le_bytes(*word));
    }
    for &byte in rest {
        digest = mix(digest, u64::from(byte));
    }
    digest
}

fn wall_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::viewer::marked_payload;

    fn live(book: &mut Book, slow: bool) -> Viewer {
        let mut viewer = Viewer::new(0, 0, slow, UNCHECKED);
        book.joined(&mut viewer, 0);
        viewer
    }

    fn frame(events: &[(u64, u64)]) -> Vec<u8> {
        let events: Vec<String> = events
            .iter()
            .map(|&(n, t)| format!("{{\"payload\":{}}}", marked_payload(0, n, t, 80)))
            .collect();
        format!("{{\"frame\":{{\"events\":[{}]}}}}", events.join(",")).into_bytes()
    }

    #[test]
    fn every_event_of_a_merged_frame_is_one_delivery() {
        let mut book = Book::new(1, 1, false);
        let mut viewer = live(&mut book, false);
        book.message(&mut viewer, &frame(&[(0, 100), (1, 200), (2, 300)]), false, 1_000);
        let stats = book.stats(&[], false);
        assert_eq!(stats.groups[0].deliveries, 3);
        assert_eq!(stats.groups[0].frames, 1);
        assert_eq!(stats.groups[0].latency.histogram().max(), 900);
        assert_eq!(book.newly_done(), [(0, 2)]);
    }

    #[test]
    fn loss_and_repetition_show_in_the_counters() {
        let mut book = Book::new(1, 1, false);
        let mut viewer = live(&mut book, false);
        for n in [0, 3, 3, 4] {
            book.message(&mut viewer, &frame(&[(n, 0)]), false, 1);
        }
        let stats = book.stats(&[], false);
        let counts = &stats.groups[0];
        assert_eq!((counts.deliveries, counts.skipped, counts.duplicated), (3, 2, 1));
    }

    #[test]
    fn an_event_is_done_when_every_reading_viewer_has_it_or_is_past_it() {
        let mut book = Book::new(1, 1, false);
        let (mut a, mut b) = (live(&mut book, false), live(&mut book, false));
        live(&mut book, true);
        book.message(&mut a, &frame(&[(0, 0), (1, 0)]), false, 1);
        assert!(book.newly_done().is_empty());
        book.message(&mut b, &frame(&[(0, 0)]), false, 1);
        assert_eq!(book.newly_done(), [(0, 0)]);
        book.left(&b, "gone".into());
        assert_eq!(book.newly_done(), [(0, 1)]);
        book.message(&mut a, &frame(&[(4, 0)]), false, 1);
        assert_eq!(book.newly_done(), [(0, 4)]);
    }

    #[test]
    fn digests_are_equal_exactly_when_the_streams_between_the_marks_are() {
        let mut book = Book::new(1, 1, true);
        let mut viewers: Vec<Viewer> = (0..3).map(|_| live(&mut book, false)).collect();
        let other = br#"{"frame":{"events":[{"payload":"x"}]}}"#;
        for (index, viewer) in viewers.iter_mut().enumerate() {
            if index == 1 {
                book.message(viewer, other, false, 1);
            }
            book.message(viewer, &frame(&[(0, 5)]), false, 1);
            if index != 2 {
                book.message(viewer, other, false, 1);
            }
            book.message(viewer, &frame(&[(1, 5)]), false, 1);
        }
        let mut digests = book.stats(&viewers, false).digests;
        digests.sort_by_key(|digest| digest.2);
        assert_eq!(digests.iter().map(|d| (d.1, d.2)).collect::<Vec<_>>(), [(2, 1), (3, 2)]);
    }

    #[test]
    fn compressed_messages_are_inflated() {
        let mut compress = flate2::Compress::new(flate2::Compression::new(6), false);
        let text = frame(&[(0, 0); 50]);
        let mut out = Vec::with_capacity(text.len() * 2);
        compress.compress_vec(&text, &mut out, flate2::FlushCompress::Sync).unwrap();
        assert_eq!(out.split_off(out.len() - 4), [0, 0, 0xff, 0xff]);
        let mut book = Book::new(1, 1, false);
        let mut viewer = live(&mut book, false);
        for _ in 0..2 {
            book.message(&mut viewer, &out, true, 1);
        }
        let stats = book.stats(&[], false);
        assert_eq!(stats.error_count, 0, "{:?}", stats.errors);
        assert_eq!((stats.groups[0].deliveries, stats.groups[0].duplicated), (1, 99));
    }

    #[test]
    fn pings_and_refusals_are_answered() {
        let mut book = Book::new(1, 1, false);
        let mut viewer = live(&mut book, false);
        assert_eq!(book.message(&mut viewer, br#"{"ping":{}}"#, false, 1), Answer::Pong);
        let refusal = br#"{"error":{"code":"bad_token","reason":"expired","temporary":false}}"#;
        assert!(matches!(book.message(&mut viewer, refusal, false, 1), Answer::Refused(_)));
        let later = br#"{"error":{"code":"overloaded","temporary":true,"retry_after_ms":70}}"#;
        viewer.phase = Phase::Joining;
        assert_eq!(book.message(&mut viewer, later, false, 1), Answer::Later(70));
    }
}
