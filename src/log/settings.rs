//! Limits of the log.

use std::path::PathBuf;
use std::time::Duration;

/// How much is kept, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// Events older than this go, and rooms that were not used for this long
    /// are forgotten altogether.
    pub age: Duration,
    /// Events of one room.
    pub events_per_room: u64,
    /// Bytes of one room's events, as they stand in the log.
    pub bytes_per_room: u64,
    /// Events of all rooms; each costs 16 bytes of memory.
    pub total_events: u64,
    /// Bytes of all segments together. The one being written may exceed it by
    /// its own size.
    pub total_bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            age: Duration::from_secs(24 * 3_600),
            events_per_room: 100_000,
            bytes_per_room: 256 << 20,
            total_events: 8_000_000,
            total_bytes: 4 << 30,
        }
    }
}

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// Where the segments are. Created if missing; belongs to one process.
    pub directory: PathBuf,
    /// A segment that would grow past this, its checkpoint not counted, is
    /// followed by a new one. 1 KiB to 1 GiB.
    pub segment_bytes: u64,
    /// Zeros written ahead of the records, so that most syncs need not change
    /// the file's length: on ext4 such a sync takes a fraction of the time (see
    /// docs/log.md). 0: none.
    pub ahead_bytes: usize,
    /// Written and synced together at most.
    pub group_bytes: usize,
    /// What is kept.
    pub retention: Retention,
    /// Bytes waiting for the writer; what exceeds them is refused (`Queue`).
    pub queue_bytes: usize,
    /// Reads waiting for the reader; what exceeds them is refused (`Queue`).
    pub read_queue: usize,
    /// After a failure, a new segment is tried at once, after this pause,
    pub first_pause: Duration,
    /// and after doubling ones up to this.
    pub longest_pause: Duration,
    /// Ids restored per room at most, the newest.
    pub ids_per_room: usize,
    /// Events restored into memory per room at most, the newest.
    pub tail_events: usize,
    /// Bytes of them.
    pub tail_bytes: usize,
}

impl LogSettings {
    /// The defaults, in a directory.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            segment_bytes: 64 << 20,
            ahead_bytes: 1 << 20,
            group_bytes: 4 << 20,
            retention: Retention::default(),
            queue_bytes: 64 << 20,
            read_queue: 4_096,
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(5),
            ids_per_room: 10_000,
            tail_events: 256,
            tail_bytes: 1 << 20,
        }
    }
}
