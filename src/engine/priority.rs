//! Where a request stands in the order of importance, and the level up to
//! which requests are admitted.
//!
//! The admission level of DAGOR is a pair (B, U): business priority and user
//! priority (SoCC 2018, section 4.2). One cell of that grid can still hold more
//! than the whole capacity, and a valve that can only be open or shut for it
//! oscillates. So a position has a third, finer part, and a level can end
//! inside a cell: what of it is admitted is its *share*. The finer part comes
//! first from the user, so that one user's requests keep one fate and asking
//! again does not roll the dice again, and then from the event's id, so that
//! even a cell with a single user in it can be admitted in part.

use std::time::Duration;

use super::ids::Tier;
use super::level::LOWEST_USER_LEVEL;

/// Bits of the finer part: half of them the user's, half the event's.
const FINE_BITS: u32 = 16;
const CELL: u32 = 1 << FINE_BITS;
/// Cells of the grid (B, U).
pub const CELLS: usize = 64 * 128;
/// Cells of one tier.
pub const CELLS_PER_TIER: usize = 128;
const END: u32 = CELLS as u32 * CELL;

/// Position in the order of importance; the smaller matters more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(u32);

impl Priority {
    /// What gives way first.
    pub const LOWEST: Priority = Priority(END - 1);

    /// From tier, user level (0 to 127) and the finer part. What lies beyond
    /// the last tier or level counts as the last.
    #[must_use]
    pub const fn new(tier: Tier, level: u8, fine: u16) -> Self {
        let tier = if tier.0 > Tier::LOWEST.0 { Tier::LOWEST.0 } else { tier.0 };
        let level = if level > LOWEST_USER_LEVEL { LOWEST_USER_LEVEL } else { level };
        Self(((tier as u32) << 7 | level as u32) << FINE_BITS | fine as u32)
    }

    /// Business priority.
    #[must_use]
    pub const fn tier(self) -> Tier {
        Tier((self.0 >> (7 + FINE_BITS)) as u8)
    }

    /// Index of the cell (B, U).
    #[must_use]
    pub const fn cell(self) -> usize {
        (self.0 >> FINE_BITS) as usize
    }

    /// Where a cell begins.
    #[must_use]
    pub const fn of_cell(cell: usize) -> Self {
        Self(if cell < CELLS { cell as u32 * CELL } else { END - 1 })
    }

    /// Position within the tier, from 0 to just below 1.
    #[must_use]
    pub fn within_tier(self) -> f64 {
        f64::from(self.0 & (CELL * 128 - 1)) / f64::from(CELL * 128)
    }

    /// The same tier, at a position from 0 to 1; beyond is the tier's end.
    #[must_use]
    pub fn at(tier: Tier, within: f64) -> Self {
        let tier = tier.0.min(Tier::LOWEST.0);
        let span = CELL * 128;
        let offset = (within.max(0.0) * f64::from(span)) as u32;
        Self(u32::from(tier) * span + offset.min(span - 1))
    }
}

/// Everything before this position is admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdmissionLevel(u32);

impl Default for AdmissionLevel {
    fn default() -> Self {
        Self::OPEN
    }
}

impl AdmissionLevel {
    /// Everything is admitted.
    pub const OPEN: AdmissionLevel = AdmissionLevel(END);
    /// Nothing is.
    pub const SHUT: AdmissionLevel = AdmissionLevel(0);

    /// All cells before `cell`, and `share` (0 to 1) of `cell` itself.
    #[must_use]
    pub fn inside(cell: usize, share: f64) -> Self {
        let cell = cell.min(CELLS - 1) as u32;
        Self(cell * CELL + (share.clamp(0.0, 1.0) * f64::from(CELL)).round() as u32)
    }

    /// From what an answer carried. A level that names no share admits the
    /// whole of its last cell.
    #[must_use]
    pub fn from_wire(business: u8, user: u8, share: Option<f64>) -> Self {
        let business = usize::from(business.min(Tier::LOWEST.0));
        let user = usize::from(user.min(LOWEST_USER_LEVEL));
        Self::inside(business * CELLS_PER_TIER + user, share.unwrap_or(1.0))
    }

    /// From [`to_bits`](Self::to_bits).
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(if bits > END { END } else { bits })
    }

    /// One number that orders levels; for a shared atomic.
    #[must_use]
    pub const fn to_bits(self) -> u32 {
        self.0
    }

    /// Whether a request at `priority` gets in.
    #[must_use]
    pub const fn admits(self, priority: Priority) -> bool {
        priority.0 < self.0
    }

    /// Whether everything gets in.
    #[must_use]
    pub const fn is_open(self) -> bool {
        self.0 == END
    }

    /// Index of the last cell of which anything is admitted.
    #[must_use]
    pub const fn cell(self) -> usize {
        (self.0.saturating_sub(1) >> FINE_BITS) as usize
    }

    /// B: the least important tier of which anything is admitted.
    #[must_use]
    pub const fn business(self) -> u8 {
        (self.cell() / CELLS_PER_TIER) as u8
    }

    /// U: the least important user level of that tier of which anything is admitted.
    #[must_use]
    pub const fn user(self) -> u8 {
        (self.cell() % CELLS_PER_TIER) as u8
    }

    /// Share of the last cell that is admitted, 0 to 1.
    #[must_use]
    pub fn share(self) -> f64 {
        f64::from(self.0 - self.cell() as u32 * CELL) / f64::from(CELL)
    }
}

/// What goes back to a caller with every answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advice {
    /// What is admitted.
    pub level: AdmissionLevel,
    /// How long that may be relied on.
    pub ttl: Duration,
}

impl Advice {
    /// Everything is admitted, as far as is known at this moment.
    pub const OPEN: Advice = Advice { level: AdmissionLevel::OPEN, ttl: Duration::from_secs(1) };

    /// The share of the last cell in thousandths, as answers carry it; `None`:
    /// all of it.
    #[must_use]
    pub fn share_per_mille(self) -> Option<u32> {
        let share = (self.level.share() * 1_000.0).floor() as u32;
        (share < 1_000).then_some(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tier_outranks_user_level_and_user_level_the_finer_part() {
        let p = |tier, level, fine| Priority::new(Tier(tier), level, fine);
        let mut positions = [p(1, 0, 0), p(0, 9, 7), p(0, 9, 2), p(0, 1, u16::MAX)];
        positions.sort_unstable();
        assert_eq!(positions, [p(0, 1, u16::MAX), p(0, 9, 2), p(0, 9, 7), p(1, 0, 0)]);
        assert_eq!(p(200, 255, u16::MAX), Priority::LOWEST);
        assert_eq!((p(5, 3, 9).tier(), p(5, 3, 9).cell()), (Tier(5), 5 * 128 + 3));
    }

    #[test]
    fn a_level_can_end_inside_a_cell_and_survives_the_wire() {
        let level = AdmissionLevel::inside(3 * 128 + 40, 0.25);
        assert_eq!((level.business(), level.user(), level.share()), (3, 40, 0.25));
        assert!(level.admits(Priority::new(Tier(3), 40, (CELL / 4 - 1) as u16)));
        assert!(!level.admits(Priority::new(Tier(3), 40, (CELL / 4) as u16)));
        let back = AdmissionLevel::from_wire(3, 40, Some(level.share()));
        assert_eq!(back, level);
        assert_eq!(AdmissionLevel::from_wire(63, 127, None), AdmissionLevel::OPEN);
        let open = AdmissionLevel::OPEN;
        assert_eq!((open.business(), open.user(), open.share()), (63, 127, 1.0));
        assert!(open.admits(Priority::LOWEST) && open.is_open());
        let shut = AdmissionLevel::SHUT;
        assert!(!shut.admits(Priority::new(Tier(0), 0, 0)) && shut.share() == 0.0);
    }

    #[test]
    fn a_position_within_a_tier_never_leaves_it() {
        for (within, cell) in [(-1.0, 256), (0.0, 256), (0.5, 320), (1.0, 383), (9.0, 383)] {
            let position = Priority::at(Tier(2), within);
            assert_eq!((position.tier(), position.cell()), (Tier(2), cell), "{within}");
        }
        assert!((Priority::at(Tier(2), 0.25).within_tier() - 0.25).abs() < 1e-6);
    }
}
