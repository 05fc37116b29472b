//! A room (or several) of N viewers: what a delivery costs, how late it is,
//! what a viewer weighs, and whether anything is lost.

mod compare;
mod result;

use anyhow::{Result, bail};
use clap::Args;

use self::result::{FanoutResult, Memory, SlowResult, relate, sections};
use crate::drive::{self, Pace, Schedule, Window};
use crate::fleet::{self, Fleet, Joined};
use crate::floor::{self, FloorPlan, FloorResult};
use crate::hist::median;
use crate::protocol::{Mode, Plan, Share, Stats};
use crate::publish::Publisher;
use crate::report::{Output, Section};
use crate::run::{Deadline, Progress, RunOptions};
use crate::server::{Server, ServerOptions};
use crate::transport::{QuicOptions, Transport};
use crate::{sys, wsclient};

/// One of so many viewers reads and checks everything.
const CHECK_EVERY: u32 = 50;
/// After joining, before memory is read: an idle viewer is one that has had nothing to
/// do for a while. A connection over QUIC takes less room then, four seconds after
/// the last thing it sent at the latest (`quic/rest.rs` of the server).
const SETTLE_US: u64 = 5_000_000;

/// What to measure.
#[derive(Args, Debug, Clone)]
pub(crate) struct FanoutOptions {
    /// Viewers, all rooms together.
    #[arg(long, default_value_t = 15_000)]
    viewers: u32,
    /// Rooms; viewers are spread over them evenly.
    #[arg(long, default_value_t = 1)]
    rooms: u16,
    /// Events per second in each room.
    #[arg(long, default_value_t = 1.0)]
    rate: f64,
    /// Bytes of a message that carries one event; WebSocket header or length
    /// excluded.
    #[arg(long, default_value_t = 512)]
    bytes: usize,
    /// Length of the window.
    #[arg(long, default_value_t = 15.0)]
    seconds: f64,
    /// Kind of the events. An important kind flushes at once: one event, one frame.
    #[arg(long, default_value = "red_packet")]
    kind: String,
    /// Worker processes; 0: as many as needed.
    #[arg(long, default_value_t = 0)]
    workers: u32,
    /// So many viewers stop reading in a second window, and read again at its end.
    #[arg(long, default_value_t = 0)]
    slow: u32,
    /// Lock step instead of a rate: the next event when all viewers have the last.
    #[arg(long)]
    saturate: bool,
    /// With --saturate: events under way at most in each room.
    #[arg(long, default_value_t = 1)]
    in_flight: u64,
    /// Viewers offer permessage-deflate.
    #[arg(long)]
    compress: bool,
    /// Measure the floor at the same cadence before and after every round.
    #[arg(long)]
    with_floor: bool,
    /// Rounds, each with a fresh server and fresh viewers; the median counts.
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// Connections per second; 0: as fast as possible.
    #[arg(long, default_value_t = 0)]
    connect_rate: u32,
    /// Over what viewers come; several, separated by commas: in turn, each round
    /// with all of them, and their ratios.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "ws")]
    transport: Vec<Transport>,
    #[command(flatten)]
    quic: QuicOptions,
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    run: RunOptions,
}

/// The command.
pub(crate) fn command(options: &FanoutOptions) -> Result<()> {
    if options.slow >= options.viewers || options.rooms == 0 {
        bail!("--slow must be less than --viewers, --rooms at least 1");
    }
    if options.with_floor && options.transport != [Transport::Ws] {
        bail!("the floor is one of TCP in clear: --with-floor goes with --transport ws");
    }
    let deadline = Deadline::arm(options.run.max_seconds);
    let mut progress = Progress::new(options.run.quiet);
    let (server_cpus, client_cpus) = options.server.processors()?;
    sys::pin(&client_cpus)?;
    let pace =
        if options.saturate { Pace::Saturate(options.in_flight) } else { Pace::Rate(options.rate) };
    let floor_plan = FloorPlan {
        viewers: options.viewers.min(floor::MAX_SOCKETS),
        bytes: options.bytes + wsclient::server_header_bytes(options.bytes),
        pace,
        seconds: options.seconds,
        workers: options.workers,
        server_cpus,
        client_cpus,
    };
    let mut floors = Vec::new();
    let mut rounds = Vec::new();
    for round in 1..=options.repeat.max(1) {
        if options.with_floor {
            progress.stage("floor");
            floors.push(floor::measure(&floor_plan, deadline, &mut progress)?);
        }
        for &transport in &options.transport {
            let name = transport.name();
            progress.stage(&format!("fanout over {name}, round {round} of {}", options.repeat));
            rounds.push(measure(options, transport, pace, deadline, &mut progress)?);
        }
    }
    if options.with_floor {
        progress.stage("floor");
        floors.push(floor::measure(&floor_plan, deadline, &mut progress)?);
    }
    progress.end();
    output(options, &rounds, &floors)
}

fn output(options: &FanoutOptions, rounds: &[FanoutResult], floors: &[FloorResult]) -> Result<()> {
    let mut output = Output::new("fanout");
    for (index, round) in rounds.iter().enumerate() {
        for section in sections(round, index / options.transport.len() + 1) {
            output.print(section);
        }
    }
    if let [transport] = options.transport[..] {
        for (name, value) in compare::figures(rounds, transport) {
            output.figure(name, value);
        }
    } else {
        compare::against_each_other(&mut output, rounds, &options.transport);
    }
    if !floors.is_empty() {
        against_floor(&mut output, rounds, floors);
    }
    output.attach("rounds", rounds)?;
    output.attach("floors", floors)?;
    for round in rounds {
        output.plots("fanout", &round.window.series, &round.window.curve);
    }
    output.finish(&options.run)
}

/// Every round in relation to the floors right before and after it.
fn against_floor(output: &mut Output, rounds: &[FanoutResult], floors: &[FloorResult]) {
    let mut costs = Vec::new();
    let mut rates = Vec::new();
    for (round, around) in rounds.iter().zip(floors.windows(2)) {
        let cost = f64::midpoint(around[0].cpu_us_per_write, around[1].cpu_us_per_write);
        let rate = f64::midpoint(around[0].writes_per_second, around[1].writes_per_second);
        costs.push(round.window.cpu_us_per_write / cost);
        rates.push(round.window.writes_per_second / rate);
    }
    for floor in floors {
        output.print(floor::section(floor, "floor"));
    }
    output.figure("floor_cpu_ratio", median(&costs));
    output.figure("floor_rate_ratio", median(&rates));
    let each = |ratios: &[f64]| {
        ratios.iter().map(|ratio| format!("{ratio:.2}")).collect::<Vec<_>>().join(", ")
    };
    output.print(
        Section::new("against the floor (median of rounds, each against the floors around it)")
            .line("µs per write", format!("{:.2} times ({})", median(&costs), each(&costs)))
            .line("writes/s", format!("{:.2} times ({})", median(&rates), each(&rates))),
    );
}

fn measure(
    options: &FanoutOptions,
    transport: Transport,
    pace: Pace,
    deadline: Deadline,
    progress: &mut Progress,
) -> Result<FanoutResult> {
    let descriptors = transport.descriptors(options.viewers);
    let mut server = Server::start(&options.server, descriptors, deadline)?;
    let rooms: Vec<String> =
        (0..options.rooms).map(|room| format!("lt-{:x}-{room}", sys::mono_us())).collect();
    sys_sleep(300_000);
    let empty = server.pid().and_then(sys::exact_rss_kib);
    let plan = plan(options, transport, &server, &rooms);
    let outcome = with_server(options, &server, &plan, empty, pace, deadline, progress);
    if !server.runs() {
        bail!("the server ended during the run; its log ends:\n{}", server.log_tail());
    }
    outcome
}

fn with_server(
    options: &FanoutOptions,
    server: &Server,
    plan: &Plan,
    empty: Option<u64>,
    pace: Pace,
    deadline: Deadline,
    progress: &mut Progress,
) -> Result<FanoutResult> {
    let (_, client_cpus) = options.server.processors()?;
    let descriptors = plan.wire.descriptors(options.viewers);
    let workers =
        fleet::workers_for(options.viewers, descriptors, options.workers, client_cpus.len());
    let mut fleet = Fleet::start(plan, workers, deadline)?;
    let client = fleet.memory_kib();
    let joined = fleet.connect(deadline, progress)?;
    if joined.joined == 0 {
        bail!("no viewer joined: {:?}", joined.failed);
    }
    fleet.pump_for(SETTLE_US)?;
    let memory = memory(empty, server.pid().and_then(sys::exact_rss_kib), joined.joined);
    let client = fleet.memory_kib().saturating_sub(client) as f64 * 1024.0;
    let mut publisher = Publisher::new(server, &plan.rooms, &options.kind)?;
    let schedule = |first, pace, seconds| Schedule { rooms: options.rooms, first, pace, seconds };
    // Two passes to find the size of payload that makes frames as long as asked.
    let mut first = 0;
    for _ in 0..2 {
        let warm = schedule(first, Pace::Saturate(1), 0.2);
        let warm = drive::window(&mut fleet, &mut publisher, warm, deadline, progress)?;
        first = warm.next;
        if warm.events == 0 {
            bail!("the server refuses our events: {:?}", publisher.refusal);
        }
        calibrate(&mut publisher, &warm.stats, options.bytes);
    }
    let before = server.metrics();
    let dropped = sys::port_drops(server.addr.port());
    let main = schedule(first, pace, options.seconds);
    let main = drive::window(&mut fleet, &mut publisher, main, deadline, progress)?;
    let after = sys::port_drops(server.addr.port());
    let dropped = sys::PortDrops {
        server: after.server.saturating_sub(dropped.server),
        viewers: after.viewers.saturating_sub(dropped.viewers),
    };
    let window = relate(&main, options.rooms, plan.wire.transport, &before, &server.metrics());
    let slow = if options.slow > 0 {
        let next = schedule(main.next, pace, options.seconds);
        let transport = plan.wire.transport;
        Some(slow_window(
            options,
            transport,
            server,
            &mut fleet,
            &mut publisher,
            next,
            deadline,
            progress,
        )?)
    } else {
        None
    };
    let group = main.stats.groups.first().cloned().unwrap_or_default();
    let Joined { joined, failed, seconds, .. } = joined;
    Ok(FanoutResult {
        transport: plan.wire.transport,
        client_bytes_per_viewer: client / f64::from(joined),
        datagrams: main.stats.datagrams,
        dropped,
        joined,
        failed,
        join_seconds: seconds,
        memory,
        frame_bytes: group.marked_bytes / group.marked_frames.max(1),
        window,
        slow,
    })
}

fn plan(options: &FanoutOptions, transport: Transport, server: &Server, rooms: &[String]) -> Plan {
    let mut shares = Vec::new();
    let mut slow = options.slow;
    for room in 0..options.rooms {
        let per_room = options.viewers / u32::from(options.rooms);
        let extra = u32::from(u32::from(room) < options.viewers % u32::from(options.rooms));
        let here = per_room + extra;
        // Slow viewers sit in the first rooms that have place for them.
        let slow_here = slow.min(here.saturating_sub(1));
        slow -= slow_here;
        shares.push(Share { room, group: 0, count: here - slow_here, slow: false });
        if slow_here > 0 {
            shares.push(Share { room, group: 1, count: slow_here, slow: true });
        }
    }
    Plan {
        addr: server.addr,
        mode: Mode::Viewer,
        wire: options.quic.wire(transport),
        source: [0, 0],
        rooms: rooms.to_vec(),
        shares,
        check_every: CHECK_EVERY,
        recorders: 0,
        digest: false,
        compress: options.compress,
        connect_rate: options.connect_rate,
        in_progress: 512,
        secret: server.secret.clone(),
        user: "viewer-".into(),
        nice: 0,
        priority: 0,
        patient: false,
        rush: false,
    }
}

fn memory(empty: Option<u64>, joined: Option<u64>, viewers: u32) -> Option<Memory> {
    let (empty_kib, joined_kib) = (empty?, joined?);
    let grown = joined_kib.saturating_sub(empty_kib) as f64 * 1024.0;
    Some(Memory { empty_kib, joined_kib, bytes_per_viewer: grown / f64::from(viewers) })
}

/// Sets the payload so that a frame with one event has the length asked for.
fn calibrate(publisher: &mut Publisher, stats: &Stats, bytes: usize) {
    let (mut frames, mut content, mut events) = (0, 0, 0);
    for group in &stats.groups {
        frames += group.marked_frames;
        content += group.marked_bytes;
        events += group.deliveries;
    }
    // Frames of several events tell nothing about frames of one.
    if frames > 0 && events == frames {
        let around = usize::try_from(content / frames).unwrap_or(0);
        let around = around.saturating_sub(publisher.payload);
        publisher.payload = bytes.saturating_sub(around);
    }
}

/// A second window in which some viewers do not read until its end.
#[allow(clippy::too_many_arguments, reason = "the parts of one result")]
fn slow_window(
    options: &FanoutOptions,
    transport: Transport,
    server: &Server,
    fleet: &mut Fleet,
    publisher: &mut Publisher,
    schedule: Schedule,
    deadline: Deadline,
    progress: &mut Progress,
) -> Result<SlowResult> {
    progress.stage(&format!("fanout, {} viewers do not read", options.slow));
    fleet.slow_read(false)?;
    let before = server.metrics();
    let window = drive::window(fleet, publisher, schedule, deadline, progress)?;
    let stopped = relate(&window, options.rooms, transport, &before, &server.metrics());
    let memory_kib = server.pid().and_then(sys::rss_kib);
    fleet.slow_read(true)?;
    // One more event: a gap is told when something can be sent again.
    publisher_nudge(publisher, &window, options.rooms)?;
    fleet.pump_for(3_000_000)?;
    let stats = fleet.collect(false, deadline)?;
    let slow = stats.groups.get(1).cloned().unwrap_or_default();
    let expected = (window.events / u64::from(options.rooms) + 1) * u64::from(options.slow);
    Ok(SlowResult {
        viewers: options.slow,
        stopped,
        memory_kib,
        deliveries: slow.deliveries,
        gaps: slow.gaps,
        gap_dropped: slow.gap_dropped,
        expected,
        unaccounted: i64::try_from(expected)? - i64::try_from(slow.deliveries + slow.gap_dropped)?,
        alive: slow.viewers,
        closed: stats.closed,
    })
}

fn publisher_nudge(publisher: &mut Publisher, window: &Window, rooms: u16) -> Result<()> {
    use crate::drive::Source as _;
    (0..rooms)
        .try_for_each(|room| publisher.send(room, window.next, sys::mono_us()).map(|_accepted| ()))
}

fn sys_sleep(us: u64) {
    std::thread::sleep(std::time::Duration::from_micros(us));
}
