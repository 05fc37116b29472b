//! Overload for real: a server on this machine, a hot room and small ones beside
//! it, capacity first, then multiples of it. docs/overload-real.md says what
//! every figure means.

use anyhow::{Context as _, Result, bail};
use clap::Args;
use tidegate::client::Protocol;

use super::flood::{Flood, FloodPlan};
use super::polite::{Polite, PolitePlan};
use super::result::{self, Calm, Capacity, Phase, Step};
use super::steady::{Account, Steady};
use super::storm::Storm;
use super::tally::Tally;
use super::watch::Watch;
use crate::fleet::{self, Fleet, Joined};
use crate::protocol::{Mode, Plan, Share, Stats};
use crate::run::{Deadline, Progress, RunOptions};
use crate::server::{Server, ServerOptions};
use crate::sys;
use crate::transport::Wire;

/// One of so many viewers reads and checks everything.
const CHECK_EVERY: u32 = 50;
/// Between two stages, for what is under way.
const SETTLE_US: u64 = 1_500_000;
/// How long the last events may take to arrive before they count as lost.
const TAIL_US: u64 = 15_000_000;
/// How long a return to normal is waited for.
const RECOVERY_US: u64 = 15_000_000;
/// How long a storm is waited for when the load is over: a little more than a
/// viewer tries.
const STORM_US: u64 = 32_000_000;
/// Two steps of the search for capacity must bring less than this.
const GROWTH: f64 = 1.03;

/// What to measure.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Real server")]
pub(crate) struct Options {
    /// Viewers of the hot room.
    #[arg(long, default_value_t = 5_000)]
    viewers: u32,
    /// Small rooms beside it.
    #[arg(long, default_value_t = 20)]
    small_rooms: u16,
    /// Viewers of each.
    #[arg(long, default_value_t = 20)]
    small_viewers: u32,
    /// Events per second in each, one in three of them important.
    #[arg(long, default_value_t = 3.0)]
    small_rate: f64,
    /// Important events per second in the hot room.
    #[arg(long, default_value_t = 2.0)]
    important_rate: f64,
    /// Seconds without load, for the small rooms' unloaded latency.
    #[arg(long, default_value_t = 20.0)]
    calm_seconds: f64,
    /// Multiples of the capacity to offer, one phase each.
    #[arg(long, value_delimiter = ',', default_value = "2,5,10")]
    factors: Vec<f64>,
    /// Events per second to take for the capacity, instead of searching it.
    #[arg(long)]
    capacity: Option<f64>,
    /// Seconds of each step of the search.
    #[arg(long, default_value_t = 4.0)]
    step_seconds: f64,
    /// Events of one request.
    #[arg(long, default_value_t = 20)]
    batch: usize,
    /// Events of one request of a cooperating publisher, at most; it has one
    /// request under way in each room.
    #[arg(long, default_value_t = 100)]
    polite_batch: usize,
    /// Users that events come from.
    #[arg(long, default_value_t = 50_000)]
    users: u32,
    /// Cooperating publishers.
    #[arg(long, default_value_t = 32)]
    publishers: usize,
    /// They use gRPC instead of HTTP.
    #[arg(long, conflicts_with = "ignore_levels")]
    grpc: bool,
    /// Publishers ignore every level and answer.
    #[arg(long)]
    ignore_levels: bool,
    /// Half of the load ignores levels, beside cooperating publishers.
    #[arg(long, conflicts_with = "ignore_levels")]
    mixed: bool,
    /// Connections of publishers that ignore levels.
    #[arg(long, default_value_t = 256)]
    connections: usize,
    /// Viewers that join within a second in the middle of the last phase.
    #[arg(long, default_value_t = 0)]
    storm: u32,
    /// Publish one event of each of so many users, watch memory, and end.
    #[arg(long)]
    distinct_users: Option<u64>,
    /// The whole run ends by itself after so many seconds.
    #[arg(long, default_value_t = 1_200)]
    max_seconds: u64,
    /// Write a page, complete in one file.
    #[arg(long, value_name = "FILE")]
    html: Option<std::path::PathBuf>,
    /// No progress line.
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    pub(super) server: ServerOptions,
}

impl Options {
    /// What every command shares, with `json` from where it is declared.
    pub(super) fn run(&self, json: Option<std::path::PathBuf>) -> RunOptions {
        let (html, max_seconds, quiet) = (self.html.clone(), self.max_seconds, self.quiet);
        RunOptions { json, html, max_seconds, quiet }
    }

    /// Who publishes in the phases.
    pub(super) fn publishers(&self) -> String {
        let polite = format!(
            "{} cooperating publishers by {}, batches up to {}",
            self.publishers,
            if self.grpc { "gRPC" } else { "HTTP" },
            self.polite_batch
        );
        let flood = format!("{} connections that ignore levels", self.connections);
        match (self.ignore_levels, self.mixed) {
            (true, _) => flood,
            (false, true) => format!("half each: {polite}; {flood}"),
            (false, false) => polite,
        }
    }
}

/// The command.
pub(super) fn command(
    options: &Options,
    seconds: f64,
    json: Option<std::path::PathBuf>,
) -> Result<()> {
    let run = options.run(json);
    if let Some(users) = options.distinct_users {
        return super::users::command(options, users, &run);
    }
    let deadline = Deadline::arm(run.max_seconds);
    let mut progress = Progress::new(run.quiet);
    let (_, client_cpus) = options.server.processors()?;
    sys::pin(&client_cpus)?;
    let small = u32::from(options.small_rooms) * options.small_viewers;
    let sockets = options.viewers + small + options.storm + options.connections as u32;
    let mut server = Server::start(&options.server, sockets, deadline)?;
    let outcome = Bench::prepare(options, &server, deadline, &mut progress)
        .and_then(|bench| bench.measure(seconds));
    if !server.runs() {
        bail!("the server ended during the run; its log ends:\n{}", server.log_tail());
    }
    progress.end();
    let (calm, capacity, phases) = outcome?;
    result::output(&options.publishers(), &calm, &capacity, &phases, &run)
}

/// Everything that stands while the phases come and go.
struct Bench<'a> {
    options: &'a Options,
    server: &'a Server,
    rooms: Vec<String>,
    hot: Fleet,
    /// A process of its own, before all others on its processor: what small rooms
    /// receive must not wait for it to read what the hot room sends.
    small: Fleet,
    storm: Option<Fleet>,
    steady: Steady,
    watch: Watch,
    run: u64,
    sources: u32,
    deadline: Deadline,
    progress: &'a mut Progress,
}

/// A load under way.
#[derive(Default)]
struct Load {
    flood: Option<Flood>,
    polite: Option<Polite>,
}

impl Load {
    fn ended(&self) -> bool {
        self.flood.as_ref().is_some_and(Flood::ended)
            || self.polite.as_ref().is_some_and(Polite::ended)
    }

    /// Those that cooperate, and those that do not.
    fn stop(self) -> Result<(Tally, Tally)> {
        // Both are told before either is waited for.
        let polite = self.polite.map_or_else(|| Ok(Tally::default()), Polite::stop)?;
        let flood = self.flood.map_or_else(|| Ok(Tally::default()), Flood::stop)?;
        Ok((polite, flood))
    }
}

impl<'a> Bench<'a> {
    fn prepare(
        options: &'a Options,
        server: &'a Server,
        deadline: Deadline,
        progress: &'a mut Progress,
    ) -> Result<Self> {
        let run = sys::mono_us();
        let mut rooms = vec![format!("lt-hot-{run:x}")];
        rooms.extend((0..options.small_rooms).map(|room| format!("lt-small-{run:x}-{room}")));
        let (server_cpus, client_cpus) = options.server.processors()?;
        let share = |room, count| Share { room, group: 0, count, slow: false };
        let plan = viewers(server, &rooms, vec![share(0, options.viewers)]);
        let shares = (1..=options.small_rooms).map(|room| share(room, options.small_viewers));
        let small =
            Plan { shares: shares.collect(), priority: super::steady::FIRST, ..plan.clone() };
        let workers = fleet::workers_for(options.viewers, options.viewers, 0, client_cpus.len());
        let mut hot = Fleet::start(&plan, workers, deadline)?;
        let mut small = Fleet::start(&small, 1, deadline)?;
        progress.stage("overload: viewers join");
        let wanted = u32::from(options.small_rooms) * options.small_viewers;
        for (fleet, wanted) in [(&mut small, wanted), (&mut hot, options.viewers)] {
            let joined = fleet.connect(deadline, progress)?;
            if joined.joined != wanted {
                bail!("{} of {wanted} viewers: {:?}", joined.joined, joined.failed);
            }
        }
        // Prepared first: tokens are not minted during the storm.
        let storm = match options.storm {
            0 => None,
            _ => Some(Fleet::start(&stormers(options, &plan), 1, deadline)?),
        };
        let steady = Steady::start(server, &rooms, options.important_rate, options.small_rate)?;
        let watch = Watch::start(server, server_cpus);
        Ok(Self {
            options,
            server,
            rooms,
            hot,
            small,
            storm,
            steady,
            watch,
            run,
            sources: 0,
            deadline,
            progress,
        })
    }

    fn measure(mut self, seconds: f64) -> Result<(Calm, Capacity, Vec<Phase>)> {
        self.rest(SETTLE_US)?;
        let calm = self.calm()?;
        let capacity = match self.options.capacity {
            Some(given) => Capacity::given(given),
            None => self.capacity()?,
        };
        let mut phases = Vec::new();
        let mut storm = self.storm.take();
        for (index, &factor) in self.options.factors.iter().enumerate() {
            let last = index + 1 == self.options.factors.len();
            let storm = if last { storm.as_mut() } else { None };
            phases.push(self.phase(factor, capacity.events_per_second, seconds, storm)?);
        }
        if let (Some(_), Some(phase)) = (&storm, phases.last_mut()) {
            self.progress.stage("overload: capacity with the storm's viewers");
            let with_all = self.step(self.options.connections, self.options.step_seconds * 3.0)?;
            phase.after_storm(with_all, capacity.events_per_second);
        }
        Ok((calm, capacity, phases))
    }

    /// The small rooms with nothing beside them but the hot room's few events.
    fn calm(&mut self) -> Result<Calm> {
        self.progress.stage("overload: unloaded");
        self.begin()?;
        self.rest((self.options.calm_seconds * 1e6) as u64)?;
        let (accounts, stats) = self.finish()?;
        let rss_kib = self.watch.last().map_or(0, |sample| sample.rss_kib);
        Ok(Calm {
            rooms: result::rooms(&accounts, &stats, self.options),
            rss_kib,
            first: self.steady.first,
        })
    }

    /// Closed loops, twice as many in every step, until no more gets accepted.
    fn capacity(&mut self) -> Result<Capacity> {
        let mut steps: Vec<Step> = Vec::new();
        let (mut best, mut connections, mut stale) = (0.0, 2, 0);
        while stale < 2 && connections <= 512 {
            self.progress.stage(&format!("overload: capacity, {connections} closed loops"));
            let step = self.step(connections, self.options.step_seconds)?;
            if step.accepted_per_second < best * GROWTH {
                stale += 1;
            } else {
                stale = 0;
            }
            best = step.accepted_per_second.max(best);
            steps.push(step);
            connections *= 2;
        }
        let best = steps
            .iter()
            .max_by(|a, b| a.accepted_per_second.total_cmp(&b.accepted_per_second))
            .context("no step")?;
        let events_per_second = best.accepted_per_second;
        // For longer, to see whether what a short step reaches can be held.
        let held = self.step(best.connections, self.options.step_seconds * 3.0)?;
        Ok(Capacity { events_per_second, steps, held: Some(held) })
    }

    fn step(&mut self, connections: usize, seconds: f64) -> Result<Step> {
        self.calm_down()?;
        self.steady.resume();
        let plan = FloodPlan { connections, ..self.flood(None) };
        let from = sys::mono_us();
        let flood = Flood::start(plan);
        let own = self.client_cpu_ns();
        self.rest((seconds * 1e6) as u64)?;
        let client_cpu = self.client_cpu_ns() - own;
        let tally = flood.stop()?;
        let samples = self.watch.between(from, sys::mono_us());
        self.steady.pause();
        Ok(Step::of(connections, &tally, &samples, client_cpu))
    }

    fn flood(&mut self, rate: Option<f64>) -> FloodPlan {
        self.sources += 100;
        FloodPlan {
            addr: self.server.addr,
            secret: self.server.secret.clone(),
            room: self.rooms[0].clone(),
            run: self.run,
            source: self.sources,
            users: self.options.users,
            batch: self.options.batch,
            connections: self.options.connections,
            rate,
        }
    }

    fn load(&mut self, rate: f64) -> Result<Load> {
        let mut load = Load::default();
        let half = if self.options.mixed { 0.5 } else { 1.0 };
        if !self.options.ignore_levels {
            self.sources += 100;
            load.polite = Some(Polite::start(&PolitePlan {
                url: format!("http://{}", self.server.addr),
                secret: self.server.secret.clone(),
                room: self.rooms[0].clone(),
                run: self.run,
                source: self.sources,
                users: self.options.users,
                batch: self.options.polite_batch,
                publishers: self.options.publishers,
                threads: 2,
                rate: rate * half,
                protocol: if self.options.grpc { Protocol::Grpc } else { Protocol::Http },
            })?);
        }
        if self.options.ignore_levels || self.options.mixed {
            load.flood = Some(Flood::start(self.flood(Some(rate * half))));
        }
        Ok(load)
    }

    fn phase(
        &mut self,
        factor: f64,
        capacity: f64,
        seconds: f64,
        mut storm: Option<&mut Fleet>,
    ) -> Result<Phase> {
        self.progress.stage(&format!("overload: {factor} times the capacity"));
        self.calm_down()?;
        self.begin()?;
        let before = self.server.metrics();
        let client_cpu = self.client_cpu_ns();
        let from = sys::mono_us();
        let load = self.load(factor * capacity)?;
        let half = from + (seconds * 5e5) as u64;
        let until = from + (seconds * 1e6) as u64;
        self.wait(&load, if storm.is_some() { half } else { until })?;
        let joined = match &mut storm {
            Some(fleet) => {
                let joined = rush(fleet, until, self.deadline, self.progress)?;
                self.wait(&load, until)?;
                Some(joined)
            }
            None => None,
        };
        let client_cpu = self.client_cpu_ns() - client_cpu;
        let (polite, flood) = load.stop()?;
        let ended = sys::mono_us();
        let after = self.server.metrics();
        let normal = self.back_to_normal(ended)?;
        let storm = match (storm, joined) {
            (Some(fleet), Some(joined)) => {
                let stats = self.storm_settles(fleet)?;
                Some(Storm::of(self.options.storm, joined, &stats, &before, &self.server.metrics()))
            }
            _ => None,
        };
        let (accounts, stats) = self.finish()?;
        Ok(Phase::of(
            factor,
            capacity,
            [polite, flood],
            result::rooms(&accounts, &stats, self.options),
            &self.watch.between(from, ended),
            normal.map(|at| (at.saturating_sub(ended)) as f64 / 1e6),
            [before, after],
            client_cpu,
            storm,
        ))
    }

    /// Waits until all of the storm are in, or no more will be.
    fn storm_settles(&mut self, fleet: &mut Fleet) -> Result<Stats> {
        let limit = sys::mono_us() + STORM_US;
        loop {
            self.rest(250_000)?;
            let stats = fleet.collect(false, self.deadline)?;
            let inside: u64 = stats.groups.iter().map(|group| group.viewers).sum();
            if inside >= u64::from(self.options.storm) || sys::mono_us() > limit {
                return Ok(stats);
            }
        }
    }

    fn wait(&mut self, load: &Load, until: u64) -> Result<()> {
        while sys::mono_us() < until && !load.ended() {
            self.deadline.check("offering")?;
            self.rest(200_000.min(until.saturating_sub(sys::mono_us())))?;
            self.progress.tell("");
        }
        Ok(())
    }

    /// When level and ladder were back to normal, if they were.
    fn back_to_normal(&mut self, ended: u64) -> Result<Option<u64>> {
        loop {
            self.rest(50_000)?;
            let last = self.watch.last();
            if let Some(sample) = last.filter(|sample| sample.at_us > ended && sample.normal()) {
                return Ok(Some(sample.at_us));
            }
            if sys::mono_us() > ended + RECOVERY_US {
                return Ok(None);
            }
        }
    }

    /// Lets time pass.
    fn rest(&mut self, us: u64) -> Result<()> {
        let until = sys::mono_us() + us;
        while sys::mono_us() < until {
            self.deadline.check("waiting")?;
            self.small.pump(0)?;
            self.hot.pump(until.min(sys::mono_us() + 20_000))?;
        }
        Ok(())
    }

    /// Processor time of the load generator: viewers and publishers.
    fn client_cpu_ns(&self) -> u64 {
        own_cpu_ns() + self.hot.cpu_ns() + self.small.cpu_ns()
    }

    /// Nothing under way, and all normal.
    fn calm_down(&mut self) -> Result<()> {
        self.steady.pause();
        self.rest(SETTLE_US)?;
        self.back_to_normal(sys::mono_us())?;
        Ok(())
    }

    /// A window in which steady events are counted.
    fn begin(&mut self) -> Result<()> {
        self.hot.open_window(self.deadline)?;
        self.small.open_window(self.deadline)?;
        self.steady.take();
        self.steady.resume();
        Ok(())
    }

    /// Its end: no more events, and all of them have arrived or are lost.
    fn finish(&mut self) -> Result<(Vec<Account>, [Stats; 2])> {
        self.rest(SETTLE_US)?;
        self.steady.pause();
        let accounts = self.steady.take();
        let due = result::due(&accounts, self.options);
        let limit = sys::mono_us() + TAIL_US;
        loop {
            self.rest(250_000)?;
            let hot = self.hot.collect(false, self.deadline)?;
            let stats = [hot, self.small.collect(false, self.deadline)?];
            let groups = stats.iter().flat_map(|stats| &stats.groups);
            let arrived: u64 = groups.map(|group| group.deliveries).sum();
            if arrived >= due || sys::mono_us() > limit {
                return Ok((accounts, stats));
            }
        }
    }
}

impl Options {
    /// Viewers of a room by its index; 0 is the hot one.
    pub(super) fn viewers_of(&self, room: usize) -> u64 {
        u64::from(if room == 0 { self.viewers } else { self.small_viewers })
    }
}

/// Lets the storm loose: joined by reason, until all have settled or `until`.
fn rush(
    fleet: &mut Fleet,
    until: u64,
    deadline: Deadline,
    progress: &mut Progress,
) -> Result<(u32, Joined)> {
    let from = sys::mono_us();
    fleet.begin_connect()?;
    let mut most = 0;
    let joined = fleet.finish_connect(from, deadline, progress, |joined| {
        most = joined.max(most);
        Ok(sys::mono_us() < until)
    })?;
    Ok((joined.joined.max(most), joined))
}

fn viewers(server: &Server, rooms: &[String], shares: Vec<Share>) -> Plan {
    Plan {
        addr: server.addr,
        mode: Mode::Viewer,
        wire: Wire::default(),
        source: [0, 0],
        rooms: rooms.to_vec(),
        shares,
        check_every: CHECK_EVERY,
        recorders: 0,
        digest: false,
        compress: false,
        connect_rate: 0,
        in_progress: 512,
        secret: server.secret.clone(),
        user: "viewer-".into(),
        nice: 0,
        priority: 0,
        patient: false,
        rush: false,
    }
}

fn stormers(options: &Options, viewers: &Plan) -> Plan {
    Plan {
        shares: vec![Share { room: 0, group: 0, count: options.storm, slow: false }],
        check_every: 0,
        connect_rate: options.storm,
        in_progress: options.storm,
        user: "storm-".into(),
        patient: true,
        rush: true,
        ..viewers.clone()
    }
}

fn own_cpu_ns() -> u64 {
    sys::cpu_ns(std::process::id()).unwrap_or(0)
}
