//! How important events have arrived, by kind, since the start.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::engine::confirm::{Arrival, HORIZONS};

/// Kinds told apart; names that are not configured may be important too.
const MAX_KINDS: usize = 256;

/// What the rest goes by.
const OTHERS: &str = "(others)";

/// One horizon after the other.
pub type ByHorizon = [Arrival; HORIZONS.len()];

/// See the module's documentation.
#[derive(Debug, Clone, Default)]
pub struct ArrivalStats(BTreeMap<Arc<str>, ByHorizon>);

impl ArrivalStats {
    /// One verdict more.
    pub fn add(&mut self, kind: &Arc<str>, horizon: usize, arrival: &Arrival) {
        self.of(kind)[horizon].absorb(arrival);
    }

    /// Adds what another shard counted.
    pub fn absorb(&mut self, other: &ArrivalStats) {
        for (kind, arrivals) in &other.0 {
            for (into, from) in self.of(kind).iter_mut().zip(arrivals) {
                into.absorb(from);
            }
        }
    }

    /// By kind, in order of name.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &ByHorizon)> {
        self.0.iter()
    }

    fn of(&mut self, kind: &Arc<str>) -> &mut ByHorizon {
        let full = self.0.len() >= MAX_KINDS && !self.0.contains_key(kind);
        self.0.entry(if full { OTHERS.into() } else { Arc::clone(kind) }).or_default()
    }
}
