//! All viewers of some rooms are cut off at once and come back within seconds,
//! each saying where it left off, while events go on: how long until all have
//! caught up, is anything lost, and do the viewers of another room feel it?

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use crate::audit::{self, Verdict};
use crate::crowd::{self, Behaviour, Crowd};
use crate::drive::{self, Pace, Schedule, Source as _, Window};
use crate::fleet::Fleet;
use crate::floor::load;
use crate::hist::{self, Recorded, Summary};
use crate::protocol::{Mode, Plan, Share};
use crate::publish::Publisher;
use crate::report::{Output, Section};
use crate::run::{Deadline, Progress, RunOptions};
use crate::server::{Server, ServerOptions};
use crate::sys;
use crate::transport::Wire;
use crate::upstream::{self, Upstream};

/// Within which all are to have caught up.
const MARK_SECONDS: f64 = 10.0;
/// Of the other room's latency meanwhile, 99th percentile.
const MARK_P99_MS: f64 = 200.0;
/// The other room is measured so much longer than the storm lasts.
const CALM_AFTER_US: u64 = 1_000_000;
/// Important events of so many milliseconds pass before anything is measured.
const WARM_MS: u64 = 2_000;

/// What to do.
#[derive(Args, Debug, Clone)]
pub(crate) struct StormOptions {
    /// Viewers that are cut off.
    #[arg(long, default_value_t = 15_000)]
    viewers: u32,
    /// Their rooms; half of the viewers are in the first.
    #[arg(long, default_value_t = 10)]
    rooms: u32,
    /// They come back within so many seconds, each at a random moment.
    #[arg(long, default_value_t = 5.0)]
    within: f64,
    /// The server is killed and started again, instead of their connections
    /// being closed; there is no other room then.
    #[arg(long)]
    restart: bool,
    /// Important events per second and room.
    #[arg(long, default_value_t = 2.0)]
    rate: f64,
    /// Talk per second and room.
    #[arg(long, default_value_t = 5.0)]
    talk: f64,
    /// Viewers of another room, who stay.
    #[arg(long, default_value_t = 200)]
    with_room: u32,
    /// Events per second in that room.
    #[arg(long, default_value_t = 10.0)]
    calm_rate: f64,
    /// Seconds for which that room is measured before.
    #[arg(long, default_value_t = 5.0)]
    before: f64,
    /// The storm is over after so many seconds, whoever is back.
    #[arg(long, default_value_t = 60)]
    seconds_limit: u64,
    /// Added to the nice value of the returning viewers' thread: the other
    /// room's receipts then wait less for the client's own work.
    #[arg(long, default_value_t = 0)]
    storm_nice: i32,
    /// Of all draws; by default another one each time.
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    run: RunOptions,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct StormResult {
    seed: u64,
    viewers: u32,
    rooms: u32,
    restart: bool,
    /// From the cut until the last one had caught up.
    seconds: f64,
    missing: u32,
    /// From beginning to reconnect to having caught up.
    comebacks: Summary,
    recovered: u64,
    fresh: u64,
    accepted: u64,
    postponed: BTreeMap<String, u64>,
    server_cpu: f64,
    server_cpu_us_per_return: f64,
    client_cpu: f64,
    closed: BTreeMap<String, u64>,
    errors: BTreeMap<String, u64>,
    calm_before: Option<CalmResult>,
    calm_during: Option<CalmResult>,
    verdict: Verdict,
    curve: Vec<(f64, f64)>,
}

/// The room whose viewers stay.
#[derive(Debug, Serialize)]
struct CalmResult {
    events: u64,
    lost: u64,
    latency: Summary,
    lateness: Summary,
}

/// The command.
pub(crate) fn command(options: &StormOptions) -> Result<()> {
    let deadline = Deadline::arm(options.run.max_seconds);
    let mut progress = Progress::new(options.run.quiet);
    let (_, client_cpus) = options.server.processors()?;
    sys::pin(&client_cpus)?;
    let viewers = options.viewers + options.with_room;
    let mut server = Server::start(&options.server, viewers, deadline)?;
    let outcome = measure(options, &mut server, deadline, &mut progress);
    if !server.runs() {
        bail!("the server ended during the run; its log ends:\n{}", server.log_tail());
    }
    progress.end();
    output(options, &outcome?)
}

fn measure(
    options: &StormOptions,
    server: &mut Server,
    deadline: Deadline,
    progress: &mut Progress,
) -> Result<StormResult> {
    let seed = options.seed.unwrap_or_else(sys::mono_us);
    let count = options.rooms.max(1);
    let rooms: Vec<String> = (0..count).map(|room| format!("storm-{room}")).collect();
    let mut calm = match options.restart {
        true => None,
        false => Some(Calm::start(options, server, deadline, progress)?),
    };
    let crowd = Crowd::start(crowd_plan(options, server, &rooms, seed))?;
    progress.stage(&format!("storm, seed {seed}: joining"));
    crowd.wait_live(options.viewers, deadline, progress)?;
    let upstream = Upstream::start(
        server,
        &upstream::Plan {
            rooms: rooms.iter().map(|room| (room.clone(), "red_packet")).collect(),
            important: options.rate * f64::from(count),
            talk: options.talk * f64::from(count),
            publishers: 4,
            bytes: 200,
            seed,
        },
    )?;
    std::thread::sleep(std::time::Duration::from_millis(WARM_MS));
    let before = calm.as_mut().map(|calm| calm.before(options, deadline, progress)).transpose()?;

    progress.stage("storm");
    let (client, crowd_cpu) = (calm.as_ref().map_or(0, Calm::cpu_ns), crowd.processor_ns());
    let old = server.pid().and_then(sys::cpu_ns).unwrap_or(0);
    let cut = sys::mono_us();
    if let Some(calm) = &mut calm {
        calm.begin(options, deadline)?;
    }
    if options.restart {
        server.end(false)?;
    }
    crowd.cut((options.within * 1e6) as u64)?;
    if options.restart {
        server.again()?;
    }
    let (missing, returned) = wait(options, &crowd, calm.as_mut(), deadline, progress)?;
    // A server started anew has used nothing before.
    let old = if options.restart { 0 } else { old };
    let used = server.pid().and_then(sys::cpu_ns).unwrap_or(0).saturating_sub(old);
    let client = calm.as_ref().map_or(0, Calm::cpu_ns) - client + crowd.processor_ns() - crowd_cpu;
    let elapsed = (sys::mono_us() - cut) as f64 / 1e6;
    let during = calm.as_mut().map(|calm| calm.end(options, deadline)).transpose()?;

    let told = upstream.finish()?;
    let mut verdict = Verdict::default();
    let ledgers = audit::account(server, &rooms, &told, &mut verdict)?;
    let numbers = ledgers.iter().map(|ledger| ledger.important).collect();
    crowd.settle(numbers, deadline.within(20), progress)?;
    let seen = crowd.finish()?;
    verdict.viewers(&seen, &ledgers);
    let returns = options.viewers - missing;
    Ok(StormResult {
        seed,
        viewers: options.viewers,
        rooms: count,
        restart: options.restart,
        seconds: returned.saturating_sub(cut) as f64 / 1e6,
        missing,
        comebacks: seen.comebacks.summary(),
        recovered: seen.tally.recovered,
        fresh: seen.tally.fresh,
        accepted: told.count(),
        postponed: told.postponed,
        server_cpu: used as f64 / 1e9 / elapsed,
        server_cpu_us_per_return: used as f64 / 1e3 / f64::from(returns.max(1)),
        client_cpu: client as f64 / 1e9 / elapsed,
        closed: seen.closed,
        errors: seen.errors,
        calm_before: before,
        calm_during: during,
        verdict,
        curve: seen.comebacks.curve(),
    })
}

/// Until all have caught up; returns how many have not, and when the last had.
fn wait(
    options: &StormOptions,
    crowd: &Crowd,
    mut calm: Option<&mut Calm>,
    deadline: Deadline,
    progress: &mut Progress,
) -> Result<(u32, u64)> {
    let limit = deadline.within(options.seconds_limit);
    let mut until = None;
    loop {
        let (missing, returned) = crowd.returning();
        let now = sys::mono_us();
        // The order to cut them off may still be on its way.
        if missing == 0 && returned > 0 && until.is_none() {
            until = Some(now + CALM_AFTER_US);
        }
        let over = until.is_some_and(|until| now >= until);
        if over || limit.left().is_zero() {
            return Ok((missing, returned));
        }
        crowd.check()?;
        progress.tell(&format!("{missing} have not caught up"));
        match &mut calm {
            Some(calm) => calm.due()?,
            None => std::thread::sleep(std::time::Duration::from_millis(5)),
        }
    }
}

/// The room whose viewers stay, with its publisher.
struct Calm {
    fleet: Fleet,
    publisher: Publisher,
    next: u64,
    start: u64,
    step_us: f64,
    first: u64,
    refused: u64,
    late: hdrhistogram::Histogram<u64>,
}

impl Calm {
    fn start(
        options: &StormOptions,
        server: &Server,
        deadline: Deadline,
        progress: &mut Progress,
    ) -> Result<Calm> {
        let rooms = vec!["storm-calm".to_owned()];
        let plan = Plan {
            addr: server.addr,
            mode: Mode::Viewer,
            wire: Wire::default(),
            source: [0, 0],
            rooms: rooms.clone(),
            shares: vec![Share { room: 0, group: 0, count: options.with_room, slow: false }],
            check_every: 50,
            recorders: 0,
            digest: false,
            compress: false,
            connect_rate: 0,
            in_progress: 512,
            secret: server.secret.clone(),
            user: "calm-".into(),
            nice: 0,
            priority: 0,
            patient: false,
            rush: false,
        };
        let mut fleet = Fleet::start(&plan, 1, deadline)?;
        progress.stage("storm: the room whose viewers stay");
        let here = fleet.connect(deadline, progress)?;
        if here.joined != options.with_room {
            bail!("{} of {} viewers: {:?}", here.joined, options.with_room, here.failed);
        }
        let mut publisher = Publisher::new(server, &rooms, "red_packet")?;
        publisher.payload = 256;
        let step_us = 1e6 / options.calm_rate;
        let late = hist::new();
        Ok(Calm { fleet, publisher, next: 0, start: 0, step_us, first: 0, refused: 0, late })
    }

    fn cpu_ns(&self) -> u64 {
        self.fleet.cpu_ns()
    }

    fn before(
        &mut self,
        options: &StormOptions,
        deadline: Deadline,
        progress: &mut Progress,
    ) -> Result<CalmResult> {
        let schedule = Schedule {
            rooms: 1,
            first: 0,
            pace: Pace::Rate(options.calm_rate),
            seconds: options.before,
        };
        let window =
            drive::window(&mut self.fleet, &mut self.publisher, schedule, deadline, progress)?;
        self.next = window.next;
        Ok(calm_result(&window, options))
    }

    fn begin(&mut self, options: &StormOptions, deadline: Deadline) -> Result<()> {
        self.fleet.open_window(deadline)?;
        self.step_us = 1e6 / options.calm_rate;
        (self.start, self.first) = (sys::mono_us(), self.next);
        Ok(())
    }

    /// Sends what is due, and takes reports for a moment.
    fn due(&mut self) -> Result<()> {
        let intended = self.start + ((self.next - self.first) as f64 * self.step_us) as u64;
        let now = sys::mono_us();
        if now >= intended {
            self.late.saturating_record(now - intended);
            let taken = self.publisher.send(0, self.next, intended)?;
            self.refused += u64::from(!taken);
            self.next += 1;
        }
        self.fleet.pump(sys::mono_us() + 1_000)
    }

    fn end(&mut self, options: &StormOptions, deadline: Deadline) -> Result<CalmResult> {
        let patience = sys::mono_us() + 10_000_000;
        while self.fleet.done(0) < self.next && sys::mono_us() < patience {
            deadline.check("waiting for the last events")?;
            self.fleet.pump(sys::mono_us() + 5_000)?;
        }
        let window = Window {
            events: self.next - self.first - self.refused,
            late: Recorded::of(&self.late),
            stats: self.fleet.collect(false, deadline)?,
            ..Window::default()
        };
        Ok(calm_result(&window, options))
    }
}

fn calm_result(window: &Window, options: &StormOptions) -> CalmResult {
    let group = window.stats.groups.first().cloned().unwrap_or_default();
    let due = window.events * u64::from(options.with_room);
    CalmResult {
        events: window.events,
        lost: due.saturating_sub(group.deliveries),
        latency: group.latency.summary(),
        lateness: window.lateness(),
    }
}

fn crowd_plan(options: &StormOptions, server: &Server, rooms: &[String], seed: u64) -> crowd::Plan {
    let others = u32::try_from(rooms.len() - 1).unwrap_or(0);
    let first = if others == 0 { options.viewers } else { options.viewers / 2 };
    let rest = options.viewers - first;
    let viewers = |room: u32| match room {
        0 => first,
        _ => rest / others + u32::from(room - 1 < rest % others),
    };
    crowd::Plan {
        addr: server.addr,
        secret: server.secret.clone(),
        rooms: rooms.iter().cloned().zip((0..=others).map(viewers)).collect(),
        behaviours: vec![Behaviour::Acknowledges; options.viewers as usize],
        connect_rate: 4_000,
        backoff_us: 500_000,
        max_backoff_us: 2_000_000,
        source: crowd::source(),
        nice: options.storm_nice,
        seed,
    }
}

fn output(options: &StormOptions, result: &StormResult) -> Result<()> {
    let mut output = Output::new("storm");
    let mark = |met: bool| if met { "met" } else { "MISSED" };
    let in_time = result.missing == 0 && result.seconds <= MARK_SECONDS;
    let mut storm = Section::new("storm")
        .line(
            "cut off",
            format!("{} viewers of {} rooms, seed {}", result.viewers, result.rooms, result.seed),
        )
        .line(
            "caught up",
            format!(
                "all but {} within {:.2} s of the cut (mark {MARK_SECONDS} s: {})",
                result.missing,
                result.seconds,
                mark(in_time)
            ),
        )
        .line("each", format!("reconnect to caught up: {}", result.comebacks))
        .line(
            "resumes",
            format!(
                "{} recovered in full, {} anew with what they were owed",
                result.recovered, result.fresh
            ),
        )
        .line("events", format!("{} important ones accepted", result.accepted))
        .line(
            "processor",
            format!(
                "{:.0} µs of the server per return, fan-out included",
                result.server_cpu_us_per_return
            ),
        )
        .line("load", load(result.server_cpu, result.client_cpu));
    for (reason, count) in result.closed.iter().chain(&result.errors).chain(&result.postponed) {
        storm = storm.line("", format!("{count} {reason}"));
    }
    output.print(storm);
    for (title, room) in [("before", &result.calm_before), ("during", &result.calm_during)] {
        let Some(room) = room else { continue };
        let met = mark(room.latency.p99_ms <= MARK_P99_MS);
        output.print(
            Section::new(&format!("the room whose viewers stay, {title} the storm"))
                .line("latency", format!("{} (mark p99 {MARK_P99_MS} ms: {met})", room.latency))
                .line("publisher", format!("late by {}", room.lateness))
                .line("lost", format!("{} ({} events)", room.lost, room.events)),
        );
        output.figure(&format!("calm_p99_{title}_ms"), room.latency.p99_ms);
    }
    output.print(result.verdict.section());
    output.figure("caught_up_seconds", result.seconds);
    output.figure("missing", f64::from(result.missing));
    output.figure("comeback_p99_ms", result.comebacks.p99_ms);
    output.figure("server_cpu", result.server_cpu);
    output.figure("server_cpu_us_per_return", result.server_cpu_us_per_return);
    output.figure("differences", result.verdict.total() as f64);
    output.plots("comeback", &drive::Series::default(), &result.curve);
    output.attach("result", result)?;
    output.finish(&options.run)?;
    if result.verdict.total() > 0 || result.missing > 0 {
        let (missing, total) = (result.missing, result.verdict.total());
        bail!("{missing} viewers did not catch up, {total} differences (seed {})", result.seed);
    }
    Ok(())
}
