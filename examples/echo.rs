//! A WebSocket echo server on the same transport code as the real one, for
//! protocol test suites such as Autobahn's.
//!
//! `cargo run --release --example echo -- --port 9001`

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Parser;
use tidegate::clock::Clock;
use tidegate::config::{Config, Plaintext};
use tidegate::engine::confirm;
use tidegate::engine::delivery::{Bounds, LadderSettings};
use tidegate::engine::ids::ShardId;
use tidegate::engine::level::LevelKey;
use tidegate::ingress::places::Places;
use tidegate::ingress::stats::EdgeStats;
use tidegate::shard::connection::ViewerKey;
use tidegate::shard::held::HoldSettings;
use tidegate::shard::home::{Announce, HomeSettings};
use tidegate::shard::intake::IntakeSettings;
use tidegate::shard::peers::LocalShards;
use tidegate::shard::{Shard, ShardSettings};
use tidegate::tls::Identity;
use tidegate::transport::websocket::decode::Inbound;
use tidegate::transport::websocket::handshake::Policy;
use tidegate::transport::websocket::reader::Listener;
use tidegate::wire::deflate::Deflater;
use tidegate::wire::frame;
use tidegate::wire::shared::Compression;
use tidegate::worker::accept::Edge;
use tidegate::worker::doorway;
use tidegate::worker::entrance::Entrance;
use tidegate::worker::give_way::Kept;
use tidegate::worker::{ReadLimits, Worker};
use tokio::sync::{Semaphore, mpsc, watch};

/// Larger than the largest message of Autobahn's suite (16 MiB).
const MAX_MESSAGE: usize = 20 << 20;
const DAY: Duration = Duration::from_secs(86_400);

#[derive(Parser)]
struct Arguments {
    /// Port on 127.0.0.1.
    #[arg(long, default_value_t = 9001)]
    port: u16,
    /// Do not offer permessage-deflate.
    #[arg(long)]
    no_compression: bool,
    /// Speak TLS as well, with a certificate that nobody signed.
    #[arg(long)]
    tls: bool,
}

struct Echo(Deflater);

impl Listener for Echo {
    fn opened(&mut self, _: &mut Shard, _: ViewerKey) {}

    fn ping(&mut self, _: &mut Shard, _: ViewerKey) -> bool {
        true
    }

    fn message(&mut self, shard: &mut Shard, key: ViewerKey, message: Inbound<'_>) {
        let (text, data) = match message {
            Inbound::Text(text) => (true, text),
            Inbound::Binary(bytes) => (false, bytes),
            _ => return,
        };
        let answer = if shard.viewers.row(key.index).format.is_deflate() {
            frame::data(text, true, &self.0.compress(data))
        } else {
            frame::data(text, false, data)
        };
        shard.send(key, answer);
    }
}

fn settings() -> ShardSettings {
    let config = Config::default();
    ShardSettings {
        homes: HomeSettings {
            room: Arc::new(config.room_settings()),
            compression: Compression { min_bytes: 0, level: 3 },
            max_rooms: 1,
            resume_events: 0,
            announce: Announce::default(),
            acks_per_second: 1,
            pulls_per_second: 1,
            retention: DAY,
            idle: DAY,
            intake: IntakeSettings {
                admission: config.admission_settings(),
                limits: config.limit_settings(0),
                seed: 0,
            },
            seed: 0,
        },
        ladder: LadderSettings {
            bounds: [Bounds { frames: 10_000, bytes: 256 << 20, age: DAY }; 4],
            drain: DAY,
            ..config.ladder_settings()
        },
        slice: Duration::from_millis(2),
        max_rooms_per_connection: 1,
        messages_per_second: u32::MAX,
        message_burst: 1_000,
        join_timeout: DAY,
        ping_interval: DAY,
        pong_timeout: DAY,
        hold: HoldSettings { most: 0, patience: DAY },
        confirm: confirm::Settings { patience: DAY, carries: 0, frames: 0 },
        reconnect_spread: Duration::ZERO,
        seed: 0,
    }
}

async fn serve(arguments: Arguments) -> anyhow::Result<()> {
    let clock = Clock::start();
    let (peers, mut inboxes) = LocalShards::new(1, 1, LevelKey::from_seed(0), DAY);
    let inbox = inboxes.pop().ok_or_else(|| anyhow::anyhow!("one shard"))?;
    let address = SocketAddr::from(([127, 0, 0, 1], arguments.port));
    let socket = tokio::net::TcpListener::bind(address).await?;
    let (arrivals, arrived) = mpsc::unbounded_channel();
    let stats = Arc::new(EdgeStats::default());
    let identity = arguments.tls.then(|| Identity::development(clock.now())).transpose()?;
    let places = Places::new(100, 100, Arc::clone(&stats));
    let edge = Rc::new(Edge {
        entrance: Entrance::new(identity.as_ref(), Plaintext::Always, Arc::clone(&stats)),
        policy: Policy {
            origins: vec!["*".to_owned()],
            compression: !arguments.no_compression,
            any_subprotocol: true,
        },
        upgrade_path: "/",
        router: axum::Router::new(),
        api: None,
        max_streams: 1,
        stats,
        handshake_timeout: Duration::from_secs(10),
        max_header: 16_384,
        max_connections: 1_000,
        arrivals,
        draining: Arc::new(AtomicBool::new(false)),
        leaving: watch::Sender::new(false),
        http2: Cell::new(0),
        viewers: Cell::new(0),
        others: Cell::new(0),
        handshakes: Arc::new(Semaphore::new(100)),
        max_waiting: 100,
        places,
        patience: Duration::from_secs(10),
        kept: Kept::default(),
        accepting: RefCell::new(None),
        clock,
    });
    let shard = Shard::new(ShardId(0), settings(), clock, peers);
    let limits = ReadLimits { max_message: MAX_MESSAGE, message_timeout: DAY };
    let echo = Echo(Deflater::new(3));
    let worker = Worker::new(shard, echo, clock, inbox, arrived, Rc::clone(&edge), limits)?;
    doorway::open(&edge, socket);
    println!("echo on ws://{address}");
    Ok(worker.run().await?)
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, serve(Arguments::parse()))
}
