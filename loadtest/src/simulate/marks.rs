//! The marks that our law is held to: for each, points to measure, a run per
//! seed, and a verdict. docs/overload-simulation.md defines the figures.

mod cases;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::{Options, median, pool};
pub(super) use cases::{Case, FULL, all};

/// What is asked of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
    MoreThan(f64),
    /// Nothing: it is reported.
    None,
}

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mark {
    SteadyFree,
    SteadyCost,
    CollaborationRaises,
    CollaborationCost,
    AfterStep,
    Recovery,
    ProtectedLoss,
    ProtectedFirstSecond,
    CalmRefusals,
    CalmLosses,
    Queueing,
    QueueingNearCapacity,
    MixSpread,
    Aggressive,
    OverBest,
    Variations,
}

impl Mark {
    /// Title and what is asked.
    fn law(self) -> (&'static str, Bound) {
        match self {
            Mark::SteadyFree => ("steady goodput ÷ optimum, refusals free", Bound::AtLeast(0.97)),
            Mark::SteadyCost => {
                ("refusals at 5 %, no collaboration, ÷ adjusted optimum", Bound::AtLeast(0.93))
            }
            Mark::CollaborationRaises => {
                ("refusals at 5 %: goodput with ÷ without collaboration", Bound::MoreThan(1.0))
            }
            Mark::CollaborationCost => {
                ("refusals at 5 %, collaboration, ÷ optimum of free refusals", Bound::None)
            }
            Mark::AfterStep => ("first 10 s after a step ÷ optimum", Bound::AtLeast(0.95)),
            Mark::Recovery => ("back to 99 % success at load 0.7, s", Bound::AtMost(2.0)),
            Mark::ProtectedLoss => {
                ("tasks lost in tiers within 0.9, after the first second", Bound::AtMost(0.0))
            }
            Mark::ProtectedFirstSecond => {
                ("share lost in tiers within 0.9, first second", Bound::AtMost(0.001))
            }
            Mark::CalmRefusals => {
                ("refusals: load to 0.9, trickle, downstream", Bound::AtMost(0.0))
            }
            Mark::CalmLosses => ("tasks lost in the same", Bound::AtMost(0.0)),
            Mark::Queueing => ("p99 queueing under overload, ms", Bound::AtMost(40.0)),
            Mark::QueueingNearCapacity => ("p99 queueing at load 0.9, ms", Bound::None),
            Mark::MixSpread => ("spread of success, M1 to M4 in a mix", Bound::AtMost(0.03)),
            Mark::Aggressive => ("success, aggressive ÷ polite", Bound::AtMost(1.1)),
            Mark::OverBest => {
                ("M2 success ÷ best of CoDel, Facebook, SEDA at 2x", Bound::AtLeast(1.25))
            }
            Mark::Variations => (
                "M2 at 3x, other service, arrivals, network, rooms ÷ optimum",
                Bound::AtLeast(0.97),
            ),
        }
    }
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Bound::AtLeast(least) => value >= least,
            Bound::AtMost(most) => value <= most,
            Bound::MoreThan(less) => value > less,
            Bound::None => true,
        }
    }

    /// The worse of two values.
    fn worse(self, a: f64, b: f64) -> f64 {
        match self {
            Bound::AtMost(_) => a.max(b),
            _ => a.min(b),
        }
    }

    fn text(self) -> String {
        match self {
            Bound::AtLeast(least) => format!("≥ {least}"),
            Bound::AtMost(most) => format!("≤ {most}"),
            Bound::MoreThan(less) => format!("> {less}"),
            Bound::None => String::from("-"),
        }
    }
}

/// A point of a mark.
#[derive(Debug, Serialize)]
pub(super) struct Point {
    name: String,
    median: f64,
    worst: f64,
    values: Vec<f64>,
}

/// What came of a mark.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    mark: Mark,
    title: &'static str,
    bound: Bound,
    /// The worst of the points' medians.
    median: f64,
    /// The worst of all seeds.
    worst: f64,
    worst_seed: u64,
    points: Vec<Point>,
}

impl Outcome {
    /// Whether every seed of every point is within the mark.
    pub(super) fn holds(&self) -> bool {
        self.bound.holds(self.worst)
    }

    /// Whether the median of every point is.
    pub(super) fn holds_in_the_median(&self) -> bool {
        self.bound.holds(self.median)
    }
}

/// Runs all cases under `seeds` seeds from `options.seed` on.
pub(super) fn run(options: &Options, cases: &[Case], seeds: u64) -> Vec<Outcome> {
    let work: Vec<(usize, u64)> = (0..cases.len())
        .flat_map(|case| (0..seeds).map(move |seed| (case, options.seed + seed)))
        .collect();
    let measured = pool::run(options.threads, &work, |&(case, seed)| (cases[case].run)(seed));
    let mut marks: BTreeMap<Mark, BTreeMap<usize, Vec<f64>>> = BTreeMap::new();
    for (&(case, _), figures) in work.iter().zip(&measured) {
        for &(mark, value) in figures {
            marks.entry(mark).or_default().entry(case).or_default().push(value);
        }
    }
    marks
        .into_iter()
        .map(|(mark, points)| {
            let (title, bound) = mark.law();
            let worst_of = |values: &[f64]| values.iter().copied().reduce(|a, b| bound.worse(a, b));
            let points: Vec<Point> = points
                .into_iter()
                .map(|(case, values)| Point {
                    name: cases[case].name.clone(),
                    median: median(values.iter().copied()),
                    worst: worst_of(&values).unwrap_or(f64::NAN),
                    values,
                })
                .collect();
            let medians: Vec<f64> = points.iter().map(|point| point.median).collect();
            let worsts: Vec<f64> = points.iter().map(|point| point.worst).collect();
            let worst = worst_of(&worsts).unwrap_or(f64::NAN);
            let place = points
                .iter()
                .find_map(|point| point.values.iter().position(|value| *value == worst))
                .unwrap_or(0);
            Outcome {
                mark,
                title,
                bound,
                median: worst_of(&medians).unwrap_or(f64::NAN),
                worst,
                worst_seed: options.seed + place as u64,
                points,
            }
        })
        .collect()
}

/// For a terminal; with `points` every point, otherwise those that fail.
pub(super) fn text(outcomes: &[Outcome], points: bool) -> String {
    let mut out = format!(
        "{:<62} {:>8} {:>9} {:>9} {:>6}  verdict\n",
        "mark", "asked", "median", "worst", "seed"
    );
    for outcome in outcomes {
        let verdict = match (outcome.bound, outcome.holds(), outcome.holds_in_the_median()) {
            (Bound::None, ..) => "reported",
            (_, true, _) => "PASS",
            (_, _, true) => "FAIL in the worst seed",
            _ => "FAIL",
        };
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(
            out,
            "{:<62} {:>8} {:>9.4} {:>9.4} {:>6}  {verdict}",
            outcome.title,
            outcome.bound.text(),
            outcome.median,
            outcome.worst,
            outcome.worst_seed
        );
        for point in &outcome.points {
            if points || !outcome.bound.holds(point.worst) {
                let _ = writeln!(
                    out,
                    "    {:<67} {:>9.4} {:>9.4}",
                    point.name, point.median, point.worst
                );
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::cases::{Extent, calm, changes, steady};
    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(arguments: &[&str]) -> Options {
        Line::parse_from([&["line"], arguments].concat()).options
    }

    /// Enough to notice a law that is broken, in seconds without optimisation.
    const SHORT: Extent = Extent { loads: &[3.0], calls: &[2], warm: 4, seconds: 8 };

    /// What this short form can judge: of three seeds the median, with more
    /// room where a window of seconds means more chance.
    fn short_bound(mark: Mark) -> Bound {
        match mark {
            Mark::SteadyFree => Bound::AtLeast(0.94),
            Mark::SteadyCost => Bound::AtLeast(0.88),
            Mark::CollaborationRaises | Mark::Recovery => mark.law().1,
            _ => Bound::None,
        }
    }

    #[test]
    fn our_law_keeps_its_marks_in_short() {
        let options = options(&[]);
        let mut cases = steady(&options, SHORT);
        cases.extend(changes(&options, SHORT));
        cases.extend(calm(&options, SHORT));
        let outcomes = run(&options, &cases, 3);
        let failed: Vec<&Outcome> = outcomes
            .iter()
            .filter(|outcome| !short_bound(outcome.mark).holds(outcome.median))
            .collect();
        assert!(
            failed.is_empty(),
            "{:?}\nseeds {} to {}; one again: loadtest overload --simulate --marks --points \
             --seeds 1 --seed N\n{}",
            failed.iter().map(|outcome| (outcome.mark, outcome.worst_seed)).collect::<Vec<_>>(),
            options.seed,
            options.seed + 2,
            text(&outcomes, true)
        );
    }

    #[test]
    fn a_law_that_does_nothing_fails_where_something_is_to_be_done() {
        let options = options(&["--laws", "none"]);
        let outcomes = run(&options, &steady(&options, SHORT), 1);
        let of = |mark| outcomes.iter().find(|outcome| outcome.mark == mark).expect("measured");
        assert!(!of(Mark::SteadyFree).holds() && !of(Mark::Queueing).holds());
    }

    #[test]
    fn the_worst_of_a_mark_is_the_worst_seed_of_the_worst_point() {
        let case = |name: &str, offset: f64| Case {
            name: name.into(),
            run: Box::new(move |seed| vec![(Mark::SteadyFree, 1.0 - offset - seed as f64 / 100.0)]),
        };
        let outcomes = run(&options(&["--seed", "5"]), &[case("a", 0.0), case("b", 0.5)], 3);
        let [outcome] = &outcomes[..] else { panic!("one mark") };
        assert!((outcome.median - 0.44).abs() < 1e-9 && (outcome.worst - 0.43).abs() < 1e-9);
        assert_eq!(outcome.worst_seed, 7);
        assert!(!outcome.holds() && !outcome.holds_in_the_median());
    }
}
