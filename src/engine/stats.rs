//! Counters of a room in plain integers; `telemetry` knows their metric names.
//!
//! The law they keep, per lane and at any time:
//! `accepted = carried + merged + dropped (all reasons) + pending`.
//! So an event that leaves the room on no counted path shows up as one that is
//! pending for ever, and a test that drains the room finds it.

use super::kind::Lane;
use super::outcome::Refusal;

/// Why an accepted event reaches no viewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// Not among the best `n` of its `sample(n)` kind in this flush.
    SampledOut,
    /// Its time to live ended before the flush.
    Expired,
    /// The frame had no room left for its rank.
    FrameBudget,
    /// The buffer behind a frame that is still going out had no room left for its rank.
    BufferFull,
    /// Its kind is answered on receipt, and then the log could not take it.
    Unlogged,
}

impl DropReason {
    /// All reasons, in the order of their index.
    pub const ALL: [DropReason; 5] = [
        DropReason::SampledOut,
        DropReason::Expired,
        DropReason::FrameBudget,
        DropReason::BufferFull,
        DropReason::Unlogged,
    ];

    /// Index into per-reason tables.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            DropReason::SampledOut => "sampled_out",
            DropReason::Expired => "expired",
            DropReason::FrameBudget => "frame_budget",
            DropReason::BufferFull => "buffer_full",
            DropReason::Unlogged => "unlogged",
        }
    }
}

/// What happened in a room since it began. Tables are indexed by
/// [`Lane::index`], [`Refusal::index`] and [`DropReason::index`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoomStats {
    /// Events taken.
    pub accepted: [u64; 3],
    /// Repetitions recognised.
    pub duplicates: u64,
    /// Events not taken.
    pub refused: [u64; Refusal::COUNT],
    /// Events put into frames.
    pub carried: [u64; 3],
    /// Events that live on only in a total, or in a newer one of their key.
    pub merged: [u64; 3],
    /// Events taken and then shed, by reason and lane.
    pub dropped: [[u64; 3]; 5],
    /// Important events that travel although their total or state had no room
    /// any more when they had been logged.
    pub unmerged: u64,
    /// Frames made.
    pub frames: u64,
}

impl RoomStats {
    /// Events of a lane shed for any reason.
    #[must_use]
    pub fn dropped_in(&self, lane: Lane) -> u64 {
        self.dropped.iter().map(|lanes| lanes[lane.index()]).sum()
    }

    /// Events of a lane that were taken and whose fate is still open.
    #[must_use]
    pub fn pending(&self, lane: Lane) -> u64 {
        let i = lane.index();
        self.accepted[i] - self.carried[i] - self.merged[i] - self.dropped_in(lane)
    }

    /// Adds the counts of another room, or of one about to be forgotten.
    pub fn absorb(&mut self, other: &RoomStats) {
        // Taken apart by name, so that a new counter cannot be left out.
        let RoomStats { accepted, duplicates, refused, carried, merged, dropped, unmerged, frames } =
            other;
        add(&mut self.accepted, accepted);
        self.duplicates += duplicates;
        add(&mut self.refused, refused);
        add(&mut self.carried, carried);
        add(&mut self.merged, merged);
        for (into, from) in self.dropped.iter_mut().zip(dropped) {
            add(into, from);
        }
        self.unmerged += unmerged;
        self.frames += frames;
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
        let one = RoomStats {
            accepted: [9, 8, 7],
            duplicates: 1,
            refused: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
            carried: [1, 1, 1],
            merged: [0, 2, 1],
            dropped: [[0, 1, 1], [0, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 0]],
            unmerged: 4,
            frames: 3,
        };
        let mut sum = one.clone();
        sum.absorb(&one);
        assert_eq!(sum.accepted, [18, 16, 14]);
        assert_eq!((sum.duplicates, sum.frames), (2, 6));
        assert_eq!(sum.refused, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22]);
        assert_eq!(sum.unmerged, 8);
        assert_eq!((sum.carried, sum.merged), ([2, 2, 2], [0, 4, 2]));
        assert_eq!(sum.dropped, [[0, 2, 2], [0, 2, 0], [0, 2, 0], [0, 2, 2], [0, 0, 0]]);
        for lane in Lane::ALL {
            assert_eq!(sum.pending(lane), 2 * one.pending(lane));
        }
    }

    #[test]
    fn reasons_stand_at_their_index() {
        for (i, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), i);
        }
    }
}
