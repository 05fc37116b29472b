//! The steps of an event's way.

use crate::engine::time::Time;

/// One step. A trace's steps come in this order, as far as they come; those from
/// [`Carried`](Step::Carried) on may come in any, and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// It was read from its socket.
    Received,
    /// It was let into the queue in front of its room.
    Admitted,
    /// It left that queue.
    Queued,
    /// It was not taken; ends it.
    Refused,
    /// Its id was known: it is answered as the first was; ends it.
    Repeated,
    /// It is accepted, or will be once it is logged.
    Numbered,
    /// It is on disk.
    Logged,
    /// It lives on in a total or in a newer event; ends it.
    Merged,
    /// Its room has shed it; ends it.
    Dropped,
    /// It stands in a frame.
    Flushed,
    /// The frame has its bytes.
    Encoded,
    /// One shard has given the frame to all its viewers' sockets or backlogs.
    Written,
    /// It was sent along to viewers of one shard who had not acknowledged it.
    Carried,
    /// Viewers of one shard were told that they miss it.
    Missed,
    /// It was asked for by number.
    Pulled,
    /// Viewers of one shard came back and were sent it.
    Replayed,
    /// Slow viewers of one shard skipped ahead and were sent it.
    Rebased,
    /// Viewers of one shard have acknowledged it.
    Confirmed,
}

impl Step {
    /// Name in answers and of its span.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Step::Received => "received",
            Step::Admitted => "admitted",
            Step::Queued => "queued",
            Step::Refused => "refused",
            Step::Repeated => "repeated",
            Step::Numbered => "numbered",
            Step::Logged => "logged",
            Step::Merged => "merged",
            Step::Dropped => "dropped",
            Step::Flushed => "flushed",
            Step::Encoded => "encoded",
            Step::Written => "written",
            Step::Carried => "carried",
            Step::Missed => "missed",
            Step::Pulled => "pulled",
            Step::Replayed => "replayed",
            Step::Rebased => "rebased",
            Step::Confirmed => "confirmed",
        }
    }

    /// The event's home has nothing more to do with it.
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(
            self,
            Step::Refused | Step::Repeated | Step::Merged | Step::Dropped | Step::Encoded
        )
    }
}

/// What a detail of a step says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// A number.
    Count(u64),
    /// A word of ours.
    Word(&'static str),
}

/// A step that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noted {
    /// Which.
    pub step: Step,
    /// When it was done.
    pub at: Time,
    /// When it began: for most, when the step before was done.
    pub since: Time,
    /// By name.
    pub details: Vec<(&'static str, Detail)>,
}
