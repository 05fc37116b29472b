//! What the durable log costs on this disk: publishers that each have one event
//! on its way and send the next when it is acknowledged.
//!
//! One thread plays them all, as a shard does, so the figures are the log's and
//! not those of hundreds of threads taking turns.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Serialize;
use tidegate::clock::Clock;
use tidegate::engine::event::{Event, Numbered, Payload};
use tidegate::engine::ids::{Epoch, ImportantNo, RoomId, Seq, ShardId, Tier};
use tidegate::engine::kind::{Ack, Kind, Lane, Merge};
use tidegate::log::{Batch, Entry, Log, LogSettings, LogStats, Logged};

use crate::hist::{self, Recorded, Summary};

/// What to measure.
#[derive(Args, Debug, Clone)]
pub(crate) struct LogOptions {
    /// Publishers, one run each.
    #[arg(long, value_delimiter = ',', default_value = "1,16,256")]
    publishers: Vec<usize>,
    /// Seconds of a run.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Rooms that the publishers share.
    #[arg(long, default_value_t = 50)]
    rooms: usize,
    /// Bytes of a payload.
    #[arg(long, default_value_t = 200)]
    bytes: usize,
    /// An empty or missing directory on the disk to measure; it is removed.
    #[arg(long, default_value = "loadtest-log")]
    directory: PathBuf,
    /// Also as JSON, here.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One run.
#[derive(Debug, Serialize)]
struct Outcome {
    publishers: usize,
    accepted_per_second: f64,
    acknowledgement: Summary,
    syncs_per_second: f64,
    sync_mean_ms: f64,
    events_per_group: f64,
    largest_group: u64,
    written_bytes_per_second: f64,
}

/// Runs the command.
pub(crate) fn command(options: &LogOptions) -> Result<()> {
    if options.rooms == 0 || options.publishers.contains(&0) {
        bail!("there must be a room and a publisher");
    }
    println!(
        "{:>10} {:>11} {:>9} {:>9} {:>9} {:>8} {:>9} {:>7}",
        "publishers", "accepted/s", "p50 ms", "p99 ms", "syncs/s", "sync ms", "per group", "most"
    );
    let mut outcomes = Vec::new();
    for &publishers in &options.publishers {
        let outcome = run(options, publishers)?;
        println!(
            "{:>10} {:>11.0} {:>9.3} {:>9.3} {:>9.0} {:>8.3} {:>9.1} {:>7}",
            publishers,
            outcome.accepted_per_second,
            outcome.acknowledgement.p50_ms,
            outcome.acknowledgement.p99_ms,
            outcome.syncs_per_second,
            outcome.sync_mean_ms,
            outcome.events_per_group,
            outcome.largest_group
        );
        outcomes.push(outcome);
    }
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_vec_pretty(&outcomes)?)
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn run(options: &LogOptions, publishers: usize) -> Result<Outcome> {
    let directory = &options.directory;
    if directory.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{}: not empty", directory.display());
    }
    let (sender, answers): (Sender<Logged>, Receiver<Logged>) = channel();
    let done = Box::new(move |logged| {
        // Nobody listens any more once the run is over.
        let _ = sender.send(logged);
    });
    let kind = kind();
    let kinds = {
        let kind = Arc::clone(&kind);
        Arc::new(move |_: &str| Arc::clone(&kind))
    };
    let clock = Clock::start();
    let settings = LogSettings::new(directory);
    let (log, _) = Log::open(settings, kinds, clock.now(), done)?;
    let load = Load::new(options, kind, clock)?;
    let outcome = load.drive(&log, &answers, publishers, Duration::from_secs_f64(options.seconds));
    log.close();
    std::fs::remove_dir_all(directory)?;
    outcome
}

fn kind() -> Arc<Kind> {
    Arc::new(Kind {
        name: "red_packet".into(),
        lane: Lane::Important,
        merge: Merge::Append,
        tier: Tier(0),
        ttl: None,
        max_payload_bytes: 1 << 20,
        ack: Ack::Logged,
        viewer_publish: false,
        idle_reset: None,
    })
}

struct Load {
    rooms: Vec<(RoomId, u64)>,
    kind: Arc<Kind>,
    payload: Payload,
    clock: Clock,
    sent: u64,
}

impl Load {
    fn new(options: &LogOptions, kind: Arc<Kind>, clock: Clock) -> Result<Self> {
        let rooms = (0..options.rooms).map(|n| Ok((RoomId::new(&format!("room:{n}"))?, 0)));
        let payload = Payload { bytes: vec![b'x'; options.bytes].into(), json: false };
        Ok(Self { rooms: rooms.collect::<Result<_>>()?, kind, payload, clock, sent: 0 })
    }

    /// The next event of the next room, as a batch of its own.
    fn submit(&mut self, log: &Log, publisher: usize) -> Result<()> {
        let at = (self.sent % self.rooms.len() as u64) as usize;
        self.sent += 1;
        let (room, last) = &mut self.rooms[at];
        *last += 1;
        let event = Event {
            id: format!("{:032x}", self.sent).into(),
            kind: Arc::clone(&self.kind),
            user: "user".into(),
            payload: self.payload.clone(),
            key: None,
            amount: None,
            ttl: None,
            received: self.clock.now(),
            mark: None,
        };
        let (seq, important) = (Some(Seq(*last)), Some(ImportantNo(*last)));
        let event = Arc::new(Numbered { event, seq, important });
        log.submit(Batch {
            shard: ShardId(0),
            ticket: publisher as u64,
            generation: 0,
            entries: vec![Entry::Event { room: room.clone(), epoch: Epoch(1), event }],
        })?;
        Ok(())
    }

    fn drive(
        mut self,
        log: &Log,
        answers: &Receiver<Logged>,
        publishers: usize,
        length: Duration,
    ) -> Result<Outcome> {
        let mut took = hist::new();
        let start = Instant::now();
        let before = log.stats();
        let mut sent = vec![start; publishers];
        for (publisher, at) in sent.iter_mut().enumerate() {
            *at = Instant::now();
            self.submit(log, publisher)?;
        }
        let mut accepted = 0_u64;
        let ran = loop {
            let logged = answers.recv()?;
            logged.result?;
            let now = Instant::now();
            let publisher = logged.ticket as usize;
            took.saturating_record(now.duration_since(sent[publisher]).as_micros() as u64);
            accepted += 1;
            if now.duration_since(start) >= length {
                break now.duration_since(start).as_secs_f64();
            }
            sent[publisher] = now;
            self.submit(log, publisher)?;
        };
        Ok(outcome(publishers, accepted, ran, &before, &log.stats(), &Recorded::of(&took)))
    }
}

fn outcome(
    publishers: usize,
    accepted: u64,
    ran: f64,
    before: &LogStats,
    after: &LogStats,
    took: &Recorded,
) -> Outcome {
    let groups = (after.groups - before.groups) as f64;
    let syncs = (after.syncs.count() - before.syncs.count()) as f64;
    Outcome {
        publishers,
        accepted_per_second: accepted as f64 / ran,
        acknowledgement: took.summary(),
        syncs_per_second: syncs / ran,
        sync_mean_ms: (after.syncs.sum_us - before.syncs.sum_us) as f64 / syncs / 1e3,
        events_per_group: (after.entries - before.entries) as f64 / groups,
        largest_group: after.largest_group,
        written_bytes_per_second: (after.written_bytes - before.written_bytes) as f64 / ran,
    }
}
