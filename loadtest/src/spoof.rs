//! First packets of QUIC from addresses that are somebody else's: what do they
//! cost the server in memory, and how many bytes does it send to those who
//! never asked? RFC 9000, section 8, allows three times what came.
//!
//! The server runs in a network namespace of its own; the sender
//! ([`sender`], this executable again) in another one, joined by a veth pair.
//! All of 10.203.0.0/16 is routed to the sender, who sends real first packets
//! of real clients from addresses all over it, hears every answer, and answers
//! none. Both namespaces are nameless and end with the processes.

pub(crate) mod sender;

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use self::sender::Told;
use crate::drive::{self, Pace, Schedule, Window};
use crate::fleet::Fleet;
use crate::hist::Summary;
use crate::namespace::{self, ip};
use crate::protocol::{Mode, Plan, Share};
use crate::publish::Publisher;
use crate::report::{Output, Section};
use crate::run::{Deadline, Progress, RunOptions};
use crate::server::{Server, ServerOptions};
use crate::sys;
use crate::transport::{QuicOptions, Transport};

/// The server's end of the pair, and the sender's.
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 202, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 202, 0, 2);
/// Each comes from an address and port of its own.
const MOST_INITIALS: u32 = 500_000;
/// What the server may send to an address that has proved nothing, in relation
/// to what came from there (RFC 9000, section 8.1).
const MOST_TIMES: f64 = 3.0;

/// What to measure.
#[derive(Args, Debug, Clone)]
pub(crate) struct SpoofOptions {
    /// First packets, each of a connection and from an address of its own.
    #[arg(long, default_value_t = 100_000)]
    initials: u32,
    /// Of them per second.
    #[arg(long, default_value_t = 10_000)]
    rate: u32,
    /// Seconds for which answers are awaited after the last one: the server
    /// repeats itself before it gives up.
    #[arg(long, default_value_t = 20)]
    after: u64,
    /// The server may grow by so many MiB at most.
    #[arg(long, default_value_t = 256)]
    limit_mib: u64,
    /// Viewers of a room that is being watched meanwhile, over QUIC.
    #[arg(long, default_value_t = 200)]
    with_room: u32,
    /// Events per second in that room.
    #[arg(long, default_value_t = 10.0)]
    room_rate: f64,
    #[command(flatten)]
    quic: QuicOptions,
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    run: RunOptions,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct SpoofResult {
    told: Told,
    before_kib: u64,
    peak_kib: u64,
    after_kib: u64,
    server_cpu_us_per_initial: f64,
    room_before: Summary,
    room_during: Summary,
    room_lost: u64,
    counted: std::collections::BTreeMap<String, f64>,
}

/// The command.
pub(crate) fn command(options: &SpoofOptions) -> Result<()> {
    if options.initials > MOST_INITIALS {
        bail!("--initials: at most {MOST_INITIALS}, there are no more addresses");
    }
    let deadline = Deadline::arm(options.run.max_seconds);
    let mut progress = Progress::new(options.run.quiet);
    let (_, client_cpus) = options.server.processors()?;
    sys::pin(&client_cpus)?;
    namespace::unshare()?;
    let mut sender = Sender::start()?;
    let elsewhere = options.server.elsewhere(IpAddr::V4(NEAR));
    let mut server = Server::start(&elsewhere, 0, deadline)?;
    let outcome = measure(options, &server, &mut sender, deadline, &mut progress);
    if !server.runs() {
        bail!("the server ended during the run; its log ends:\n{}", server.log_tail());
    }
    progress.end();
    output(options, &outcome?)
}

/// The sending process.
struct Sender {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Sender {
    /// Starts it, and joins its namespace with this one.
    fn start() -> Result<Sender> {
        let own = std::env::current_exe()?;
        let mut child = std::process::Command::new(own)
            .arg("spoof-sender")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the sender")?;
        let stdin = child.stdin.take().context("sender without a pipe")?;
        let stdout = child.stdout.take().context("sender without a pipe")?;
        let mut sender = Sender { stdin, lines: BufReader::new(stdout).lines(), child };
        // It is in its namespace now.
        sender.line()?;
        let pid = sender.child.id();
        ip(&format!("link add near type veth peer name far netns {pid}"))?;
        ip(&format!("address add {NEAR}/30 dev near"))?;
        ip("link set near up")?;
        sender.tell(&format!("{FAR}/30 {NEAR}"))?;
        sender.line()?;
        ip(&format!("route add {} via {FAR}", sender::FORGED))?;
        Ok(sender)
    }

    fn tell(&mut self, line: &str) -> Result<()> {
        writeln!(self.stdin, "{line}").context("telling the sender")
    }

    fn line(&mut self) -> Result<String> {
        Ok(self.lines.next().context("the sender ended")??)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn measure(
    options: &SpoofOptions,
    server: &Server,
    sender: &mut Sender,
    deadline: Deadline,
    progress: &mut Progress,
) -> Result<SpoofResult> {
    let rooms = vec![format!("lt-calm-{:x}", sys::mono_us())];
    let mut room = Fleet::start(&plan(options, server, &rooms), 1, deadline)?;
    progress.stage("spoof: the room that is watched");
    let joined = room.connect(deadline, progress)?;
    if joined.joined != options.with_room {
        bail!("{} of {} viewers: {:?}", joined.joined, options.with_room, joined.failed);
    }
    let mut publisher = Publisher::new(server, &rooms, "red_packet")?;
    publisher.payload = 256;
    let pace = Pace::Rate(options.room_rate);
    let before = Schedule { rooms: 1, first: 0, pace, seconds: 5.0 };
    let before = drive::window(&mut room, &mut publisher, before, deadline, progress)?;

    progress.stage("spoof: flood");
    let pid = server.pid().context("without the server's process there is no memory to read")?;
    let (before_kib, cpu) = (sys::exact_rss_kib(pid).unwrap_or(0), sys::cpu_ns(pid).unwrap_or(0));
    let earlier = server.metrics();
    sender.tell(&serde_json::to_string(&sender::Order {
        target: server.addr,
        initials: options.initials,
        rate: options.rate,
        after_seconds: options.after,
    })?)?;
    let seconds = f64::from(options.initials) / f64::from(options.rate.max(1));
    let schedule = Schedule { rooms: 1, first: before.next, pace, seconds };
    let during = drive::window(&mut room, &mut publisher, schedule, deadline, progress)?;
    let used = sys::cpu_ns(pid).unwrap_or(0).saturating_sub(cpu);
    let peak = during.series.memory.iter().map(|&(_, mib)| mib).fold(0.0, f64::max);
    progress.stage("spoof: answers");
    let told: Told = serde_json::from_str(&sender.line()?).context("the sender's account")?;
    let lost = |window: &Window| {
        let due = window.events * u64::from(options.with_room);
        due.saturating_sub(window.stats.groups.first().map_or(0, |group| group.deliveries))
    };
    let latency = |window: &Window| {
        window.stats.groups.first().map_or(Summary::default(), |group| group.latency.summary())
    };
    Ok(SpoofResult {
        server_cpu_us_per_initial: used as f64 / 1e3 / f64::from(told.sent.max(1)),
        told,
        before_kib,
        peak_kib: (peak * 1024.0) as u64,
        after_kib: sys::exact_rss_kib(pid).unwrap_or(0),
        room_before: latency(&before),
        room_during: latency(&during),
        room_lost: lost(&before) + lost(&during),
        counted: server.metrics().growths(&earlier, &["tidegate_quic_"]),
    })
}

fn plan(options: &SpoofOptions, server: &Server, rooms: &[String]) -> Plan {
    Plan {
        addr: server.addr,
        mode: Mode::Viewer,
        wire: options.quic.wire(Transport::Quic),
        source: [0, 0],
        rooms: rooms.to_vec(),
        shares: vec![Share { room: 0, group: 0, count: options.with_room, slow: false }],
        check_every: 50,
        recorders: 0,
        digest: false,
        compress: false,
        connect_rate: 0,
        in_progress: 64,
        secret: server.secret.clone(),
        user: "calm-".into(),
        nice: 0,
        priority: 0,
        patient: false,
        rush: false,
    }
}

fn output(options: &SpoofOptions, result: &SpoofResult) -> Result<()> {
    let mut output = Output::new("spoof");
    let told = &result.told;
    let grown = result.peak_kib.saturating_sub(result.before_kib);
    let times = told.answered_bytes as f64 / told.sent_bytes.max(1) as f64;
    let mut section = Section::new("first packets from addresses of others")
        .line(
            "sent",
            format!(
                "{} of {} ({} bytes) in {:.1} s: {:.0} per second",
                told.sent,
                options.initials,
                told.sent_bytes,
                told.seconds,
                f64::from(told.sent) / told.seconds.max(1e-9)
            ),
        )
        .line(
            "answered",
            format!(
                "{} datagrams, {} bytes: {times:.2} times what was sent; to one address at most \
                 {:.2} times; {} dropped before they were counted",
                told.answers, told.answered_bytes, told.most_times, told.dropped
            ),
        )
        .line(
            "server memory",
            format!(
                "{} KiB before, {} KiB at most, {} KiB after {} s: {:.0} bytes per first packet",
                result.before_kib,
                result.peak_kib,
                result.after_kib,
                options.after,
                grown as f64 * 1024.0 / f64::from(told.sent.max(1))
            ),
        )
        .line("processor", format!("{:.1} µs of the server each", result.server_cpu_us_per_initial))
        .line("room before", result.room_before.to_string())
        .line("room during", result.room_during.to_string())
        .line("room, lost", result.room_lost.to_string());
    for (name, grown) in &result.counted {
        section = section.line("counted", format!("{name} {grown}"));
    }
    output.print(section);
    output.figure("answered_times", times);
    output.figure("answered_times_most", told.most_times);
    output.figure("peak_growth_kib", grown as f64);
    output.figure("after_growth_kib", result.after_kib as f64 - result.before_kib as f64);
    output.figure("server_cpu_us_per_initial", result.server_cpu_us_per_initial);
    output.figure("room_p99_before_ms", result.room_before.p99_ms);
    output.figure("room_p99_during_ms", result.room_during.p99_ms);
    output.figure("room_lost", result.room_lost as f64);
    output.attach("result", result)?;
    output.finish(&options.run)?;
    if told.sent == 0 || told.answers == 0 {
        bail!("the server answered nobody: nothing was tested");
    }
    if told.most_times > MOST_TIMES {
        bail!("an address was sent {:.2} times what came from it", told.most_times);
    }
    if grown > options.limit_mib * 1024 {
        bail!("the server grew by {grown} KiB, more than {} MiB", options.limit_mib);
    }
    Ok(())
}
