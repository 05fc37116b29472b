//! What viewers and servers say to each other, before any format.

use bytes::Bytes;

use crate::engine::digest::Digest;
use crate::engine::event::{DroppedKind, Payload};
use crate::engine::ids::{ImportantNo, Seq};
use crate::engine::priority::Advice;
use crate::engine::room::Position;

/// From a viewer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientMessage {
    /// Become a viewer of a room.
    Join {
        /// Room name, unchecked.
        room: String,
        /// JWT.
        token: String,
        /// Where a broken connection left off.
        resume: Option<Position>,
        /// It acknowledges important events as told.
        acks: bool,
    },
    /// Stop watching.
    Leave {
        /// Room name, unchecked.
        room: String,
    },
    /// Speak, where the kind allows it.
    Publish(ClientEvent),
    /// Everything important up to this number arrived.
    Ack {
        /// Room name, unchecked.
        room: String,
        /// Cumulative.
        important: ImportantNo,
    },
    /// Send these important events again.
    Pull {
        /// Room name, unchecked.
        room: String,
        /// First wanted.
        from: ImportantNo,
        /// Last wanted.
        to: ImportantNo,
    },
    /// What it received of these important events.
    Digest {
        /// Room name, unchecked.
        room: String,
        /// First.
        from: ImportantNo,
        /// Last.
        to: ImportantNo,
        /// Of what it has.
        digest: Digest,
    },
    /// Answer to `ping`.
    Pong,
}

impl ClientMessage {
    /// Names, for metrics, in the order of [`ClientMessage::index`].
    pub const NAMES: [&'static str; 7] =
        ["join", "leave", "publish", "ack", "pull", "pong", "digest"];

    /// Index into per-type tables.
    #[must_use]
    pub const fn index(&self) -> usize {
        match self {
            ClientMessage::Join { .. } => 0,
            ClientMessage::Leave { .. } => 1,
            ClientMessage::Publish(_) => 2,
            ClientMessage::Ack { .. } => 3,
            ClientMessage::Pull { .. } => 4,
            ClientMessage::Pong => 5,
            ClientMessage::Digest { .. } => 6,
        }
    }
}

/// How a viewer's coming back is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovery {
    /// All that it missed follows.
    pub recovered: bool,
    /// It was in the room already and was sent less than others: this replaces
    /// what it holds.
    pub rebased: bool,
    /// Important events that it missed and that do not follow, first and last.
    pub missed: Option<(ImportantNo, ImportantNo)>,
}

/// A viewer's own event, unchecked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientEvent {
    /// Room name.
    pub room: String,
    /// Idempotency key.
    pub id: String,
    /// Kind name.
    pub kind: String,
    /// Content.
    pub payload: Payload,
    /// Merge key.
    pub key: Option<String>,
    /// Amount.
    pub amount: Option<i64>,
}

/// To one viewer. Frames and snapshots, which many share, are in
/// [`shared`](super::shared).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerMessage<'a> {
    /// First message on a connection.
    Welcome {
        /// Names the connection in logs.
        session: &'a str,
        /// Silence after which the server pings.
        ping_interval_ms: u64,
        /// Says which samples of acknowledgements it belongs to.
        ack_slot: u16,
    },
    /// What only this viewer lost.
    Gap(Gap<'a>),
    /// Its event was taken.
    Accepted {
        /// The event's id.
        id: &'a str,
        /// Its number, unless sampled.
        seq: Option<Seq>,
        /// What else would be taken, unless that is everything.
        admission: Option<Advice>,
    },
    /// Its event was not taken.
    Rejected {
        /// The event's id.
        id: &'a str,
        /// Machine-readable.
        code: &'a str,
        /// For people.
        reason: &'a str,
        /// When to try again; `None`: never.
        retry_after_ms: Option<u64>,
        /// What would be taken, unless that is everything.
        admission: Option<Advice>,
    },
    /// A request failed.
    Error {
        /// Machine-readable.
        code: &'a str,
        /// For people.
        reason: &'a str,
        /// Whether trying again may help.
        temporary: bool,
        /// The room it is about.
        room: Option<&'a str>,
        /// When to try again, where that is known.
        retry_after_ms: Option<u64>,
    },
    /// The server is leaving.
    Goaway {
        /// Wait this long before reconnecting.
        reconnect_after_ms: u64,
    },
    /// Are you there?
    Ping,
    /// It did not confirm these important events, though they were sent again:
    /// it should pull them.
    Missed {
        /// Which room.
        room: &'a str,
        /// First.
        from: ImportantNo,
        /// Last.
        to: ImportantNo,
        /// At a random moment within this.
        within_ms: u32,
    },
    /// Answer to `leave`.
    Left {
        /// Which room.
        room: &'a str,
    },
}

/// See [`ServerMessage::Gap`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap<'a> {
    /// Which room.
    pub room: &'a str,
    /// The numbers it lost content of; without any, `first_seq` is
    /// `last_seq + 1`.
    pub first_seq: Seq,
    /// See `first_seq`.
    pub last_seq: Seq,
    /// How many of each kind.
    pub dropped: &'a [DroppedKind],
}

/// Decides once whether bytes are one JSON value.
#[must_use]
pub fn payload_of_bytes(bytes: Bytes) -> Payload {
    let json = serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok();
    Payload { bytes, json }
}
