//! What many viewers get: encoded at most once per format and cut, shared by
//! reference.
//!
//! The home shard encodes the formats its viewers use before it hands a frame
//! out; a rarer one (a slow viewer's cut) is encoded by whoever needs it first.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::deflate::Deflater;
use super::message::{Gap, Recovery, ServerMessage};
use super::split::Split;
use super::{Format, frame, json, proto, stream};
use crate::engine::delivery::{self, Cut, owed};
use crate::engine::event::{DroppedKind, Frame, Snapshot};
use crate::engine::ids::{RoomId, Seq};
use crate::engine::time::Time;

/// When messages are compressed for viewers that negotiated it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compression {
    /// Shorter messages travel uncompressed, in bytes.
    pub min_bytes: usize,
    /// zlib level, 1 to 9.
    pub level: u32,
}

thread_local! {
    /// One compressor per shard thread: its window and tables are
    /// reused by every message.
    static DEFLATER: RefCell<Option<(u32, Deflater)>> = const { RefCell::new(None) };
}

fn encode(format: Format, compression: Compression, payload: &[u8]) -> Bytes {
    if format == Format::Stream {
        return stream::data(payload);
    }
    if format.is_deflate() && payload.len() >= compression.min_bytes {
        let small = DEFLATER.with_borrow_mut(|slot| {
            if slot.as_ref().is_none_or(|(level, _)| *level != compression.level) {
                *slot = Some((compression.level, Deflater::new(compression.level)));
            }
            slot.as_mut().map(|(_, deflater)| deflater.compress(payload))
        });
        if let Some(small) = small.filter(|small| small.len() < payload.len()) {
            return frame::data(format.is_json(), true, &small);
        }
    }
    frame::data(format.is_json(), false, payload)
}

/// A room's frame with its bytes.
#[derive(Debug)]
pub struct SharedFrame {
    frame: Frame,
    /// Some of its events are followed.
    marked: bool,
    compression: Compression,
    bytes: [[OnceLock<Bytes>; Format::COUNT]; Cut::COUNT],
    split: OnceLock<Box<Split>>,
}

impl SharedFrame {
    /// Nothing is encoded yet.
    #[must_use]
    pub fn new(frame: Frame, compression: Compression) -> Self {
        let marked = frame.events.iter().any(|event| event.event.mark.is_some());
        Self { frame, marked, compression, bytes: Default::default(), split: OnceLock::new() }
    }

    /// The frame taken apart by lanes.
    #[must_use]
    pub fn split(&self) -> &Split {
        self.split.get_or_init(|| Box::new(Split::new(&self.frame, self.compression)))
    }

    /// Encodes it whole for everyone who reads `format`; returns the bytes.
    pub fn prepare(&self, format: Format) -> usize {
        if format != Format::Stream {
            return self.bytes(format, Cut::Full).len();
        }
        let split = self.split();
        let parts = [&split.important, &split.ordered, &split.sampled];
        parts.into_iter().flatten().map(|part| part.bytes(format, Cut::Full).len()).sum()
    }

    /// What it carries.
    #[must_use]
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// Whether the way of some of its events is followed.
    #[must_use]
    pub fn is_marked(&self) -> bool {
        self.marked
    }

    /// The bytes for a socket or stream, header included; empty when the cut
    /// leaves nothing.
    #[must_use]
    pub fn bytes(&self, format: Format, cut: Cut) -> &Bytes {
        self.bytes[cut as usize][format.index()].get_or_init(|| {
            let thin;
            let frame = match cut {
                Cut::Full => &self.frame,
                _ => {
                    let Some(left) = thinned(&self.frame, cut) else { return Bytes::new() };
                    thin = left;
                    &thin
                }
            };
            let payload = if format.is_json() {
                let mut out = Vec::with_capacity(256 + 128 * frame.events.len());
                json::frame(&mut out, frame, cut);
                out
            } else {
                proto::frame(frame, cut)
            };
            encode(format, self.compression, &payload)
        })
    }

    /// Accepted events someone gets with a cut: with everything, those merged
    /// into it too.
    #[must_use]
    pub fn deliveries(&self, cut: Cut) -> u64 {
        if cut == Cut::Full {
            return self.frame.represents;
        }
        let events = self.frame.events.iter().filter(|e| cut.keeps(e.event.kind.lane)).count();
        let totals = if cut.keeps_totals() { self.frame.totals.len() } else { 0 };
        (events + totals) as u64
    }

    /// When the oldest event in it arrived.
    #[must_use]
    pub fn oldest(&self) -> Time {
        self.frame.oldest
    }
}

/// The frame without what the cut takes; `None` when that leaves nothing.
fn thinned(frame: &Frame, cut: Cut) -> Option<Frame> {
    let important_only = cut == Cut::ImportantOnly;
    let keeps_totals = cut.keeps_totals();
    let thin = Frame {
        events: frame.events.iter().filter(|e| cut.keeps(e.event.kind.lane)).cloned().collect(),
        totals: if keeps_totals { frame.totals.clone() } else { Vec::new() },
        dropped: if important_only { Vec::new() } else { frame.dropped.clone() },
        online: frame.online.filter(|_| keeps_totals),
        ..frame.clone()
    };
    let sequenced = frame.first_seq <= frame.last_seq;
    let empty = thin.events.is_empty() && thin.totals.is_empty() && thin.online.is_none();
    // Without ordered content the gap notice accounts for the numbers.
    (!empty || (!important_only && sequenced)).then_some(thin)
}

/// A frame in one viewer's format, as its backlog holds it.
#[derive(Debug, Clone)]
pub struct ViewerFrame {
    /// Shared with everyone.
    pub frame: Arc<SharedFrame>,
    /// This viewer's.
    pub format: Format,
}

impl delivery::Frame for ViewerFrame {
    fn content(&self) -> &Frame {
        &self.frame.frame
    }

    fn bytes(&self, cut: Cut) -> Bytes {
        self.frame.bytes(self.format, cut).clone()
    }
}

/// A room's state for those who join at one moment.
#[derive(Debug)]
pub struct SharedSnapshot {
    snapshot: Snapshot,
    recovery: Recovery,
    compression: Compression,
    joined: [OnceLock<Bytes>; Format::COUNT],
    rebased: [OnceLock<Bytes>; Format::COUNT],
    totals: [OnceLock<Bytes>; Format::COUNT],
}

impl SharedSnapshot {
    /// Nothing is encoded yet.
    #[must_use]
    pub fn new(snapshot: Snapshot, recovery: Recovery, compression: Compression) -> Self {
        Self {
            snapshot,
            recovery,
            compression,
            joined: Default::default(),
            rebased: Default::default(),
            totals: Default::default(),
        }
    }

    /// Where the room stands.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// How coming back is answered.
    #[must_use]
    pub fn recovery(&self) -> Recovery {
        self.recovery
    }

    /// The `joined` message for a socket.
    #[must_use]
    pub fn joined(&self, format: Format) -> &Bytes {
        self.joined[format.index()].get_or_init(|| self.state(format, self.recovery))
    }

    /// The `joined` message of a viewer that was sent less than others, to go on
    /// from.
    #[must_use]
    pub fn rebased(&self, format: Format) -> &Bytes {
        self.rebased[format.index()]
            .get_or_init(|| self.state(format, Recovery { rebased: true, ..Recovery::default() }))
    }

    /// A frame without numbers that tells a slow viewer the newest totals. `now`:
    /// its time, unless another viewer needed it before.
    #[must_use]
    pub fn totals(&self, format: Format, now: Time) -> &Bytes {
        self.totals[format.index()].get_or_init(|| {
            let frame = SharedFrame::new(owed::totals(&self.snapshot, now), self.compression);
            frame.bytes(format, Cut::Full).clone()
        })
    }

    /// How its messages are compressed.
    #[must_use]
    pub fn compression(&self) -> Compression {
        self.compression
    }

    fn state(&self, format: Format, recovery: Recovery) -> Bytes {
        // Whoever reads this is in the room, though perhaps not yet counted.
        let online = self.snapshot.online.max(1);
        let snapshot = Snapshot { online, ..self.snapshot.clone() };
        let payload = if format.is_json() {
            let mut out = Vec::with_capacity(512);
            json::joined(&mut out, &snapshot, recovery);
            out
        } else {
            proto::joined(&snapshot, recovery)
        };
        encode(format, self.compression, &payload)
    }
}

impl delivery::Voice for Format {
    fn gap(&self, room: &RoomId, first: Seq, last: Seq, dropped: &[DroppedKind]) -> Bytes {
        let gap = Gap { room: room.as_str(), first_seq: first, last_seq: last, dropped };
        message(*self, &ServerMessage::Gap(gap))
    }

    fn gone(&self, room: &RoomId) -> Bytes {
        let error = ServerMessage::Error {
            code: "history_gone",
            reason: "some of the important events that you were owed are no longer held",
            temporary: false,
            room: Some(room.as_str()),
            retry_after_ms: None,
        };
        message(*self, &error)
    }
}

/// A message to one viewer, never compressed: it is short.
#[must_use]
pub fn message(format: Format, message: &ServerMessage<'_>) -> Bytes {
    if format.is_json() {
        let mut out = Vec::with_capacity(128);
        json::server_message(&mut out, message);
        frame::data(true, false, &out)
    } else if format == Format::Stream {
        stream::data(&proto::server_message(message))
    } else {
        frame::data(false, false, &proto::server_message(message))
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use serde_json::Value;

    use super::super::testing::{self, COMPRESSION, event, total};
    use super::proto::v1;
    use super::*;
    use crate::engine::ids::{Epoch, ImportantNo};
    use crate::engine::kind::Lane;

    /// An event and a total of every lane, numbers 4 and 5; without numbers, what
    /// has none.
    fn frame(numbered: bool) -> SharedFrame {
        let mut events = vec![event(Lane::Sampled, "s", 0, 0)];
        if numbered {
            events.push(event(Lane::Ordered, "o", 4, 0));
            events.push(event(Lane::Important, "i", 5, 1));
        }
        let frame = Frame {
            totals: Lane::ALL.map(total).to_vec(),
            dropped: vec![testing::dropped(Lane::Ordered)],
            online: Some(7),
            represents: 9,
            ..testing::frame(events, 4, if numbered { 5 } else { 3 })
        };
        SharedFrame::new(frame, COMPRESSION)
    }

    /// The content behind a header of two or four bytes.
    fn content(bytes: &Bytes) -> &[u8] {
        &bytes[if bytes[1] == 126 { 4 } else { 2 }..]
    }

    fn json(bytes: &Bytes) -> Value {
        serde_json::from_slice(content(bytes)).expect("JSON")
    }

    #[test]
    fn each_cut_leaves_less_and_the_last_only_what_is_important() {
        let shared = frame(true);
        let left = |cut| {
            let value = json(shared.bytes(Format::Json, cut));
            let list = |field: &str| value["frame"][field].as_array().expect("a list").len();
            let withheld = value["frame"]["withheld"].as_u64();
            (list("events"), list("totals"), value["frame"]["online"].is_u64(), withheld)
        };
        assert_eq!(left(Cut::Full), (3, 3, true, None));
        assert_eq!(left(Cut::NoSampled), (2, 3, true, Some(1)));
        assert_eq!(left(Cut::TotalsOnly), (2, 0, false, Some(2)));
        assert_eq!(left(Cut::ImportantOnly), (1, 0, false, Some(3)));
    }

    #[test]
    fn a_frame_of_which_nothing_is_left_is_not_sent() {
        let shared = frame(false);
        assert!(!shared.bytes(Format::Json, Cut::NoSampled).is_empty(), "totals are left");
        assert!(shared.bytes(Format::Json, Cut::TotalsOnly).is_empty());
    }

    #[test]
    fn a_slow_viewer_is_told_the_same_in_every_format() {
        let snapshot = Snapshot {
            room: RoomId::new("r").expect("a valid name"),
            epoch: Epoch(1),
            seq: Seq(5),
            important: ImportantNo(1),
            online: 0,
            users: crate::engine::visitors::Users::default(),
            state: vec![event(Lane::Important, "i", 5, 1)],
            totals: vec![total(Lane::Sampled)],
        };
        let shared = SharedSnapshot::new(snapshot, Recovery::default(), COMPRESSION);
        let joined = json(shared.joined(Format::Json));
        assert!(joined["joined"]["rebased"].is_null(), "only where it says something");
        let rebased = json(shared.rebased(Format::Json));
        let totals = json(shared.totals(Format::Json, Time::default()));
        assert_eq!(rebased["joined"]["rebased"], true);
        assert_eq!(
            (&rebased["joined"]["seq"], &rebased["joined"]["online"]),
            (&5.into(), &1.into())
        );
        assert_eq!(
            (&totals["frame"]["first_seq"], &totals["frame"]["last_seq"]),
            (&6.into(), &5.into())
        );
        assert_eq!(totals["frame"]["totals"][0]["delta"], 0);
        assert_eq!(totals["frame"]["totals"][0]["sum"], 9);

        let decode = |bytes: &Bytes| {
            let message = v1::ServerMessage::decode(content(bytes)).expect("protobuf");
            message.message.expect("one")
        };
        use v1::server_message::Message as Out;
        let Out::Joined(joined) = decode(shared.rebased(Format::Proto)) else { panic!() };
        assert!(joined.rebased && !joined.recovered && joined.seq == 5);
        let Out::Joined(joined) = decode(shared.joined(Format::Proto)) else { panic!() };
        assert!(!joined.rebased);
        let totals = shared.totals(Format::Proto, Time::default());
        let Out::Frame(totals) = decode(totals) else { panic!() };
        assert_eq!((totals.first_seq, totals.last_seq, totals.totals[0].sum), (6, 5, 9));
        let frame = frame(true);
        for (cut, withheld) in [(Cut::Full, 0), (Cut::ImportantOnly, 3)] {
            let Out::Frame(left) = decode(frame.bytes(Format::Proto, cut)) else { panic!() };
            assert_eq!(left.withheld, withheld);
        }
    }
}
