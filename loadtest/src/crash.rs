//! The server is killed at random moments while important events go in and
//! viewers watch, and is started again each time with the same log. At the end
//! three accounts must agree: what publishers were told, what the log has, and
//! what every viewer was shown.
//!
//! `kill -9` takes the process, not the machine: what was written but not synced
//! survives it. That a sync comes before every answer is the log's own test.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;
use tidegate::viewer::room::Tally;

use crate::audit::{self, Verdict};
use crate::crowd::{self, Behaviour, Crowd};
use crate::hist::Summary;
use crate::report::{Output, Section};
use crate::run::{Deadline, Progress, RunOptions};
use crate::server::{Server, ServerOptions};
use crate::sys;
use crate::upstream::{self, Upstream};

/// Kinds of the rooms' important events, by turns.
const KINDS: [&str; 4] = ["red_packet", "coupon", "product_card", "stream_state"];

/// What to do.
#[derive(Args, Debug, Clone)]
pub(crate) struct CrashOptions {
    /// How often the server is killed.
    #[arg(long, default_value_t = 30)]
    kills: u32,
    /// It is asked to end (SIGTERM) instead of killed (SIGKILL).
    #[arg(long)]
    term: bool,
    /// Rooms.
    #[arg(long, default_value_t = 50)]
    rooms: u32,
    /// Viewers, evenly over the rooms.
    #[arg(long, default_value_t = 2_000)]
    viewers: u32,
    /// Important events per second, all rooms together.
    #[arg(long, default_value_t = 250.0)]
    rate: f64,
    /// Talk per second beside them, so that numbers are not all important.
    #[arg(long, default_value_t = 50.0)]
    talk: f64,
    /// Publishers, each with one connection and one event on its way.
    #[arg(long, default_value_t = 10)]
    publishers: usize,
    /// Shortest life of the server, in milliseconds; it may not be ready by then.
    #[arg(long, default_value_t = 100)]
    least_ms: u64,
    /// Longest.
    #[arg(long, default_value_t = 4_000)]
    longest_ms: u64,
    /// After the last restart viewers may take so many seconds to have everything.
    #[arg(long, default_value_t = 30)]
    settle_seconds: u64,
    /// Of all draws; by default another one each time.
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    run: RunOptions,
}

/// What was found.
#[derive(Debug, Serialize)]
struct CrashResult {
    seed: u64,
    kills: u32,
    signal: &'static str,
    seconds: f64,
    rooms: u32,
    viewers: u32,
    accepted: u64,
    accepted_per_second: f64,
    talk: u64,
    /// Lives in which nothing was accepted: it was killed while starting.
    fruitless_lives: u32,
    unanswered: u64,
    postponed: BTreeMap<String, u64>,
    answers: Summary,
    shown: u64,
    reconnected: u64,
    frames: u64,
    told_to_pull: u64,
    tally: TallyResult,
    closed: BTreeMap<String, u64>,
    errors: BTreeMap<String, u64>,
    behind: u32,
    verdict: Verdict,
}

/// What the viewers' models counted.
#[derive(Debug, Serialize)]
struct TallyResult {
    dropped: u64,
    held: u64,
    pulls: u64,
    acks: u64,
    recovered: u64,
    fresh: u64,
    reborn: u64,
}

impl From<Tally> for TallyResult {
    fn from(tally: Tally) -> Self {
        let Tally { dropped, held, pulls, acks, recovered, fresh, reborn, .. } = tally;
        Self { dropped, held, pulls, acks, recovered, fresh, reborn }
    }
}

/// The command.
pub(crate) fn command(options: &CrashOptions) -> Result<()> {
    let deadline = Deadline::arm(options.run.max_seconds);
    let mut progress = Progress::new(options.run.quiet);
    let (_, client_cpus) = options.server.processors()?;
    sys::pin(&client_cpus)?;
    // Viewers that are asked to leave need not be given ten seconds for it here.
    let server = options.server.with("server.drain_timeout_ms=1500");
    let server = server.with("server.reconnect_spread_ms=1000");
    let mut server = Server::start(&server, options.viewers, deadline)?;
    let outcome = measure(options, &mut server, deadline, &mut progress);
    progress.end();
    let failed = match &outcome {
        Ok(result) => result.verdict.total() > 0,
        Err(_) => true,
    };
    if failed && let Some(dir) = server.keep_files() {
        println!("the server's log and files are in {}", dir.display());
    }
    output(options, &outcome?)
}

fn measure(
    options: &CrashOptions,
    server: &mut Server,
    deadline: Deadline,
    progress: &mut Progress,
) -> Result<CrashResult> {
    let seed = options.seed.unwrap_or_else(sys::mono_us);
    let count = options.rooms.max(1);
    let rooms: Vec<String> = (0..count).map(|room| format!("crash-{room}")).collect();
    let crowd = Crowd::start(crowd_plan(options, server, &rooms, seed))?;
    progress.stage(&format!("crash, seed {seed}: joining"));
    crowd.wait_live(options.viewers, deadline, progress)?;
    let kinds = rooms.iter().cloned().zip(KINDS.into_iter().cycle());
    let plan = upstream::Plan {
        rooms: kinds.collect(),
        important: options.rate,
        talk: options.talk,
        publishers: options.publishers,
        bytes: 200,
        seed,
    };
    let began = sys::mono_us();
    let upstream = Upstream::start(server, &plan)?;
    let fruitless_lives =
        kill_again_and_again(options, server, &crowd, &upstream, seed, deadline, progress)?;
    progress.stage("crash: the rest");
    server.wait_ready(deadline)?;
    // Some events after the last restart, for those who have just come back.
    std::thread::sleep(Duration::from_millis(1_000));
    let told = upstream.finish()?;
    let seconds = (sys::mono_us() - began) as f64 / 1e6;

    let mut verdict = Verdict::default();
    let ledgers = audit::account(server, &rooms, &told, &mut verdict)?;
    let numbers = ledgers.iter().map(|ledger| ledger.important).collect();
    let limit = deadline.within(options.settle_seconds);
    let behind = crowd.settle(numbers, limit, progress)?;
    let seen = crowd.finish()?;
    verdict.viewers(&seen, &ledgers);
    Ok(CrashResult {
        seed,
        kills: options.kills,
        signal: if options.term { "SIGTERM" } else { "SIGKILL" },
        seconds,
        rooms: count,
        viewers: options.viewers,
        accepted: told.count(),
        accepted_per_second: told.count() as f64 / seconds,
        talk: told.talk.iter().map(|room| room.len() as u64).sum(),
        fruitless_lives,
        unanswered: told.unanswered,
        postponed: told.postponed,
        answers: told.answers.summary(),
        shown: seen.viewers.iter().map(|viewer| viewer.shown.len() as u64).sum(),
        reconnected: seen.reconnected,
        frames: seen.frames,
        told_to_pull: seen.missed,
        tally: seen.tally.into(),
        closed: seen.closed,
        errors: seen.errors,
        behind,
        verdict,
    })
}

/// Returns how many lives passed without an accepted event.
fn kill_again_and_again(
    options: &CrashOptions,
    server: &mut Server,
    crowd: &Crowd,
    upstream: &Upstream,
    seed: u64,
    deadline: Deadline,
    progress: &mut Progress,
) -> Result<u32> {
    let mut random = SmallRng::seed_from_u64(seed);
    let longest = options.longest_ms.max(options.least_ms);
    let mut fruitless = 0;
    let mut before = 0;
    for kill in 1..=options.kills {
        progress.stage(&format!("crash, seed {seed}: life {kill} of {}", options.kills));
        let life = random.random_range(options.least_ms..=longest);
        let until = sys::mono_us() + life * 1_000;
        while sys::mono_us() < until {
            deadline.check("waiting for the next kill")?;
            crowd.check()?;
            if !server.runs() {
                bail!("the server ended by itself; its log ends:\n{}", server.log_tail());
            }
            let news = (upstream.accepted(), crowd.live(), crowd.reconnected());
            progress.tell(&format!("{} accepted, {} live, {} reconnects", news.0, news.1, news.2));
            let left = until.saturating_sub(sys::mono_us());
            std::thread::sleep(Duration::from_micros(left.min(50_000)));
        }
        server.end(options.term)?;
        let accepted = upstream.accepted();
        fruitless += u32::from(accepted == before);
        before = accepted;
        server.again()?;
    }
    Ok(fruitless)
}

fn crowd_plan(options: &CrashOptions, server: &Server, rooms: &[String], seed: u64) -> crowd::Plan {
    let count = u32::try_from(rooms.len()).unwrap_or(1);
    let viewers = |room: u32| options.viewers / count + u32::from(room < options.viewers % count);
    crowd::Plan {
        addr: server.addr,
        secret: server.secret.clone(),
        rooms: rooms.iter().cloned().zip((0..count).map(viewers)).collect(),
        behaviours: vec![Behaviour::Acknowledges; options.viewers as usize],
        connect_rate: 4_000,
        backoff_us: 400_000,
        max_backoff_us: 2_000_000,
        source: crowd::source(),
        nice: 0,
        seed,
    }
}

fn output(options: &CrashOptions, result: &CrashResult) -> Result<()> {
    let mut output = Output::new("crash");
    let counts = |counts: &BTreeMap<String, u64>| {
        let parts: Vec<String> = counts.iter().map(|(name, n)| format!("{n} {name}")).collect();
        if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
    };
    output.print(
        Section::new("server")
            .line(
                "ended",
                format!("{} times by {}, seed {}", result.kills, result.signal, result.seed),
            )
            .line("run", format!("{:.1} s", result.seconds))
            .line(
                "without fruit",
                format!("{} lives, killed while starting", result.fruitless_lives),
            ),
    );
    output.print(
        Section::new("publishers")
            .line(
                "accepted",
                format!(
                    "{} important events in {} rooms, {:.0} per second with all downtimes; {} talk",
                    result.accepted, result.rooms, result.accepted_per_second, result.talk
                ),
            )
            .line("answers", result.answers.to_string())
            .line("sent again", format!("{} for want of an answer", result.unanswered))
            .line("postponed", counts(&result.postponed)),
    );
    let tally = &result.tally;
    output.print(
        Section::new("viewers")
            .line("shown", format!("{} events to {} viewers", result.shown, result.viewers))
            .line(
                "came back",
                format!(
                    "{} times: {} recovered in full, {} anew with what they were owed, {} to a room of which nothing had been logged",
                    result.reconnected, tally.recovered, tally.fresh, tally.reborn
                ),
            )
            .line("dropped", format!("{} that came again, by their number", tally.dropped))
            .line(
                "held back",
                format!(
                    "{} behind a hole; {} pulls, {} times told to",
                    tally.held, tally.pulls, result.told_to_pull
                ),
            )
            .line("acks", tally.acks.to_string())
            .line("closed", counts(&result.closed))
            .line("errors", counts(&result.errors)),
    );
    output.print(result.verdict.section());
    output.figure("accepted", result.accepted as f64);
    output.figure("accepted_per_second", result.accepted_per_second);
    output.figure("answer_p99_ms", result.answers.p99_ms);
    output.figure("reconnected", result.reconnected as f64);
    output.figure("differences", result.verdict.total() as f64);
    output.attach("result", result)?;
    output.finish(&options.run)?;
    if result.verdict.total() > 0 {
        bail!("{} differences (seed {})", result.verdict.total(), result.seed);
    }
    Ok(())
}
