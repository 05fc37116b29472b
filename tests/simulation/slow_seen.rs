//! What came to pass with slow viewers.

use tidegate::engine::delivery::Rung;
use tidegate::engine::delivery::stats::DeliveryStats;

/// What happened in a run: a simulation in which something never happens tests
/// nothing of it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) delivery: DeliveryStats,
    pub(crate) partial_writes: u64,
    pub(crate) given_up: u64,
    pub(crate) parked_answers: u64,
    pub(crate) largest_backlog: usize,
}

impl Seen {
    pub(crate) fn absorb(&mut self, other: &Seen) {
        self.delivery.absorb(&other.delivery);
        self.partial_writes += other.partial_writes;
        self.given_up += other.given_up;
        self.parked_answers += other.parked_answers;
        self.largest_backlog = self.largest_backlog.max(other.largest_backlog);
    }

    pub(crate) fn assert_everything_happened(&self) {
        let stats = &self.delivery;
        assert!(stats.climbed[1..].iter().all(|n| *n > 0), "{self:?}");
        assert!(stats.descended[..4].iter().all(|n| *n > 0), "{self:?}");
        for rung in &Rung::ALL[1..] {
            let [important, ordered, sampled] = stats.events_dropped[rung.index()];
            assert!(important == 0 && sampled > 0, "{self:?}");
            assert_eq!(ordered > 0, *rung >= Rung::ImportantOnly, "{self:?}");
            let totals: u64 = stats.totals_dropped[rung.index()].iter().sum();
            assert_eq!(totals > 0, *rung >= Rung::TotalsOnly, "{self:?}");
        }
        let rare = [
            stats.gaps,
            stats.refreshed,
            stats.rebased,
            stats.owed,
            stats.repaid,
            stats.unpaid,
            self.partial_writes,
            self.given_up,
            self.parked_answers,
        ];
        assert!(rare.iter().all(|n| *n > 0), "{self:?}");
    }
}
