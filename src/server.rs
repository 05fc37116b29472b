//! Starts the shards and the operators' port, waits for the signal to leave,
//! and drains with a deadline.
//!
//! Everything is checked before a port is bound. Runtimes are built here, on
//! the main thread, before any shard thread starts: see
//! [`worker::descriptors`](crate::worker::descriptors) for why that matters.

mod durable;
mod identity;
mod quic;
mod traces;

use std::cell::{Cell, RefCell};
use std::io::Write as _;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::LocalSet;
use tracing::{info, warn};

use crate::admin::{self, Observer};
use crate::auth::{Authenticator, DevKey};
use crate::clock::Clock;
use crate::config::{Config, ConfigOrigin, Plaintext};
use crate::demo;
use crate::engine::confirm;
use crate::engine::ids::ShardId;
use crate::engine::kind::Kinds;
use crate::engine::level::LevelKey;
use crate::ingress::http::router;
use crate::ingress::intake::{Api, RoomAdvice};
use crate::ingress::places::Places;
use crate::ingress::stats::EdgeStats;
use crate::ingress::turns::Turns;
use crate::limits::{CallerLimits, ClientTypes};
use crate::log::Log;
use crate::shard::held::HoldSettings;
use crate::shard::home::{Announce, HomeSettings};
use crate::shard::intake::IntakeSettings;
use crate::shard::peers::{Inbox, LocalShards, Message, Path as _};
use crate::shard::{Shard, ShardSettings};
use crate::tls::Identity;
use crate::trace::Recorder;
use crate::transport::session::Session;
use crate::transport::websocket::handshake::Policy;
use crate::wire::shared::Compression;
use crate::worker::accept::{self, Edge};
use crate::worker::entrance::Entrance;
use crate::worker::give_way::Kept;
use crate::worker::{ReadLimits, Worker, descriptors, doorway};

/// Connections the kernel holds for a shard that is busy.
const BACKLOG: i32 = 4_096;
/// Bytes the kernel holds unsent for a viewer; beyond, its backlog here grows,
/// which can be thinned out while the kernel's cannot.
const UNSENT_BYTES: u32 = 128 * 1024;
/// Descriptors kept free for everything that is no connection.
const SPARE_DESCRIPTORS: usize = 128;

/// Runs the server until it is told to leave.
///
/// # Errors
/// Whatever keeps it from starting, in words for the operator.
pub fn run(config: Config, origin: ConfigOrigin) -> anyhow::Result<()> {
    let plan = Plan::new(config, &origin)?;
    let main = Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let shards = plan.start_shards()?;
    main.block_on(plan.serve(shards))
}

/// Everything that all threads need, checked.
struct Plan {
    config: Config,
    clock: Clock,
    auth: Arc<Authenticator>,
    kinds: Arc<Kinds>,
    limits: Arc<CallerLimits>,
    identity: Option<Identity>,
    demo: bool,
    shards: u16,
    max_connections: usize,
    seed: u128,
}

/// The running shards.
struct Running {
    peers: Arc<LocalShards>,
    stats: Vec<Arc<EdgeStats>>,
    threads: Vec<JoinHandle<()>>,
    log: Option<Arc<Log>>,
    tracing: traces::Tracing,
    /// What gRPC's health service says.
    ready: watch::Sender<bool>,
    address: SocketAddr,
}

impl Plan {
    fn new(config: Config, origin: &ConfigOrigin) -> anyhow::Result<Self> {
        let limit = descriptors::raise_limit();
        if !config.server.separate_descriptors {
            descriptors::grow_table(limit);
        }
        let shards = match config.server.shards {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get() as u16),
            shards => shards,
        };
        let tables = if config.server.separate_descriptors { 1 } else { usize::from(shards) };
        let most = (limit.saturating_sub(SPARE_DESCRIPTORS) / tables).max(1);
        let max_connections = match config.server.max_connections {
            0 => most,
            wanted => wanted.min(most),
        };
        for address in [config.server.listen, config.server.admin_listen] {
            check_free(address)?;
        }
        let dev_key = if config.auth.needs_dev_key() {
            Some(DevKey::create(config.server.listen.port()).context("development key")?)
        } else {
            None
        };
        let auth = Authenticator::new(&config.auth, dev_key).map_err(|errors| {
            let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
            anyhow::anyhow!("{}", lines.join("\n"))
        })?;
        let seed = rand::random();
        let clock = Clock::start();
        Ok(Self {
            clock,
            identity: identity::open(&config, clock)?,
            auth: Arc::new(auth),
            kinds: Arc::new(config.kinds()),
            limits: Arc::new(CallerLimits::new(&config.limit_settings(seed))),
            demo: config.demo(origin),
            shards,
            max_connections,
            seed,
            config,
        })
    }

    fn shard_settings(&self, index: u16) -> ShardSettings {
        let config = &self.config;
        let millis = Duration::from_millis;
        // Each shard draws its own sequence; user levels must be alike on all.
        let seed =
            (self.seed as u64).wrapping_add(u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        ShardSettings {
            homes: HomeSettings {
                room: Arc::new(config.room_settings()),
                compression: Compression {
                    min_bytes: config.websocket.compression_min_bytes,
                    level: u32::from(config.websocket.compression_level),
                },
                max_rooms: config.rooms.max_rooms,
                retention: millis(config.durable.retention_ms),
                announce: Announce {
                    entered: config.announced(&config.rooms.enter_kind),
                    left: config.announced(&config.rooms.leave_kind),
                },
                acks_per_second: config.rooms.acks_per_second,
                pulls_per_second: config.rooms.pulls_per_second,
                resume_events: config.rooms.resume_events,
                idle: millis(config.rooms.idle_ms),
                intake: IntakeSettings {
                    admission: config.admission_settings(),
                    limits: config.limit_settings(self.seed),
                    seed: self.seed,
                },
                seed: self.seed,
            },
            ladder: config.ladder_settings(),
            slice: Duration::from_micros(config.delivery.slice_us),
            max_rooms_per_connection: config.websocket.max_rooms_per_connection,
            messages_per_second: config.websocket.messages_per_second,
            message_burst: config.websocket.message_burst,
            join_timeout: millis(config.websocket.join_timeout_ms),
            ping_interval: millis(config.websocket.ping_interval_ms),
            pong_timeout: millis(config.websocket.pong_timeout_ms),
            hold: HoldSettings {
                most: config.admission.held_joins,
                // Whoever waits must hear of it before it is closed for not joining.
                patience: millis(
                    config.admission.hold_ms.min(config.websocket.join_timeout_ms / 2),
                ),
            },
            confirm: confirm::Settings {
                patience: millis(config.rooms.carry_after_ms),
                carries: config.rooms.carries,
                frames: config.rooms.carry_events,
            },
            reconnect_spread: millis(config.server.reconnect_spread_ms),
            seed,
        }
    }

    fn start_shards(&self) -> anyhow::Result<Running> {
        let limit = self.config.ingress.mailbox_events;
        let (peers, inboxes) = LocalShards::new(
            self.shards,
            limit,
            LevelKey::from_seed(self.seed),
            Duration::from_millis(self.config.admission.level_ttl_ms),
        );
        let runtimes: Vec<Runtime> = inboxes
            .iter()
            .map(|_| Builder::new_current_thread().enable_all().build())
            .collect::<Result<_, _>>()
            .context("no runtime for a shard")?;
        let opened = durable::open(&self.config, &self.kinds, &peers, self.clock.now())?;
        let (log, mut left) = opened.map_or((None, Vec::new()), |o| (Some(o.log), o.rooms));
        let mut running = Running {
            log,
            tracing: traces::Tracing::new(&self.config.trace, self.seed)?,
            peers: Arc::clone(&peers),
            stats: Vec::new(),
            threads: Vec::new(),
            ready: watch::Sender::new(false),
            address: self.config.server.listen,
        };
        // After the log: its directory is there now.
        let identity = self.identity.as_ref();
        let mut quic = quic::Shared::new(&self.config, identity, self.shards)?;
        for (index, (inbox, runtime)) in inboxes.into_iter().zip(runtimes).enumerate() {
            let stats = Arc::new(EdgeStats::default());
            let rooms = left.get_mut(index).map(std::mem::take).unwrap_or_default();
            let start = self.shard_start(index as u16, inbox, &running, Arc::clone(&stats));
            let quic = quic.as_mut().and_then(|quic| quic.start(index as u16));
            let start = ShardStart { rooms, quic, ..start };
            let (bound, report) = std::sync::mpsc::channel();
            let thread = std::thread::Builder::new()
                .name(format!("shard-{index}"))
                .spawn(move || start.run(&runtime, &bound))
                .context("no thread for a shard")?;
            // Asked for port 0, the first shard's answer is everyone's port.
            running.address = report
                .recv()
                .context("a shard ended before it listened")?
                .with_context(|| format!("cannot listen on {}", running.address))?;
            running.threads.push(thread);
            running.stats.push(stats);
        }
        Ok(running)
    }

    fn shard_start(
        &self,
        index: u16,
        inbox: Inbox,
        running: &Running,
        stats: Arc<EdgeStats>,
    ) -> ShardStart {
        let config = &self.config;
        let api = Arc::new(Api {
            shards: Arc::clone(&running.peers),
            auth: Arc::clone(&self.auth),
            kinds: Arc::clone(&self.kinds),
            clock: self.clock,
            stats: Arc::clone(&stats),
            limits: Arc::clone(&self.limits),
            advice: RoomAdvice::default(),
            watch: Arc::clone(&running.tracing.watch),
            shard: ShardId(index),
            max_body: config.ingress.max_body_bytes,
            max_events: config.ingress.max_events_per_request,
            max_history: config.ingress.max_history_events,
            in_flight: config.ingress.grpc_in_flight,
            timeout: Duration::from_millis(config.ingress.request_timeout_ms),
            turns: Turns::new(Duration::from_micros(config.ingress.slice_us)),
            ready: running.ready.subscribe(),
        });
        ShardStart {
            id: ShardId(index),
            settings: self.shard_settings(index),
            clock: self.clock,
            peers: Arc::clone(&running.peers),
            log: running.log.clone(),
            rooms: Vec::new(),
            quic: None,
            recorder: running.tracing.recorder(ShardId(index), self.clock),
            inbox,
            stats: Arc::clone(&stats),
            address: running.address,
            separate: config.server.separate_descriptors,
            max_connections: self.max_connections,
            api,
            identity: self.identity.clone(),
            plaintext: config.tls.plaintext,
            demo: self
                .demo
                .then(|| demo::Tokens::new(&self.auth, self.identity.as_ref(), self.clock)),
            policy: Policy {
                origins: config.websocket.allowed_origins.clone(),
                compression: config.websocket.compression,
                any_subprotocol: false,
            },
            max_header: config.websocket.max_header_bytes,
            max_handshakes: config.websocket.max_handshakes,
            max_waiting: config.server.max_waiting,
            handshake_timeout: Duration::from_millis(config.websocket.handshake_timeout_ms),
            max_message: config.websocket.max_message_bytes,
            places: Places::new(
                config.ingress.max_connections,
                config.ingress.application_connections,
                stats,
            ),
            max_streams: config.ingress.http2_streams,
        }
    }

    async fn serve(self, mut running: Running) -> anyhow::Result<()> {
        let exporting = running.tracing.start();
        let observer = Observer::new(
            Arc::clone(&running.peers),
            running.stats.clone(),
            Arc::clone(&self.auth),
            Arc::clone(&self.kinds),
            running.log.clone(),
            admin::Tracing {
                watch: Arc::clone(&running.tracing.watch),
                rule_events: self.config.trace.rule_events,
                export: running.tracing.stats.clone(),
            },
            self.clock,
        );
        let observer = Arc::new(observer.with_identity(self.identity.clone()));
        let admin = bind(self.config.server.admin_listen)
            .and_then(tokio::net::TcpListener::from_std)
            .with_context(|| format!("cannot listen on {}", self.config.server.admin_listen))?;
        let admin_address = admin.local_addr().context("operators' port")?;
        let admin_task = tokio::spawn(admin::serve(admin, Arc::clone(&observer)));
        let readiness = admin::follow_readiness(Arc::clone(&observer), running.ready.clone());
        let readiness = tokio::spawn(readiness);
        let feed = self.demo.then(|| {
            let feed = demo::feed(Arc::clone(&running.peers), Arc::clone(&self.kinds), self.clock);
            tokio::spawn(feed)
        });
        let watch = self.identity.as_ref();
        let watch = watch.map(|identity| identity::watch(identity, &self.config, self.clock));
        let watch = watch.transpose()?;
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
        self.announce(running.address, admin_address);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        observer.leave();
        for task in feed.into_iter().chain(watch) {
            task.abort();
        }
        self.drain(running).await;
        exporting.finish().await;
        readiness.abort();
        admin_task.abort();
        Ok(())
    }

    fn announce(&self, address: SocketAddr, admin: SocketAddr) {
        info!(%address, %admin, shards = self.shards, "serving");
        let mut out = std::io::stdout();
        let only_tls = self.identity.is_some() && self.config.tls.plaintext == Plaintext::Never;
        let scheme = if only_tls { "https" } else { "http" };
        let mut lines = format!(
            "tidegate {} serving on {scheme}://{address} (operators: http://{admin}/metrics)\n",
            env!("CARGO_PKG_VERSION")
        );
        if self.demo {
            lines += &format!("demo: {scheme}://{address}/demo\n");
        }
        if let Some(identity) = &self.identity {
            lines += &identity::announce(identity, self.clock).unwrap_or_default();
        }
        // Nobody may be reading standard output; the log says the same.
        let _ = out.write_all(lines.as_bytes()).and_then(|()| out.flush());
    }

    async fn drain(&self, running: Running) {
        let deadline = Duration::from_millis(self.config.server.drain_timeout_ms);
        info!(deadline_ms = deadline.as_millis() as u64, "draining");
        let all = async {
            // A viewer may be told to leave only when no shard has a frame for
            // it any more.
            tell_all(&running.peers, Message::Flush).await;
            tell_all(&running.peers, Message::Leave).await;
        };
        match tokio::time::timeout(deadline, all).await {
            Ok(()) => {
                for thread in running.threads {
                    if thread.join().is_err() {
                        warn!("a shard ended badly");
                    }
                }
                if let Some(log) = running.log {
                    log.stop();
                }
                info!("drained");
            }
            Err(_) => warn!("drain deadline passed; the remaining connections are cut"),
        }
    }
}

/// What a shard's thread starts from.
struct ShardStart {
    id: ShardId,
    settings: ShardSettings,
    clock: Clock,
    peers: Arc<LocalShards>,
    log: Option<Arc<Log>>,
    rooms: durable::Left,
    quic: Option<quic::Start>,
    recorder: Recorder,
    inbox: Inbox,
    stats: Arc<EdgeStats>,
    address: SocketAddr,
    separate: bool,
    max_connections: usize,
    api: Arc<Api>,
    identity: Option<Identity>,
    plaintext: Plaintext,
    demo: Option<demo::Tokens>,
    policy: Policy,
    max_header: usize,
    max_handshakes: usize,
    max_waiting: usize,
    handshake_timeout: Duration,
    max_message: usize,
    places: Arc<Places>,
    max_streams: u32,
}

type Bound = std::sync::mpsc::Sender<std::io::Result<SocketAddr>>;

impl ShardStart {
    fn run(self, runtime: &Runtime, bound: &Bound) {
        let id = self.id.0;
        let result = LocalSet::new().block_on(runtime, self.serve(bound));
        if let Err(error) = result {
            warn!(shard = id, %error, "shard ended");
            // If it never listened, the starter hears why; otherwise nobody
            // waits for this.
            let _ = bound.send(Err(error));
        }
    }

    async fn serve(self, bound: &Bound) -> std::io::Result<()> {
        if self.separate {
            descriptors::separate()?;
        }
        let listener = bind(self.address)?;
        let address = listener.local_addr()?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let mut routes = router(Arc::clone(&self.api));
        if let Some(tokens) = self.demo {
            routes = routes.merge(demo::router(tokens));
        }
        let (arrivals, arrived) = mpsc::unbounded_channel();
        let message_timeout = self.handshake_timeout;
        let stats = Arc::clone(&self.stats);
        let edge = Rc::new(Edge {
            entrance: Entrance::new(self.identity.as_ref(), self.plaintext, stats),
            policy: self.policy,
            upgrade_path: "/v1/ws",
            router: routes,
            api: Some(Arc::clone(&self.api)),
            max_streams: self.max_streams,
            stats: self.stats,
            handshake_timeout: self.handshake_timeout,
            max_header: self.max_header,
            max_connections: self.max_connections,
            arrivals,
            draining: Arc::new(AtomicBool::new(false)),
            leaving: watch::Sender::new(false),
            http2: Cell::new(0),
            viewers: Cell::new(0),
            others: Cell::new(0),
            handshakes: Arc::new(Semaphore::new(self.max_handshakes)),
            max_waiting: self.max_waiting,
            places: self.places,
            patience: self.api.timeout,
            kept: Kept::default(),
            accepting: RefCell::new(None),
            clock: self.clock,
        });
        let session = Session {
            auth: Arc::clone(&self.api.auth),
            kinds: Arc::clone(&self.api.kinds),
            limits: Arc::clone(&self.api.limits),
            clients: ClientTypes::default(),
            watch: Arc::clone(&self.api.watch),
            clock: self.clock,
        };
        let mut shard = Shard::new(self.id, self.settings, self.clock, self.peers);
        shard.attach_recorder(self.recorder);
        if let Some(log) = self.log {
            shard.attach_log(log, self.rooms);
        }
        let limits = ReadLimits { max_message: self.max_message, message_timeout };
        let mut worker =
            Worker::new(shard, session, self.clock, self.inbox, arrived, Rc::clone(&edge), limits)?;
        if let Some(quic) = self.quic {
            let driver = quic.open(address, self.clock, worker.shard_mut())?;
            worker.serve_quic(driver);
        }
        doorway::open(&edge, listener);
        // The starter waits for nothing else; it cannot be gone.
        let _ = bound.send(Ok(address));
        let ended = worker.run().await;
        accept::finish(&edge).await;
        ended
    }
}

/// Sends a message to every shard and waits for all answers.
async fn tell_all(peers: &LocalShards, message: fn(oneshot::Sender<()>) -> Message) {
    let ask = |index| {
        let (done, wait) = oneshot::channel();
        peers.send(ShardId(index as u16), message(done));
        wait
    };
    let waits: Vec<_> = (0..peers.count()).map(ask).collect();
    for wait in waits {
        // A shard that is gone has nothing left to do.
        let _ = wait.await;
    }
}

/// Fails if somebody listens there already: the shards share their port, which
/// would let a second server share it too, unnoticed.
fn check_free(address: SocketAddr) -> anyhow::Result<()> {
    if address.port() == 0 {
        return Ok(());
    }
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))
        .context("no socket")?;
    socket.set_reuse_address(true).context("no socket")?;
    let free = socket.bind(&address.into()).and_then(|()| socket.listen(1));
    if let Err(error) = free {
        bail!("cannot listen on {address}: {error}");
    }
    Ok(())
}

/// A listening socket that other shards may share. What is set here, accepted
/// sockets inherit.
fn bind(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
