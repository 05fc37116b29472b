//! What a run against a real server found, in figures and held to the marks.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;

use super::flood::by_kind;
use super::real::Options;
use super::steady::Account;
use super::storm::Storm;
use super::tally::Tally;
use super::watch::Sample;
use crate::hist::{Recorded, Summary};
use crate::protocol::Stats;
use crate::report::{Output, Section};
use crate::run::RunOptions;
use crate::server::Metrics;

/// Accepted per second, as a share of the capacity.
const LEAST_ACCEPTED: f64 = 0.9;
/// 99th percentile of the delivery of important events, in milliseconds.
const MOST_IMPORTANT_MS: f64 = 3_000.0;
/// Small rooms' 99th percentile, as a multiple of their unloaded one.
const MOST_SMALL: f64 = 2.0;
/// Seconds from the end of the load to level open and rung normal.
const MOST_RECOVERY: f64 = 2.0;
/// What memory may grow by between the first and the last quarter of a phase.
const MOST_GROWTH: f64 = 0.10;
/// The same in KiB, beside it: caches of a fixed size still fill in the first phase.
const FREE_GROWTH_KIB: f64 = 16.0 * 1024.0;
/// And for each viewer that a storm brought: the mark of one that is in a room and has
/// nothing else, in KiB.
const VIEWER_KIB: f64 = 1.2;

/// The steady traffic of a window.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Rooms {
    /// Important events of the hot room, from their time to every viewer.
    pub(super) hot: Group,
    /// All events of the small rooms.
    pub(super) small: Group,
}

/// Steady events of some rooms.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Group {
    /// Accepted: important ones, others.
    accepted: [u64; 2],
    /// Refused, by code: important ones, others.
    refused: [BTreeMap<String, u64>; 2],
    /// Accepted events times viewers.
    due: u64,
    delivered: u64,
    duplicated: u64,
    /// From the time it was to be sent to a viewer's receipt.
    delivery: Summary,
    /// Answer times of its requests.
    answers: Summary,
    /// Percentile curve: (quantile, ms).
    #[serde(skip)]
    curve: Vec<(f64, f64)>,
}

impl Group {
    fn lost(&self) -> u64 {
        self.due.saturating_sub(self.delivered)
    }
}

/// Deliveries that a window owes its viewers.
pub(super) fn due(accounts: &[Account], options: &Options) -> u64 {
    let one = |(room, account): (usize, &Account)| {
        account.accepted.iter().sum::<u64>() * options.viewers_of(room)
    };
    accounts.iter().enumerate().map(one).sum()
}

/// The window's account of the hot room and of the small ones together.
pub(super) fn rooms(accounts: &[Account], stats: &[Stats; 2], options: &Options) -> Rooms {
    let group = |index: usize, accounts: &[Account]| {
        let mut sum = Account::default();
        for account in accounts {
            sum.absorb(account);
        }
        let seen = stats[index].groups.first().cloned().unwrap_or_default();
        Group {
            due: sum.accepted.iter().sum::<u64>() * options.viewers_of(index),
            accepted: sum.accepted,
            delivered: seen.deliveries,
            duplicated: seen.duplicated,
            delivery: seen.latency.summary(),
            answers: sum.answers.summary(),
            curve: seen.latency.curve(),
            refused: sum.refused,
        }
    };
    Rooms { hot: group(0, &accounts[..1]), small: group(1, &accounts[1..]) }
}

/// Without load.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Calm {
    pub(super) rooms: Rooms,
    pub(super) rss_kib: u64,
    /// Steady publishers and small rooms' viewers ran before all others on their
    /// processors.
    pub(super) first: bool,
}

/// One step of the search for the capacity.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Step {
    pub(super) connections: usize,
    pub(super) accepted_per_second: f64,
    refused_per_second: f64,
    answers: Summary,
    server_cpu: f64,
    idle_cpu: f64,
    client_cpu: f64,
    accepted_by_kind: BTreeMap<&'static str, u64>,
}

impl Step {
    pub(super) fn of(
        connections: usize,
        tally: &Tally,
        samples: &[Sample],
        client_cpu: u64,
    ) -> Self {
        let refused: u64 = tally.refused.values().sum();
        Self {
            connections,
            accepted_per_second: tally.accepted as f64 / tally.seconds,
            refused_per_second: refused as f64 / tally.seconds,
            answers: Recorded::of(&tally.answers).summary(),
            server_cpu: busy(samples, |sample| sample.cpu_ns),
            idle_cpu: busy(samples, |sample| sample.idle_ns),
            client_cpu: client_cpu as f64 / 1e9 / tally.seconds,
            accepted_by_kind: by_kind(&tally.accepted_by),
        }
    }
}

/// Events per second that the server takes at most, and how that was found.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Capacity {
    pub(super) events_per_second: f64,
    pub(super) steps: Vec<Step>,
    pub(super) held: Option<Step>,
}

impl Capacity {
    /// By the command line.
    pub(super) fn given(events_per_second: f64) -> Self {
        Self { events_per_second, steps: Vec::new(), held: None }
    }
}

/// A load, and what came of it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Phase {
    factor: f64,
    seconds: f64,
    asked_per_second: f64,
    offered_per_second: f64,
    sent_per_second: f64,
    shed_locally_per_second: f64,
    unsent_per_second: f64,
    queue_full_per_second: f64,
    accepted_per_second: f64,
    accepted_of_capacity: f64,
    refused_per_second: BTreeMap<String, f64>,
    requests_per_second: f64,
    /// By the server, per second: offered to the gate, admitted, per tier.
    tiers: BTreeMap<u8, [f64; 2]>,
    cooperating_answers: Summary,
    ignoring_answers: Summary,
    rooms: Rooms,
    server_cpu: f64,
    /// Idle time of the server's processors. What is neither idle nor the server's
    /// was taken by others: then the machine was not ours.
    idle_cpu: f64,
    client_cpu: f64,
    /// Worst level, highest rung, longest queueing, seen in the phase.
    tightest: String,
    highest_rung: String,
    queueing_ms_mean: f64,
    queueing_ms_max: f64,
    rung_share: BTreeMap<String, f64>,
    /// Until level open and rung normal; `None`: not within what was waited.
    recovery_seconds: Option<f64>,
    rss_first_kib: f64,
    rss_last_kib: f64,
    storm: Option<Storm>,
    samples: Vec<Sample>,
}

impl Phase {
    #[expect(clippy::too_many_arguments, reason = "what a phase consists of")]
    pub(super) fn of(
        factor: f64,
        capacity: f64,
        [polite, flood]: [Tally; 2],
        rooms: Rooms,
        samples: &[Sample],
        recovery_seconds: Option<f64>,
        scrapes: [Metrics; 2],
        client_cpu: u64,
        storm: Option<Storm>,
    ) -> Self {
        let mut sum = polite.clone();
        sum.absorb(&flood);
        let per_second = |count: u64| count as f64 / sum.seconds;
        let (rss_first_kib, rss_last_kib) = quarters(samples);
        let mut rungs: BTreeMap<String, f64> = BTreeMap::new();
        let looks: Vec<_> = samples.iter().flat_map(|sample| &sample.shards).collect();
        for shard in &looks {
            *rungs.entry(shard.rung.clone()).or_default() += 1.0 / looks.len() as f64;
        }
        let place = |rung: &str| RUNGS.iter().position(|name| *name == rung).unwrap_or(0);
        let tight = looks.iter().map(|shard| shard.level).min_by(|a, b| {
            (a.business, a.user).cmp(&(b.business, b.user)).then(a.share.total_cmp(&b.share))
        });
        let queueing = looks.iter().map(|shard| shard.queueing_ms);
        Self {
            factor,
            seconds: sum.seconds,
            asked_per_second: factor * capacity,
            offered_per_second: per_second(sum.offered),
            sent_per_second: per_second(sum.sent),
            shed_locally_per_second: per_second(sum.shed),
            unsent_per_second: per_second(sum.unsent),
            queue_full_per_second: per_second(sum.queue_full),
            accepted_per_second: per_second(sum.accepted),
            accepted_of_capacity: per_second(sum.accepted) / capacity,
            refused_per_second: sum
                .refused
                .iter()
                .map(|(k, v)| (k.clone(), per_second(*v)))
                .collect(),
            requests_per_second: per_second(sum.requests),
            tiers: tiers(&scrapes, sum.seconds),
            cooperating_answers: Recorded::of(&polite.answers).summary(),
            ignoring_answers: Recorded::of(&flood.answers).summary(),
            rooms,
            server_cpu: busy(samples, |sample| sample.cpu_ns),
            idle_cpu: busy(samples, |sample| sample.idle_ns),
            client_cpu: client_cpu as f64 / 1e9 / sum.seconds,
            tightest: tight.map_or_else(String::new, |level| {
                format!("({}, {}, {:.2})", level.business, level.user, level.share)
            }),
            highest_rung: looks
                .iter()
                .map(|shard| shard.rung.as_str())
                .max_by_key(|rung| place(rung))
                .unwrap_or_default()
                .to_owned(),
            queueing_ms_mean: queueing.clone().sum::<f64>() / looks.len().max(1) as f64,
            queueing_ms_max: queueing.fold(0.0, f64::max),
            rung_share: rungs,
            recovery_seconds,
            rss_first_kib,
            rss_last_kib,
            storm,
            samples: samples.to_vec(),
        }
    }

    /// The storm's viewers are all in, and cost what they cost.
    pub(super) fn after_storm(&mut self, with_all: Step, before: f64) {
        let Some(storm) = &mut self.storm else { return };
        let could_be = storm.could_be(before, with_all, self.seconds);
        self.accepted_of_capacity = self.accepted_per_second * self.seconds / could_be;
    }

    fn marks(&self, calm: &Calm) -> Vec<Mark> {
        let (hot, small) = (&self.rooms.hot, &self.rooms.small);
        let mark = |name, value: String, wanted: String, holds| Mark { name, value, wanted, holds };
        let came = self.storm.as_ref().map_or(0.0, |storm| storm.joined as f64);
        let allowed =
            self.rss_first_kib * (1.0 + MOST_GROWTH) + FREE_GROWTH_KIB + came * VIEWER_KIB;
        let unloaded = calm.rooms.small.delivery.p99_ms;
        let refused = hot.refused[0].values().sum::<u64>() + small.refused[0].values().sum::<u64>();
        let mut marks = vec![
            mark(
                "accepted of capacity (events)",
                format!("{:.3}", self.accepted_of_capacity),
                format!("at least {LEAST_ACCEPTED}"),
                self.accepted_of_capacity >= LEAST_ACCEPTED,
            ),
            mark(
                "important events refused",
                format!("{refused} of {}", refused + hot.accepted[0] + small.accepted[0]),
                "none".into(),
                refused == 0,
            ),
            mark(
                "important deliveries lost",
                format!("{} of {}", hot.lost(), hot.due),
                "none".into(),
                hot.lost() == 0 && hot.due > 0,
            ),
            mark(
                "important delivery p99",
                format!("{:.1} ms", hot.delivery.p99_ms),
                format!("below {MOST_IMPORTANT_MS} ms"),
                hot.delivery.p99_ms < MOST_IMPORTANT_MS,
            ),
            mark(
                "small rooms' p99",
                format!("{:.2} ms, {unloaded:.2} unloaded", small.delivery.p99_ms),
                format!("at most {MOST_SMALL} times"),
                small.delivery.p99_ms <= MOST_SMALL * unloaded,
            ),
            mark(
                "small rooms' deliveries lost",
                format!("{} of {}", small.lost(), small.due),
                "none".into(),
                small.lost() == 0 && small.due > 0,
            ),
            mark(
                "small rooms' chat refused",
                {
                    let refused: u64 = small.refused[1].values().sum();
                    format!("{refused} of {}", refused + small.accepted[1])
                },
                "none".into(),
                small.refused[1].is_empty(),
            ),
            mark(
                "level open, rung normal after",
                self.recovery_seconds.map_or("never".into(), |s| format!("{s:.2} s")),
                format!("at most {MOST_RECOVERY} s"),
                self.recovery_seconds.is_some_and(|s| s <= MOST_RECOVERY),
            ),
            mark(
                "memory, first and last quarter",
                format!(
                    "{:.0} and {:.0} MiB",
                    self.rss_first_kib / 1024.0,
                    self.rss_last_kib / 1024.0
                ),
                format!("at most {:.0} MiB", allowed / 1024.0),
                self.rss_last_kib <= allowed,
            ),
        ];
        if let Some(storm) = &self.storm {
            marks.push(mark(
                "storm: in after all",
                format!("{} of {}", storm.joined, storm.asked),
                "all".into(),
                storm.joined == u64::from(storm.asked),
            ));
        }
        marks
    }
}

/// From the bottom, as the server names them.
const RUNGS: [&str; 6] = ["normal", "stretch", "thin", "trim", "refuse", "hold"];

/// A figure held to what it should be.
#[derive(Debug, Clone, Serialize)]
struct Mark {
    name: &'static str,
    value: String,
    wanted: String,
    holds: bool,
}

/// Growth of a time between the first and the last look, in processors.
fn busy(samples: &[Sample], time: impl Fn(&Sample) -> u64) -> f64 {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else { return 0.0 };
    let wall = last.at_us.saturating_sub(first.at_us).max(1) as f64 * 1e3;
    time(last).saturating_sub(time(first)) as f64 / wall
}

/// Largest resident KiB in the first and in the last quarter.
fn quarters(samples: &[Sample]) -> (f64, f64) {
    let quarter = samples.len().div_ceil(4);
    let most = |part: &[Sample]| part.iter().map(|sample| sample.rss_kib).max().unwrap_or(0) as f64;
    (most(&samples[..quarter]), most(&samples[samples.len() - quarter..]))
}

fn tiers(scrapes: &[Metrics; 2], seconds: f64) -> BTreeMap<u8, [f64; 2]> {
    let growth = |name: &str, tier: u8| {
        let series = format!("tidegate_admission_{name}_total{{tier=\"{tier}\"}}");
        scrapes[1].series_growth(&scrapes[0], &series).map(|count| count / seconds)
    };
    (0..64)
        .filter_map(|tier| Some((tier, [growth("offered", tier)?, growth("admitted", tier)?])))
        .filter(|(_, counts)| counts[0] > 0.0)
        .collect()
}

/// Prints it all, and writes what was asked for.
pub(super) fn output(
    publishers: &str,
    calm: &Calm,
    capacity: &Capacity,
    phases: &[Phase],
    run: &RunOptions,
) -> Result<()> {
    let mut output = Output::new("overload");
    let steady = |section: Section, name: &str, group: &Group| {
        section.line(name, format!("{}, answers {}", group.delivery, group.answers))
    };
    let section = steady(Section::new("unloaded"), "hot room", &calm.rooms.hot);
    let waiting = if calm.first {
        "run before all others on their processor"
    } else {
        "wait for their processor (no right to real-time priority): latencies contain it"
    };
    let lost = format!("hot {}, small {}", calm.rooms.hot.lost(), calm.rooms.small.lost());
    let section = steady(section, "small rooms", &calm.rooms.small).line("lost", lost);
    output.print(section.line("steady senders", format!("and small rooms' viewers {waiting}")));
    let mut section = Section::new("capacity: closed loops, more and more of them");
    let steps = capacity.steps.iter().map(|step| (step, ""));
    for (step, held) in steps.chain(capacity.held.iter().map(|step| (step, ", held"))) {
        section = section.line(
            &format!("{} loops{held}", step.connections),
            format!(
                "{:.0} accepted/s, {:.0} refused/s, processors: server {:.2} (idle {:.2}), \
                 load generator {:.2}; answers {}",
                step.accepted_per_second,
                step.refused_per_second,
                step.server_cpu,
                step.idle_cpu,
                step.client_cpu,
                step.answers
            ),
        );
    }
    let found = if capacity.held.is_some() { "the best step" } else { "as given" };
    output.print(section.line("capacity", format!("{:.0}/s, {found}", capacity.events_per_second)));
    output.figure("capacity", capacity.events_per_second);
    output.figure("unloaded_small_p99_ms", calm.rooms.small.delivery.p99_ms);
    let mut all = Vec::new();
    for phase in phases {
        let marks = phase.marks(calm);
        output.print(account(phase, publishers));
        let title = format!("{} times the capacity: marks", phase.factor);
        let mut section = Section::new(&title);
        for mark in &marks {
            let word = if mark.holds { "PASS" } else { "FAIL" };
            section =
                section.line(word, format!("{:<31} {} ({})", mark.name, mark.value, mark.wanted));
        }
        output.print(section);
        let name = format!("x{}", phase.factor);
        output.figure(&format!("{name}_accepted_of_capacity"), phase.accepted_of_capacity);
        output.figure(&format!("{name}_important_p99_ms"), phase.rooms.hot.delivery.p99_ms);
        output.figure(&format!("{name}_small_p99_ms"), phase.rooms.small.delivery.p99_ms);
        all.push(marks);
        let mut series = crate::drive::Series::default();
        let start = phase.samples.first().map_or(0, |sample| sample.at_us);
        for sample in &phase.samples {
            let at = (sample.at_us - start) as f64 / 1e6;
            series.memory.push((at, sample.rss_kib as f64 / 1024.0));
        }
        output.plots(&name, &series, &phase.rooms.hot.curve);
    }
    output.attach("publishers", publishers)?;
    output.attach("calm", calm)?;
    output.attach("capacity", capacity)?;
    output.attach("phases", phases)?;
    output.attach("marks", all)?;
    output.finish(run)
}

/// A phase in words.
fn account(phase: &Phase, publishers: &str) -> Section {
    let list = |counts: &BTreeMap<String, f64>| {
        let each = counts.iter().map(|(code, count)| format!("{code} {count:.0}"));
        each.collect::<Vec<_>>().join(", ")
    };
    let tiers = phase.tiers.iter().map(|(tier, [offered, admitted])| {
        format!("{tier}: {admitted:.0} of {offered:.0} ({:.0} %)", admitted / offered * 100.0)
    });
    let rungs = phase.rung_share.iter().map(|(rung, part)| format!("{rung} {:.0} %", part * 100.0));
    let (hot, small) = (&phase.rooms.hot, &phase.rooms.small);
    let section = Section::new(&format!("{} times the capacity", phase.factor))
        .line("publishers", publishers)
        .line(
            "offered",
            format!(
                "{:.0}/s of {:.0}/s asked, for {:.1} s",
                phase.offered_per_second, phase.asked_per_second, phase.seconds
            ),
        )
        .line(
            "not sent",
            format!(
                "{:.0}/s below the level, {:.0}/s to a full queue, {:.0}/s without a connection",
                phase.shed_locally_per_second, phase.queue_full_per_second, phase.unsent_per_second
            ),
        )
        .line(
            "sent",
            format!(
                "{:.0}/s in {:.0} requests/s",
                phase.sent_per_second, phase.requests_per_second
            ),
        )
        .line("accepted", format!("{:.0}/s", phase.accepted_per_second))
        .line("refused/s", list(&phase.refused_per_second))
        .line("at the gate/s", tiers.collect::<Vec<_>>().join("; "))
        .line("cooperating", format!("outcome after {}", phase.cooperating_answers))
        .line("ignoring", format!("answer after {}", phase.ignoring_answers))
        .line("hot, important", format!("{}; answers {}", hot.delivery, hot.answers))
        .line("small rooms", format!("{}; answers {}", small.delivery, small.answers))
        .line(
            "refused there",
            format!(
                "hot {:?}, small important {:?}, chat {:?}",
                hot.refused[0], small.refused[0], small.refused[1]
            ),
        )
        .line(
            "level",
            format!(
                "tightest {}; rungs {}; queueing {:.1} ms mean, {:.1} ms at most",
                phase.tightest,
                rungs.collect::<Vec<_>>().join(", "),
                phase.queueing_ms_mean,
                phase.queueing_ms_max
            ),
        )
        .line(
            "processors",
            format!(
                "server {:.2} (idle {:.2}), load generator {:.2}",
                phase.server_cpu, phase.idle_cpu, phase.client_cpu
            ),
        );
    match &phase.storm {
        Some(storm) => storm.account(section),
        None => section,
    }
}
