//! The arrival rate that the server reports, from the acknowledgements of a
//! sample, against the truth, which is known here: of all pairs of a viewer and
//! an important event, the share in which the event reached a viewer that
//! acknowledges within 1, 3 and 10 s.
//!
//! A large room, of which a sample is asked, and a small one, of which everybody
//! is; their events are of two kinds, so that the server tells them apart.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use serde::Serialize;

use crate::crowd::{self, Behaviour, Crowd, HORIZONS_US};
use crate::report::{Output, Section};
use crate::run::{Deadline, Progress, RunOptions};
use crate::server::{Metrics, Server, ServerOptions};
use crate::sys;
use crate::upstream::{self, Upstream};

/// Kinds of the two rooms' events.
const KINDS: [&str; 2] = ["red_packet", "coupon"];
/// The last horizon is judged this long after the last event.
const JUDGED: Duration = Duration::from_millis(11_000);
/// Of a standard deviation, on both sides: 95 % of a normal distribution.
const Z: f64 = 1.96;

/// How a viewer stalls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stall {
    /// It reads and never acknowledges.
    Silent,
    /// It stops reading.
    Deaf,
}

/// What to do.
#[derive(Args, Debug, Clone)]
pub(crate) struct ArrivalOptions {
    /// Percent of the viewers that are stalled; which ones, the seed decides.
    #[arg(long, default_value_t = 1.0)]
    stalled: f64,
    /// How they are.
    #[arg(long, value_enum, default_value = "silent")]
    stall: Stall,
    /// Viewers of the large room.
    #[arg(long, default_value_t = 4_000)]
    viewers: u32,
    /// Viewers of the small room.
    #[arg(long, default_value_t = 200)]
    small: u32,
    /// Acknowledgements that the server asks for, per second.
    #[arg(long, default_value_t = 500)]
    acks_per_second: u32,
    /// Important events per second and room.
    #[arg(long, default_value_t = 2.0)]
    rate: f64,
    /// Seconds of a round.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Rounds, each with fresh viewers, so that other ones are asked.
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// Of all draws; by default another one each time.
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    run: RunOptions,
}

/// One kind at one horizon in one round.
#[derive(Debug, Clone, Serialize)]
struct Comparison {
    round: u32,
    kind: &'static str,
    within_s: u64,
    truth: f64,
    reported: f64,
    /// Half of the interval's width.
    margin: f64,
    /// Pairs asked for, of all.
    asked: f64,
    inside: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
struct ArrivalResult {
    seed: u64,
    stalled_percent: f64,
    viewers: u32,
    small: u32,
    comparisons: Vec<Comparison>,
    inside: usize,
    unjudged: usize,
}

/// The command.
pub(crate) fn command(options: &ArrivalOptions) -> Result<()> {
    let deadline = Deadline::arm(options.run.max_seconds);
    let mut progress = Progress::new(options.run.quiet);
    let (_, client_cpus) = options.server.processors()?;
    sys::pin(&client_cpus)?;
    let acks = format!("rooms.acks_per_second={}", options.acks_per_second);
    let mut server =
        Server::start(&options.server.with(&acks), options.viewers + options.small, deadline)?;
    let seed = options.seed.unwrap_or_else(sys::mono_us);
    let mut comparisons = Vec::new();
    for round in 1..=options.repeat.max(1) {
        let seed = seed.wrapping_add(u64::from(round) << 20);
        let more = measure(options, &server, (round, seed), deadline, &mut progress);
        if !server.runs() {
            bail!("the server ended during the run; its log ends:\n{}", server.log_tail());
        }
        comparisons.extend(more?);
    }
    progress.end();
    let expected = options.repeat.max(1) as usize * KINDS.len() * HORIZONS_US.len();
    let result = ArrivalResult {
        seed,
        stalled_percent: options.stalled,
        viewers: options.viewers,
        small: options.small,
        inside: comparisons.iter().filter(|one| one.inside).count(),
        unjudged: expected - comparisons.len(),
        comparisons,
    };
    output(options, &result)
}

fn measure(
    options: &ArrivalOptions,
    server: &Server,
    (round, seed): (u32, u64),
    deadline: Deadline,
    progress: &mut Progress,
) -> Result<Vec<Comparison>> {
    let rooms = [format!("arrival-large-{round}"), format!("arrival-small-{round}")];
    let counts = [options.viewers, options.small];
    let all = options.viewers + options.small;
    let crowd = Crowd::start(crowd::Plan {
        addr: server.addr,
        secret: server.secret.clone(),
        rooms: rooms.iter().cloned().zip(counts).collect(),
        behaviours: behaviours(options, counts, seed),
        connect_rate: 4_000,
        backoff_us: 500_000,
        max_backoff_us: 2_000_000,
        source: crowd::source(),
        nice: 0,
        seed,
    })?;
    progress.stage(&format!("arrival, round {round}, seed {seed}: joining"));
    crowd.wait_live(all, deadline, progress)?;
    let before = server.metrics();
    progress.stage("arrival: events");
    let plan = upstream::Plan {
        rooms: rooms.into_iter().zip(KINDS).collect(),
        important: options.rate * KINDS.len() as f64,
        talk: 0.0,
        publishers: KINDS.len(),
        bytes: 200,
        seed,
    };
    let upstream = Upstream::start(server, &plan)?;
    wait(Duration::from_secs_f64(options.seconds), &crowd, deadline)?;
    let told = upstream.finish()?;
    progress.stage("arrival: waiting for the server's verdict");
    wait(JUDGED, &crowd, deadline)?;
    let after = server.metrics();
    let seen = crowd.finish()?;
    if seen.closed.values().sum::<u64>() > 0 {
        bail!("viewers were cut off, so the truth is not known: {:?}", seen.closed);
    }
    let mut comparisons = Vec::new();
    for (room, kind) in KINDS.into_iter().enumerate() {
        let pairs = told.accepted[room].len() as f64 * f64::from(counts[room]);
        for (horizon, us) in HORIZONS_US.into_iter().enumerate() {
            let truth = seen.reached[room][horizon] as f64 / pairs.max(1.0);
            let within_s = us / 1_000_000;
            let reported = Reported::read(&before, &after, kind, within_s);
            comparisons
                .extend(reported.map(|reported| reported.compare(round, kind, within_s, truth)));
        }
    }
    Ok(comparisons)
}

fn wait(time: Duration, crowd: &Crowd, deadline: Deadline) -> Result<()> {
    let until = sys::mono_us() + u64::try_from(time.as_micros())?;
    while sys::mono_us() < until {
        deadline.check("measuring arrival")?;
        crowd.check()?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// So many percent of each room's viewers are stalled, drawn at random.
fn behaviours(options: &ArrivalOptions, counts: [u32; 2], seed: u64) -> Vec<Behaviour> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut all = Vec::new();
    for count in counts {
        let first = all.len();
        all.resize(first + count as usize, Behaviour::Acknowledges);
        let stalled = (f64::from(count) * options.stalled / 100.0).round() as usize;
        let places: Vec<usize> = (first..all.len()).collect();
        for &place in places.sample(&mut random, stalled) {
            all[place] = match options.stall {
                Stall::Silent => Behaviour::Silent,
                Stall::Deaf => Behaviour::Deaf,
            };
        }
    }
    all
}

/// What the server says of one kind at one horizon.
#[derive(Debug, Clone, Copy)]
struct Reported {
    due: f64,
    confirmed: f64,
    deviation: f64,
    asked: f64,
}

impl Reported {
    /// How it grew between two scrapes; `None` if nothing was judged.
    fn read(before: &Metrics, after: &Metrics, kind: &str, within_s: u64) -> Option<Reported> {
        let growth = |name: &str| {
            let series =
                format!("tidegate_arrival_{name}_total{{kind=\"{kind}\",within=\"{within_s}\"}}");
            after.series_growth(before, &series)
        };
        Some(Reported {
            due: growth("due").filter(|due| *due > 0.0)?,
            confirmed: growth("confirmed")?,
            deviation: growth("deviation")?,
            asked: growth("asked")?,
        })
    }

    fn compare(self, round: u32, kind: &'static str, within_s: u64, truth: f64) -> Comparison {
        let reported = self.confirmed / self.due;
        let margin = Z * self.deviation / self.due;
        // Both are ratios of counts; what rounding leaves is far below one pair.
        let inside = (truth - reported).abs() <= margin + 1e-9;
        let asked = self.asked / self.due;
        Comparison { round, kind, within_s, truth, reported, margin, asked, inside }
    }
}

fn output(options: &ArrivalOptions, result: &ArrivalResult) -> Result<()> {
    let mut output = Output::new("arrival");
    let percent = |share: f64| format!("{:7.3} %", share * 100.0);
    let mut section = Section::new(&format!(
        "{} % of {} and {} viewers stalled ({:?}), seed {}",
        result.stalled_percent, result.viewers, result.small, options.stall, result.seed
    ));
    for one in &result.comparisons {
        section = section.line(
            &format!("{} {:>2} s", one.kind, one.within_s),
            format!(
                "truth {}  reported {} ± {}  asked {}  {}",
                percent(one.truth),
                percent(one.reported),
                percent(one.margin),
                percent(one.asked),
                if one.inside { "inside" } else { "OUTSIDE" }
            ),
        );
    }
    let all = result.comparisons.len();
    section = section.line("inside", format!("{} of {all}", result.inside));
    output.print(section);
    let worst = result.comparisons.iter().map(|one| (one.truth - one.reported).abs());
    output.figure("inside", result.inside as f64);
    output.figure("comparisons", all as f64);
    output.figure("worst_error", worst.fold(0.0, f64::max));
    output.attach("result", result)?;
    output.finish(&options.run)?;
    // One in twenty intervals of 95 % may miss.
    let outside = all - result.inside;
    if result.unjudged > 0 || outside > all / 20 {
        bail!(
            "{outside} of {all} outside, {} never judged (seed {})",
            result.unjudged,
            result.seed
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(due: f64, confirmed: f64, deviation: f64) -> Reported {
        Reported { due, confirmed, deviation, asked: due }
    }

    #[test]
    fn the_truth_is_inside_up_to_two_deviations() {
        let compare = |deviation| reported(1_000.0, 900.0, deviation).compare(1, "k", 3, 0.92);
        assert!(compare(11.0).inside);
        assert!(!compare(10.0).inside);
        let exact = reported(300.0, 100.0, 0.0);
        assert!(exact.compare(1, "k", 1, 1.0 / 3.0).inside);
        assert!(!exact.compare(1, "k", 1, 0.334).inside);
    }

    #[test]
    fn what_the_server_reports_is_the_growth_of_its_counters() {
        let text = |due, confirmed| {
            let label = "{kind=\"coupon\",within=\"3\"}";
            Metrics::parse(&format!(
                "tidegate_arrival_due_total{label} {due}\n\
                 tidegate_arrival_confirmed_total{label} {confirmed}\n\
                 tidegate_arrival_deviation_total{label} 2\n\
                 tidegate_arrival_asked_total{label} 7\n"
            ))
        };
        let read = |kind| Reported::read(&text(10, 8), &text(30, 18), kind, 3);
        let growth = read("coupon").unwrap();
        assert_eq!((growth.due, growth.confirmed, growth.deviation), (20.0, 10.0, 0.0));
        assert!(read("red_packet").is_none());
        assert!(Reported::read(&text(10, 8), &text(10, 8), "coupon", 3).is_none());
    }
}
