//! What is run for each mark, and which figures are taken from it.

use super::Mark;
use crate::simulate::controller::Kind;
use crate::simulate::scenario::{Arrivals, Balance, MOST_CALLS, MS, SECOND, Scenario, Service};
use crate::simulate::tally::Tally;
use crate::simulate::{Options, optimum, world};

/// Figures of one seed of a case.
pub(super) type Measured = Vec<(Mark, f64)>;

/// Something to run once per seed.
pub(in crate::simulate) struct Case {
    /// The point.
    pub(super) name: String,
    /// From a seed to figures.
    pub(super) run: Box<dyn Fn(u64) -> Measured + Send + Sync>,
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

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(in crate::simulate) struct Extent {
    pub(in crate::simulate) loads: &'static [f64],
    pub(in crate::simulate) calls: &'static [usize],
    /// Seconds before and in the window of steady loads.
    pub(in crate::simulate) warm: u64,
    pub(in crate::simulate) seconds: u64,
}

/// All of it.
pub(in crate::simulate) const FULL: Extent =
    Extent { loads: &[2.0, 3.0, 5.0, 10.0], calls: &[1, 2, 3, 4], warm: 10, seconds: 20 };

/// Everything that the marks need.
pub(in crate::simulate) fn all(options: &Options, extent: Extent) -> Vec<Case> {
    [steady, changes, calm, fairness, variations]
        .into_iter()
        .flat_map(|part| part(options, extent))
        .collect()
}

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
pub(super) fn steady(options: &Options, extent: Extent) -> Vec<Case> {
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
pub(super) fn changes(options: &Options, extent: Extent) -> Vec<Case> {
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
pub(super) fn calm(options: &Options, extent: Extent) -> Vec<Case> {
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
