//! What is kept of a viewer that is slow or was lately, and the writing of what
//! waits for it once its socket takes bytes again. The rules are the engine's
//! ([`Delivery`]); the socket is here.

use std::io;

use super::outlet::Outlet;
use super::stats::ShardStats;
use crate::engine::delivery::{Delivery, LadderSettings, Rung};
use crate::engine::time::Time;
use crate::wire::Format;
use crate::wire::shared::ViewerFrame;

/// See the module's documentation.
pub(super) struct Pending {
    /// What it gets, lost and is owed.
    pub(super) delivery: Delivery<ViewerFrame>,
    /// When the shard means to look at it next.
    pub(super) scheduled: Option<Time>,
}

impl Pending {
    /// For a socket that has just refused something.
    pub(super) fn new(now: Time) -> Self {
        Self { delivery: Delivery::new(now), scheduled: None }
    }

    /// Writes until everything is out or the socket takes no more.
    pub(super) fn write_out(
        &mut self,
        outlet: &mut Outlet<'_>,
        format: Format,
        settings: &LadderSettings,
        stats: &mut ShardStats,
        now: Time,
    ) -> io::Result<()> {
        loop {
            self.delivery.prepare(&format);
            if self.delivery.is_empty() {
                self.delivery.drained(&mut stats.delivery, now);
                return Ok(());
            }
            match outlet.write_chunks(self.delivery.chunks()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    stats.socket_writes += 1;
                    stats.socket_bytes += written as u64;
                    let ShardStats { delivery, late_frames, deliveries, .. } = stats;
                    self.delivery.advance(written, settings, delivery, now, |sent, cut| {
                        *late_frames += 1;
                        *deliveries += sent.frame.deliveries(cut);
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.delivery.refused();
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Where the slow viewers of a shard stand.
#[derive(Debug, Clone, Copy, Default)]
pub struct SlowTotals {
    /// Viewers with something that waits.
    pub viewers: u64,
    /// Frames and messages.
    pub frames: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Viewers on each rung but the first.
    pub rungs: [u64; Rung::COUNT],
}

impl SlowTotals {
    /// Another viewer for whom something waits, or did until now.
    pub(super) fn add(&mut self, pending: &Pending) {
        let delivery = &pending.delivery;
        self.viewers += u64::from(!delivery.is_empty());
        self.frames += delivery.len() as u64;
        self.bytes += delivery.bytes() as u64;
        self.rungs[delivery.rung().index()] += u64::from(delivery.rung() != Rung::Full);
    }
}
