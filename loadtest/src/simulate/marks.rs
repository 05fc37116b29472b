//! The marks that our law is held to: for each, points to measure, a run per
//! seed, and a verdict. docs/overload-simulation.md defines the figures.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::controller::Kind;
use super::optimum;
use super::scenario::{Arrivals, Balance, MOST_CALLS, MS, SECOND, Scenario, Service};
use super::tally::Tally;
use super::{Options, median, pool, world};

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

/// Figures of one seed of a case.
type Measured = Vec<(Mark, f64)>;

/// Something to run once per seed.
pub(super) struct Case {
    name: String,
    run: Box<dyn Fn(u64) -> Measured + Send + Sync>,
}

impl Case {
    fn new(
        law: Kind,
        name: String,
        scenario: Scenario,
        read: impl Fn(&Scenario, &Tally) -> Measured + Send + Sync + 'static,
    ) -> Self {
        let run = move |seed| read(&scenario, &world::run(&scenario, law, seed));
        Self { name, run: Box::new(run) }
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

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    pub(super) loads: &'static [f64],
    pub(super) calls: &'static [usize],
    /// Seconds before and in the window of steady loads.
    pub(super) warm: u64,
    pub(super) seconds: u64,
}

/// All of it.
pub(super) const FULL: Extent =
    Extent { loads: &[2.0, 3.0, 5.0, 10.0], calls: &[1, 2, 3, 4], warm: 10, seconds: 20 };

fn goodput_ratio(scenario: &Scenario, tally: &Tally, refusal: f64) -> f64 {
    let best = optimum::between(scenario, scenario.from, scenario.until, refusal);
    tally.steady_goodput() / best
}

fn queueing_ms(tally: &Tally) -> f64 {
    tally.queueing(0.99) as f64 / 1e3
}

fn lost(tally: &Tally, tiers: usize, from: u64, to: u64) -> f64 {
    let tasks = tally.of_tiers(tiers, from, to);
    f64::from(tasks.arrived - tasks.won)
}

/// Steady overload, refusals free and not.
fn steady(options: &Options, extent: Extent) -> Vec<Case> {
    let mut cases = Vec::new();
    for &calls in extent.calls {
        for &load in extent.loads {
            let name = format!("M{calls} {load}x");
            let base = options.shape(Scenario::steady(calls, load, extent.warm, extent.seconds));
            let free = Scenario { refusal_cost: 0.0, collaborate: true, ..base.clone() };
            let within = free.tiers_within(0.9, load, 1.0);
            cases.push(Case::new(options.judged(), name.clone(), free, move |scenario, tally| {
                vec![
                    (Mark::SteadyFree, goodput_ratio(scenario, tally, 0.0)),
                    (Mark::Queueing, queueing_ms(tally)),
                    (Mark::ProtectedLoss, lost(tally, within, scenario.from, scenario.until)),
                ]
            }));
            let alone = Scenario { refusal_cost: 0.05, collaborate: false, ..base.clone() };
            let together = Scenario { refusal_cost: 0.05, collaborate: true, ..base };
            let law = options.judged();
            let run = Box::new(move |seed| {
                let without = world::run(&alone, law, seed);
                let with = world::run(&together, law, seed);
                let raised = with.steady_goodput() / without.steady_goodput().max(1e-9);
                vec![
                    (Mark::SteadyCost, goodput_ratio(&alone, &without, 0.05)),
                    (Mark::CollaborationRaises, raised),
                    (Mark::CollaborationCost, goodput_ratio(&together, &with, 0.0)),
                ]
            });
            cases.push(Case { name, run });
        }
    }
    cases
}

/// Steps up and down, ramps, bursts, lost capacity, swapped priorities.
fn changes(options: &Options, extent: Extent) -> Vec<Case> {
    let (onset, end) = (5 * SECOND, 15 * SECOND);
    let mut cases = Vec::new();
    for &calls in extent.calls {
        for &load in extent.loads {
            let step = options.shape(Scenario::step(calls, load));
            let within = step.tiers_within(0.9, load, 1.0);
            cases.push(Case::new(
                options.judged(),
                format!("step M{calls} {load}x"),
                step,
                move |step, tally| {
                    let best = optimum::between(step, onset, end, 0.0);
                    let first = tally.of_tiers(within, onset, onset + SECOND);
                    vec![
                        (Mark::AfterStep, tally.goodput(onset, end) / best),
                        (Mark::Recovery, tally.back_to(0.99, end) as f64 / 1e6),
                        (Mark::ProtectedFirstSecond, first.loss()),
                        (Mark::ProtectedLoss, lost(tally, within, onset + SECOND, step.until)),
                    ]
                },
            ));
        }
    }
    let load = 5.0;
    let ramp = options.shape(Scenario::ramp(2, load));
    let within = ramp.tiers_within(0.9, load, 1.0);
    cases.push(Case::new(
        options.judged(),
        format!("ramp M2 {load}x"),
        ramp,
        move |ramp, tally| {
            vec![
                (Mark::Queueing, queueing_ms(tally)),
                (Mark::ProtectedLoss, lost(tally, within, 0, ramp.until)),
            ]
        },
    ));
    let bursts = options.shape(Scenario::bursts(2, load));
    let within = bursts.tiers_within(0.9, load, 1.0);
    cases.push(Case::new(
        options.judged(),
        format!("bursts M2 {load}x"),
        bursts,
        move |bursts, tally| {
            let tasks = tally.of_tiers(within, bursts.from, bursts.until);
            vec![(Mark::ProtectedFirstSecond, tasks.loss())]
        },
    ));
    let half = options.shape(Scenario::loss(2, 0.8));
    let within = half.tiers_within(0.9, 0.8, 0.5);
    cases.push(Case::new(
        options.judged(),
        "half lost M2 0.8x".into(),
        half,
        move |half, tally| {
            let best = optimum::between(half, onset, end, 0.0);
            let first = tally.of_tiers(within, onset, onset + SECOND);
            vec![
                (Mark::AfterStep, tally.goodput(onset, end) / best),
                (Mark::ProtectedFirstSecond, first.loss()),
                (Mark::ProtectedLoss, lost(tally, within, onset + SECOND, half.until)),
            ]
        },
    ));
    let swap = options.shape(Scenario::swap(2, 2.0));
    let within = swap.tiers_within(0.9, 2.0, 1.0);
    cases.push(Case::new(options.judged(), "swap M2 2x".into(), swap, move |swap, tally| {
        let tasks = tally.of_tiers(within, swap.from, swap.until);
        vec![
            (Mark::AfterStep, goodput_ratio(swap, tally, 0.0)),
            (Mark::ProtectedFirstSecond, tasks.loss()),
        ]
    }));
    cases
}

/// Loads at which nothing should be refused.
fn calm(options: &Options, extent: Extent) -> Vec<Case> {
    let mut cases = Vec::new();
    for &calls in extent.calls {
        for load in [0.5, 0.7, 0.9] {
            let scenario = Scenario::steady(calls, load, 5, extent.seconds.max(20));
            cases.push((format!("M{calls} {load}x"), load, options.shape(scenario)));
        }
    }
    cases.push(("trickle".into(), 0.0, options.shape(Scenario::trickle())));
    cases.push(("downstream 0.6x".into(), 0.0, options.shape(Scenario::slow_downstream())));
    cases
        .into_iter()
        .map(|(name, load, scenario)| {
            Case::new(options.judged(), name, scenario, move |_, tally| {
                let tasks = tally.all();
                let mut measured = vec![
                    (Mark::CalmRefusals, tally.refusals() as f64),
                    (Mark::CalmLosses, f64::from(tasks.arrived - tasks.won)),
                ];
                if load == 0.9 {
                    measured.push((Mark::QueueingNearCapacity, queueing_ms(tally)));
                }
                measured
            })
        })
        .collect()
}

/// Who gets what: short and long tasks, impatient and patient users, other laws.
fn fairness(options: &Options, extent: Extent) -> Vec<Case> {
    let mut cases = Vec::new();
    for &load in extent.loads {
        // Long enough that chance alone makes no spread of the mark's size.
        let long = 3 * extent.seconds;
        let mix = Scenario::steady(1, load, extent.warm, long).mixed();
        cases.push(Case::new(
            options.judged(),
            format!("{load}x"),
            options.shape(mix),
            |_, tally| {
                let success: Vec<f64> =
                    (1..=MOST_CALLS).map(|calls| tally.of_calls(calls).success()).collect();
                let most = success.iter().copied().fold(f64::MIN, f64::max);
                let least = success.iter().copied().fold(f64::MAX, f64::min);
                vec![(Mark::MixSpread, most - least)]
            },
        ));
        let base = options.shape(Scenario::steady(2, load, extent.warm, long));
        let manners = Scenario { aggressive: 0.5, ..base };
        cases.push(Case::new(options.judged(), format!("M2 {load}x"), manners, |_, tally| {
            let polite = tally.of_manner(false).success().max(1e-9);
            vec![(Mark::Aggressive, tally.of_manner(true).success() / polite)]
        }));
    }
    // The others get more time to settle.
    let ours = options.shape(Scenario::steady(2, 2.0, 60, 20));
    let law = options.judged();
    let run = Box::new(move |seed| {
        let success = |law| world::run(&ours, law, seed).all().success();
        let others = [Kind::Codel, Kind::Facebook, Kind::Seda].map(success);
        let best = others.into_iter().fold(f64::MIN, f64::max);
        vec![(Mark::OverBest, success(law) / best)]
    });
    cases.push(Case { name: "M2 2x".into(), run });
    cases
}

/// One thing other than usual each.
fn variations(options: &Options, extent: Extent) -> Vec<Case> {
    let base = options.shape(Scenario::steady(2, 3.0, extent.warm, extent.seconds));
    let all = [
        ("fixed service", Scenario { service: Service::Fixed, ..base.clone() }),
        ("Erlang-2 service", Scenario { service: Service::Erlang2, ..base.clone() }),
        ("bursty arrivals", Scenario { arrivals: Arrivals::Bursty, ..base.clone() }),
        ("levels after 20 ms", Scenario { propagation: 20 * MS, ..base.clone() }),
        ("random balance", Scenario { balance: Balance::Random, ..base.clone() }),
        ("20 rooms", Scenario { rooms: 20, ..base.clone() }),
        ("refusals at 2 %", Scenario { refusal_cost: 0.02, ..base.clone() }),
        ("no collaboration", Scenario { collaborate: false, ..base }),
    ];
    let read = |scenario: &Scenario, tally: &Tally| {
        vec![(Mark::Variations, goodput_ratio(scenario, tally, optimum::cost(scenario)))]
    };
    all.into_iter()
        .map(|(name, scenario)| Case::new(options.judged(), name.into(), scenario, read))
        .collect()
}

/// Everything that the marks need.
pub(super) fn cases(options: &Options, extent: Extent) -> Vec<Case> {
    [steady, changes, calm, fairness, variations]
        .into_iter()
        .flat_map(|part| part(options, extent))
        .collect()
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
