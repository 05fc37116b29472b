//! The viewers of a shard: one row each, their sockets in a dense table beside
//! the rows, and the writing of bytes to one of them.
//!
//! An idle viewer owns a row, a descriptor and nothing else: reading uses the
//! shard's one scratch buffer, and a backlog exists only while the socket takes
//! no more.
//!
//! Whoever closes a connection first, the socket lingers until the peer's end
//! is read (or [`LINGER`] has passed): closing at once with unread input would
//! make the kernel send a reset, which destroys the close frame on its way.

use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use super::pending::Pending;
use super::stats::ShardStats;
use crate::engine::delivery::{Cut, Limits, Push};
use crate::engine::time::Time;
use crate::wire::close::CloseReason;
use crate::wire::shared::{SharedFrame, ViewerFrame};
use crate::wire::{Format, frame};

/// How long a closed connection waits for its peer's end, before it is cut off.
pub const LINGER: Duration = Duration::from_secs(3);

/// Names a viewer for as long as it lives; a key of one that is gone finds
/// nobody, though its row may serve another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ViewerKey {
    /// Row, and token of its socket.
    pub index: u32,
    /// Which of the row's successive viewers.
    pub generation: u32,
}

/// A viewer's place in one of the shard's rooms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Membership {
    /// The room's index on this shard.
    pub room: u32,
    /// Its place among the members; [`WAITING`] until the snapshot is there.
    pub member: u32,
    /// How it may speak there.
    pub speaker: Speaker,
}

/// How a viewer may speak in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speaker {
    /// May publish any kind, not only those open to viewers.
    pub any_kind: bool,
    /// Its client type, by the number that the session gave it.
    pub client: u8,
}

/// Place of a viewer whose join waits for the room's snapshot.
pub const WAITING: u32 = u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Free,
    Open,
    /// Wants nothing but its end; what it says is thrown away.
    Closing,
}

/// One viewer. About 100 bytes; see the test.
pub struct Row {
    generation: u32,
    /// Its wire format.
    pub format: Format,
    phase: Phase,
    /// A ping was sent and nothing came since.
    pub awaiting_pong: bool,
    /// Second, since the shard began, of its only valid entry in the wheel.
    pub due: u32,
    /// Second of the last write to it alone (frames are noted at its rooms).
    pub last_sent: u32,
    /// Second when it was last heard.
    pub last_heard: u32,
    /// Second since when it is in no room.
    pub idle_since: u32,
    /// Messages it may still send, in thousandths.
    pub tokens: i32,
    /// Millisecond, since the shard began, of the last refill.
    pub refilled: u32,
    /// Rooms it joined or is joining.
    pub memberships: SmallVec<[Membership; 1]>,
    /// Who it is, once it joined something.
    pub user: Option<Arc<str>>,
    pending: Option<Box<Pending>>,
}

impl Row {
    /// Whether it may be spoken to.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }
}

/// The viewers of one shard.
pub struct Connections {
    /// Kept apart from the rows, four bytes each: the fan-out loop touches
    /// nothing else of a viewer.
    streams: Vec<Option<TcpStream>>,
    rows: Vec<Row>,
    free: Vec<u32>,
    limits: Limits,
    started: Time,
    /// Rows whose rooms must hear that they have a backlog, or have none any more.
    pub changed_backlog: Vec<u32>,
    /// Connections that ended and whose row must be cleaned up by the shard.
    pub ended: Vec<(ViewerKey, CloseReason)>,
    backlogged: u32,
}

impl Connections {
    /// None yet.
    #[must_use]
    pub fn new(limits: Limits, started: Time) -> Self {
        Self {
            streams: Vec::new(),
            rows: Vec::new(),
            free: Vec::new(),
            limits,
            started,
            changed_backlog: Vec::new(),
            ended: Vec::new(),
            backlogged: 0,
        }
    }

    /// Takes over a connected, non-blocking socket.
    pub fn open(&mut self, stream: TcpStream, format: Format, burst: u32, now: Time) -> ViewerKey {
        let index = self.free.pop().unwrap_or_else(|| {
            self.streams.push(None);
            self.rows.push(Row {
                generation: 0,
                format,
                phase: Phase::Free,
                awaiting_pong: false,
                due: 0,
                last_sent: 0,
                last_heard: 0,
                idle_since: 0,
                tokens: 0,
                refilled: 0,
                memberships: SmallVec::new(),
                user: None,
                pending: None,
            });
            (self.rows.len() - 1) as u32
        });
        let second = self.second(now);
        let millis = self.millis(now);
        let row = &mut self.rows[index as usize];
        row.phase = Phase::Open;
        row.format = format;
        row.last_sent = second;
        row.last_heard = second;
        row.idle_since = second;
        row.tokens = i32::try_from(burst.saturating_mul(1_000)).unwrap_or(i32::MAX);
        row.refilled = millis;
        self.streams[index as usize] = Some(stream);
        ViewerKey { index, generation: row.generation }
    }

    /// Connections, closing ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len() - self.free.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Viewers with a backlog.
    #[must_use]
    pub fn backlogged(&self) -> u32 {
        self.backlogged
    }

    /// Frames and bytes in all backlogs.
    #[must_use]
    pub fn backlog_totals(&self) -> (usize, usize) {
        let pending = self.rows.iter().filter_map(|row| row.pending.as_ref());
        pending.fold((0, 0), |(n, b), p| (n + p.backlog.len(), b + p.backlog.bytes()))
    }

    /// The row behind a key, unless that viewer is gone.
    pub fn get(&mut self, key: ViewerKey) -> Option<&mut Row> {
        let row = self.rows.get_mut(key.index as usize)?;
        (row.phase != Phase::Free && row.generation == key.generation).then_some(row)
    }

    /// The row of a member, which is never free.
    #[must_use]
    pub fn row_mut(&mut self, index: u32) -> &mut Row {
        &mut self.rows[index as usize]
    }

    /// The row of a member, which is never free.
    #[must_use]
    pub fn row(&self, index: u32) -> &Row {
        &self.rows[index as usize]
    }

    /// The key of a row in use.
    #[must_use]
    pub fn key_of(&self, index: u32) -> Option<ViewerKey> {
        let row = self.rows.get(index as usize)?;
        (row.phase != Phase::Free).then_some(ViewerKey { index, generation: row.generation })
    }

    /// Every open connection.
    pub fn open_keys(&self) -> impl Iterator<Item = ViewerKey> {
        self.rows
            .iter()
            .enumerate()
            .filter(|(_, row)| row.phase == Phase::Open)
            .map(|(i, row)| ViewerKey { index: i as u32, generation: row.generation })
    }

    /// The socket, to read from.
    #[must_use]
    pub fn stream(&self, index: u32) -> Option<&TcpStream> {
        self.streams.get(index as usize)?.as_ref()
    }

    /// Whether input of this connection still counts.
    #[must_use]
    pub fn is_open(&self, key: ViewerKey) -> bool {
        self.rows
            .get(key.index as usize)
            .is_some_and(|row| row.phase == Phase::Open && row.generation == key.generation)
    }

    /// Whole seconds since the shard began.
    #[must_use]
    pub fn second(&self, now: Time) -> u32 {
        u32::try_from(now.since(self.started).as_secs()).unwrap_or(u32::MAX)
    }

    /// Milliseconds since the shard began, wrapping after 49 days.
    #[must_use]
    pub fn millis(&self, now: Time) -> u32 {
        now.since(self.started).as_millis() as u32
    }

    /// Writes a shared frame to a viewer that has no backlog: one write, no
    /// copy. This is the whole of the fan-out's inner step.
    ///
    /// # Errors
    /// The socket's, `WouldBlock` among them.
    #[inline]
    pub fn write_frame(&self, index: u32, bytes: &[u8]) -> io::Result<usize> {
        match &self.streams[index as usize] {
            Some(stream) => (&*stream).write(bytes),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// A message for this viewer alone.
    pub fn send(&mut self, key: ViewerKey, bytes: Bytes, stats: &mut ShardStats, now: Time) {
        if !self.is_open(key) {
            return;
        }
        self.send_bytes(key, bytes, stats, now);
    }

    fn send_bytes(&mut self, key: ViewerKey, bytes: Bytes, stats: &mut ShardStats, now: Time) {
        let second = self.second(now);
        let row = &mut self.rows[key.index as usize];
        row.last_sent = second;
        if let Some(pending) = &mut row.pending {
            pending.backlog.push_fixed(bytes, false);
            self.check_fixed(key, stats);
            return;
        }
        let written = match self.write_frame(key.index, &bytes) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => return self.end(key, CloseReason::Broken),
        };
        stats.socket_writes += u64::from(written > 0);
        stats.socket_bytes += written as u64;
        if written < bytes.len() {
            let begun = written > 0;
            self.pending(key.index, now).backlog.push_fixed(bytes.slice(written..), begun);
        }
    }

    /// A viewer that asks without reading the answers is slow like any other:
    /// replies have no rung to be thinned by, so past twice the bound it goes.
    fn check_fixed(&mut self, key: ViewerKey, stats: &mut ShardStats) {
        let limit = self.limits.bytes.saturating_mul(2);
        let row = &self.rows[key.index as usize];
        let over = row.pending.as_ref().is_some_and(|p| p.backlog.bytes() > limit);
        if over && row.phase == Phase::Open {
            stats.slow_overruns += 1;
            self.end(key, CloseReason::Slow);
        }
    }

    /// The rest of a frame of which the socket took the first `sent` bytes.
    pub fn queue_rest(&mut self, index: u32, shared: &Arc<SharedFrame>, sent: usize, now: Time) {
        let format = self.rows[index as usize].format;
        let rest = shared.bytes(format, Cut::Full).slice(sent..);
        let frame = ViewerFrame { frame: Arc::clone(shared), format };
        self.pending(index, now).backlog.push_begun(frame, rest);
    }

    /// A frame for a viewer whose socket takes no more.
    pub fn queue_frame(
        &mut self,
        index: u32,
        shared: &Arc<SharedFrame>,
        stats: &mut ShardStats,
        now: Time,
    ) {
        let format = self.rows[index as usize].format;
        let generation = self.rows[index as usize].generation;
        let pending = self.pending(index, now);
        match pending.backlog.push(ViewerFrame { frame: Arc::clone(shared), format }) {
            Push::Queued => {}
            Push::Thinned(_) => pending.note_losses(stats),
            Push::Overrun => {
                pending.note_losses(stats);
                stats.slow_overruns += 1;
                self.end(ViewerKey { index, generation }, CloseReason::Slow);
            }
        }
    }

    fn pending(&mut self, index: u32, now: Time) -> &mut Pending {
        let row = &mut self.rows[index as usize];
        if row.pending.is_none() {
            self.backlogged += 1;
            self.changed_backlog.push(index);
        }
        row.pending.get_or_insert_with(|| Box::new(Pending::new(self.limits, now)))
    }

    /// The socket takes bytes again: one vectored write for all that waits,
    /// repeated until it is empty or blocks.
    pub fn flush(&mut self, key: ViewerKey, stats: &mut ShardStats, now: Time) {
        let Some(row) = self.rows.get_mut(key.index as usize) else { return };
        if row.generation != key.generation {
            return;
        }
        let Some(pending) = &mut row.pending else { return };
        let Some(stream) = &self.streams[key.index as usize] else { return };
        match pending.write_out(stream, row.format, stats, now) {
            Ok(true) => {
                row.pending = None;
                self.backlogged -= 1;
                self.changed_backlog.push(key.index);
                if row.phase == Phase::Closing {
                    // Whether or not this works, the linger timer ends it.
                    let _ = stream.shutdown(Shutdown::Write);
                }
            }
            Ok(false) => {}
            Err(_) => self.end(key, CloseReason::Broken),
        }
    }

    /// Whether a viewer has a backlog.
    #[must_use]
    pub fn has_backlog(&self, index: u32) -> bool {
        self.rows[index as usize].pending.is_some()
    }

    /// When a viewer with a backlog last took bytes.
    #[must_use]
    pub fn backlog_progress(&self, index: u32) -> Option<Time> {
        self.rows[index as usize].pending.as_ref().map(|p| p.progress)
    }

    /// Notes that a connection ends; the shard takes it out of its rooms and
    /// calls [`begin_close`](Self::begin_close) or [`release`](Self::release).
    pub fn end(&mut self, key: ViewerKey, reason: CloseReason) {
        if let Some(row) = self.get(key)
            && row.phase == Phase::Open
        {
            row.phase = Phase::Closing;
            self.ended.push((key, reason));
        }
    }

    /// Says goodbye with `farewell` (a close frame; empty for none) and shuts
    /// the sending side.
    pub fn begin_close(
        &mut self,
        key: ViewerKey,
        farewell: Bytes,
        stats: &mut ShardStats,
        now: Time,
    ) {
        if self.get(key).is_none() {
            return;
        }
        if !farewell.is_empty() {
            self.send_bytes(key, farewell, stats, now);
        }
        if !self.has_backlog(key.index)
            && let Some(stream) = self.stream(key.index)
        {
            // Whether or not this works, the linger timer ends it.
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    /// Closes the socket and frees the row. Its descriptor leaves the poller by
    /// being closed.
    pub fn release(&mut self, key: ViewerKey) {
        let Some(row) = self.get(key) else { return };
        let had_backlog = row.pending.take().is_some();
        row.phase = Phase::Free;
        row.generation = row.generation.wrapping_add(1);
        row.user = None;
        row.awaiting_pong = false;
        row.due = 0;
        debug_assert!(row.memberships.is_empty(), "a released viewer is in no room");
        row.memberships = SmallVec::new();
        self.backlogged -= u32::from(had_backlog);
        self.streams[key.index as usize] = None;
        self.free.push(key.index);
    }
}

/// The close frame for a reason.
#[must_use]
pub fn farewell(reason: CloseReason) -> Bytes {
    frame::close(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_viewer_is_a_small_row() {
        // Times 15,000 this is the whole difference between idle viewers and
        // none, apart from the user's name.
        assert!(size_of::<Row>() <= 104, "{} bytes", size_of::<Row>());
        assert_eq!(size_of::<Option<TcpStream>>(), 4);
    }
}
