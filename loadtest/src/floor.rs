//! The machine's bare cost of a broadcast: one thread writes the same bytes to
//! N sockets with one `write(2)` each, and does nothing else. What a server
//! spends above it is its own doing.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use crate::drive::{self, Pace, Schedule, Series, Source, Window};
use crate::fleet::{self, Fleet};
use crate::hist::{Summary, median};
use crate::protocol::{Mode, Plan, Share};
use crate::report::{Output, Section};
use crate::run::{Deadline, Progress, RunOptions};
use crate::sys;
use crate::transport::Wire;
use crate::viewer::marked_payload;
use crate::wsclient;

/// What to measure.
#[derive(Args, Debug, Clone)]
pub(crate) struct FloorOptions {
    /// Receiving sockets.
    #[arg(long, default_value_t = 15_000)]
    viewers: u32,
    /// Bytes per write.
    #[arg(long, default_value_t = 526)]
    bytes: usize,
    /// Bursts per second.
    #[arg(long, default_value_t = 1.0)]
    rate: f64,
    /// Lock step instead: the next burst when all receivers have the last one.
    #[arg(long)]
    saturate: bool,
    /// With --saturate: bursts under way at most.
    #[arg(long, default_value_t = 1)]
    in_flight: u64,
    /// Length of a round.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Receiving processes; 0: as many as needed.
    #[arg(long, default_value_t = 0)]
    workers: u32,
    /// Processor of the writer [default: 0 if there are several].
    #[arg(long)]
    server_cpus: Option<String>,
    /// Processors of the receivers [default: all but the first].
    #[arg(long)]
    client_cpus: Option<String>,
    #[command(flatten)]
    run: RunOptions,
}

/// Sockets that the one writing process can hold.
pub(crate) const MAX_SOCKETS: u32 = 19_000;

/// A floor to measure.
#[derive(Debug, Clone)]
pub(crate) struct FloorPlan {
    /// Sockets.
    pub(crate) viewers: u32,
    /// Bytes per write.
    pub(crate) bytes: usize,
    /// When to burst.
    pub(crate) pace: Pace,
    /// For how long.
    pub(crate) seconds: f64,
    /// Receiving processes; 0: as many as needed.
    pub(crate) workers: u32,
    /// Processors of the writer.
    pub(crate) server_cpus: Vec<usize>,
    /// Processors of the receivers, where this process is already.
    pub(crate) client_cpus: Vec<usize>,
}

/// What one round of the floor cost.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct FloorResult {
    /// Sockets.
    pub(crate) viewers: u32,
    /// Bytes per write.
    pub(crate) bytes: usize,
    /// Bursts.
    pub(crate) bursts: u64,
    /// Writes.
    pub(crate) writes: u64,
    /// Bursts that did not reach every receiver, times those they missed.
    pub(crate) lost: u64,
    /// Processor time of the writer per write, in microseconds.
    pub(crate) cpu_us_per_write: f64,
    /// Writes per second.
    pub(crate) writes_per_second: f64,
    /// From the intended time of a burst to a receiver.
    pub(crate) latency: Summary,
    /// Share of one processor that the receivers used.
    pub(crate) client_cpu: f64,
    /// Share of one processor that the writer used.
    pub(crate) server_cpu: f64,
    /// Over time.
    pub(crate) series: Series,
    /// Percentile curve: (quantile, ms).
    pub(crate) curve: Vec<(f64, f64)>,
}

/// The command.
pub(crate) fn command(options: &FloorOptions) -> Result<()> {
    if options.viewers > MAX_SOCKETS {
        bail!("the floor is one process of at most {MAX_SOCKETS} sockets");
    }
    let deadline = Deadline::arm(options.run.max_seconds);
    let mut progress = Progress::new(options.run.quiet);
    let pinned = |text: &Option<String>, default: Vec<usize>| match text {
        Some(text) => sys::parse_cpus(text),
        None if sys::processors() < 2 => Ok(Vec::new()),
        None => Ok(default),
    };
    let all = sys::processors();
    let server_cpus = pinned(&options.server_cpus, vec![0])?;
    let client_cpus = pinned(&options.client_cpus, (1..all).collect())?;
    sys::pin(&client_cpus)?;
    let pace =
        if options.saturate { Pace::Saturate(options.in_flight) } else { Pace::Rate(options.rate) };
    let plan = FloorPlan {
        viewers: options.viewers,
        bytes: options.bytes,
        pace,
        seconds: options.seconds,
        workers: options.workers,
        server_cpus,
        client_cpus,
    };
    let mut rounds = Vec::new();
    for round in 1..=options.rounds.max(1) {
        progress.stage(&format!("floor, round {round} of {}", options.rounds));
        rounds.push(measure(&plan, deadline, &mut progress)?);
    }
    progress.end();
    let mut output = Output::new("floor");
    for round in &rounds {
        output.print(section(round, "floor"));
    }
    let costs: Vec<f64> = rounds.iter().map(|round| round.cpu_us_per_write).collect();
    let rates: Vec<f64> = rounds.iter().map(|round| round.writes_per_second).collect();
    output.figure("cpu_us_per_write", median(&costs));
    output.figure("writes_per_second", median(&rates));
    output.attach("rounds", &rounds)?;
    output.print(Section::new("median").line(
        "cost",
        format!("{:.2} µs per write, {:.0} writes/s", median(&costs), median(&rates)),
    ));
    for round in &rounds {
        output.plots("floor", &round.series, &round.curve);
    }
    output.finish(&options.run)
}

/// A round's result for people.
pub(crate) fn section(round: &FloorResult, title: &str) -> Section {
    Section::new(title)
        .line(
            "sockets",
            format!("{} x {} bytes, {} bursts", round.viewers, round.bytes, round.bursts),
        )
        .line("processor", format!("{:.2} µs per write", round.cpu_us_per_write))
        .line("writes", format!("{:.0} per second", round.writes_per_second))
        .line("latency", round.latency.to_string())
        .line("lost", round.lost.to_string())
        .line("load", load(round.server_cpu, round.client_cpu))
}

/// How busy both sides were; a client without room to spare distorts latency.
pub(crate) fn load(server: f64, client: f64) -> String {
    let warning =
        if client > 0.9 { " (the client is the limit: read latency with care)" } else { "" };
    format!(
        "server {:.0} %, client {:.0} % of a processor{warning}",
        server * 100.0,
        client * 100.0
    )
}

/// One round with fresh sockets.
pub(crate) fn measure(
    plan: &FloorPlan,
    deadline: Deadline,
    progress: &mut Progress,
) -> Result<FloorResult> {
    let mut writer = Writer::start(plan)?;
    let workers =
        fleet::workers_for(plan.viewers, plan.viewers, plan.workers, plan.client_cpus.len());
    let wire = Plan {
        addr: writer.addr,
        mode: Mode::Bare,
        wire: Wire::default(),
        source: [0, 0],
        rooms: vec!["floor".into()],
        shares: vec![Share { room: 0, group: 0, count: plan.viewers, slow: false }],
        check_every: 0,
        recorders: 0,
        digest: false,
        compress: false,
        connect_rate: 0,
        in_progress: 512,
        secret: String::new(),
        user: String::new(),
        nice: 0,
        priority: 0,
        patient: false,
        rush: false,
    };
    let mut fleet = Fleet::start(&wire, workers, deadline)?;
    let joined = fleet.connect(deadline, progress)?;
    if joined.joined != plan.viewers {
        bail!("{} of {} sockets: {:?}", joined.joined, plan.viewers, joined.failed);
    }
    writer.ready()?;
    let warm = Schedule { rooms: 1, first: 0, pace: Pace::Saturate(1), seconds: 0.3 };
    let warm = drive::window(&mut fleet, &mut writer, warm, deadline, progress)?;
    let schedule = Schedule { rooms: 1, first: warm.next, pace: plan.pace, seconds: plan.seconds };
    let window = drive::window(&mut fleet, &mut writer, schedule, deadline, progress)?;
    drop(fleet);
    Ok(result(plan, &window))
}

fn result(plan: &FloorPlan, window: &Window) -> FloorResult {
    let group = window.stats.groups.first().cloned().unwrap_or_default();
    let writes = window.events * u64::from(plan.viewers);
    FloorResult {
        viewers: plan.viewers,
        bytes: plan.bytes,
        bursts: window.events,
        writes,
        lost: writes.saturating_sub(group.deliveries),
        cpu_us_per_write: window.cpu_ns as f64 / 1e3 / writes.max(1) as f64,
        writes_per_second: writes as f64 / window.seconds,
        latency: group.latency.summary(),
        client_cpu: window.client_cpu_ns as f64 / 1e9 / window.seconds,
        server_cpu: window.cpu_ns as f64 / 1e9 / window.seconds,
        series: window.series.clone(),
        curve: group.latency.curve(),
    }
}

/// The writing process, from the parent's side.
struct Writer {
    child: Child,
    stdin: ChildStdin,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    addr: SocketAddr,
}

impl Writer {
    fn start(plan: &FloorPlan) -> Result<Self> {
        let own = std::env::current_exe()?;
        let mut child = sys::pinned_command(&own.to_string_lossy(), &plan.server_cpus)?
            .arg("floor-writer")
            .arg(plan.viewers.to_string())
            .arg(plan.bytes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the floor's writer")?;
        let stdin = child.stdin.take().context("writer without a pipe")?;
        let stdout = child.stdout.take().context("writer without a pipe")?;
        let mut lines = BufReader::new(stdout).lines();
        let addr = lines.next().context("the writer ended")??.parse()?;
        Ok(Self { child, stdin, lines, addr })
    }

    /// Returns when the writer has accepted every socket.
    fn ready(&mut self) -> Result<()> {
        self.lines.next().context("the writer ended")??;
        Ok(())
    }
}

impl Source for Writer {
    fn send(&mut self, _room: u16, n: u64, intended: u64) -> Result<bool> {
        writeln!(self.stdin, "{n} {intended}").context("telling the floor's writer")?;
        Ok(true)
    }

    fn pid(&self) -> Option<u32> {
        Some(self.child.id())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The writing process itself: a line `n intended` on stdin is one burst.
pub(crate) fn writer(viewers: u32, bytes: usize) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    rustix::net::listen(&listener, 4096)?;
    println!("{}", listener.local_addr()?);
    let mut sockets: Vec<TcpStream> = Vec::with_capacity(viewers as usize);
    for _ in 0..viewers {
        let (socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        sockets.push(socket);
    }
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let Some((n, intended)) = line.split_once(' ') else { bail!("bad line {line:?}") };
        let frame = burst(n.parse()?, intended.parse()?, bytes);
        for socket in &sockets {
            // Blocking: a receiver that is full holds the burst up, and is seen to.
            let written = rustix::io::write(socket, &frame)?;
            if written != frame.len() {
                bail!("the kernel took {written} of {} bytes", frame.len());
            }
        }
    }
    Ok(())
}

/// A frame of exactly `bytes` bytes (if that is possible) as a server writes it.
fn burst(n: u64, intended: u64, bytes: usize) -> Vec<u8> {
    const AROUND: usize = "{\"frame\":}".len();
    let content = [2, 4, 10]
        .into_iter()
        .map(|header| bytes.saturating_sub(header))
        .find(|&content| wsclient::server_header_bytes(content) + content <= bytes)
        .unwrap_or(0);
    let payload = marked_payload(0, n, intended, content.saturating_sub(AROUND));
    wsclient::server_frame(wsclient::TEXT, format!("{{\"frame\":{payload}}}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_has_the_length_asked_for() {
        for bytes in [100, 125, 127, 526, 8_192, 70_000] {
            assert_eq!(burst(7, 123_456_789, bytes).len(), bytes);
        }
    }
}
