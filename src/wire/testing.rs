//! Frames for the unit tests of the wire.

use std::sync::Arc;

use bytes::Bytes;

use super::shared::Compression;
use crate::engine::event::{DroppedKind, Event, Frame, Numbered, Payload, Total};
use crate::engine::ids::{Epoch, ImportantNo, RoomId, Seq, Tier};
use crate::engine::kind::{Ack, Kind, Lane, Merge};
use crate::engine::time::Time;

/// Nothing is large enough to be compressed.
pub(super) const COMPRESSION: Compression = Compression { min_bytes: usize::MAX, level: 1 };

/// A kind with the name of its lane.
pub(super) fn kind(lane: Lane) -> Arc<Kind> {
    Arc::new(Kind {
        name: lane.name().into(),
        lane,
        merge: Merge::Append,
        tier: Tier(0),
        ttl: None,
        max_payload_bytes: 100,
        viewer_publish: false,
        idle_reset: None,
        ack: Ack::Logged,
    })
}

/// An event of a lane, with the numbers that its lane has.
pub(super) fn event(lane: Lane, id: &str, seq: u64, important: u64) -> Arc<Numbered> {
    let event = Event {
        id: id.into(),
        kind: kind(lane),
        user: "u".into(),
        payload: Payload { bytes: Bytes::from_static(b"1"), json: true },
        key: None,
        amount: None,
        ttl: None,
        received: Time::default(),
        mark: None,
    };
    Arc::new(Numbered {
        event,
        seq: (lane != Lane::Sampled).then_some(Seq(seq)),
        important: (lane == Lane::Important).then_some(ImportantNo(important)),
    })
}

/// A total of a kind with the name of its lane.
pub(super) fn total(lane: Lane) -> Total {
    Total { kind: kind(lane), user: None, key: "".into(), sum: 9, delta: 2 }
}

/// One event of a kind with the name of its lane was dropped.
pub(super) fn dropped(lane: Lane) -> DroppedKind {
    DroppedKind { kind: kind(lane), count: 1 }
}

/// A frame of these events, from the first number to the last, and nothing else.
pub(super) fn frame(events: Vec<Arc<Numbered>>, first: u64, last: u64) -> Frame {
    Frame {
        room: RoomId::new("r").expect("a valid name"),
        epoch: Epoch(1),
        first_seq: Seq(first),
        last_seq: Seq(last),
        important: ImportantNo(1),
        time: Time::default(),
        oldest: Time::default(),
        represents: events.len() as u64,
        events,
        totals: Vec::new(),
        dropped: Vec::new(),
        online: None,
        ack: None,
    }
}
