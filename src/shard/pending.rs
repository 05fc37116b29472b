//! What is kept of a viewer that is slow or was lately, and the writing of what
//! waits for it once its socket takes bytes again. The rules are the engine's
//! ([`Delivery`]); the socket is here.

use std::io;

use super::outlet::Outlet;
use super::stats::ShardStats;
use crate::engine::delivery::{Delivery, LadderSettings};
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
