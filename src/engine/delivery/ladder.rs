//! How far a viewer is cut down, when it is cut down further, and when it gets
//! more again.
//!
//! Up: what waits for the viewer is measured in frames, in bytes, and by the age
//! of its oldest frame. Each rung has a bound on each; passing any of them leads
//! one rung up, as often as it takes. Age counts only when a further frame comes:
//! a lone frame that is late harms nobody and is worth more late than never.
//!
//! Down: one rung at a time, each after the viewer has kept up for a while.
//! "Keeping up" is a queue below a share of the first bound, not an empty one: a
//! viewer that takes each frame a moment after it came is no slow viewer. Going
//! down at once, as soon as the queue is empty, would give a steadily slow viewer
//! everything for a second and gaps for the next.
//!
//! [`Rung::Rebase`] is left otherwise: when the viewer has its new state.

use std::time::Duration;

use super::super::time::Time;
use super::Cut;

/// What is given up for a viewer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Rung {
    /// Nothing.
    #[default]
    Full,
    /// Sampled events.
    NoSampled,
    /// And running totals, of which only the newest are sent, when all else is.
    TotalsOnly,
    /// And ordered events: a gap notice tells how many of which kind.
    ImportantOnly,
    /// All that waits: it gets the present state and goes on from there.
    Rebase,
}

impl Rung {
    /// How many there are.
    pub const COUNT: usize = 5;
    /// All, from nothing to everything.
    pub const ALL: [Rung; Self::COUNT] =
        [Rung::Full, Rung::NoSampled, Rung::TotalsOnly, Rung::ImportantOnly, Rung::Rebase];

    /// Index into per-rung tables.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Name in configuration, metrics and documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Rung::Full => "full",
            Rung::NoSampled => "no_sampled",
            Rung::TotalsOnly => "totals_only",
            Rung::ImportantOnly => "important_only",
            Rung::Rebase => "rebase",
        }
    }

    /// What a frame is cut to for a viewer on it.
    #[must_use]
    pub const fn cut(self) -> Cut {
        match self {
            Rung::Full => Cut::Full,
            Rung::NoSampled => Cut::NoSampled,
            Rung::TotalsOnly => Cut::TotalsOnly,
            Rung::ImportantOnly | Rung::Rebase => Cut::ImportantOnly,
        }
    }

    const fn above(self) -> Rung {
        match self {
            Rung::Full => Rung::NoSampled,
            Rung::NoSampled => Rung::TotalsOnly,
            Rung::TotalsOnly => Rung::ImportantOnly,
            Rung::ImportantOnly | Rung::Rebase => Rung::Rebase,
        }
    }

    const fn below(self) -> Rung {
        match self {
            Rung::Full | Rung::NoSampled => Rung::Full,
            Rung::TotalsOnly => Rung::NoSampled,
            Rung::ImportantOnly => Rung::TotalsOnly,
            Rung::Rebase => Rung::ImportantOnly,
        }
    }
}

/// What may wait for a viewer before it is taken one rung further. What the
/// socket has taken by part does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Frames.
    pub frames: usize,
    /// Bytes of them, as they would be sent.
    pub bytes: usize,
    /// How long the oldest of them has waited.
    pub age: Duration,
}

/// Bounds of the ladder, and the way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LadderSettings {
    /// What leads to each rung but the first, ascending.
    pub bounds: [Bounds; Rung::COUNT - 1],
    /// How long a viewer must keep up for each rung down, and how long at least
    /// lies between two tellings of the totals.
    pub recover: Duration,
    /// Percent of the first bounds below which a queue counts as kept up with.
    pub recover_percent: u8,
    /// Without a byte taken for this long after a rebase, a viewer is given up.
    pub drain: Duration,
}

impl LadderSettings {
    /// The bounds that lead past `rung`.
    #[must_use]
    pub fn beyond(&self, rung: Rung) -> &Bounds {
        &self.bounds[rung.index().min(Rung::COUNT - 2)]
    }

    /// The bounds past which everything is dropped.
    #[must_use]
    pub fn last(&self) -> &Bounds {
        &self.bounds[Rung::COUNT - 2]
    }
}

/// What waits for a viewer and could be cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Frames.
    pub frames: usize,
    /// Bytes of them.
    pub bytes: usize,
    /// When the oldest was queued.
    pub oldest: Option<Time>,
}

/// Where one viewer stands.
#[derive(Debug, Default)]
pub(super) struct Ladder {
    rung: Rung,
    /// Since when it has kept up.
    calm: Option<Time>,
}

impl Ladder {
    pub(super) fn rung(&self) -> Rung {
        self.rung
    }

    /// Whether what waits is past the bounds of its rung.
    pub(super) fn is_beyond(&self, load: Load, settings: &LadderSettings, now: Time) -> bool {
        let bounds = settings.beyond(self.rung);
        // One frame is no backlog, however large or old.
        load.frames > 1
            && (load.frames > bounds.frames
                || load.bytes > bounds.bytes
                || load.oldest.is_some_and(|oldest| now.since(oldest) > bounds.age))
    }

    pub(super) fn climb(&mut self) -> Rung {
        self.calm = None;
        self.rung = self.rung.above();
        self.rung
    }

    /// One rung down.
    pub(super) fn descend(&mut self, now: Time) -> Rung {
        self.rung = self.rung.below();
        self.calm = Some(now);
        self.rung
    }

    /// `items` and `bytes` are all that waits, whatever it is.
    pub(super) fn judge(
        &mut self,
        items: usize,
        bytes: usize,
        settings: &LadderSettings,
        now: Time,
    ) {
        let first = &settings.bounds[0];
        let share =
            |bound: usize| bound.saturating_mul(usize::from(settings.recover_percent)) / 100;
        let calm = items <= 1 || (bytes <= share(first.bytes) && items <= share(first.frames));
        self.calm = if calm { self.calm.or(Some(now)) } else { None };
    }

    /// When it may go down, if it keeps up until then. `progress`: when the
    /// socket last took bytes; `idle`: nothing waits, and it would take more.
    pub(super) fn due_down(
        &self,
        idle: bool,
        progress: Time,
        settings: &LadderSettings,
    ) -> Option<Time> {
        let calm = self.calm?;
        let cut = self.rung != Rung::Full && self.rung != Rung::Rebase;
        // A little that waits before a socket that takes nothing is no keeping up.
        (cut && (idle || progress > calm)).then(|| calm + settings.recover)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::START;
    use super::*;

    fn settings() -> LadderSettings {
        let bounds = [10, 20, 30, 40].map(|n| Bounds {
            frames: n,
            bytes: n * 1_000,
            age: Duration::from_secs(n as u64),
        });
        let recover = Duration::from_secs(2);
        LadderSettings { bounds, recover, recover_percent: 30, drain: Duration::from_secs(30) }
    }

    fn load(frames: usize, bytes: usize, age: u64) -> Load {
        Load { frames, bytes, oldest: Some(START - Duration::from_secs(age)) }
    }

    #[test]
    fn any_bound_leads_up_and_each_rung_has_its_own() {
        let mut ladder = Ladder::default();
        let settings = settings();
        for (i, rung) in Rung::ALL[1..].iter().enumerate() {
            let n = (i + 1) * 10;
            assert!(!ladder.is_beyond(load(n, n * 1_000, n as u64), &settings, START));
            assert!(ladder.is_beyond(load(n + 1, 0, 0), &settings, START));
            assert!(ladder.is_beyond(load(2, n * 1_000 + 1, 0), &settings, START));
            assert!(ladder.is_beyond(load(2, 0, n as u64 + 1), &settings, START));
            assert!(!ladder.is_beyond(load(1, 1 << 30, 1_000), &settings, START), "no backlog");
            assert_eq!(ladder.climb(), *rung);
        }
        assert!(ladder.is_beyond(load(41, 0, 0), &settings, START), "again from the last");
        assert_eq!(ladder.climb(), Rung::Rebase);
    }

    #[test]
    fn down_goes_one_rung_after_each_time_kept_up() {
        let mut ladder = Ladder::default();
        let settings = settings();
        ladder.climb();
        ladder.climb();
        ladder.judge(3, 3_000, &settings, START);
        let after = |s| START + Duration::from_secs(s);
        assert_eq!(ladder.due_down(true, START, &settings), Some(after(2)));
        assert_eq!(ladder.due_down(false, START, &settings), None, "nothing was taken since");
        assert_eq!(ladder.due_down(false, after(1), &settings), Some(after(2)));
        assert_eq!(ladder.descend(after(2)), Rung::NoSampled);
        assert_eq!(ladder.due_down(true, START, &settings), Some(after(4)));
        ladder.judge(4, 0, &settings, after(3));
        assert_eq!(ladder.due_down(true, START, &settings), None, "more waits than the share");
        ladder.judge(0, 0, &settings, after(4));
        assert_eq!(ladder.due_down(true, START, &settings), Some(after(6)));
        assert_eq!(ladder.descend(after(6)), Rung::Full);
        assert_eq!(ladder.due_down(true, START, &settings), None);
    }

    #[test]
    fn rungs_stand_at_their_index_and_give_up_more_and_more() {
        for (i, rung) in Rung::ALL.into_iter().enumerate() {
            assert_eq!(rung.index(), i);
            assert!(rung.above() >= rung && rung.below() <= rung);
        }
        assert!(Rung::ALL.windows(2).all(|two| two[0].cut() <= two[1].cut()));
    }
}
