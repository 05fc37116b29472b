//! The viewers of a shard: one row each, their sockets in a dense table beside
//! the rows, and the writing of bytes to one of them.
//!
//! An idle viewer owns a row, a descriptor and nothing else: reading uses the
//! shard's one scratch buffer, and what a slow viewer needs exists only until it
//! has kept up for a while.
//!
//! Whoever closes a connection first, the socket lingers until the peer's end
//! is read (or [`LINGER`] has passed): closing at once with unread input would
//! make the kernel send a reset, which destroys the close frame on its way.

use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use super::outlet::{Carrier, NonMaxLink, outlet};
use super::pending::{Pending, SlowTotals};
use super::rebase::{Located, Rebases};
use super::secure::Secured;
use super::stats::ShardStats;
use crate::engine::delivery::{Ask, Cut, LadderSettings, Verdict};
use crate::engine::ids::RoomId;
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
    Closing(CloseReason),
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
    pub(super) streams: Vec<Option<TcpStream>>,
    /// Of those among them that are on TLS.
    pub(super) secured: Secured,
    /// Of those that have no socket of their own.
    pub(super) links: Vec<Option<NonMaxLink>>,
    pub(super) carrier: Option<Box<dyn Carrier>>,
    /// How many those are.
    pub(super) carried: usize,
    rows: Vec<Row>,
    /// Rows with something that waits, or did until now.
    slow: usize,
    free: Vec<u32>,
    ladder: LadderSettings,
    started: Time,
    /// Rows whose rooms must hear that they are slow, or are not any more.
    pub changed_backlog: Vec<u32>,
    /// Slow rows with a question for a room's home, or another deadline.
    pub attention: Vec<u32>,
    /// Connections that ended and whose row must be cleaned up by the shard.
    pub ended: Vec<(ViewerKey, CloseReason)>,
}

impl Connections {
    /// None yet.
    #[must_use]
    pub fn new(ladder: LadderSettings, started: Time) -> Self {
        Self {
            streams: Vec::new(),
            secured: Secured::default(),
            links: Vec::new(),
            carrier: None,
            carried: 0,
            rows: Vec::new(),
            slow: 0,
            free: Vec::new(),
            ladder,
            started,
            changed_backlog: Vec::new(),
            attention: Vec::new(),
            ended: Vec::new(),
        }
    }

    /// Takes over a connected, non-blocking socket.
    pub fn open(&mut self, stream: TcpStream, format: Format, burst: u32, now: Time) -> ViewerKey {
        let key = self.row_for(format, burst, now);
        self.streams[key.index as usize] = Some(stream);
        key
    }

    /// A row for a new viewer.
    pub(super) fn row_for(&mut self, format: Format, burst: u32, now: Time) -> ViewerKey {
        let index = self.free.pop().unwrap_or_else(|| {
            self.streams.push(None);
            self.links.push(None);
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
        ViewerKey { index, generation: row.generation }
    }

    /// Connections, closing ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len() - self.free.len()
    }

    /// Those with a socket of their own.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.len() - self.carried
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What waits for slow viewers, and how many they are.
    #[must_use]
    pub fn slow_totals(&self) -> SlowTotals {
        let mut totals = SlowTotals::default();
        let slow = self.rows.iter().filter_map(|row| row.pending.as_ref());
        // Of many thousand rows nearly none: no walk over all of them for nothing.
        slow.take(self.slow).for_each(|pending| totals.add(pending));
        totals
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
            pending.delivery.fixed(bytes, false);
            self.write_if_open(key.index, stats, now);
            return self.check_fixed(key, stats);
        }
        let written = match self.outlet(key.index).map(|mut outlet| outlet.write(&bytes)) {
            None => return self.end(key, CloseReason::Broken),
            Some(Ok(written)) => written,
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Some(Err(_)) => return self.end(key, CloseReason::Broken),
        };
        stats.socket_writes += u64::from(written > 0);
        stats.socket_bytes += written as u64;
        if written < bytes.len() {
            let begun = written > 0;
            self.pending(key.index, now).delivery.fixed(bytes.slice(written..), begun);
        }
    }

    /// A viewer that asks without reading the answers is slow like any other:
    /// answers have no rung to be cut by, so past twice the last bound it goes.
    fn check_fixed(&mut self, key: ViewerKey, stats: &mut ShardStats) {
        let limit = self.ladder.last().bytes.saturating_mul(2);
        let row = &self.rows[key.index as usize];
        let over = row.pending.as_ref().is_some_and(|p| p.delivery.fixed_bytes() > limit);
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
        self.pending(index, now).delivery.begun(frame, rest, now);
    }

    /// A frame for a viewer that is slow, or whose socket takes no more.
    pub fn queue_frame(
        &mut self,
        index: u32,
        shared: &Arc<SharedFrame>,
        stats: &mut ShardStats,
        now: Time,
    ) {
        match self.lanes(index, shared, stats) {
            Ok(Some(rest)) => self.queue_rest_of_room(index, &rest, stats, now),
            Ok(None) => {}
            Err(error) => self.end_failed(index, &error, stats),
        }
    }

    /// More of what is important waits than may (`WouldBlock`), or the viewer is
    /// gone.
    pub(super) fn end_failed(&mut self, index: u32, error: &io::Error, stats: &mut ShardStats) {
        let Some(key) = self.key_of(index).filter(|key| self.is_open(*key)) else { return };
        let slow = error.kind() == io::ErrorKind::WouldBlock;
        stats.slow_overruns += u64::from(slow);
        self.end(key, if slow { CloseReason::Slow } else { CloseReason::Broken });
    }

    /// The same, of what goes in order.
    pub(super) fn queue_rest_of_room(
        &mut self,
        index: u32,
        shared: &Arc<SharedFrame>,
        stats: &mut ShardStats,
        now: Time,
    ) {
        let format = self.rows[index as usize].format;
        let ladder = self.ladder;
        let frame = ViewerFrame { frame: Arc::clone(shared), format };
        let pending = self.pending(index, now);
        pending.delivery.frame(frame, &ladder, &mut stats.delivery, now);
        self.write_if_open(index, stats, now);
    }

    fn pending(&mut self, index: u32, now: Time) -> &mut Pending {
        let row = &mut self.rows[index as usize];
        if row.pending.is_none() {
            self.slow += 1;
            self.changed_backlog.push(index);
        }
        row.pending.get_or_insert_with(|| Box::new(Pending::new(now)))
    }

    /// The socket takes bytes again: everything that waits goes, until it blocks.
    pub fn flush(&mut self, key: ViewerKey, stats: &mut ShardStats, now: Time) {
        let row = self.rows.get(key.index as usize);
        if row.is_some_and(|row| row.generation == key.generation) && self.flush_sealed(key) {
            self.write_out(key.index, stats, now);
        }
    }

    fn write_if_open(&mut self, index: u32, stats: &mut ShardStats, now: Time) {
        let pending = self.rows[index as usize].pending.as_ref();
        if pending.is_some_and(|pending| pending.delivery.is_open()) {
            self.write_out(index, stats, now);
        }
    }

    fn write_out(&mut self, index: u32, stats: &mut ShardStats, now: Time) {
        let Self { streams, secured, links, carrier, rows, .. } = self;
        let row = &mut rows[index as usize];
        let Some(pending) = &mut row.pending else { return };
        let Some(mut outlet) = outlet(streams, secured, links, carrier, index) else { return };
        if pending.write_out(&mut outlet, row.format, &self.ladder, stats, now).is_err() {
            let key = ViewerKey { index, generation: row.generation };
            return self.end(key, CloseReason::Broken);
        }
        if let Phase::Closing(reason) = row.phase {
            if pending.delivery.is_empty() {
                row.pending = None;
                self.slow -= 1;
                outlet.finish(reason);
            }
            return;
        }
        self.attend(index);
    }

    /// Frees a row of what it no longer needs, or has the shard look at it.
    fn attend(&mut self, index: u32) {
        let row = &mut self.rows[index as usize];
        let Some(pending) = &mut row.pending else { return };
        if pending.delivery.is_over() {
            row.pending = None;
            self.slow -= 1;
            self.changed_backlog.push(index);
            return;
        }
        let deadline = pending.delivery.deadline(&self.ladder);
        let earlier = deadline.is_some_and(|at| pending.scheduled.is_none_or(|then| at < then));
        if pending.delivery.is_open() || earlier {
            self.attention.push(index);
        }
    }

    /// A question that a slow viewer has for a room's home.
    pub fn poll_ask(&mut self, index: u32, now: Time) -> Option<Ask> {
        let pending = self.rows[index as usize].pending.as_mut()?;
        pending.delivery.poll_ask(&self.ladder, now)
    }

    /// When a slow viewer must be looked at; it is, then.
    pub fn deadline(&mut self, index: u32) -> Option<Time> {
        let pending = self.rows[index as usize].pending.as_mut()?;
        pending.scheduled = pending.delivery.deadline(&self.ladder);
        pending.scheduled
    }

    /// Takes a slow viewer up or down its ladder as time has it. Returns whether
    /// there is any use in going on with it.
    pub fn tick(&mut self, index: u32, stats: &mut ShardStats, now: Time) -> bool {
        let Some(pending) = &mut self.rows[index as usize].pending else { return true };
        pending.delivery.tick(&self.ladder, &mut stats.delivery, now);
        if pending.delivery.verdict(&self.ladder, now) == Verdict::GiveUp {
            stats.slow_overruns += 1;
            return false;
        }
        self.write_if_open(index, stats, now);
        self.attend(index);
        true
    }

    /// Gives a slow viewer what its room's home answered.
    pub fn answer(
        &mut self,
        position: &Located,
        rebases: &mut Rebases,
        stats: &mut ShardStats,
        now: Time,
    ) {
        let piece = self.ladder.bounds[0].bytes;
        let index = position.viewer.index;
        let Some(row) = self.get(position.viewer) else { return };
        let format = row.format;
        let Some(pending) = &mut row.pending else { return };
        rebases.apply(position, &mut pending.delivery, format, piece, stats, now);
        self.write_if_open(index, stats, now);
        self.attention.push(index);
    }

    /// A viewer has left a room.
    pub fn forget_room(
        &mut self,
        key: ViewerKey,
        room: &RoomId,
        stats: &mut ShardStats,
        now: Time,
    ) {
        if let Some(pending) = self.get(key).and_then(|row| row.pending.as_mut()) {
            pending.delivery.forget(room, &mut stats.delivery, now);
        }
    }

    /// Whether a viewer is slow, or was lately.
    #[must_use]
    pub fn has_backlog(&self, index: u32) -> bool {
        self.rows[index as usize].pending.is_some()
    }

    /// Notes that a connection ends; the shard takes it out of its rooms and
    /// calls [`begin_close`](Self::begin_close) or [`release`](Self::release).
    pub fn end(&mut self, key: ViewerKey, reason: CloseReason) {
        if let Some(row) = self.get(key)
            && row.phase == Phase::Open
        {
            row.phase = Phase::Closing(reason);
            self.ended.push((key, reason));
        }
    }

    /// Says goodbye and shuts the sending side.
    pub fn begin_close(
        &mut self,
        key: ViewerKey,
        reason: CloseReason,
        stats: &mut ShardStats,
        now: Time,
    ) {
        if self.get(key).is_none() {
            return;
        }
        // A carrier tells the reason in its own way; and who has left needs none.
        if self.link(key.index).is_none() && reason != CloseReason::Peer {
            self.send_bytes(key, frame::close(reason), stats, now);
        }
        let waits = self.rows[key.index as usize].pending.as_ref();
        if waits.is_none_or(|pending| pending.delivery.is_empty())
            && let Some(mut outlet) = self.outlet(key.index)
        {
            outlet.finish(reason);
        }
    }

    /// Closes the socket and frees the row. Its descriptor leaves the poller by
    /// being closed.
    pub fn release(&mut self, key: ViewerKey) {
        let Some(row) = self.get(key) else { return };
        let was_slow = row.pending.take().is_some();
        row.phase = Phase::Free;
        row.generation = row.generation.wrapping_add(1);
        row.user = None;
        row.awaiting_pong = false;
        row.due = 0;
        debug_assert!(row.memberships.is_empty(), "a released viewer is in no room");
        row.memberships = SmallVec::new();
        self.slow -= usize::from(was_slow);
        self.streams[key.index as usize] = None;
        self.secured.release(key.index);
        let link = self.links[key.index as usize].take();
        if let (Some(link), Some(carrier)) = (link, &mut self.carrier) {
            self.carried -= 1;
            carrier.release(link.get());
        }
        self.free.push(key.index);
    }
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
