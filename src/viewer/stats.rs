//! What a viewer counts.

use std::sync::{Mutex, PoisonError};

use super::room::Tally;

/// What happened to a viewer since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ViewerStats {
    /// Connections that stood, by WebSocket.
    pub websocket: u64,
    /// Connections that stood, by QUIC.
    pub quic: u64,
    /// Attempts to connect that failed.
    pub failed: u64,
    /// Connections that ended though they were wanted.
    pub lost: u64,
    /// Messages that came, datagrams among them.
    pub messages: u64,
    /// Datagrams that came.
    pub datagrams: u64,
    /// Times that reading stopped because a room's happenings were not fetched.
    pub stalls: u64,
    /// Events taken up by `publish`.
    pub published: u64,
    /// Of them, sent again on another connection.
    pub resent: u64,
    /// Of all rooms that were left or ended; [`super::Room::tally`] has those of a
    /// room that is watched.
    pub rooms: Tally,
}

/// The counts, between a viewer and its task. Nothing waits while it holds the
/// lock.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<ViewerStats>);

impl Shared {
    pub(super) fn count(&self, change: impl FnOnce(&mut ViewerStats)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn read(&self) -> ViewerStats {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
