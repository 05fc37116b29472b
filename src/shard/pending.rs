//! What waits for one viewer whose socket takes no more, what it lost meanwhile,
//! and the writing of it all once the socket takes bytes again.
//!
//! The viewer is told of its losses once, at the moment it reads again: the
//! first write shows that it does, the notice goes before the next frame.

use std::io::{self, IoSlice, Write};
use std::net::TcpStream;

use smallvec::SmallVec;

use super::stats::ShardStats;
use crate::engine::delivery::{Backlog, Cut, Limits};
use crate::engine::drops::Drops;
use crate::engine::ids::{RoomId, Seq};
use crate::engine::kind::Lane;
use crate::engine::time::Time;
use crate::wire::Format;
use crate::wire::message::{Gap, ServerMessage};
use crate::wire::shared::{ViewerFrame, message};

/// Buffers one vectored write hands over; Linux takes up to 1,024, and 64 fill
/// a socket's send buffer many times over.
const MAX_CHUNKS: usize = 64;

/// What a slow viewer lost of one room since it was last told.
struct Loss {
    room: RoomId,
    first_seq: Seq,
    last_seq: Seq,
    dropped: Drops,
}

/// See the module's documentation.
pub(super) struct Pending {
    /// Frames and messages that wait.
    pub(super) backlog: Backlog<ViewerFrame>,
    losses: Vec<Loss>,
    /// When the socket last took bytes, or refused them for the first time.
    pub(super) progress: Time,
}

impl Pending {
    /// Nothing waits yet.
    pub(super) fn new(limits: Limits, now: Time) -> Self {
        Self { backlog: Backlog::new(limits), losses: Vec::new(), progress: now }
    }

    /// Remembers what thinning took, so that the viewer is told once, right
    /// before it gets something again.
    pub(super) fn note_losses(&mut self, stats: &mut ShardStats) {
        for (lost, from, to) in self.backlog.take_lost() {
            let frame = lost.frame.frame();
            let counts = lost.frame.loss(from, to);
            for entry in &counts {
                stats.viewer_dropped[entry.kind.lane.index()] += entry.count;
            }
            let ordered_lost = to == Cut::ImportantOnly;
            // Numbers need an account even when nothing of theirs was left to
            // lose: the frame that would have covered them is gone.
            let numbers_gone = ordered_lost
                && frame.first_seq <= frame.last_seq
                && lost.frame.bytes(lost.format, to).is_empty();
            if counts.is_empty() && !numbers_gone {
                continue;
            }
            let loss = match self.losses.iter_mut().find(|l| l.room == frame.room) {
                Some(loss) => loss,
                None => {
                    self.losses.push(Loss {
                        room: frame.room.clone(),
                        first_seq: frame.first_seq,
                        last_seq: Seq(frame.first_seq.0.saturating_sub(1)),
                        dropped: Drops::default(),
                    });
                    let last = self.losses.len() - 1;
                    &mut self.losses[last]
                }
            };
            if ordered_lost {
                if loss.last_seq < loss.first_seq {
                    loss.first_seq = frame.first_seq;
                }
                loss.last_seq = frame.last_seq;
            }
            for entry in counts {
                loss.dropped.add(&entry.kind, entry.count);
            }
        }
    }

    fn push_gaps(&mut self, format: Format, stats: &mut ShardStats) {
        for loss in self.losses.drain(..) {
            // Sampled content alone may go without a word.
            let dropped = loss.dropped.list();
            let unnumbered = loss.last_seq < loss.first_seq;
            if unnumbered && dropped.iter().all(|d| d.kind.lane == Lane::Sampled) {
                continue;
            }
            stats.gaps += 1;
            let gap = ServerMessage::Gap(Gap {
                room: loss.room.as_str(),
                first_seq: loss.first_seq,
                last_seq: loss.last_seq,
                dropped,
            });
            self.backlog.push_notice(message(format, &gap));
        }
    }

    /// `Ok(true)` when everything went out.
    pub(super) fn write_out(
        &mut self,
        mut stream: &TcpStream,
        format: Format,
        stats: &mut ShardStats,
        now: Time,
    ) -> io::Result<bool> {
        let mut told = false;
        while !self.backlog.is_empty() || !self.losses.is_empty() {
            // The first write shows that the viewer reads again; only then is
            // it told, so that one notice covers the whole stall.
            if told || self.backlog.is_empty() {
                self.push_gaps(format, stats);
            }
            let most = if told || self.losses.is_empty() { MAX_CHUNKS } else { 1 };
            let chunks: SmallVec<[IoSlice<'_>; MAX_CHUNKS]> =
                self.backlog.chunks().take(most).map(IoSlice::new).collect();
            let result = stream.write_vectored(&chunks);
            drop(chunks);
            match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    stats.socket_writes += 1;
                    stats.socket_bytes += written as u64;
                    self.backlog.advance(written, |sent, cut| {
                        stats.late_frames += 1;
                        stats.deliveries += sent.frame.deliveries(cut);
                    });
                    self.progress = now;
                    told = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}
