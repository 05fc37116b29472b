//! What a publisher counts.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::outcome::Outcome;
use crate::engine::caller::{CallerStats, LearnedLevel};

/// Rejection codes that are told apart; a server does not choose how much memory
/// its codes take here.
const MAX_CODES: usize = 64;
/// Where the codes beyond go.
const OTHER: &str = "other";

/// What happened to a publisher's events since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublisherStats {
    /// Events taken up by `publish`.
    pub taken: u64,
    /// Events not taken up because the queue was full of what is as important.
    pub queue_full: u64,
    /// Events accepted.
    pub accepted: u64,
    /// Events rejected for good, by code; past 64 codes: `other`.
    pub rejected: BTreeMap<String, u64>,
    /// Events dropped here, below the level.
    pub shed_locally: u64,
    /// Events whose time to live ended here.
    pub expired: u64,
    /// Events that gave way when the queue was full.
    pub displaced: u64,
    /// Events without a usable answer.
    pub failed: u64,
    /// Events given up at the end.
    pub abandoned: u64,
    /// Requests sent, resent events included.
    pub requests: u64,
    /// Requests without a usable answer.
    pub requests_failed: u64,
    /// Tables of priorities received. While it is 0, nothing is shed here.
    pub tables: u64,
    /// First attempts, probes and retries.
    pub caller: CallerStats,
    /// The newest level that an answer carried, whichever room it was for.
    pub level: Option<LearnedLevel>,
}

impl PublisherStats {
    /// Events rejected for good.
    #[must_use]
    pub fn rejections(&self) -> u64 {
        self.rejected.values().sum()
    }

    /// Events without an outcome yet.
    #[must_use]
    pub fn held(&self) -> u64 {
        let ended = self.accepted
            + self.rejections()
            + self.shed_locally
            + self.expired
            + self.displaced
            + self.failed
            + self.abandoned;
        self.taken.saturating_sub(ended)
    }

    /// An event came to its end.
    pub(super) fn end(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Accepted { .. } => self.accepted += 1,
            Outcome::Rejected(refusal) => {
                let known = self.rejected.len() < MAX_CODES
                    || self.rejected.contains_key(refusal.code.as_str());
                let code = if known { refusal.code.as_str() } else { OTHER };
                *self.rejected.entry(code.to_owned()).or_default() += 1;
            }
            Outcome::ShedLocally { .. } => self.shed_locally += 1,
            Outcome::Expired => self.expired += 1,
            Outcome::Displaced => self.displaced += 1,
            Outcome::Failed(_) => self.failed += 1,
            Outcome::Abandoned => self.abandoned += 1,
        }
    }
}

/// The counts, between a publisher and its task. Nothing waits while it holds
/// the lock.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<PublisherStats>);

impl Shared {
    pub(super) fn count(&self, change: impl FnOnce(&mut PublisherStats)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn read(&self) -> PublisherStats {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Refusal;

    #[test]
    fn codes_are_bounded_and_nothing_is_lost() {
        let mut stats = PublisherStats { taken: 200, ..PublisherStats::default() };
        for n in 0..100 {
            let code = format!("code-{n}");
            let refusal = Refusal { code, reason: String::new(), retry_after: None };
            stats.end(&Outcome::Rejected(refusal));
        }
        assert_eq!((stats.rejected.len(), stats.rejections()), (MAX_CODES + 1, 100));
        assert_eq!((stats.rejected[OTHER], stats.held()), (36, 100));
    }
}
