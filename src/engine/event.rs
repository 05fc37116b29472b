//! What publishers send, what rooms number, what frames carry.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::confirm::Asked;
use super::ids::{Epoch, ImportantNo, RoomId, Seq};
use super::kind::Kind;
use super::mark::Mark;
use super::time::Time;
use super::visitors::Users;

/// Opaque content of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// The bytes as the publisher wrote them.
    pub bytes: Bytes,
    /// Whether they are one JSON value: then JSON readers get them verbatim,
    /// otherwise as base64.
    pub json: bool,
}

impl Payload {
    /// JSON `null` or nothing at all. On a `latest` kind it clears the key.
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.bytes.is_empty() || (self.json && self.bytes.as_ref() == b"null")
    }
}

/// An event as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The publisher's idempotency key, 1 to 128 bytes, checked at ingress.
    pub id: Arc<str>,
    /// Its rules.
    pub kind: Arc<Kind>,
    /// Who caused it; empty when nobody in particular did.
    pub user: Arc<str>,
    /// Content.
    pub payload: Payload,
    /// Merge key.
    pub key: Option<Arc<str>>,
    /// What a `sum` adds; absent counts as 1. Magnitude below 2^53.
    pub amount: Option<i64>,
    /// The publisher's own time to live, which shortens the kind's.
    pub ttl: Option<Duration>,
    /// When it arrived.
    pub received: Time,
    /// Present: its way is followed. No part of what is logged or sent.
    pub mark: Option<Arc<Mark>>,
}

impl Event {
    /// Bytes it occupies in a buffer: content and a flat allowance for the rest.
    #[must_use]
    pub fn weight(&self) -> usize {
        const OVERHEAD: usize = 192;
        OVERHEAD
            + self.id.len()
            + self.user.len()
            + self.payload.bytes.len()
            + self.key.as_ref().map_or(0, |k| k.len())
    }

    /// When it stops being worth sending.
    #[must_use]
    pub fn expires(&self) -> Option<Time> {
        let ttl = match (self.ttl, self.kind.ttl) {
            (Some(own), Some(kind)) => Some(own.min(kind)),
            (own, kind) => own.or(kind),
        };
        ttl.map(|ttl| self.received + ttl)
    }
}

/// An accepted event with its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbered {
    /// The event.
    pub event: Event,
    /// `ordered` and `important` lanes.
    pub seq: Option<Seq>,
    /// `important` lane.
    pub important: Option<ImportantNo>,
}

/// A running total of a `sum` kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Total {
    /// The kind whose amounts it sums.
    pub kind: Arc<Kind>,
    /// Whose, for kinds that sum by user and key.
    pub user: Option<Arc<str>>,
    /// Merge key; empty when events had none.
    pub key: Arc<str>,
    /// Sum since the room's numbering (or the combo) began.
    pub sum: i64,
    /// What this frame adds; 0 in a snapshot.
    pub delta: i64,
}

/// How many events of a kind were dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DroppedKind {
    /// Their kind.
    pub kind: Arc<Kind>,
    /// How many.
    pub count: u64,
}

/// What one room sends to all its viewers at one flush.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Sender.
    pub room: RoomId,
    /// Numbering.
    pub epoch: Epoch,
    /// The numbers it covers are `first_seq..=last_seq`, whether their events
    /// travel, were merged into totals, or were dropped. Without any,
    /// `first_seq` is `last_seq + 1`.
    pub first_seq: Seq,
    /// See `first_seq`. Consecutive frames of a room are gapless.
    pub last_seq: Seq,
    /// The room's latest important number, also when the frame carries none.
    pub important: ImportantNo,
    /// When it was flushed.
    pub time: Time,
    /// When the oldest event in it (merged ones included) arrived.
    pub oldest: Time,
    /// In order of acceptance.
    pub events: Vec<Arc<Numbered>>,
    /// Totals that changed.
    pub totals: Vec<Total>,
    /// What the room itself trimmed from it.
    pub dropped: Vec<DroppedKind>,
    /// Viewers in the room, when that changed.
    pub online: Option<u32>,
    /// How viewers are to acknowledge its important events; absent: not at all.
    pub ack: Option<Asked>,
    /// Accepted events it stands for: carried, and merged into what is carried.
    pub represents: u64,
}

impl Frame {
    /// A frame that brings important events again, or totals, and covers no new
    /// numbers: `seq` is the last that one covered.
    #[must_use]
    pub fn beside(
        room: RoomId,
        (epoch, seq): (Epoch, Seq),
        important: ImportantNo,
        events: Vec<Arc<Numbered>>,
        time: Time,
    ) -> Self {
        Self {
            room,
            epoch,
            first_seq: Seq(seq.0 + 1),
            last_seq: seq,
            important,
            time,
            oldest: time,
            represents: events.len() as u64,
            events,
            totals: Vec::new(),
            dropped: Vec::new(),
            online: None,
            ack: None,
        }
    }
}

/// Where a room stands, for someone who joins or asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Which room.
    pub room: RoomId,
    /// Numbering.
    pub epoch: Epoch,
    /// Last number that a frame covered.
    pub seq: Seq,
    /// Last important number that a frame covered.
    pub important: ImportantNo,
    /// Viewers in the room.
    pub online: u32,
    /// Different users that have been in it.
    pub users: Users,
    /// The newest of every `latest` key, in order of kind name and key.
    pub state: Vec<Arc<Numbered>>,
    /// Running totals, in order of kind name, user and key.
    pub totals: Vec<Total>,
}
