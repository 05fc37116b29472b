//! Plain counters of the log.

use std::time::Duration;

use crate::engine::time::Time;

use super::LogFailure;

/// Upper bounds of the classes of [`SyncTimes`], in microseconds: from what a
/// battery-backed cache takes to what a stalled disk does.
pub const SYNC_BOUNDS_US: [u64; 14] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 5_000_000,
];

/// How long syncs took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SyncTimes {
    /// Syncs up to each of [`SYNC_BOUNDS_US`], and last those beyond.
    pub counts: [u64; SYNC_BOUNDS_US.len() + 1],
    /// Microseconds in all.
    pub sum_us: u64,
}

impl SyncTimes {
    pub(super) fn record(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let class = SYNC_BOUNDS_US.partition_point(|&bound| bound < us);
        self.counts[class] += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }

    /// Syncs measured.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// Batches that were not made durable, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Failures {
    /// See [`LogFailure::Write`].
    pub write: u64,
    /// See [`LogFailure::Sync`].
    pub sync: u64,
    /// See [`LogFailure::Full`].
    pub full: u64,
    /// See [`LogFailure::Stale`].
    pub stale: u64,
    /// See [`LogFailure::Closed`].
    pub closed: u64,
    /// See [`LogFailure::Queue`].
    pub queue: u64,
    /// See [`LogFailure::Invalid`].
    pub invalid: u64,
}

impl Failures {
    pub(super) fn count(&mut self, failure: LogFailure) {
        *match failure {
            LogFailure::Write => &mut self.write,
            LogFailure::Sync => &mut self.sync,
            LogFailure::Full => &mut self.full,
            LogFailure::Stale => &mut self.stale,
            LogFailure::Closed => &mut self.closed,
            LogFailure::Queue => &mut self.queue,
            LogFailure::Invalid => &mut self.invalid,
        } += 1;
    }
}

/// Whether the log takes anything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogState {
    /// It does.
    #[default]
    Writable,
    /// No segment can be written to; it is tried again.
    Failing {
        /// What failed last.
        why: LogFailure,
        /// When writing stopped.
        since: Time,
    },
}

/// A picture of the log's counters. Those that only grow count from the opening.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Now.
    pub state: LogState,
    /// Events and reservations made durable.
    pub entries: u64,
    /// Batches made durable.
    pub batches: u64,
    /// Groups written and synced together.
    pub groups: u64,
    /// Entries of the largest of them.
    pub largest_group: u64,
    /// Bytes written, checkpoints included.
    pub written_bytes: u64,
    /// Syncs of segments, and how long they took.
    pub syncs: SyncTimes,
    /// Batches that were refused or failed.
    pub failures: Failures,
    /// Times that a segment was given up because of a failed write or sync.
    pub abandoned: u64,
    /// Segments begun.
    pub segments_begun: u64,
    /// Segments removed.
    pub segments_removed: u64,
    /// Batches waiting, now.
    pub queue_batches: usize,
    /// Bytes of them.
    pub queue_bytes: usize,
    /// Rooms remembered, now.
    pub rooms: usize,
    /// Events retained, now.
    pub events: u64,
    /// Bytes of their records.
    pub event_bytes: u64,
    /// Segments, now.
    pub segments: usize,
    /// Bytes of them.
    pub segment_bytes: u64,
    /// Reads answered.
    pub reads: u64,
    /// Events read.
    pub read_events: u64,
    /// Reads refused because too many waited.
    pub reads_refused: u64,
    /// Damaged stretches found at the opening.
    pub damaged_stretches: u64,
    /// Bytes of them, where known.
    pub damaged_bytes: u64,
    /// Records that were damaged or unreadable when they were asked for.
    pub damaged_reads: u64,
}
