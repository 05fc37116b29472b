//! Counters of a shard in plain integers; `telemetry` knows their metric names.

use std::time::Duration;

use super::arrival::ArrivalStats;
use super::carrier_stats::CarrierStats;
use super::outlet::Transport;
use crate::engine::admission::AdmissionStats;
use crate::engine::delivery::Rung as SlowRung;
use crate::engine::delivery::stats::DeliveryStats;
use crate::engine::ladder::Rung;
use crate::engine::priority::AdmissionLevel;
use crate::engine::stats::RoomStats;
use crate::trace::TraceStats;
use crate::wire::Format;
use crate::wire::close::CloseReason;
use crate::wire::message::ClientMessage;

/// A histogram with fixed bucket bounds in microseconds.
#[derive(Debug, Clone)]
pub struct Histogram {
    bounds: &'static [u64],
    /// One more than bounds: the last is "above".
    pub buckets: Vec<u64>,
    /// Of everything observed, in microseconds.
    pub sum: u64,
}

/// Bounds for delays seen by people: 1 ms to 30 s.
pub const AGE_BOUNDS: &[u64] = &[
    1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 1_500_000,
    2_000_000, 3_000_000, 5_000_000, 10_000_000, 30_000_000,
];

/// Bounds for work of the event loop: 10 us to 1 s.
pub const WORK_BOUNDS: &[u64] = &[
    10, 50, 100, 250, 500, 1_000, 2_000, 3_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000,
    500_000, 1_000_000,
];

impl Histogram {
    /// An empty one.
    #[must_use]
    pub fn new(bounds: &'static [u64]) -> Self {
        Self { bounds, buckets: vec![0; bounds.len() + 1], sum: 0 }
    }

    /// Counts `times` observations of one value.
    pub fn observe(&mut self, value: Duration, times: u64) {
        let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        let bucket = self.bounds.partition_point(|bound| *bound < micros);
        self.buckets[bucket] += times;
        self.sum = self.sum.saturating_add(micros.saturating_mul(times));
    }

    /// Bucket bounds in seconds with their own counts, the last one unbounded.
    pub fn seconds(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = self.bounds.iter().map(|micros| *micros as f64 / 1e6);
        bounds.chain([f64::MAX]).zip(self.buckets.iter().copied())
    }

    /// Adds another of the same bounds.
    pub fn absorb(&mut self, other: &Histogram) {
        for (into, from) in self.buckets.iter_mut().zip(&other.buckets) {
            *into += from;
        }
        self.sum = self.sum.saturating_add(other.sum);
    }
}

/// Outcome of a join.
pub const JOIN_RESULTS: [&str; 8] = [
    "joined",
    "held",
    "bad_token",
    "forbidden_room",
    "too_many_rooms",
    "already_joined",
    "overloaded",
    "refused",
];

/// How coming back was answered: with all that was missed, with the important
/// part of it, or with less than that.
pub const RESUME_RESULTS: [&str; 3] = ["recovered", "fresh", "missed"];

/// How a pull was answered: from memory, with the bytes of another, from the
/// log, with less than was asked for, or not yet.
pub const PULL_RESULTS: [&str; 5] = ["memory", "shared", "log", "gone", "limited"];

/// How a viewer's digest compared with ours: the same, different, or of events
/// that are no longer held.
pub const DIGEST_RESULTS: [&str; 3] = ["match", "mismatch", "unknown"];

/// Why a viewer's own publish never reached a room.
pub const PUBLISH_REFUSALS: [&str; 7] = [
    "not_joined",
    "forbidden_kind",
    "bad_event",
    "rate_limited",
    "client_limited",
    "busy",
    "draining",
];

/// What a shard did since it began, and where it stands.
#[derive(Debug, Clone)]
pub struct ShardStats {
    /// Of all rooms with their home here, forgotten ones included.
    pub rooms: RoomStats,
    /// Rooms with their home here.
    pub open_rooms: u64,
    /// Rooms that nobody is in and the log knows.
    pub asleep_rooms: u64,
    /// Bytes those rooms hold.
    pub room_bytes: u64,
    /// Open connections.
    pub connections: u64,
    /// Open connections by [`Transport`].
    pub transports: [u64; Transport::COUNT],
    /// Viewers that joined a room (one in two rooms counts twice).
    pub viewers: u64,
    /// Viewers with a backlog.
    pub backlogged: u64,
    /// Viewers on each rung of the ladder for slow ones but the first.
    pub slow_viewers: [u64; SlowRung::COUNT],
    /// Frames and messages waiting in backlogs.
    pub backlog_frames: u64,
    /// Bytes waiting in backlogs.
    pub backlog_bytes: u64,
    /// Bytes of frames encoded, once each, by format.
    pub frame_bytes: [u64; Format::COUNT],
    /// Accepted events that reached viewers: events x viewers.
    pub deliveries: u64,
    /// `write` and `writev` calls that took bytes.
    pub socket_writes: u64,
    /// Bytes they took.
    pub socket_bytes: u64,
    /// What carries viewers without a socket of their own has done.
    pub carrier: CarrierStats,
    /// Datagrams that took the place of older ones that had not been sent.
    pub displaced_datagrams: u64,
    /// Frames that reached a viewer from its backlog.
    pub late_frames: u64,
    /// Age of a frame's oldest event at each write.
    pub message_age: Histogram,
    /// Length of one turn of the fan-out loop.
    pub slice: Histogram,
    /// From a frame's arrival on this shard to its last viewer.
    pub frame_fanout: Histogram,
    /// What slow viewers were not sent, and what was done for them.
    pub delivery: DeliveryStats,
    /// Viewers given up as too slow.
    pub slow_overruns: u64,
    /// Closed connections by [`CloseReason`].
    pub closes: [u64; CloseReason::ALL.len()],
    /// Messages from viewers by [`ClientMessage::index`].
    pub messages: [u64; ClientMessage::NAMES.len()],
    /// Joins by [`JOIN_RESULTS`].
    pub joins: [u64; JOIN_RESULTS.len()],
    /// Joins that said where they left off, by [`RESUME_RESULTS`].
    pub resumes: [u64; RESUME_RESULTS.len()],
    /// Pulls by [`PULL_RESULTS`].
    pub pulls: [u64; PULL_RESULTS.len()],
    /// Digests by [`DIGEST_RESULTS`].
    pub digests: [u64; DIGEST_RESULTS.len()],
    /// From an important event's arrival here to a viewer's acknowledgement.
    pub confirmation_age: Histogram,
    /// Pairs of viewer and important event that were confirmed.
    pub confirmed: u64,
    /// Frames that carried important events along to viewers that were behind.
    pub carried_along: u64,
    /// Pairs of viewer and important event given up after that.
    pub missed: u64,
    /// How important events have arrived.
    pub arrival: ArrivalStats,
    /// Viewers' publishes refused before they reached a room.
    pub publish_refused: [u64; PUBLISH_REFUSALS.len()],
    /// Joins waiting in line.
    pub joins_waiting: u64,
    /// From the socket to the room, for events.
    pub queueing: Histogram,
    /// What stands in front of the rooms.
    pub intake: IntakeStats,
    /// What was noted of events that are followed.
    pub trace: TraceStats,
    /// Time spent working, in microseconds.
    pub busy_micros: u64,
}

/// Where a shard's intake stands, and what it did.
#[derive(Debug, Clone, Default)]
pub struct IntakeStats {
    /// What became of events, by tier.
    pub admission: AdmissionStats,
    /// Level in force.
    pub level: AdmissionLevel,
    /// The level is an operator's.
    pub pinned: bool,
    /// Requests take longer than they did.
    pub slowed: bool,
    /// What is given up.
    pub rung: Rung,
    /// Events waiting.
    pub waiting: u64,
    /// Time that what waits will take, in microseconds.
    pub backlog_micros: u64,
    /// Work that arrived in the last window, as a multiple of the capacity.
    pub load: f64,
    /// Work per busy microsecond, by the estimates.
    pub capacity: f64,
    /// Microseconds to take an event in.
    pub event_micros: f64,
    /// Microseconds of a write of 512 bytes.
    pub write_micros: f64,
    /// Rooms that yield to others.
    pub rooms_beyond_share: u64,
}

impl Default for ShardStats {
    fn default() -> Self {
        Self {
            rooms: RoomStats::default(),
            open_rooms: 0,
            asleep_rooms: 0,
            room_bytes: 0,
            connections: 0,
            viewers: 0,
            backlogged: 0,
            slow_viewers: [0; SlowRung::COUNT],
            backlog_frames: 0,
            backlog_bytes: 0,
            frame_bytes: [0; Format::COUNT],
            deliveries: 0,
            socket_writes: 0,
            socket_bytes: 0,
            carrier: CarrierStats::default(),
            transports: [0; Transport::COUNT],
            displaced_datagrams: 0,
            late_frames: 0,
            message_age: Histogram::new(AGE_BOUNDS),
            slice: Histogram::new(WORK_BOUNDS),
            frame_fanout: Histogram::new(AGE_BOUNDS),
            delivery: DeliveryStats::default(),
            slow_overruns: 0,
            closes: [0; CloseReason::ALL.len()],
            messages: [0; ClientMessage::NAMES.len()],
            joins: [0; JOIN_RESULTS.len()],
            resumes: [0; RESUME_RESULTS.len()],
            pulls: [0; PULL_RESULTS.len()],
            digests: [0; DIGEST_RESULTS.len()],
            confirmation_age: Histogram::new(AGE_BOUNDS),
            confirmed: 0,
            carried_along: 0,
            missed: 0,
            arrival: ArrivalStats::default(),
            publish_refused: [0; PUBLISH_REFUSALS.len()],
            joins_waiting: 0,
            queueing: Histogram::new(AGE_BOUNDS),
            intake: IntakeStats::default(),
            trace: TraceStats::default(),
            busy_micros: 0,
        }
    }
}

/// Counts a named result in the table beside its names.
pub fn count(table: &mut [u64], names: &[&str], name: &str) {
    let index = names.iter().position(|known| *known == name);
    debug_assert!(index.is_some(), "{name} has no counter");
    if let Some(index) = index {
        table[index] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_falls_into_the_bucket_that_bounds_it() {
        let mut histogram = Histogram::new(WORK_BOUNDS);
        histogram.observe(Duration::from_micros(10), 1);
        histogram.observe(Duration::from_micros(11), 2);
        histogram.observe(Duration::from_secs(5), 3);
        let counts: Vec<u64> = histogram.seconds().map(|(_, n)| n).collect();
        assert_eq!((counts[0], counts[1], counts[WORK_BOUNDS.len()]), (1, 2, 3));
    }
}
