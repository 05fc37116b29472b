//! Limits of a room, as the engine needs them. `config` documents and checks them.

use std::time::Duration;

/// What a room does without while its shard is short of time: the first rungs
/// of the [`ladder`](super::ladder).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strain {
    /// Events wait for this many flush intervals, and a flush takes this many
    /// times the events and bytes to come early, and then comes one interval after
    /// the last at the earliest. What the frames of that time carry has the budget
    /// of one ([`allowance`](super::allowance)), and one of them the totals. At least 1.
    /// Rooms that are too small to wait, and important events, are not concerned.
    pub stretch: u32,
    /// A sample keeps its size divided by this, but at least 1.
    pub sample_divisor: u32,
    /// Percent of a frame's budget that may be used.
    pub frame_percent: u32,
}

impl Strain {
    /// Nothing is given up.
    pub const NONE: Strain = Strain { stretch: 1, sample_divisor: 1, frame_percent: 100 };

    /// Whether events wait for longer than usual.
    #[must_use]
    pub const fn is_stretched(self) -> bool {
        self.stretch > 1
    }
}

impl Default for Strain {
    fn default() -> Self {
        Self::NONE
    }
}

/// Limits of one room. Every field has its default in `config::Rooms`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomSettings {
    /// Longest time an event waits for company before the room flushes.
    pub flush_interval: Duration,
    /// Pending events that flush earlier.
    pub flush_events: usize,
    /// Pending bytes that flush earlier.
    pub flush_bytes: usize,
    /// With fewer viewers than this every event flushes at once.
    pub small_room_viewers: u32,
    /// Ordered events that one frame carries at most.
    pub frame_events: usize,
    /// Bytes of ordered events that one frame carries at most.
    pub frame_bytes: usize,
    /// Share of both, in percent, that only tiers up to `reserved_tier` may use.
    pub reserved_percent: u8,
    /// Least important tier that may use the reserved share.
    pub reserved_tier: u8,
    /// Pending events kept while the last frame is still going out.
    pub buffer_events: usize,
    /// Pending bytes kept while the last frame is still going out; important
    /// events are refused, not dropped, beyond it.
    pub buffer_bytes: usize,
    /// Sequenced events remembered for readers.
    pub history_events: usize,
    /// Bytes of sequenced events remembered for readers.
    pub history_bytes: usize,
    /// Important events remembered beside them.
    pub history_important: usize,
    /// Bytes of important events remembered beside them.
    pub history_important_bytes: usize,
    /// Ids of sequenced events remembered to recognise a repetition.
    pub dedupe_sequenced: usize,
    /// Ids of sampled events remembered to recognise a repetition.
    pub dedupe_sampled: usize,
    /// Keys of `sum` totals, and of `latest` state, per room and kind.
    pub max_keys: usize,
    /// Bytes of totals and state, all kinds of the room together.
    pub state_bytes: usize,
    /// Important events are logged before they are accepted and sent.
    pub durable: bool,
    /// What came after an important event that is being logged waits for it
    /// this long, then goes ahead.
    pub log_patience: Duration,
    /// How often at most a change of the viewer count alone makes a frame;
    /// zero: never.
    pub online_interval: Duration,
}
