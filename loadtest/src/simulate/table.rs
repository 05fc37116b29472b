//! All laws side by side: success against load, and how they fare on profiles.

use std::fmt::Write as _;

use serde::Serialize;

use super::controller::Kind;
use super::optimum;
use super::scenario::{CAPACITY, MOST_CALLS, SECOND, Scenario};
use super::tally::Tally;
use super::{Options, median, pool, world};

/// What one run came to.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Figures {
    /// Tasks that succeeded ÷ tasks that arrived in the measured window.
    pub(super) success: f64,
    /// Tasks completed per second.
    pub(super) goodput: f64,
    /// `goodput` ÷ the optimum for which refusals are free.
    pub(super) of_optimum: f64,
    /// Median queueing time of calls begun, in milliseconds.
    pub(super) queueing_p50_ms: f64,
    /// 99th percentile of it.
    pub(super) queueing_p99_ms: f64,
    /// Calls that M refused or dropped ÷ tasks.
    pub(super) refusals_per_task: f64,
    /// Calls that A kept back ÷ tasks.
    pub(super) kept_back_per_task: f64,
    /// Calls sent again ÷ tasks.
    pub(super) resends_per_task: f64,
    /// Calls begun per second ÷ capacity.
    pub(super) begun_of_capacity: f64,
    /// Share of the calls begun that belong to tasks that did not succeed.
    pub(super) fruitless: f64,
    /// Share of the calls begun whose task had failed before.
    pub(super) wasted: f64,
}

/// One of them.
type Figure = fn(&Figures) -> f64;

impl Figures {
    /// Of a run of `scenario`.
    pub(super) fn of(scenario: &Scenario, tally: &Tally) -> Self {
        let all = tally.all();
        let per_task = |count: u64| count as f64 / f64::from(all.arrived.max(1));
        let goodput = tally.steady_goodput();
        let best = optimum::between(scenario, scenario.from, scenario.until, 0.0);
        let seconds = (scenario.until - scenario.from) as f64 / SECOND as f64;
        Self {
            success: all.success(),
            goodput,
            of_optimum: goodput / best,
            queueing_p50_ms: tally.queueing(0.5) as f64 / 1e3,
            queueing_p99_ms: tally.queueing(0.99) as f64 / 1e3,
            refusals_per_task: per_task(tally.refusals()),
            kept_back_per_task: per_task(tally.kept_back_calls()),
            resends_per_task: per_task(tally.resends()),
            begun_of_capacity: tally.begun_calls() as f64 / seconds / CAPACITY,
            fruitless: 1.0 - tally.fruitful_calls() as f64 / tally.begun_calls().max(1) as f64,
            wasted: tally.wasted_calls() as f64 / tally.begun_calls().max(1) as f64,
        }
    }
}

/// One law at one point: a run per seed.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    /// `steady`, or the profile.
    pub(super) profile: &'static str,
    /// Calls per task.
    pub(super) calls: usize,
    /// Load, for a profile its peak.
    pub(super) load: f64,
    /// The law.
    pub(super) law: Kind,
    /// By seed.
    pub(super) runs: Vec<Figures>,
    /// (seconds, tasks per second) of the first seed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) goodput_curve: Vec<(f64, f64)>,
}

impl Row {
    fn median(&self, figure: impl Fn(&Figures) -> f64) -> f64 {
        median(self.runs.iter().map(figure))
    }

    /// Median over the seeds.
    pub(super) fn success(&self) -> f64 {
        self.median(|run| run.success)
    }
}

struct Point {
    profile: &'static str,
    calls: usize,
    load: f64,
    scenario: Scenario,
}

/// Profiles, with the load of their peak.
fn profiles(options: &Options) -> Vec<Point> {
    let point = |profile, load, scenario: Scenario| Point {
        profile,
        calls: 2,
        load,
        scenario: options.shape(scenario),
    };
    vec![
        point("step", 5.0, Scenario::step(2, 5.0)),
        point("ramp", 5.0, Scenario::ramp(2, 5.0)),
        point("bursts", 5.0, Scenario::bursts(2, 5.0)),
        point("half lost", 0.8, Scenario::loss(2, 0.8)),
        point("swap", 2.0, Scenario::swap(2, 2.0)),
        point("trickle", 20.0 / CAPACITY, Scenario::trickle()),
        point("downstream", 0.6, Scenario::slow_downstream()),
    ]
}

/// Runs everything.
pub(super) fn run(options: &Options) -> Vec<Row> {
    let mut points = Vec::new();
    for calls in 1..=MOST_CALLS {
        for &load in &options.loads {
            let steady =
                Scenario::steady(calls, load, options.warm_seconds, options.window_seconds());
            points.push(Point { profile: "steady", calls, load, scenario: options.shape(steady) });
        }
    }
    points.extend(profiles(options));
    let seeds = options.seeds.unwrap_or(3);
    let mut work = Vec::new();
    for (index, _) in points.iter().enumerate() {
        for &law in options.laws() {
            work.extend((0..seeds).map(|seed| (index, law, options.seed + seed)));
        }
    }
    let results = pool::run(options.threads, &work, |&(index, law, seed)| {
        let scenario = &points[index].scenario;
        let tally = world::run(scenario, law, seed);
        let curve = if points[index].profile == "steady" || seed != options.seed {
            Vec::new()
        } else {
            tally.curve(5)
        };
        (Figures::of(scenario, &tally), curve)
    });
    let mut rows: Vec<Row> = Vec::new();
    for ((index, law, seed), (figures, curve)) in work.into_iter().zip(results) {
        let point = &points[index];
        if seed == options.seed {
            rows.push(Row {
                profile: point.profile,
                calls: point.calls,
                load: point.load,
                law,
                runs: Vec::new(),
                goodput_curve: curve,
            });
        }
        if let Some(row) = rows.last_mut() {
            row.runs.push(figures);
        }
    }
    rows
}

/// For a terminal.
pub(super) fn text(rows: &[Row], options: &Options) -> String {
    let mut out = String::new();
    let laws = options.laws();
    // Writing to a String cannot fail, here and below.
    for calls in 1..=MOST_CALLS {
        let _ = write!(out, "\nM{calls}, success by load\n{:>6} {:>9}", "load", "optimum");
        heads(&mut out, laws);
        for &load in &options.loads {
            let of = |row: &&Row| row.profile == "steady" && row.calls == calls && row.load == load;
            let _ = write!(out, "{load:>6} {:>9.3}", (1.0 / load).min(1.0));
            for row in rows.iter().filter(of) {
                let _ = write!(out, " {:>9.3}", row.success());
            }
            out.push('\n');
        }
    }
    let parts: [(&str, Figure); 6] = [
        ("goodput ÷ optimum, whole window", |run| run.of_optimum),
        ("success", |run| run.success),
        ("p99 queueing, ms", |run| run.queueing_p99_ms),
        ("refusals per task", |run| run.refusals_per_task),
        ("calls begun ÷ capacity", |run| run.begun_of_capacity),
        ("calls begun for tasks that fail", |run| run.fruitless),
    ];
    let steady = options.loads.iter().map(|&load| ("steady", load));
    let others = rows.iter().filter(|row| row.profile != "steady" && row.law == laws[0]);
    let places: Vec<(&str, f64)> =
        steady.chain(others.map(|row| (row.profile, row.load))).collect();
    for (title, figure) in parts {
        let _ = write!(out, "\nM2 (trickle, downstream: M1), {title}\n{:<10} {:>5}", "", "load");
        heads(&mut out, laws);
        for &(profile, load) in &places {
            let _ = write!(out, "{profile:<10} {load:>5.2}");
            let of = |row: &&Row| row.calls == 2 && row.profile == profile && row.load == load;
            for row in rows.iter().filter(of) {
                let _ = write!(out, " {:>9.3}", row.median(figure));
            }
            out.push('\n');
        }
    }
    out
}

fn heads(out: &mut String, laws: &[Kind]) {
    for law in laws {
        let _ = write!(out, " {:>9}", law.name());
    }
    out.push('\n');
}

/// The optimum over the time of a profile, for the plots.
pub(super) fn optimum_curve(profile: &str) -> Vec<(f64, f64)> {
    let scenario = match profile {
        "step" => Scenario::step(2, 5.0),
        _ => Scenario::loss(2, 0.8),
    };
    let last = scenario.until / SECOND * 5;
    (0..last)
        .map(|index| {
            let from = index * SECOND / 5;
            let best = optimum::between(&scenario, from, from + SECOND / 5, 0.0);
            ((index as f64 + 0.5) / 5.0, best)
        })
        .collect()
}
