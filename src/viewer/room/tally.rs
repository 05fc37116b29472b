//! What a room's model counts.

/// What went by that should not, or might.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Events that came again and were dropped by their number.
    pub dropped: u64,
    /// Important events held back behind a hole.
    pub held: u64,
    /// Pulls.
    pub pulls: u64,
    /// Acknowledgements.
    pub acks: u64,
    /// Digests.
    pub digests: u64,
    /// Numbers that went by without a notice.
    pub skipped: u64,
    /// Important events that the server no longer had.
    pub lost: u64,
    /// Times the numbering was another one than that of events that were shown,
    /// or went back.
    pub renumbered: u64,
    /// Times a room of which nothing important was known began anew.
    pub reborn: u64,
    /// Joins that were recovered in full.
    pub recovered: u64,
    /// Joins with a position that began anew.
    pub fresh: u64,
    /// Times the viewer was slow and went on from the present state.
    pub rebased: u64,
    /// Frames for a room that was not joined, or of another numbering.
    pub stray: u64,
}

impl Tally {
    /// Adds another one.
    pub fn absorb(&mut self, other: &Tally) {
        self.dropped += other.dropped;
        self.held += other.held;
        self.pulls += other.pulls;
        self.acks += other.acks;
        self.digests += other.digests;
        self.skipped += other.skipped;
        self.lost += other.lost;
        self.renumbered += other.renumbered;
        self.reborn += other.reborn;
        self.recovered += other.recovered;
        self.fresh += other.fresh;
        self.rebased += other.rebased;
        self.stray += other.stray;
    }
}
