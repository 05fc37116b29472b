//! A shard's connections, by the number that `quinn-proto` gives them.
//!
//! Whoever is asked for is made whole, and who has nothing to do is packed. What is
//! asked of all, or of those at rest, stands beside it.

use std::time::Instant;

use super::packed::{Kept, Rooms};
use super::peer::Peer;
use super::rest::Paces;
use crate::shard::connection::ViewerKey;

/// Connections that are packed in one turn, of those that have come to rest: a
/// tenth of a millisecond.
const REST_TURN: usize = 64;

/// See the module's documentation.
#[derive(Default)]
pub struct Peers {
    slots: Vec<Option<Slot>>,
    rooms: Rooms<Peer>,
    paces: Paces,
}

struct Slot {
    peer: Kept<Peer>,
    /// Its row, once there is one.
    viewer: Option<ViewerKey>,
    /// Its viewer's session is one of WebTransport.
    web: bool,
}

impl Peers {
    /// Puts a connection at `index`, where none is.
    pub fn put(&mut self, index: u32, peer: Peer, now: Instant) {
        self.paces.begin(index, now);
        let index = index as usize;
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        self.slots[index] = Some(Slot { peer: Kept::new(peer), viewer: None, web: false });
    }

    /// Drops the connection at `index`.
    pub fn remove(&mut self, index: u32) {
        if let Some(slot) = self.slots.get_mut(index as usize) {
            *slot = None;
        }
    }

    /// The connection at `index`. It stays whole until [`lay_down`](Self::lay_down).
    pub fn take_up(&mut self, index: u32) -> Option<&mut Peer> {
        let slot = self.slots.get_mut(index as usize)?.as_mut()?;
        Some(self.rooms.take_up(&mut slot.peer))
    }

    /// It has sent something.
    pub fn sent(&mut self, index: u32, now: Instant) {
        if self.has(index) && self.rooms.packs() {
            self.paces.sent(index, now);
        }
    }

    /// Nobody works with it for a while: it is packed, unless it is at its
    /// handshake or sends much (`rest.rs`).
    pub fn lay_down(&mut self, index: u32) {
        let Some(Some(slot)) = self.slots.get_mut(index as usize) else { return };
        let Some(peer) = slot.peer.whole() else { return };
        slot.web = peer.is_web();
        if peer.handshaking {
            return;
        }
        if self.paces.is_busy(index) {
            slot.peer.stay();
        } else {
            self.rooms.lay_down(&mut slot.peer);
        }
    }

    /// Packs some of those that have come to rest.
    pub fn rest(&mut self, now: Instant) {
        for _ in 0..REST_TURN {
            let Some(index) = self.paces.rested(now) else { break };
            self.lay_down(index);
        }
    }

    /// When [`rest`](Self::rest) wants to be called.
    #[must_use]
    pub fn next_rest(&self) -> Option<Instant> {
        self.paces.next()
    }

    /// Asks for the memory of the connection at `index`, without waiting for it.
    pub fn prefetch(&self, index: u32) {
        if let Some(Some(slot)) = self.slots.get(index as usize) {
            slot.peer.prefetch();
        }
    }

    /// Whether there is a connection at `index`.
    #[must_use]
    pub fn has(&self, index: u32) -> bool {
        matches!(self.slots.get(index as usize), Some(Some(_)))
    }

    /// Whose connection it is.
    #[must_use]
    pub fn viewer(&self, index: u32) -> Option<ViewerKey> {
        self.slots.get(index as usize)?.as_ref()?.viewer
    }

    /// It is this viewer's from now on, or nobody's.
    pub fn set_viewer(&mut self, index: u32, viewer: Option<ViewerKey>) {
        if let Some(Some(slot)) = self.slots.get_mut(index as usize) {
            slot.viewer = viewer;
        }
    }

    /// Whether connections at rest take less memory on this processor.
    #[must_use]
    pub fn packs(&self) -> bool {
        self.rooms.packs()
    }

    /// Viewers over WebTransport.
    #[must_use]
    pub fn web_viewers(&self) -> usize {
        self.slots.iter().flatten().filter(|slot| slot.viewer.is_some() && slot.web).count()
    }
}
