//! The ladder before refusal: what a shard gives up first, and what last.
//!
//! Each rung includes those below it. The first three cost viewers little and
//! publishers nothing: frames of large rooms come less often, samples get
//! smaller, frames carry less of what may be shed. Refusing events is the
//! gate's own business ([`admission`](super::admission)) and only has its rung
//! here. Holding new joins comes last, since whoever watches already has been
//! promised more than whoever knocks. Important events are on no rung.
//!
//! Up one rung per step while queueing time passes half of what counts as
//! overload, at once to the gate's rung when the gate refuses; down one rung
//! per step while it is below a quarter. Steps are taken every [`STEP`], so the
//! whole way down takes less than a second.

use std::time::Duration;

use super::settings::Strain;
use super::time::Time;

/// Time between two steps.
pub const STEP: Duration = Duration::from_millis(150);
/// Refusing this long without getting out of overload holds joins.
const HOLD_AFTER: Duration = Duration::from_millis(450);

/// What is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Rung {
    /// Nothing.
    #[default]
    Normal,
    /// Large rooms flush half as often, and say half as much.
    Stretch,
    /// Samples are half as large.
    Thin,
    /// Flushes come a quarter as often, samples are a quarter as large, and
    /// frames use half their budget: large rooms say an eighth.
    Trim,
    /// The least important events are refused.
    Refuse,
    /// New joins wait, and are refused when they have waited too long.
    Hold,
}

impl Rung {
    /// All rungs, from the bottom.
    pub const ALL: [Rung; 6] =
        [Rung::Normal, Rung::Stretch, Rung::Thin, Rung::Trim, Rung::Refuse, Rung::Hold];

    /// Name in metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Rung::Normal => "normal",
            Rung::Stretch => "stretch",
            Rung::Thin => "thin",
            Rung::Trim => "trim",
            Rung::Refuse => "refuse",
            Rung::Hold => "hold",
        }
    }

    /// What rooms do without on this rung.
    #[must_use]
    pub const fn strain(self) -> Strain {
        match self {
            Rung::Normal => Strain::NONE,
            Rung::Stretch => Strain { stretch: 2, ..Strain::NONE },
            Rung::Thin => Strain { stretch: 2, sample_divisor: 2, frame_percent: 100 },
            Rung::Trim | Rung::Refuse | Rung::Hold => {
                Strain { stretch: 4, sample_divisor: 4, frame_percent: 50 }
            }
        }
    }
}

/// What a shard feels.
#[derive(Debug, Clone, Copy)]
pub struct Pressure {
    /// Mean queueing time as a multiple of what counts as overload.
    pub queueing: f64,
    /// The gate refuses, by level or by eviction.
    pub refusing: bool,
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Ladder {
    rung: Rung,
    stepped: Time,
    /// Since when the gate refuses.
    refusing: Option<Time>,
    /// An operator holds joins.
    held: bool,
}

impl Ladder {
    /// At the bottom.
    #[must_use]
    pub const fn new(now: Time) -> Self {
        Self { rung: Rung::Normal, stepped: now, refusing: None, held: false }
    }

    /// Where it stands.
    #[must_use]
    pub const fn rung(&self) -> Rung {
        self.rung
    }

    /// Whether new joins wait.
    #[must_use]
    pub fn holds_joins(&self) -> bool {
        self.held || self.rung == Rung::Hold
    }

    /// Joins wait whatever the pressure, until told otherwise.
    pub fn hold_joins(&mut self, hold: bool) {
        self.held = hold;
    }

    /// Whether an operator holds joins.
    #[must_use]
    pub const fn is_held(&self) -> bool {
        self.held
    }

    /// When [`step`](Self::step) does something next.
    #[must_use]
    pub fn next_step(&self) -> Time {
        self.stepped + STEP
    }

    /// Takes a step, if it is time for one. Returns whether the rung changed.
    pub fn step(&mut self, pressure: Pressure, now: Time) -> bool {
        if now < self.next_step() && now >= self.stepped {
            return false;
        }
        self.stepped = now;
        let since = if pressure.refusing { Some(*self.refusing.get_or_insert(now)) } else { None };
        self.refusing = since;
        let before = self.rung;
        let lasting = since.is_some_and(|since| now.since(since) >= HOLD_AFTER);
        self.rung = if lasting && pressure.queueing > 0.5 {
            Rung::Hold
        } else if pressure.refusing {
            // Joins are let in again as soon as the queue is short.
            Rung::Refuse
        } else if pressure.queueing > 0.5 {
            above(self.rung).min(Rung::Trim)
        } else if pressure.queueing < 0.25 {
            below(self.rung)
        } else {
            self.rung.min(Rung::Trim)
        };
        self.rung != before
    }
}

fn above(rung: Rung) -> Rung {
    Rung::ALL[(rung as usize + 1).min(Rung::ALL.len() - 1)]
}

fn below(rung: Rung) -> Rung {
    Rung::ALL[(rung as usize).saturating_sub(1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time::from_millis(1_000_000);

    fn steps(ladder: &mut Ladder, from: Time, count: u32, pressure: Pressure) -> Vec<Rung> {
        (1..=count)
            .map(|i| {
                ladder.step(pressure, from + STEP * i);
                ladder.rung()
            })
            .collect()
    }

    #[test]
    fn queueing_alone_climbs_rung_by_rung_and_never_refuses() {
        let mut ladder = Ladder::new(START);
        let busy = Pressure { queueing: 0.8, refusing: false };
        let way = steps(&mut ladder, START, 5, busy);
        assert_eq!(way, [Rung::Stretch, Rung::Thin, Rung::Trim, Rung::Trim, Rung::Trim]);
        assert!(!ladder.holds_joins());
    }

    #[test]
    fn lasting_refusal_holds_joins_and_all_is_normal_within_a_second() {
        let mut ladder = Ladder::new(START);
        let overloaded = Pressure { queueing: 2.0, refusing: true };
        let way = steps(&mut ladder, START, 5, overloaded);
        assert_eq!(way[0], Rung::Refuse);
        assert_eq!(way[4], Rung::Hold);
        assert!(ladder.holds_joins());
        let calm = Pressure { queueing: 0.0, refusing: false };
        let later = START + STEP * 5;
        let down = steps(&mut ladder, later, 6, calm);
        assert_eq!(down.iter().position(|rung| *rung == Rung::Normal), Some(4));
        assert!(STEP * 5 < Duration::from_secs(1));
    }

    #[test]
    fn joins_are_let_in_when_refusing_keeps_the_queue_short() {
        let mut ladder = Ladder::new(START);
        steps(&mut ladder, START, 9, Pressure { queueing: 0.2, refusing: true });
        assert_eq!(ladder.rung(), Rung::Refuse);
    }

    #[test]
    fn between_up_and_down_it_rests() {
        let mut ladder = Ladder::new(START);
        steps(&mut ladder, START, 2, Pressure { queueing: 0.8, refusing: false });
        let way =
            steps(&mut ladder, START + STEP * 2, 3, Pressure { queueing: 0.4, refusing: false });
        assert_eq!(way, [Rung::Thin; 3]);
    }

    #[test]
    fn an_operator_holds_joins_at_any_rung() {
        let mut ladder = Ladder::new(START);
        ladder.hold_joins(true);
        assert!(ladder.holds_joins() && ladder.rung() == Rung::Normal);
        ladder.hold_joins(false);
        assert!(!ladder.holds_joins());
    }

    #[test]
    fn steps_are_taken_in_their_own_time() {
        let mut ladder = Ladder::new(START);
        let busy = Pressure { queueing: 0.8, refusing: false };
        assert!(!ladder.step(busy, START + STEP / 2));
        assert!(ladder.step(busy, START + STEP));
        assert!(!ladder.step(busy, START + STEP));
    }
}
