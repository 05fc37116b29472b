//! What became of a load's events, as its publishers were told.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use super::mix::MIX;
use crate::hist;

/// See the module's documentation.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    /// From start to stop.
    pub(super) seconds: f64,
    /// Events that fell due.
    pub(super) offered: u64,
    /// The same by kind, of those that were made.
    pub(super) offered_by: [u64; MIX.len()],
    /// Events that went to the server, again counted again.
    pub(super) sent: u64,
    /// Events that found no connection.
    pub(super) unsent: u64,
    /// Events dropped by the publisher below the level.
    pub(super) shed: u64,
    /// Events that the publisher's full queue did not take.
    pub(super) queue_full: u64,
    /// Requests sent.
    pub(super) requests: u64,
    /// Events accepted.
    pub(super) accepted: u64,
    /// The same by kind; only publishers that see each answer count it.
    pub(super) accepted_by: [u64; MIX.len()],
    /// Events refused for good, by code; connections that broke too.
    pub(super) refused: BTreeMap<String, u64>,
    /// Answer times in microseconds.
    pub(super) answers: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            seconds: 0.0,
            offered: 0,
            offered_by: [0; MIX.len()],
            sent: 0,
            unsent: 0,
            shed: 0,
            queue_full: 0,
            requests: 0,
            accepted: 0,
            accepted_by: [0; MIX.len()],
            refused: BTreeMap::new(),
            answers: hist::new(),
        }
    }
}

impl Tally {
    /// `count` events were refused.
    pub(super) fn refuse(&mut self, code: &str, count: u64) {
        match self.refused.get_mut(code) {
            Some(known) => *known += count,
            None => drop(self.refused.insert(code.to_owned(), count)),
        }
    }

    /// An answer took so many microseconds.
    pub(super) fn answer(&mut self, micros: u64) {
        self.answers.saturating_record(micros);
    }

    /// Adds another source of the same time.
    pub(super) fn absorb(&mut self, other: &Tally) {
        self.seconds = self.seconds.max(other.seconds);
        self.offered += other.offered;
        self.sent += other.sent;
        self.unsent += other.unsent;
        self.shed += other.shed;
        self.queue_full += other.queue_full;
        self.requests += other.requests;
        self.accepted += other.accepted;
        for part in 0..MIX.len() {
            self.offered_by[part] += other.offered_by[part];
            self.accepted_by[part] += other.accepted_by[part];
        }
        for (code, count) in &other.refused {
            self.refuse(code, *count);
        }
        // Same bounds: cannot fail.
        let _ = self.answers.add(&other.answers);
    }
}
