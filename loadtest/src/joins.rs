//! A connect storm: how fast viewers come in with authentication, and whether
//! the viewers who were there before feel it.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use crate::drive::{self, Pace, Schedule, Source as _, Window};
use crate::fleet::{self, Fleet, Joined};
use crate::floor::load;
use crate::hist::Summary;
use crate::protocol::{Mode, Plan, Share};
use crate::publish::Publisher;
use crate::report::{Output, Section};
use crate::run::{Deadline, Progress, RunOptions};
use crate::server::{Server, ServerOptions};
use crate::sys;
use crate::transport::{QuicOptions, Transport};

/// The calm room's window goes on for so long after a short storm.
const CALM_AFTER_US: u64 = 1_000_000;

/// Counters of the server whose growth during the storm is told.
const COUNTED: &[&str] = &["tidegate_quic_", "tidegate_tls_"];

/// What to measure.
#[derive(Args, Debug, Clone)]
pub(crate) struct JoinsOptions {
    /// Viewers that come at once.
    #[arg(long, default_value_t = 15_000)]
    pub(crate) viewers: u32,
    /// Rooms that they come to.
    #[arg(long, default_value_t = 1)]
    rooms: u16,
    /// The storm is over after so many seconds, joined or not.
    #[arg(long, default_value_t = 60.0)]
    seconds_limit: f64,
    /// Viewers of another room that is being watched meanwhile.
    #[arg(long, default_value_t = 200)]
    with_room: u32,
    /// Events per second in that room.
    #[arg(long, default_value_t = 10.0)]
    rate: f64,
    /// Seconds for which that room is measured before the storm.
    #[arg(long, default_value_t = 5.0)]
    before: f64,
    /// Kind of its events.
    #[arg(long, default_value = "red_packet")]
    kind: String,
    /// Connections per second; 0: as fast as possible.
    #[arg(long, default_value_t = 0)]
    connect_rate: u32,
    /// Connections in progress at most.
    #[arg(long, default_value_t = 512)]
    in_progress: u32,
    /// Worker processes for the storm; 0: as many as needed.
    #[arg(long, default_value_t = 0)]
    workers: u32,
    /// Added to the nice value of the storming workers: with 10 the calm room's
    /// receipts wait less for the client's own work, but so does the storm for
    /// anything else on the machine.
    #[arg(long, default_value_t = 0)]
    storm_nice: i32,
    /// Over what the storm comes; the room that is watched is on it, too.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) transport: Transport,
    #[command(flatten)]
    quic: QuicOptions,
    #[command(flatten)]
    pub(crate) server: ServerOptions,
    #[command(flatten)]
    pub(crate) run: RunOptions,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct JoinsResult {
    asked: u32,
    /// Viewers that joined.
    pub(crate) joined: u32,
    failed: BTreeMap<String, u32>,
    /// Until the last one had joined.
    pub(crate) seconds: f64,
    /// Rate.
    pub(crate) joins_per_second: f64,
    /// From the beginning of a connection to `joined`.
    pub(crate) join_latency: Summary,
    /// Server processor time.
    pub(crate) server_cpu_us_per_join: f64,
    server_cpu: f64,
    client_cpu: f64,
    closed: BTreeMap<String, u64>,
    /// Packets of the storm held for lost.
    pub(crate) lost_packets: u64,
    /// The calm room before the storm.
    pub(crate) room_before: RoomResult,
    /// And during it.
    pub(crate) room_during: RoomResult,
    /// What the server counted, by metric name.
    pub(crate) counted: BTreeMap<String, f64>,
    curve: Vec<(f64, f64)>,
}

/// The calm room.
#[derive(Debug, Serialize)]
pub(crate) struct RoomResult {
    viewers: u32,
    events: u64,
    /// Deliveries that did not come.
    pub(crate) lost: u64,
    /// From intended send time to arrival.
    pub(crate) latency: Summary,
    lateness: Summary,
}

/// The command.
pub(crate) fn command(options: &JoinsOptions) -> Result<()> {
    let deadline = Deadline::arm(options.run.max_seconds);
    let mut progress = Progress::new(options.run.quiet);
    let (_, client_cpus) = options.server.processors()?;
    sys::pin(&client_cpus)?;
    let result = round(options, deadline, &mut progress)?;
    progress.end();
    output(options, &result)
}

/// One storm, with a fresh server.
pub(crate) fn round(
    options: &JoinsOptions,
    deadline: Deadline,
    progress: &mut Progress,
) -> Result<JoinsResult> {
    let (_, client_cpus) = options.server.processors()?;
    let descriptors = options.transport.descriptors(options.viewers + options.with_room);
    let mut server = Server::start(&options.server, descriptors, deadline)?;
    let outcome = measure(options, &server, client_cpus.len(), deadline, progress);
    if !server.runs() {
        bail!("the server ended during the run; its log ends:\n{}", server.log_tail());
    }
    outcome
}

fn measure(
    options: &JoinsOptions,
    server: &Server,
    processors: usize,
    deadline: Deadline,
    progress: &mut Progress,
) -> Result<JoinsResult> {
    let calm = vec![format!("lt-calm-{:x}", sys::mono_us())];
    let mut room = Fleet::start(&calm_plan(options, server, &calm), 1, deadline)?;
    progress.stage("joins: the room that is watched");
    let here = room.connect(deadline, progress)?;
    if here.joined != options.with_room {
        bail!("{} of {} viewers: {:?}", here.joined, options.with_room, here.failed);
    }
    let mut publisher = Publisher::new(server, &calm, &options.kind)?;
    publisher.payload = 256;
    let descriptors = options.quic.wire(options.transport).descriptors(options.viewers);
    let workers = fleet::workers_for(options.viewers, descriptors, options.workers, processors);
    // Prepared first: tokens are not minted during the storm.
    let mut storm = Fleet::start(&storm_plan(options, server), workers, deadline)?;
    let before =
        Schedule { rooms: 1, first: 0, pace: Pace::Rate(options.rate), seconds: options.before };
    let before = drive::window(&mut room, &mut publisher, before, deadline, progress)?;
    progress.stage("joins: storm");
    let earlier = server.metrics();
    let cpu = server.pid().and_then(sys::cpu_ns).unwrap_or(0);
    let (joined, during) =
        rush(options, &mut storm, &mut room, &mut publisher, before.next, deadline, progress)?;
    let cpu = server.pid().and_then(sys::cpu_ns).unwrap_or(0).saturating_sub(cpu);
    let counted = server.metrics().growths(&earlier, COUNTED);
    let stats = storm.collect(false, deadline)?;
    let mut join = crate::hist::Recorded::default();
    for group in &stats.groups {
        join.absorb(&group.join);
    }
    let seconds = joined.seconds.max(1e-9);
    Ok(JoinsResult {
        asked: options.viewers,
        joined: joined.joined,
        failed: joined.failed,
        seconds: joined.seconds,
        joins_per_second: f64::from(joined.joined) / seconds,
        join_latency: join.summary(),
        server_cpu_us_per_join: cpu as f64 / 1e3 / f64::from(joined.joined.max(1)),
        server_cpu: cpu as f64 / 1e9 / during.seconds,
        client_cpu: (storm.cpu_ns() + during.client_cpu_ns) as f64 / 1e9 / during.seconds,
        closed: stats.closed,
        lost_packets: stats.datagrams.lost,
        counted,
        room_before: room_result(&before, options.with_room),
        room_during: room_result(&during, options.with_room),
        curve: join.curve(),
    })
}

/// The storm, while the calm room goes on.
fn rush(
    options: &JoinsOptions,
    storm: &mut Fleet,
    room: &mut Fleet,
    publisher: &mut Publisher,
    first: u64,
    deadline: Deadline,
    progress: &mut Progress,
) -> Result<(Joined, Window)> {
    room.open_window(deadline)?;
    let mut window = Window::default();
    let mut late = crate::hist::new();
    let client_cpu = room.cpu_ns();
    let start = sys::mono_us();
    let step = 1e6 / options.rate;
    let mut sent = 0_u64;
    let mut due = |room: &mut Fleet, sent: &mut u64, window: &mut Window| -> Result<()> {
        let intended = start + (*sent as f64 * step) as u64;
        let now = sys::mono_us();
        if now >= intended {
            late.saturating_record(now - intended);
            if publisher.send(0, first + *sent, intended)? {
                window.events += 1;
            } else {
                window.refused += 1;
            }
            *sent += 1;
        }
        room.pump(0)
    };
    storm.begin_connect()?;
    let limit = (options.seconds_limit * 1e6) as u64;
    let joined = storm.finish_connect(start, deadline, progress, |_joined| {
        due(room, &mut sent, &mut window)?;
        Ok(sys::mono_us() - start < limit)
    })?;
    let calm_until = sys::mono_us() + CALM_AFTER_US;
    while sys::mono_us() < calm_until {
        due(room, &mut sent, &mut window)?;
        room.pump(sys::mono_us() + 1_000)?;
    }
    let patience = sys::mono_us() + 10_000_000;
    while room.done(0) < first + sent && sys::mono_us() < patience {
        deadline.check("waiting for the last events")?;
        room.pump(sys::mono_us() + 5_000)?;
    }
    window.seconds = (sys::mono_us() - start) as f64 / 1e6;
    window.late = crate::hist::Recorded::of(&late);
    window.client_cpu_ns = room.cpu_ns().saturating_sub(client_cpu);
    window.stats = room.collect(false, deadline)?;
    Ok((joined, window))
}

fn calm_plan(options: &JoinsOptions, server: &Server, rooms: &[String]) -> Plan {
    Plan {
        addr: server.addr,
        mode: Mode::Viewer,
        wire: options.quic.wire(options.transport),
        source: [0, 0],
        rooms: rooms.to_vec(),
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
    }
}

fn storm_plan(options: &JoinsOptions, server: &Server) -> Plan {
    let count = u32::from(options.rooms.max(1));
    let shares = (0..options.rooms.max(1)).map(|room| {
        let extra = u32::from(u32::from(room) < options.viewers % count);
        Share { room, group: 0, count: options.viewers / count + extra, slow: false }
    });
    Plan {
        rooms: (0..count).map(|room| format!("lt-storm-{:x}-{room}", sys::mono_us())).collect(),
        shares: shares.collect(),
        check_every: 0,
        connect_rate: options.connect_rate,
        in_progress: options.in_progress,
        user: "storm-".into(),
        nice: options.storm_nice,
        ..calm_plan(options, server, &[])
    }
}

fn room_result(window: &Window, viewers: u32) -> RoomResult {
    let group = window.stats.groups.first().cloned().unwrap_or_default();
    RoomResult {
        viewers,
        events: window.events,
        lost: (window.events * u64::from(viewers)).saturating_sub(group.deliveries),
        latency: group.latency.summary(),
        lateness: window.lateness(),
    }
}

/// The storm for people.
pub(crate) fn section(result: &JoinsResult, title: &str) -> Section {
    let mut storm = Section::new(title)
        .line(
            "joined",
            format!(
                "{} of {} in {:.2} s: {:.0} per second",
                result.joined, result.asked, result.seconds, result.joins_per_second
            ),
        )
        .line("latency", format!("connect to joined: {}", result.join_latency))
        .line(
            "processor",
            format!("{:.1} µs of the server per join", result.server_cpu_us_per_join),
        )
        .line("load", load(result.server_cpu, result.client_cpu));
    for (reason, count) in &result.failed {
        storm = storm.line("FAILED", format!("{count}: {reason}"));
    }
    for (reason, count) in &result.closed {
        storm = storm.line("CLOSED", format!("{count}: {reason}"));
    }
    for (name, grown) in &result.counted {
        storm = storm.line("counted", format!("{name} {grown}"));
    }
    storm
}

/// The calm room, before and during.
pub(crate) fn print_rooms(output: &mut Output, result: &JoinsResult) {
    for (title, room) in [("before", &result.room_before), ("during", &result.room_during)] {
        let title = format!("the room of {} viewers {title} the storm", room.viewers);
        output.print(
            Section::new(&title)
                .line("latency", room.latency.to_string())
                .line("publisher", format!("late by {}", room.lateness))
                .line("lost", format!("{} ({} events)", room.lost, room.events)),
        );
    }
}

fn output(options: &JoinsOptions, result: &JoinsResult) -> Result<()> {
    let mut output = Output::new("joins");
    output.print(section(result, "storm"));
    print_rooms(&mut output, result);
    output.figure("joined", f64::from(result.joined));
    output.figure("seconds", result.seconds);
    output.figure("joins_per_second", result.joins_per_second);
    output.figure("join_p50_ms", result.join_latency.p50_ms);
    output.figure("join_p99_ms", result.join_latency.p99_ms);
    output.figure("server_cpu_us_per_join", result.server_cpu_us_per_join);
    output.figure("room_p99_before_ms", result.room_before.latency.p99_ms);
    output.figure("room_p99_during_ms", result.room_during.latency.p99_ms);
    output.plots("join", &drive::Series::default(), &result.curve);
    output.attach("result", result)?;
    output.finish(&options.run)
}
