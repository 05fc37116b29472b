//! Leaving: rooms are flushed and what is being logged awaited, then everyone is
//! sent away.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::Shard;
use super::connection::ViewerKey;
use crate::engine::time::Time;
use crate::wire::close::CloseReason;
use crate::wire::message::ServerMessage;

/// Viewers sent away between two looks at the mailbox, in a drain.
const GOODBYES: usize = 512;

/// The stages of leaving.
pub(super) enum Drain {
    /// Rooms are being flushed.
    Flushing(oneshot::Sender<()>),
    /// They are; other shards may still have frames for viewers here.
    Flushed,
    /// Everyone is sent away, those listed are still to be told.
    Leaving(oneshot::Sender<()>, Vec<ViewerKey>),
    /// Nobody is left.
    Left,
}

impl Shard {
    /// Whether it is sending everyone away.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// Whether a drain has sent everyone away.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        matches!(self.drain, Some(Drain::Left))
    }

    /// Flush, wait for the others, send everyone away a few at a time, wait for
    /// them to go.
    pub(super) fn step_drain(&mut self, now: Time) {
        match self.drain.take() {
            Some(Drain::Flushing(done)) => {
                let peers = Arc::clone(&self.peers);
                self.homes.flush_all(peers.as_ref(), &mut self.stats, now);
                self.drain = Some(if self.homes.has_pending() {
                    Drain::Flushing(done)
                } else {
                    self.homes.reserve_exactly();
                    // The server may have passed its deadline and be gone.
                    let _ = done.send(());
                    Drain::Flushed
                });
            }
            Some(Drain::Leaving(done, mut leaving)) => {
                for key in leaving.split_off(leaving.len().saturating_sub(GOODBYES)) {
                    self.dismiss(key);
                }
                self.settle(now);
                self.drain = Some(if self.viewers.is_empty() {
                    let _ = done.send(());
                    Drain::Left
                } else {
                    Drain::Leaving(done, leaving)
                });
            }
            other => self.drain = other,
        }
    }

    /// Whether a drain wants to be stepped at once rather than at a deadline.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        matches!(&self.drain, Some(Drain::Leaving(_, leaving)) if !leaving.is_empty())
    }

    /// Tells a viewer when to come back, and closes it.
    pub(super) fn dismiss(&mut self, key: ViewerKey) {
        let spread = self.settings.reconnect_spread.as_millis() as u64;
        let reconnect_after_ms = self.draw() % (spread + 1);
        self.reply(key, &ServerMessage::Goaway { reconnect_after_ms });
        self.viewers.end(key, CloseReason::Drain);
    }
}
