//! What slow viewers were not sent, and what was done for them.
//!
//! These are drops of single viewers' deliveries: an event that a hundred slow
//! viewers lose counts a hundred times here, and once as carried in its room.

use super::super::kind::Lane;
use super::Rung;

/// Counters since the shard began. Tables are indexed by [`Rung::index`] and
/// [`Lane::index`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeliveryStats {
    /// Viewers taken further, by where they came to. A rebase that follows a
    /// rebase counts again.
    pub climbed: [u64; Rung::COUNT],
    /// Viewers given more again, by where they came to.
    pub descended: [u64; Rung::COUNT],
    /// Events that viewers were not sent, by the rung that took them. Important
    /// ones are none of them: those are owed.
    pub events_dropped: [[u64; 3]; Rung::COUNT],
    /// Totals that viewers were not sent, by the rung that took them; a later
    /// one makes up for each.
    pub totals_dropped: [[u64; 3]; Rung::COUNT],
    /// Gap notices written.
    pub gaps: u64,
    /// Times a viewer was given totals or state that it had missed.
    pub refreshed: u64,
    /// Times a viewer that had skipped ahead was given the state to go on from.
    pub rebased: u64,
    /// Important events taken out of backlogs, to be sent again.
    pub owed: u64,
    /// Of these, sent again.
    pub repaid: u64,
    /// Of these, no longer remembered by their room: the viewer was told.
    pub unpaid: u64,
}

impl DeliveryStats {
    /// Adds the counts of another shard.
    pub fn absorb(&mut self, other: &DeliveryStats) {
        // Taken apart by name, so that a new counter cannot be left out.
        let DeliveryStats {
            climbed,
            descended,
            events_dropped,
            totals_dropped,
            gaps,
            refreshed,
            rebased,
            owed,
            repaid,
            unpaid,
        } = other;
        add(&mut self.climbed, climbed);
        add(&mut self.descended, descended);
        for rung in 0..Rung::COUNT {
            add(&mut self.events_dropped[rung], &events_dropped[rung]);
            add(&mut self.totals_dropped[rung], &totals_dropped[rung]);
        }
        let numbers = [
            (&mut self.gaps, gaps),
            (&mut self.refreshed, refreshed),
            (&mut self.rebased, rebased),
            (&mut self.owed, owed),
            (&mut self.repaid, repaid),
            (&mut self.unpaid, unpaid),
        ];
        for (into, from) in numbers {
            *into += from;
        }
    }

    /// Events of a lane that viewers were not sent, for whatever rung.
    #[must_use]
    pub fn dropped_in(&self, lane: Lane) -> u64 {
        self.events_dropped.iter().map(|lanes| lanes[lane.index()]).sum()
    }
}

fn add(into: &mut [u64], from: &[u64]) {
    for (into, from) in into.iter_mut().zip(from) {
        *into += from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absorbing_adds_every_counter() {
        let one = DeliveryStats {
            climbed: [0, 1, 2, 3, 4],
            descended: [4, 3, 2, 1, 0],
            events_dropped: [[0, 1, 2]; Rung::COUNT],
            totals_dropped: [[3, 4, 5]; Rung::COUNT],
            gaps: 1,
            refreshed: 2,
            rebased: 3,
            owed: 4,
            repaid: 5,
            unpaid: 6,
        };
        let mut sum = one.clone();
        sum.absorb(&one);
        assert_eq!((sum.climbed, sum.descended), ([0, 2, 4, 6, 8], [8, 6, 4, 2, 0]));
        assert_eq!(sum.events_dropped, [[0, 2, 4]; Rung::COUNT]);
        assert_eq!(sum.totals_dropped, [[6, 8, 10]; Rung::COUNT]);
        assert_eq!((sum.gaps, sum.refreshed, sum.rebased), (2, 4, 6));
        assert_eq!((sum.owed, sum.repaid, sum.unpaid), (8, 10, 12));
        assert_eq!(sum.dropped_in(Lane::Ordered), 10);
    }
}
