//! Configuration: every field with its meaning, unit and default, and what it
//! costs where that matters.
//!
//! Values come from three layers, the later over the earlier: the defaults
//! beside the fields here, one TOML file, and environment variables
//! `TIDEGATE__SECTION__FIELD`. What is unknown, mistyped, out of range or
//! contradictory is refused before any port is bound, and every mistake is named
//! at once, because fixing a configuration one restart at a time is slow.
//!
//! [`Config::load`] does it all; `config/tidegate.toml` shows every field.

mod de;
mod delivery;
mod durable;
mod env;
mod error;
mod keys;
mod kinds;
mod load;
mod quic;
mod tls;
mod trace;
mod tree;
mod validate;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::admission::AdmissionSettings;
use crate::engine::ids::Tier;
use crate::engine::kind::{Kind, Kinds};
use crate::engine::settings::RoomSettings;
use crate::limits::LimitSettings;
use crate::limits::keyed::Rate;

pub use delivery::Delivery;
pub use durable::Durable;
pub use error::{ConfigError, ConfigErrors};
pub use keys::{KeyMaterial, load as load_keys};
pub use kinds::{AckName, KindConfig, LaneName, MergeKeyName, MergeName};
pub use load::{ConfigOrigin, Loaded};
pub use quic::{Congestion, Quic};
pub use tls::{Plaintext, Tls};
pub use trace::Trace;

pub use crate::engine::draft::{MAX_ID_BYTES, MAX_KEY_BYTES, MAX_KIND_BYTES, MAX_USER_BYTES};

/// Declares a section with each default beside its field, so that the two cannot
/// drift apart.
macro_rules! section {
    ($(#[$meta:meta])* pub struct $name:ident {
        $($(#[$field_meta:meta])* pub $field:ident: $type:ty = $default:expr,)*
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}
use section;

section! {
/// The whole configuration.
pub struct Config {
    /// Whether the built-in kinds exist. `true`: `[kinds]` changes and adds to
    /// them; `false`: only the kinds of `[kinds]` exist.
    pub default_kinds: bool = true,
    /// Listeners, threads and the end of the process.
    pub server: Server = Server::default(),
    /// Certificates of the listening port, and connections without TLS.
    pub tls: Tls = Tls::default(),
    /// What one viewer connection may do.
    pub websocket: WebSocket = WebSocket::default(),
    /// Viewers over QUIC and WebTransport.
    pub quic: Quic = Quic::default(),
    /// Limits of every room.
    pub rooms: Rooms = Rooms::default(),
    /// The log of important events.
    pub durable: Durable = Durable::default(),
    /// What happens to a viewer that reads more slowly than its rooms write.
    pub delivery: Delivery = Delivery::default(),
    /// `[admission]`.
    pub admission: AdmissionConfig = AdmissionConfig::default(),
    /// What publishers may send.
    pub ingress: Ingress = Ingress::default(),
    /// Fixed limits that hold at any load.
    pub limits: Limits = Limits::default(),
    /// Who may join, publish and operate.
    pub auth: Auth = Auth::default(),
    /// Following single events.
    pub trace: Trace = Trace::default(),
    /// What the process writes about itself.
    pub log: Log = Log::default(),
    /// Every kind of event by name. After loading it holds the built-in kinds too
    /// (unless `default_kinds` is off).
    pub kinds: BTreeMap<String, KindConfig> = kinds::built_in(),
    /// The rules of any name that is not in `[kinds]`.
    pub unknown_kind: KindConfig = KindConfig::default(),
}
}

section! {
/// `[server]`: listeners, threads and the end of the process.
pub struct Server {
    /// Where viewers and publishers connect (HTTP and WebSocket, with TLS and
    /// without: see `[tls]`). Default `127.0.0.1:7400`. Beyond loopback only with keys in `[auth]`. Port 0 lets
    /// the system choose.
    pub listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7400)),
    /// Where operators connect: metrics, health, console. Default
    /// `127.0.0.1:7401`. Beyond loopback only with keys in `[auth]`.
    pub admin_listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7401)),
    /// Shards, each one thread with its own viewers and rooms. Default 0: one per
    /// core the process may use.
    pub shards: u16 = 0,
    /// Give every shard thread its own table of file descriptors, so that the
    /// per-process limit (`ulimit -n`) holds per shard. Default `false`.
    pub separate_descriptors: bool = false,
    /// Viewer connections per shard; one more is refused. An idle one costs about
    /// 1 KiB with its kernel socket not counted. Default 0: as many as the
    /// descriptor limit allows.
    pub max_connections: usize = 0,
    /// Connections accepted per shard that wait for their turn to be let in, for
    /// `websocket.handshake_timeout_ms` at most; further ones wait in the kernel, whose
    /// queue is short. Default 8192.
    pub max_waiting: usize = 8_192,
    /// Milliseconds between the signal to stop and the end, however many viewers
    /// are still there. Default 10 s.
    pub drain_timeout_ms: u64 = 10_000,
    /// Milliseconds over which the reconnects of drained viewers are spread, so
    /// that they do not arrive elsewhere at once. Default 5 s.
    pub reconnect_spread_ms: u64 = 5_000,
    /// Whether the demo page and its demo room are served. Absent: exactly when
    /// no configuration file was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub demo: Option<bool> = None,
}
}

section! {
/// `[websocket]`: what one viewer connection may do.
pub struct WebSocket {
    /// Milliseconds from accept to the end of the upgrade request. Default 10 s.
    pub handshake_timeout_ms: u64 = 10_000,
    /// Handshakes in progress per shard; further ones wait for their turn
    /// (`server.max_waiting`). Each holds up to `max_header_bytes`. Default 1024.
    pub max_handshakes: usize = 1_024,
    /// Bytes of an upgrade request. Default 16 KiB.
    pub max_header_bytes: usize = 16_384,
    /// Bytes of one message from a viewer, fragments together. Default 16 KiB.
    pub max_message_bytes: usize = 16_384,
    /// Milliseconds from the upgrade to the first accepted `join`. Default 10 s.
    pub join_timeout_ms: u64 = 10_000,
    /// Milliseconds between two pings to a viewer. Default 25 s, below the 30 to
    /// 60 s after which mobile networks forget a silent connection.
    pub ping_interval_ms: u64 = 25_000,
    /// Milliseconds a viewer has to answer a ping. Default 10 s.
    pub pong_timeout_ms: u64 = 10_000,
    /// Web origins that may connect, like `https://live.example`. Default none:
    /// pages of the same host, and clients that send no `Origin`. `"*"`: any.
    pub allowed_origins: Vec<String> = Vec::new(),
    /// Rooms that one connection may be in at once. Default 8.
    pub max_rooms_per_connection: usize = 8,
    /// Messages per second that one viewer may send, on average. Default 20.
    pub messages_per_second: u32 = 20,
    /// Messages that one viewer may send at once after a silence. Default 40.
    pub message_burst: u32 = 40,
    /// Offer permessage-deflate. A frame is compressed once per room, whatever
    /// the number of viewers. Default `true`.
    pub compression: bool = true,
    /// Messages shorter than this, in bytes, are sent as they are. Default 256:
    /// below it headers eat what deflate saves.
    pub compression_min_bytes: usize = 256,
    /// Deflate level, 1 (fast) to 9 (small). Default 3.
    pub compression_level: u8 = 3,
}
}

section! {
/// `[rooms]`: limits of every room. A shard holds at most `max_rooms` times what
/// buffers, history and remembered ids of one room may take (about 6 MiB with the
/// defaults, in a room that fills everything; an idle room costs a few KiB).
pub struct Rooms {
    /// Milliseconds that an event waits for company at most. Default 1 s.
    pub flush_interval_ms: u64 = 1_000,
    /// Pending events that flush earlier. Kept below `frame_events` less the
    /// reserved share, a burst makes more frames; above it, a burst is trimmed to
    /// one. Default 100.
    pub flush_events: usize = 100,
    /// Pending bytes that flush earlier. Default 64 KiB.
    pub flush_bytes: usize = 65_536,
    /// With fewer viewers than this every event flushes at once, since merging
    /// saves little. Default 200; 0 never.
    pub small_room_viewers: u32 = 200,
    /// Ordered events in one frame at most; under overload as `frame_bytes`. Default 400.
    pub frame_events: usize = 400,
    /// Bytes of ordered events in one frame at most; under overload, of all frames in two
    /// flush intervals, or half of it in four. Default 128 KiB.
    pub frame_bytes: usize = 131_072,
    /// Percent of both that only tiers up to `reserved_tier` may use. Default 25.
    pub reserved_percent: u8 = 25,
    /// Least important tier that may use the reserved share. Default 2.
    pub reserved_tier: u8 = 2,
    /// Pending events kept while the last frame is still going out, and under overload until
    /// the next is due. Default 2000.
    pub buffer_events: usize = 2_000,
    /// Pending bytes kept while the last frame is still going out; beyond it
    /// important events are refused, not dropped. Default 1 MiB.
    pub buffer_bytes: usize = 1_048_576,
    /// Sequenced events kept for readers and returning viewers. Default 1000;
    /// 0 keeps none.
    pub history_events: usize = 1_000,
    /// Bytes of them. Default 1 MiB.
    pub history_bytes: usize = 1_048_576,
    /// Important events kept beside them. Default 1000; 0 keeps none.
    pub history_important: usize = 1_000,
    /// Bytes of them. Default 1 MiB.
    pub history_important_bytes: usize = 1_048_576,
    /// Ids of sequenced events remembered, to recognise a repetition. About 100
    /// bytes each. Default 10000.
    pub dedupe_sequenced: usize = 10_000,
    /// Ids of sampled events remembered, to recognise a repetition. About 100
    /// bytes each. Default 4096.
    pub dedupe_sampled: usize = 4_096,
    /// Keys of `sum` and `latest` kinds, per kind. Default 1024.
    pub max_keys: usize = 1_024,
    /// Bytes of the totals and state of those keys, all kinds of a room together;
    /// beyond it a new key is refused. Default 1 MiB.
    pub state_bytes: usize = 1_048_576,
    /// Milliseconds at least between two frames that only tell the number of
    /// viewers. Default 5 s; 0: never such a frame.
    pub online_interval_ms: u64 = 5_000,
    /// Acknowledgements a second that viewers are asked for, per home shard; with
    /// more viewers than that a sample of them is asked. Default 5000.
    pub acks_per_second: u32 = 5_000,
    /// Milliseconds after which a viewer that was asked and is silent is sent the
    /// important events again. Default 1 s.
    pub carry_after_ms: u64 = 1_000,
    /// How often; then it is told to pull. Default 3.
    pub carries: u8 = 3,
    /// Important events per room and shard that are kept for this. Default 256.
    pub carry_events: usize = 256,
    /// Pulls of important events answered a second, per home shard; beyond it
    /// viewers are told when to come back. Default 5000.
    pub pulls_per_second: u32 = 5_000,
    /// Kind of the event that tells a room of a user who came; most fitting is a
    /// `sampled` one, such as the built-in `enter`. Default empty: nothing is told.
    pub enter_kind: String = String::new(),
    /// Kind of the event that tells of a user who left. Default empty: nothing is
    /// told.
    pub leave_kind: String = String::new(),
    /// Missed events that a viewer who comes back is sent at most, the newest; the
    /// rest it can pull. Default 1000.
    pub resume_events: usize = 1_000,
    /// Open rooms per shard; joining or publishing to one more is refused. Rooms
    /// that sleep do not count. Default 100000.
    pub max_rooms: usize = 100_000,
    /// Milliseconds without viewers and events after which a room falls asleep
    /// if the log knows it (a few hundred bytes and its important events, for
    /// `durable.retention_ms`), and is forgotten if not. Default 10 min.
    pub idle_ms: u64 = 600_000,
}
}

section! {
/// `[ingress]`: what publishers may send.
pub struct Ingress {
    /// HTTP connections per shard that are no viewers: publishers and readers; as many
    /// more wait in line, for `request_timeout_ms` at most. Up to 35 KB each while it
    /// sends. Default 4096.
    pub max_connections: usize = 4_096,
    /// Those of one application (the token's `sub`) at most, so that none shuts out
    /// the others; all without a publisher's token count as one. Default 2048.
    pub application_connections: usize = 2_048,
    /// Bytes of one request body. Default 1 MiB.
    pub max_body_bytes: usize = 1_048_576,
    /// Events of one request. Default 1000.
    pub max_events_per_request: usize = 1_000,
    /// Events waiting for their room, per home shard; beyond it the least
    /// important are refused. Up to the size of an event each. Default 65536.
    pub mailbox_events: usize = 65_536,
    /// Milliseconds until a request without an answer is given up, and a body, or a
    /// message on a gRPC stream, that was begun and has not come whole. Default 10 s.
    pub request_timeout_ms: u64 = 10_000,
    /// Events in one answer about the past. Default 1000.
    pub max_history_events: usize = 1_000,
    /// Requests at once on one HTTP/2 connection, gRPC streams among them; each
    /// takes a place of `max_connections`. Default 100, the least that RFC 9113
    /// recommends.
    pub http2_streams: u32 = 100,
    /// Requests in work on one gRPC stream; the next is not read before one of
    /// them is answered. Default 64.
    pub grpc_in_flight: usize = 64,
    /// Microseconds of reading requests before rooms and viewers get their turn.
    /// Who sends little to a room goes first. Default 0.7 ms.
    pub slice_us: u64 = 700,
}
}

section! {
/// `[admission]`: overload control. What it is and where the numbers come from
/// is in docs/overload.md.
pub struct AdmissionConfig {
    /// Only count what would be refused, and refuse nothing but what does not
    /// fit `ingress.mailbox_events`. Default `false`.
    pub dry_run: bool = false,
    /// Milliseconds of work that may wait in front of a shard's rooms under
    /// overload; beyond it the least important gives way. Default 40.
    pub queue_ms: u64 = 40,
    /// Milliseconds of work that may wait while there is no overload, for chance
    /// alone fills a busy server beyond `queue_ms` now and then. Default 120.
    pub burst_ms: u64 = 120,
    /// Milliseconds of mean queueing time, from the socket to the room, that count
    /// as overload. Default 20, as in the DAGOR paper.
    pub threshold_ms: u64 = 20,
    /// Milliseconds after which the level is judged anew. Default 1 s, as in the
    /// paper.
    pub window_ms: u64 = 1_000,
    /// Events after which it is judged earlier. Default 2000, as in the paper.
    pub window_events: u64 = 2_000,
    /// Events in a window below which the level is never tightened. Default 50.
    pub min_events: u64 = 50,
    /// Percent of the admitted work given up when only queueing time speaks for
    /// it. Default 5, the paper's alpha.
    pub alpha_percent: u32 = 5,
    /// Percent of the arrived work added when nothing speaks against it. Default
    /// 1, the paper's beta.
    pub beta_percent: u32 = 1,
    /// Percent of the measured capacity admitted beyond it, for the queue to
    /// choose from. Default 10.
    pub margin_percent: u32 = 10,
    /// Least important tier that waits behind no other and is not refused for
    /// having waited. Default 0.
    pub protected_tier: u8 = 0,
    /// Milliseconds for which callers may rely on the level in an answer. Default
    /// 2 s.
    pub level_ttl_ms: u64 = 2_000,
    /// New joins per shard that may wait in line under overload; further ones are
    /// refused. Default 10000.
    pub held_joins: usize = 10_000,
    /// Milliseconds that a join waits in line at most, and never more than half of
    /// `websocket.join_timeout_ms`. Default 2 s.
    pub hold_ms: u64 = 2_000,
}
}

section! {
/// `[limits]`: fixed limits that hold at any load, beside the admission control
/// that shares out what there is. Each is so many events a second on average and
/// a burst that may come at once; 0 a second is no limit.
pub struct Limits {
    /// Events a second in one room. Default 0: what a room takes, admission
    /// control finds out.
    pub room_events_per_second: u32 = 0,
    /// Events at once in one room. Default 2000.
    pub room_burst: u32 = 2_000,
    /// Events a second of one user, in all rooms of one home shard. Default 0:
    /// upstreams also send in the name of users that are services.
    pub user_events_per_second: u32 = 0,
    /// Events at once of one user. Default 100.
    pub user_burst: u32 = 100,
    /// Events a second of all clients of one type (the token's `client`, or else
    /// its role), in all of the server. Default 0.
    pub client_events_per_second: u32 = 0,
    /// Events at once of all clients of one type. Default 10000.
    pub client_burst: u32 = 10_000,
    /// Events a second of one publishing application (the token's `sub`), in all
    /// of the server. Default 0.
    pub application_events_per_second: u32 = 0,
    /// Events at once of one publishing application. Default 10000.
    pub application_burst: u32 = 10_000,
    /// Rooms, users, client types and applications that are told apart, of each
    /// sort and in each shard; further ones share limits with strangers. About 50
    /// bytes each. Default 100000.
    pub keys: usize = 100_000,
}
}

section! {
/// `[auth]`: who may join, publish and operate. Without any key the server makes
/// one for development at every start, and listens on loopback only.
pub struct Auth {
    /// Shared secrets: `[[auth.keys]]`. Default none.
    pub keys: Vec<KeyConfig> = Vec::new(),
    /// A JSON Web Key Set with public keys (RS256, ES256, EdDSA). Read once at
    /// start; relative to the working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks_file: Option<PathBuf> = None,
    /// The `aud` that tokens must name. Absent: tokens must not name any, since
    /// one that does was meant for somebody else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<String> = None,
    /// The `iss` that tokens must carry. Absent: any or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String> = None,
    /// Seconds by which the clocks of issuer and server may differ. Default 30.
    pub leeway_s: u64 = 30,
    /// Bytes of a token; a longer one is refused unread. Default 4096.
    pub max_token_bytes: usize = 4_096,
}
}

section! {
/// One of `[[auth.keys]]`: a secret shared with whoever issues tokens.
pub struct KeyConfig {
    /// The `kid` by which tokens name it. Required, unique.
    pub id: String = String::new(),
    /// The only algorithm it is used with. Default `HS256`.
    pub algorithm: KeyAlgorithm = KeyAlgorithm::Hs256,
    /// The secret itself, its UTF-8 bytes, at least 32. Either this or
    /// `secret_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret> = None,
    /// A file that holds the secret; line ends at its end do not count.
    /// Relative to the working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf> = None,
}
}

section! {
/// `[log]`: what the process writes about itself, to standard error.
pub struct Log {
    /// Which messages, in the language of `tracing`: `info`,
    /// `warn,tidegate::auth=debug`. Default `info`.
    pub filter: String = "info".to_owned(),
    /// How they look. Default `text`.
    pub format: LogFormat = LogFormat::Text,
}
}

/// Algorithms of shared secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyAlgorithm {
    /// HMAC with SHA-256.
    #[serde(rename = "HS256")]
    Hs256,
}

/// Looks of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line, for machines.
    Json,
}

/// A secret that is neither printed nor serialised.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps `secret`.
    #[must_use]
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// Its bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("[secret]")
    }
}

impl Config {
    /// The limits of a room as the engine takes them.
    #[must_use]
    pub fn room_settings(&self) -> RoomSettings {
        let rooms = &self.rooms;
        RoomSettings {
            flush_interval: Duration::from_millis(rooms.flush_interval_ms),
            flush_events: rooms.flush_events,
            flush_bytes: rooms.flush_bytes,
            small_room_viewers: rooms.small_room_viewers,
            frame_events: rooms.frame_events,
            frame_bytes: rooms.frame_bytes,
            reserved_percent: rooms.reserved_percent,
            reserved_tier: rooms.reserved_tier,
            buffer_events: rooms.buffer_events,
            buffer_bytes: rooms.buffer_bytes,
            history_events: rooms.history_events,
            history_bytes: rooms.history_bytes,
            history_important: rooms.history_important,
            history_important_bytes: rooms.history_important_bytes,
            dedupe_sequenced: rooms.dedupe_sequenced,
            dedupe_sampled: rooms.dedupe_sampled,
            max_keys: rooms.max_keys,
            state_bytes: rooms.state_bytes,
            durable: self.durable.is_on(),
            log_patience: self.durable.patience(),
            online_interval: Duration::from_millis(rooms.online_interval_ms),
        }
    }

    /// The kind of this name; `None` for no name.
    #[must_use]
    pub fn announced(&self, name: &str) -> Option<Arc<Kind>> {
        (!name.is_empty()).then(|| self.kinds().resolve(name))
    }

    /// The constants of overload control.
    #[must_use]
    pub fn admission_settings(&self) -> AdmissionSettings {
        let admission = &self.admission;
        let percent = |percent: u32| f64::from(percent) / 100.0;
        AdmissionSettings {
            queue: Duration::from_millis(admission.queue_ms),
            burst: Duration::from_millis(admission.burst_ms),
            max_entries: self.ingress.mailbox_events,
            window: Duration::from_millis(admission.window_ms),
            window_requests: admission.window_events,
            min_requests: admission.min_events,
            threshold: Duration::from_millis(admission.threshold_ms),
            alpha: percent(admission.alpha_percent),
            beta: percent(admission.beta_percent),
            margin: percent(admission.margin_percent),
            protected_tier: Tier(admission.protected_tier),
            level_ttl: Duration::from_millis(admission.level_ttl_ms),
            dry_run: admission.dry_run,
            ..AdmissionSettings::default()
        }
    }

    /// The fixed limits, with the `seed` of their hashes.
    #[must_use]
    pub fn limit_settings(&self, seed: u128) -> LimitSettings {
        let limits = &self.limits;
        LimitSettings {
            room: Rate::new(limits.room_events_per_second, limits.room_burst),
            user: Rate::new(limits.user_events_per_second, limits.user_burst),
            client: Rate::new(limits.client_events_per_second, limits.client_burst),
            application: Rate::new(limits.application_events_per_second, limits.application_burst),
            keys: limits.keys,
            seed,
        }
    }

    /// The kinds as the engine takes them.
    #[must_use]
    pub fn kinds(&self) -> Kinds {
        let configured = self.kinds.iter().map(|(name, kind)| kind.to_kind(name));
        Kinds::new(configured, self.unknown_kind.to_kind(""))
    }

    /// Whether the demo page is served: as configured, otherwise exactly when no
    /// file was given.
    #[must_use]
    pub fn demo(&self, origin: &ConfigOrigin) -> bool {
        self.server.demo.unwrap_or(origin.file.is_none())
    }
}

impl Auth {
    /// Whether no key is configured, so that the server makes one for
    /// development.
    #[must_use]
    pub fn needs_dev_key(&self) -> bool {
        self.keys.is_empty() && self.jwks_file.is_none()
    }
}
