//! What is asked of a room's home beyond its memory, while the log is read for it.

use tokio::sync::oneshot;

use super::peers::{Asker, Events};
use crate::engine::delivery::Ask;
use crate::engine::digest::Digest;
use crate::engine::ids::{ImportantNo, RoomId, ShardId};
use crate::engine::room::Position;
use crate::log::ReadAnswer;

/// A viewer's word on what it received.
#[derive(Debug, Clone)]
pub struct Reconcile {
    /// Of which room.
    pub room: RoomId,
    /// First number.
    pub from: ImportantNo,
    /// Last number.
    pub to: ImportantNo,
    /// What it has of them.
    pub digest: Digest,
    /// Who.
    pub viewer: Asker,
}

/// What the log brought, and for whom.
#[derive(Debug)]
pub struct LogRead {
    /// Which room's events.
    pub room: RoomId,
    /// What for.
    pub wanted: Wanted,
    /// The events.
    pub answer: ReadAnswer,
}

/// Why the log is read.
#[derive(Debug)]
pub enum Wanted {
    /// A viewer pulls.
    Pull {
        /// From where.
        after: ImportantNo,
        /// How many at most.
        events: usize,
        /// Who.
        asker: Asker,
    },
    /// A reader over HTTP.
    Http {
        /// From where.
        after: ImportantNo,
        /// How many at most.
        events: usize,
        /// Who.
        reply: oneshot::Sender<Option<Events>>,
    },
    /// A viewer's digest is compared.
    Digest(Reconcile),
    /// A slow viewer skips ahead.
    Locate {
        /// Who.
        viewer: Asker,
        /// What it asked for.
        ask: Ask,
        /// From where.
        after: ImportantNo,
    },
    /// Viewers come back.
    Resume {
        /// On which shard.
        shard: ShardId,
        /// From where.
        from: Position,
    },
}
