//! The fan-out loop: frames to the members of a shard's rooms, in slices and in
//! fair turns between rooms.
//!
//! A turn serves at most [`TURN`] members of one room, then the next room has
//! its turn; a slice ends after its time, and reads, joins and timers get
//! theirs. Rooms whose frame is new go first, for half of the slice. So a giant
//! room delays a small one by one turn, and nothing on the shard by more than a
//! slice.
//!
//! What the loop touches per viewer: 8 bytes of the member, 4 of the descriptor.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::connection::{Connections, ViewerKey};
use super::room::{BACKLOGGED, GONE, INDIRECT, Job, LocalRoom};
use super::stats::ShardStats;
use crate::clock::Clock;
use crate::engine::delivery::Cut;
use crate::engine::time::Time;
use crate::wire::Format;
use crate::wire::close::CloseReason;
use crate::wire::shared::SharedFrame;

/// Members served in one turn: about 1.5 ms at the 5 to 7 us that a socket
/// write costs, so a slice of 2 ms lets at least one other room in.
const TURN: usize = 256;

/// Members served between two looks at the clock. With 32 of them slices of 1 and 2 ms
/// took 4.6 ms of the thread's own time in the 99th percentile (measured under
/// overload, with large frames).
const CLOCK_EVERY: usize = 8;
/// The same of rooms with carried members, whose datagrams leave together, in one
/// system call for many.
const CARRIED_EVERY: usize = 32;

/// Members ahead of the one that is served for whom memory is fetched.
const AHEAD: usize = 4;

/// Rooms with a frame on its way, in the order of their next turns.
#[derive(Debug, Default)]
pub struct Fanout {
    /// Those that have had no turn with their frame. They come first, for half
    /// of a slice at most (the new flows of FQ-CoDel, RFC 8290, section 4.2):
    /// small rooms are done with one turn, and must not wait for a giant one's.
    fresh: VecDeque<u32>,
    turns: VecDeque<u32>,
    /// Jobs that are done, and when, of frames with events that are followed.
    pub marked: Vec<(Job, Time)>,
}

/// Rooms whose frame has gone to everyone on this shard.
pub type Finished = Vec<u32>;

impl Fanout {
    /// A room got a frame to send.
    pub fn enqueue(&mut self, room: u32) {
        self.fresh.push_back(room);
    }

    /// Whether anything is on its way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.turns.is_empty() && self.fresh.is_empty()
    }

    /// Whose turn it is, and until when.
    fn next(&mut self, now: Time, half: Time, end: Time) -> Option<(u32, Time)> {
        if now < half
            && let Some(room) = self.fresh.pop_front()
        {
            return Some((room, half));
        }
        let room = self.turns.pop_front().or_else(|| self.fresh.pop_front());
        room.map(|room| (room, end))
    }

    /// Works for about `budget`.
    pub fn slice(
        &mut self,
        rooms: &mut [Option<Box<LocalRoom>>],
        viewers: &mut Connections,
        stats: &mut ShardStats,
        clock: Clock,
        budget: Duration,
        finished: &mut Finished,
    ) {
        let begun = clock.now();
        let until = begun + budget;
        let half = begun + budget / 2;
        let mut now = begun;
        while let Some((index, stop)) = self.next(now, half, until) {
            let Some(room) = rooms[index as usize].as_mut() else { continue };
            now = turn(room, viewers, stats, clock, now, stop);
            if room.job.as_ref().is_some_and(|job| job.cursor >= job.end) {
                if let Some(job) = room.finish_job(index, viewers) {
                    stats.frame_fanout.observe(now.since(job.started), 1);
                    if job.frame.is_marked() {
                        self.marked.push((job, now));
                    }
                }
                finished.push(index);
            } else {
                self.turns.push_back(index);
            }
            // A viewer that just got a backlog must be marked in its other
            // rooms before one of those writes to its socket.
            if now >= until || !viewers.changed_backlog.is_empty() {
                break;
            }
        }
        stats.slice.observe(now.since(begun), 1);
    }
}

/// One room's turn. Returns the time at its end.
fn turn(
    room: &mut LocalRoom,
    viewers: &mut Connections,
    stats: &mut ShardStats,
    clock: Clock,
    mut now: Time,
    until: Time,
) -> Time {
    let formats = room.formats();
    let Some(job) = &mut room.job else { return now };
    let frame = Arc::clone(&job.frame);
    let bytes: [&[u8]; Format::COUNT] = Format::ALL.map(|format| {
        // Those who read streams are given parts of it.
        let used = formats & 1 << format.index() != 0 && format != Format::Stream;
        if used { &frame.bytes(format, Cut::Full)[..] } else { &[][..] }
    });
    let carried = formats & 1 << Format::Stream.index() != 0;
    let at_once = if carried { CARRIED_EVERY } else { CLOCK_EVERY };
    let stop = job.end.min(job.cursor + TURN);
    job.begun.get_or_insert(now);
    while job.cursor < stop && now < until {
        let batch = stop.min(job.cursor + at_once);
        let mut whole = 0;
        for (place, member) in (job.cursor..batch).zip(&room.members[job.cursor..batch]) {
            if carried
                && let Some(later) = room.members.get(place + AHEAD)
                && later.marks & INDIRECT != 0
            {
                viewers.expect(later.viewer);
            }
            if member.marks != 0 {
                if member.marks & GONE != 0 {
                    job.gone += 1;
                } else if member.marks & BACKLOGGED != 0 {
                    viewers.queue_frame(member.viewer, &frame, stats, now);
                } else {
                    debug_assert!(member.marks & INDIRECT != 0);
                    let given = give(member.viewer, &frame, viewers, stats, now);
                    job.whole += u32::from(given);
                }
                continue;
            }
            let out = bytes[member.format.index()];
            match viewers.write_frame(member.viewer, out) {
                Ok(written) if written == out.len() => {
                    whole += 1;
                    stats.socket_bytes += written as u64;
                }
                result => refused(result, member.viewer, &frame, viewers, stats, now),
            }
        }
        if carried {
            viewers.flush_carried();
        }
        job.cursor = batch;
        job.whole += whole as u32;
        now = clock.now();
        stats.socket_writes += whole;
        stats.deliveries += whole * frame.deliveries(Cut::Full);
        if !frame.frame().events.is_empty() || !frame.frame().totals.is_empty() {
            stats.message_age.observe(now.since(frame.oldest()), whole);
        }
    }
    now
}

/// A frame for a member that has no plain socket. Returns whether all of it is on
/// its way.
fn give(
    viewer: u32,
    frame: &Arc<SharedFrame>,
    viewers: &mut Connections,
    stats: &mut ShardStats,
    now: Time,
) -> bool {
    match viewers.give(viewer, frame, stats, now) {
        Ok(whole) => {
            if whole && (!frame.frame().events.is_empty() || !frame.frame().totals.is_empty()) {
                stats.message_age.observe(now.since(frame.oldest()), 1);
            }
            whole
        }
        Err(error) => {
            viewers.end_failed(viewer, &error, stats);
            false
        }
    }
}

/// The socket did not take the frame whole.
#[cold]
fn refused(
    result: io::Result<usize>,
    viewer: u32,
    frame: &Arc<SharedFrame>,
    viewers: &mut Connections,
    stats: &mut ShardStats,
    now: Time,
) {
    match result {
        Ok(written) => {
            stats.socket_writes += 1;
            stats.socket_bytes += written as u64;
            viewers.queue_rest(viewer, frame, written, now);
        }
        Err(error)
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
        {
            viewers.queue_frame(viewer, frame, stats, now);
        }
        Err(_) => {
            let generation = viewers.key_of(viewer).map(|key: ViewerKey| key.generation);
            if let Some(generation) = generation {
                viewers.end(ViewerKey { index: viewer, generation }, CloseReason::Broken);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn a_room_with_a_new_frame_goes_first_but_takes_half_of_the_slice_at_most() {
        let (begun, half, end) =
            (Time::default(), Time::default() + MILLI, Time::default() + 2 * MILLI);
        let mut fanout = Fanout::default();
        fanout.turns.push_back(1);
        for room in 2..5 {
            fanout.enqueue(room);
        }
        assert_eq!(fanout.next(begun, half, end), Some((2, half)), "not to the end of the slice");
        assert_eq!(fanout.next(begun + MILLI / 2, half, end), Some((3, half)));
        assert_eq!(fanout.next(half, half, end), Some((1, end)), "new frames can hold up nobody");
        assert_eq!(fanout.next(half, half, end), Some((4, end)), "nobody else is there");
        assert!(fanout.is_idle() && fanout.next(begun, half, end).is_none());
    }
}
