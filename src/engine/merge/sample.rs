//! `sample(n)`: of the many of a kind the best n of a flush travel.
//!
//! Entrances and the like are worth showing by example. Per kind a max-heap of
//! the ranks that are in: a newcomer worse than the worst of n is out at once,
//! a better one puts the worst out. Because [`Rank`] is a total order in which
//! the earlier wins, the result is the n best of all that came, however they
//! came.

use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::super::kind::Kind;
use super::super::level::Rank;

/// Kinds whose heaps are kept for the next flush. Unknown names are kinds too,
/// so without a bound publishers could grow their number.
const KINDS_KEPT: usize = 16;

/// What happens to a newcomer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) enum Verdict {
    /// It is in.
    In,
    /// It is in, and the one with this order is out.
    Instead(u64),
    /// It is out.
    Out,
}

/// The samples of one flush.
#[derive(Debug, Default)]
pub(super) struct Samples {
    kinds: HashMap<Arc<str>, BinaryHeap<Rank>, FixedState>,
}

impl Samples {
    pub(super) fn offer(&mut self, kind: &Kind, n: usize, rank: Rank) -> Verdict {
        if n == 0 {
            return Verdict::Out;
        }
        let best = match self.kinds.get_mut(&kind.name) {
            Some(best) => best,
            None => self.kinds.entry(Arc::clone(&kind.name)).or_default(),
        };
        if best.len() < n {
            best.push(rank);
            return Verdict::In;
        }
        match best.peek_mut() {
            Some(mut worst) if rank < *worst => {
                let out = std::mem::replace(&mut *worst, rank);
                Verdict::Instead(out.order)
            }
            _ => Verdict::Out,
        }
    }

    /// The buffer has dropped one that was in. It is the worst of its kind,
    /// because buffer and sample rank alike, unless the kind's tier has changed.
    pub(super) fn forget(&mut self, kind: &Kind, rank: Rank) {
        let Some(best) = self.kinds.get_mut(&kind.name) else { return };
        if best.peek() == Some(&rank) {
            best.pop();
        } else {
            best.retain(|held| *held != rank);
        }
        if best.is_empty() {
            self.kinds.remove(&kind.name);
        }
    }

    /// A flush has taken them all.
    pub(super) fn clear(&mut self) {
        if self.kinds.len() > KINDS_KEPT {
            self.kinds = HashMap::default();
        }
        for best in self.kinds.values_mut() {
            best.shrink_to(2 * best.len());
            best.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::ids::Tier;
    use crate::engine::testing::entrance;

    proptest! {
        #[test]
        fn the_sample_is_the_n_best_of_all(
            n in 0usize..6,
            levels in prop::collection::vec(0u8..4, 0..40),
        ) {
            let kind = entrance("e", n).event().kind;
            let mut samples = Samples::default();
            let mut held: Vec<Rank> = Vec::new();
            let mut all: Vec<Rank> = Vec::new();
            for (order, level) in (0..).zip(levels) {
                let rank = Rank { tier: Tier(5), level, order };
                all.push(rank);
                match samples.offer(&kind, n, rank) {
                    Verdict::In => held.push(rank),
                    Verdict::Instead(out) => {
                        held.retain(|h| h.order != out);
                        held.push(rank);
                    }
                    Verdict::Out => {}
                }
            }
            all.sort_unstable();
            all.truncate(n);
            held.sort_unstable();
            prop_assert_eq!(held, all);
        }
    }
}
