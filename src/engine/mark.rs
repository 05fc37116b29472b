//! The mark of an event whose way is followed: who it is, for `trace` to note
//! its steps, and what a room did with it that no frame shows.
//!
//! An event is marked once, where it comes in, and carries its mark along. So
//! whoever handles events asks nothing but whether there is a mark, which for
//! all but a few events is one comparison with nothing.

use std::sync::Arc;

use super::ids::{RoomId, ShardId};
use super::stats::DropReason;
use super::time::Time;

/// By which way an event came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `POST /v1/rooms/{room}/events`.
    Http,
    /// A gRPC stream.
    Grpc,
    /// A viewer's connection.
    Viewer,
}

impl Way {
    /// Name in traces.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Way::Http => "http",
            Way::Grpc => "grpc",
            Way::Viewer => "viewer",
        }
    }
}

/// One arrival of an event whose way is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Hash of room and id, the same everywhere and on every arrival.
    pub key: u128,
    /// The trace that its spans belong to: `key`, or the publisher's.
    pub trace: u128,
    /// The span that stands for this arrival.
    pub span: u64,
    /// The publisher's span that it came from.
    pub parent: Option<u64>,
    /// Where it is to go.
    pub room: RoomId,
    /// The publisher's id of it.
    pub id: Arc<str>,
    /// Name of its kind.
    pub kind: Arc<str>,
    /// How it came in.
    pub way: Way,
    /// On which shard.
    pub shard: ShardId,
    /// When.
    pub received: Time,
}

/// What became of an accepted event that does not travel by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It has become part of a total.
    Summed,
    /// A newer event of its key travels in its place.
    Overtaken,
    /// Nobody gets it.
    Dropped(DropReason),
}

/// A marked event and its [`Fate`].
pub type Fated = (Arc<Mark>, Fate);
