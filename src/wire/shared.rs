//! What many viewers get: encoded at most once per format and cut, shared by
//! reference.
//!
//! The home shard encodes the formats its viewers use before it hands a frame
//! out; a rarer one (a slow viewer's cut) is encoded by whoever needs it first.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::deflate::Deflater;
use super::message::Recovery;
use super::{Format, frame, json, proto};
use crate::engine::delivery::{self, Cut};
use crate::engine::drops::Drops;
use crate::engine::event::{DroppedKind, Frame, Snapshot};
use crate::engine::kind::Lane;
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
}

impl SharedFrame {
    /// Nothing is encoded yet.
    #[must_use]
    pub fn new(frame: Frame, compression: Compression) -> Self {
        let marked = frame.events.iter().any(|event| event.event.mark.is_some());
        Self { frame, marked, compression, bytes: Default::default() }
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

    /// The bytes for a socket, WebSocket header included; empty when the cut
    /// leaves nothing.
    #[must_use]
    pub fn bytes(&self, format: Format, cut: Cut) -> &Bytes {
        self.bytes[cut as usize][format.index()].get_or_init(|| {
            let thin;
            let frame = match cut {
                Cut::Full => &self.frame,
                Cut::NoSampled | Cut::ImportantOnly => {
                    let Some(cut) = thinned(&self.frame, cut) else { return Bytes::new() };
                    thin = cut;
                    &thin
                }
            };
            let payload = if format.is_json() {
                let mut out = Vec::with_capacity(256 + 128 * frame.events.len());
                json::frame(&mut out, frame);
                out
            } else {
                proto::frame(frame)
            };
            encode(format, self.compression, &payload)
        })
    }

    /// What someone loses who gets it cut `to` instead of cut `from`, as
    /// counts by kind. A total counts as one.
    #[must_use]
    pub fn loss(&self, from: Cut, to: Cut) -> Vec<DroppedKind> {
        let mut lost = Drops::default();
        let events = self.frame.events.iter().map(|e| &e.event.kind);
        let totals = self.frame.totals.iter().map(|t| &t.kind);
        for kind in events.chain(totals) {
            if keeps(from, kind.lane) && !keeps(to, kind.lane) {
                lost.add(kind, 1);
            }
        }
        lost.take()
    }

    /// Accepted events someone gets with a cut: with everything, those merged
    /// into it too.
    #[must_use]
    pub fn deliveries(&self, cut: Cut) -> u64 {
        if cut == Cut::Full {
            return self.frame.represents;
        }
        let events = self.frame.events.iter().filter(|e| keeps(cut, e.event.kind.lane)).count();
        let totals = self.frame.totals.iter().filter(|t| keeps(cut, t.kind.lane)).count();
        (events + totals) as u64
    }

    /// When the oldest event in it arrived.
    #[must_use]
    pub fn oldest(&self) -> Time {
        self.frame.oldest
    }
}

fn keeps(cut: Cut, lane: Lane) -> bool {
    match cut {
        Cut::Full => true,
        Cut::NoSampled => lane != Lane::Sampled,
        Cut::ImportantOnly => lane == Lane::Important,
    }
}

/// The frame without what the cut takes; `None` when that leaves nothing.
fn thinned(frame: &Frame, cut: Cut) -> Option<Frame> {
    let thin = Frame {
        events: frame.events.iter().filter(|e| keeps(cut, e.event.kind.lane)).cloned().collect(),
        totals: frame.totals.iter().filter(|t| keeps(cut, t.kind.lane)).cloned().collect(),
        dropped: if cut == Cut::ImportantOnly { Vec::new() } else { frame.dropped.clone() },
        online: None,
        ..frame.clone()
    };
    let sequenced = frame.first_seq <= frame.last_seq;
    let empty = thin.events.is_empty() && thin.totals.is_empty();
    // Without ordered content the gap notice accounts for the numbers.
    (!empty || (cut == Cut::NoSampled && sequenced)).then_some(thin)
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
}

impl SharedSnapshot {
    /// Nothing is encoded yet.
    #[must_use]
    pub fn new(snapshot: Snapshot, recovery: Recovery, compression: Compression) -> Self {
        Self { snapshot, recovery, compression, joined: Default::default() }
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
        self.joined[format.index()].get_or_init(|| {
            // Whoever reads this is in the room, though not yet counted.
            let online = self.snapshot.online.max(1);
            let snapshot = Snapshot { online, ..self.snapshot.clone() };
            let payload = if format.is_json() {
                let mut out = Vec::with_capacity(512);
                json::joined(&mut out, &snapshot, self.recovery);
                out
            } else {
                proto::joined(&snapshot, self.recovery)
            };
            encode(format, self.compression, &payload)
        })
    }
}

/// A message to one viewer, never compressed: it is short.
#[must_use]
pub fn message(format: Format, message: &super::message::ServerMessage<'_>) -> Bytes {
    if format.is_json() {
        let mut out = Vec::with_capacity(128);
        json::server_message(&mut out, message);
        frame::data(true, false, &out)
    } else {
        frame::data(false, false, &proto::server_message(message))
    }
}
