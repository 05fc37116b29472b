//! A shard's connections, by the number that `quinn-proto` gives them.
//!
//! Whoever is asked for is made whole, and is packed again once it has been
//! driven. What is asked of all, or of those at rest, stands beside it.

use super::packed::{Kept, Rooms};
use super::peer::Peer;
use crate::shard::connection::ViewerKey;

/// See the module's documentation.
#[derive(Default)]
pub struct Peers {
    slots: Vec<Option<Slot>>,
    rooms: Rooms<Peer>,
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
    pub fn put(&mut self, index: u32, peer: Peer) {
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

    /// Nobody works with it for a while.
    pub fn lay_down(&mut self, index: u32) {
        if let Some(Some(slot)) = self.slots.get_mut(index as usize) {
            slot.web = self.rooms.take_up(&mut slot.peer).is_web();
            self.rooms.lay_down(&mut slot.peer);
        }
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
