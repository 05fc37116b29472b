//! A bad line: how late are important events at 5 % loss and 100 ms each way,
//! over QUIC against WebSocket, alone and beside bulk on the same connection?
//!
//! Runs at the far end of a line with delay and loss (`tests/link/run`), which
//! names the near end's address and namespace in the environment: server and
//! publisher are put there, so that only the way to the viewers is bad. Phases
//! follow one another on one server, each with fresh viewers and a room of its
//! own; with and without bulk, transport after transport, round by round, so
//! that what drifts drifts for all.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use serde::Serialize;

use crate::drive::{self, Pace, Schedule};
use crate::fleet::Fleet;
use crate::hist::{Recorded, Summary};
use crate::http::Client;
use crate::namespace::Namespace;
use crate::protocol::{Mode, Plan, Share};
use crate::publish::{self, Publisher};
use crate::report::{Output, Section};
use crate::run::{Deadline, Progress, RunOptions};
use crate::server::{Server, ServerOptions};
use crate::sys;
use crate::transport::{QuicOptions, Transport};

/// With bulk, the last transport named is to be so many times better than the
/// first.
const MARK_TIMES: f64 = 2.0;
/// Before a window begins, for the first round trips.
const SETTLE_US: u64 = 2_000_000;

/// What to measure.
#[derive(Args, Debug, Clone)]
pub(crate) struct LinkOptions {
    /// Address of the near end, where the server is to be.
    #[arg(long, env = "LINK_NEAR")]
    near: IpAddr,
    /// Network namespace of the near end.
    #[arg(long, env = "LINK_NEAR_NS")]
    near_namespace: PathBuf,
    /// Over what viewers come, in turn.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "ws,quic")]
    transport: Vec<Transport>,
    /// Viewers of each phase.
    #[arg(long, default_value_t = 20)]
    viewers: u32,
    /// Important events per second.
    #[arg(long, default_value_t = 4.0)]
    rate: f64,
    /// Bytes of an important event's payload.
    #[arg(long, default_value_t = 300)]
    bytes: usize,
    /// Bytes of a bulk event's payload; the server takes 4,096 of chat.
    #[arg(long, default_value_t = 4_000)]
    bulk_bytes: usize,
    /// Bulk events per second: ordered ones. At 40 kB/s a line of 5 % loss and
    /// 200 ms there and back is about full for one TCP connection (1.22 segments
    /// over the root of the loss, per round trip: Mathis and others, 1997).
    #[arg(long, default_value_t = 10.0)]
    bulk_rate: f64,
    /// Length of a phase.
    #[arg(long, default_value_t = 40.0)]
    seconds: f64,
    /// Rounds of all phases; their events are counted together.
    #[arg(long, default_value_t = 2)]
    repeat: u32,
    #[command(flatten)]
    quic: QuicOptions,
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    run: RunOptions,
}

/// Phases of one sort, added up.
#[derive(Debug, Clone, Serialize)]
struct PhaseResult {
    transport: Transport,
    bulk: bool,
    events: u64,
    lost: u64,
    duplicated: u64,
    gaps: u64,
    errors: u64,
    /// Bytes that a viewer received per second.
    bytes_per_second: f64,
    latency: Recorded,
    closed: u64,
    /// Some of the broken promises.
    broken: Vec<String>,
}

/// The command.
pub(crate) fn command(options: &LinkOptions) -> Result<()> {
    let deadline = Deadline::arm(options.run.max_seconds);
    let mut progress = Progress::new(options.run.quiet);
    let (_, client_cpus) = options.server.processors()?;
    sys::pin(&client_cpus)?;
    let far = Namespace::here()?;
    // From here on everything is near, but for the viewers.
    Namespace::at(&options.near_namespace)?.enter()?;
    let server = Server::start(&options.server.elsewhere(options.near), 0, deadline)?;
    let mut results: Vec<PhaseResult> = Vec::new();
    for round in 1..=options.repeat.max(1) {
        for bulk in [false, true] {
            for &transport in &options.transport {
                let beside = if bulk { " beside bulk" } else { "" };
                let name = transport.name();
                progress.stage(&format!("{name}{beside}, round {round} of {}", options.repeat));
                let phase = Phase { options, server: &server, far: &far, transport, bulk };
                let outcome = phase.run(deadline, &mut progress);
                let told =
                    || format!("{name}{beside}; the server's log ends:\n{}", server.log_tail());
                add(&mut results, outcome.with_context(told)?);
            }
        }
    }
    progress.end();
    output(options, &results)
}

/// One of them.
struct Phase<'a> {
    options: &'a LinkOptions,
    server: &'a Server,
    far: &'a Namespace,
    transport: Transport,
    bulk: bool,
}

impl Phase<'_> {
    fn run(&self, deadline: Deadline, progress: &mut Progress) -> Result<PhaseResult> {
        let options = self.options;
        let rooms = vec![format!("lt-link-{:x}", sys::mono_us())];
        let plan = self.plan(&rooms);
        let mut fleet = self.far.within(|| Fleet::start(&plan, 1, deadline))?;
        let joined = fleet.connect(deadline, progress)?;
        if joined.joined != options.viewers {
            bail!("{} of {} viewers: {:?}", joined.joined, options.viewers, joined.failed);
        }
        let mut publisher = Publisher::new(self.server, &rooms, "red_packet")?;
        publisher.payload = options.bytes;
        let bulk = match self.bulk {
            true => Some(Bulk::start(self.server.publisher()?, rooms[0].clone(), options)?),
            false => None,
        };
        fleet.pump_for(SETTLE_US)?;
        let schedule = Schedule {
            rooms: 1,
            first: 0,
            pace: Pace::Rate(options.rate),
            seconds: options.seconds,
        };
        let window = drive::window(&mut fleet, &mut publisher, schedule, deadline, progress)?;
        if let Some(bulk) = bulk {
            bulk.finish()?;
        }
        if window.refused > 0 {
            bail!("{} events refused: {:?}", window.refused, publisher.refusal);
        }
        let group = window.stats.groups.first().cloned().unwrap_or_default();
        let due = window.events * u64::from(options.viewers);
        Ok(PhaseResult {
            transport: self.transport,
            bulk: self.bulk,
            events: window.events,
            lost: due.saturating_sub(group.deliveries),
            duplicated: group.duplicated,
            gaps: group.gaps,
            errors: window.stats.error_count,
            bytes_per_second: group.bytes as f64 / window.seconds / f64::from(options.viewers),
            latency: group.latency,
            closed: window.stats.closed.values().sum(),
            broken: window.stats.errors,
        })
    }

    fn plan(&self, rooms: &[String]) -> Plan {
        let options = self.options;
        let shares = vec![Share { room: 0, group: 0, count: options.viewers, slow: false }];
        Plan {
            addr: self.server.addr,
            mode: Mode::Viewer,
            wire: options.quic.wire(self.transport),
            source: [0, 0],
            rooms: rooms.to_vec(),
            shares,
            check_every: 1,
            recorders: 0,
            digest: false,
            compress: false,
            connect_rate: 0,
            in_progress: 64,
            secret: self.server.secret.clone(),
            user: format!("{}-", self.transport.name()),
            nice: 0,
            priority: 0,
            patient: false,
            rush: false,
        }
    }
}

/// A thread that publishes bulk.
struct Bulk {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Bulk {
    fn start(client: Client, room: String, options: &LinkOptions) -> Result<Bulk> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let (bytes, rate) = (options.bulk_bytes, options.bulk_rate);
        let thread = std::thread::Builder::new()
            .name("bulk".into())
            .spawn(move || publish_bulk(client, &room, bytes, rate, &told))?;
        Ok(Bulk { stop, thread })
    }

    fn finish(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the bulk's thread panicked"))?
    }
}

fn publish_bulk(
    mut client: Client,
    room: &str,
    bytes: usize,
    rate: f64,
    stop: &AtomicBool,
) -> Result<()> {
    let text = "Everybody writes at once, and it all comes in order. ".repeat(bytes / 53 + 1);
    let start = Instant::now();
    let mut number = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        let event = serde_json::json!({
            "id": format!("bulk-{number}"),
            "kind": "chat",
            "user": format!("bulk-{number}"),
            "payload": &text[..bytes],
        });
        let answer = publish::publish(&mut client, room, &[event.to_string()])?;
        if !answer.results[0].accepted() {
            bail!("bulk refused: {:?}", answer.results[0].code);
        }
        number += 1;
        let due = start + Duration::from_secs_f64(f64::from(number) / rate.max(0.01));
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// Adds a phase to those of its sort.
fn add(results: &mut Vec<PhaseResult>, phase: PhaseResult) {
    let same = |one: &&mut PhaseResult| (one.transport, one.bulk) == (phase.transport, phase.bulk);
    let Some(sum) = results.iter_mut().find(same) else {
        results.push(phase);
        return;
    };
    let before = sum.events as f64 / (sum.events + phase.events).max(1) as f64;
    sum.bytes_per_second = sum.bytes_per_second * before + phase.bytes_per_second * (1.0 - before);
    sum.events += phase.events;
    sum.lost += phase.lost;
    sum.duplicated += phase.duplicated;
    sum.gaps += phase.gaps;
    sum.errors += phase.errors;
    sum.broken.extend(phase.broken);
    sum.closed += phase.closed;
    sum.latency.absorb(&phase.latency);
}

fn output(options: &LinkOptions, results: &[PhaseResult]) -> Result<()> {
    let mut output = Output::new("link");
    let summary = |transport: Transport, bulk: bool| -> Option<Summary> {
        let one = results.iter().find(|one| (one.transport, one.bulk) == (transport, bulk))?;
        Some(one.latency.summary())
    };
    for one in results {
        let beside = if one.bulk { ", beside bulk" } else { "" };
        let latency = one.latency.summary();
        let mut section = Section::new(&format!("{}{beside}", one.transport.name()));
        section = section
            .line("latency", latency.to_string())
            .line("events", format!("{} to {} viewers", one.events, options.viewers))
            .line(
                "integrity",
                format!(
                    "lost {}, duplicated {}, gap notices {}, broken promises {}, connections \
                         that ended {}",
                    one.lost, one.duplicated, one.gaps, one.errors, one.closed
                ),
            )
            .line("received", format!("{:.0} bytes per second", one.bytes_per_second));
        for promise in one.broken.iter().take(3) {
            section = section.line("broken", promise.clone());
        }
        output.print(section);
        let name = format!("{}{}", one.transport.name(), if one.bulk { "_bulk" } else { "" });
        output.figure(&format!("{name}_p50_ms"), latency.p50_ms);
        output.figure(&format!("{name}_p99_ms"), latency.p99_ms);
        output.figure(&format!("{name}_lost"), one.lost as f64);
    }
    if let [first, .., last] = options.transport[..] {
        let title = format!("p99 of {} in relation to {}", first.name(), last.name());
        let mut section = Section::new(&title);
        for (name, bulk) in [("alone", false), ("beside bulk", true)] {
            let pair = summary(first, bulk).zip(summary(last, bulk));
            let (one, other) = pair.context("a phase is missing")?;
            let times = one.p99_ms / other.p99_ms.max(0.001);
            let mark = match (bulk, times >= MARK_TIMES) {
                (false, _) => String::new(),
                (true, true) => format!(" (mark: at least {MARK_TIMES:.1}; reached)"),
                (true, false) => format!(" (mark: at least {MARK_TIMES:.1}; MISSED)"),
            };
            section = section.line(name, format!("{times:.2} times{mark}"));
            output.figure(&format!("p99_times_{}", if bulk { "bulk" } else { "alone" }), times);
        }
        output.print(section);
    }
    output.attach("phases", results)?;
    output.finish(&options.run)?;
    let lost: u64 = results.iter().map(|one| one.lost + one.errors).sum();
    if lost > 0 {
        bail!("{lost} deliveries lost or promises broken");
    }
    Ok(())
}
