//! `[durable]`: the log of important events.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::section;
use super::validate::Check;

section! {
/// `[durable]`: the log of important events. With the defaults it takes at most
/// 4 GiB of disk, and about 16 bytes of memory per event kept.
pub struct Durable {
    /// Where it is kept; made if it is not there, and used by one server at a
    /// time. Default `tidegate-data` in the working directory. Empty: important
    /// events are kept in memory only and are gone with the process.
    pub directory: PathBuf = PathBuf::from("tidegate-data"),
    /// Milliseconds that what came after an important event waits while that is
    /// being logged; a disk that takes longer holds up important events only.
    /// Default 500.
    pub patience_ms: u64 = 500,
    /// Milliseconds that events and ids are kept, and the numbering of a room
    /// without events. Default 24 h.
    pub retention_ms: u64 = 86_400_000,
    /// Events kept per room at most. Default 100,000.
    pub room_events: u64 = 100_000,
    /// Bytes kept per room at most. Default 256 MiB.
    pub room_bytes: u64 = 268_435_456,
    /// Bytes of all files at most; the oldest go first. Default 4 GiB.
    pub total_bytes: u64 = 4_294_967_296,
    /// Bytes of one file. Default 64 MiB.
    pub segment_bytes: u64 = 67_108_864,
    /// Bytes that may wait to be written; more is refused with
    /// `log_unavailable`. Default 64 MiB.
    pub queue_bytes: usize = 67_108_864,
}
}

const DAY_MS: u64 = 86_400_000;

/// Ranges, and what contradicts.
pub(super) fn check(durable: &Durable, check: &mut Check) {
    check.range("durable.patience_ms", durable.patience_ms, 1..=60_000);
    check.range("durable.retention_ms", durable.retention_ms, 1_000..=365 * DAY_MS);
    check.range("durable.room_events", durable.room_events, 1..=u64::from(u32::MAX));
    check.range("durable.room_bytes", durable.room_bytes, 65_536..=1 << 44);
    check.range("durable.segment_bytes", durable.segment_bytes, 1 << 20..=1 << 30);
    check.range("durable.total_bytes", durable.total_bytes, 1 << 22..=1 << 50);
    check.range("durable.queue_bytes", durable.queue_bytes, 1 << 16..=1 << 34);
    if durable.total_bytes < 4 * durable.segment_bytes {
        let allowed = format!("at least 4 times durable.segment_bytes, {}", durable.segment_bytes);
        check.fail("durable.total_bytes", format!("is {}", durable.total_bytes), allowed);
    }
}

impl Durable {
    /// Whether there is a log.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.directory.as_os_str().is_empty()
    }

    /// How long what came after an important event waits for it.
    #[must_use]
    pub fn patience(&self) -> Duration {
        Duration::from_millis(self.patience_ms)
    }
}
