//! What goes through admission: a request, why it was refused, and the ledger of both.

use crate::engine::priority::Priority;
use crate::engine::time::Time;

/// A request that wants in.
#[derive(Debug)]
pub struct Entry<T> {
    /// What is to be done.
    pub item: T,
    /// How important it is.
    pub priority: Priority,
    /// Whose share it uses; a hash.
    pub room: u64,
    /// Estimated work in microseconds, above 0.
    pub cost: f64,
    /// When it reached the socket.
    pub arrived: Time,
    /// Not worth starting after this.
    pub deadline: Option<Time>,
}

/// Why an entry was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shed {
    /// It lies behind the level.
    Level,
    /// The queue was full, and everything in it mattered more; or it waited
    /// longer than a full queue takes.
    Evicted,
    /// Its deadline passed while it waited.
    Expired,
}

impl Shed {
    /// All reasons, in the order of their index.
    pub const ALL: [Shed; 3] = [Shed::Level, Shed::Evicted, Shed::Expired];

    /// Name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Shed::Level => "level",
            Shed::Evicted => "evicted",
            Shed::Expired => "expired",
        }
    }
}

/// What became of requests, by tier. Everything offered is in exactly one of
/// started, shed, and (not here) still waiting.
#[derive(Debug, Clone)]
pub struct AdmissionStats {
    /// Requests offered.
    pub offered: [u64; 64],
    /// Requests taken for processing.
    pub started: [u64; 64],
    /// Requests refused, by [`Shed`].
    pub shed: [[u64; 64]; 3],
    /// Requests a dry run let pass, by [`Shed`].
    pub would_shed: [[u64; 64]; 3],
}

impl Default for AdmissionStats {
    fn default() -> Self {
        let none = [0; 64];
        Self { offered: none, started: none, shed: [none; 3], would_shed: [none; 3] }
    }
}
