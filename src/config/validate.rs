//! What types cannot say: ranges, and fields that contradict one another.
//!
//! Ranges are wide. They keep out what cannot work or was typed with a digit too
//! many, not what somebody may want to try.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use tracing_subscriber::EnvFilter;

use super::error::ConfigError;
use super::kinds::{KindConfig, LaneName, MergeKeyName, MergeName};
use super::{Config, MAX_KIND_BYTES, keys};

const MIB: usize = 1 << 20;
const HOUR_MS: u64 = 3_600_000;

/// Bytes that an event needs in a frame beside its payload: id, user and key at
/// their longest, and names of fields.
const EVENT_OVERHEAD: usize = 1_024;

/// Every mistake in `config`. With `auth_unread` the keys could not be read, so
/// that nothing is said about their absence.
pub(super) fn check(config: &Config, auth_unread: bool) -> Vec<ConfigError> {
    let mut check = Check { errors: Vec::new() };
    server(config, auth_unread, &mut check);
    super::tls::check(config, &mut check);
    websocket(config, &mut check);
    super::quic::check(&config.quic, config.websocket.max_message_bytes, &mut check);
    rooms(config, &mut check);
    super::durable::check(&config.durable, &mut check);
    super::delivery::check(config, &mut check);
    ingress(config, &mut check);
    admission(config, &mut check);
    limits(config, &mut check);
    auth(config, &mut check);
    super::trace::check(&config.trace, &mut check);
    log(config, &mut check);
    for (name, kind) in &config.kinds {
        kind_name(name, &mut check);
        kind_rules(&format!("kinds.{name}"), kind, config, &mut check);
    }
    kind_rules("unknown_kind", &config.unknown_kind, config, &mut check);
    check.errors
}

pub(super) struct Check {
    errors: Vec<ConfigError>,
}

impl Check {
    pub(super) fn fail(
        &mut self,
        path: &str,
        problem: impl Into<String>,
        allowed: impl Into<String>,
    ) {
        self.errors.push(ConfigError::new(path, problem).allowed(allowed));
    }

    pub(super) fn range<T: PartialOrd + Display>(
        &mut self,
        path: &str,
        value: T,
        range: RangeInclusive<T>,
    ) {
        if !range.contains(&value) {
            let allowed = format!("{} to {}", range.start(), range.end());
            self.fail(path, format!("is {value}"), allowed);
        }
    }

    /// `path` must not exceed the field `limit`, whose value is `most`.
    pub(super) fn at_most(&mut self, path: &str, value: usize, limit: &str, most: usize) {
        if value > most {
            self.fail(path, format!("is {value}"), format!("at most {limit}, which is {most}"));
        }
    }
}

fn server(config: &Config, auth_unread: bool, check: &mut Check) {
    let server = &config.server;
    check.range("server.shards", server.shards, 0..=1_024);
    check.range("server.max_waiting", server.max_waiting, 1..=1_000_000);
    check.range("server.max_connections", server.max_connections, 0..=100_000_000);
    check.range("server.drain_timeout_ms", server.drain_timeout_ms, 0..=HOUR_MS);
    check.range("server.reconnect_spread_ms", server.reconnect_spread_ms, 0..=HOUR_MS);
    if overlap(server.listen, server.admin_listen) {
        let allowed = format!("another port than that of server.listen, {}", server.listen);
        check.fail("server.admin_listen", format!("is {}", server.admin_listen), allowed);
    }
    if auth_unread || !config.auth.needs_dev_key() {
        return;
    }
    let listeners =
        [("server.listen", server.listen), ("server.admin_listen", server.admin_listen)];
    for (path, address) in listeners {
        if !address.ip().to_canonical().is_loopback() {
            let problem = format!("is {address}, open to others, while [auth] has no keys");
            check.fail(
                path,
                problem,
                "a loopback address, or any with auth.keys or auth.jwks_file",
            );
        }
    }
}

/// Whether both cannot be bound at once.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let any = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && (any || a.ip() == b.ip())
}

fn websocket(config: &Config, check: &mut Check) {
    let ws = &config.websocket;
    check.range("websocket.handshake_timeout_ms", ws.handshake_timeout_ms, 10..=HOUR_MS);
    check.range("websocket.max_handshakes", ws.max_handshakes, 1..=1_000_000);
    check.range("websocket.max_header_bytes", ws.max_header_bytes, 1_024..=MIB);
    check.range("websocket.max_message_bytes", ws.max_message_bytes, 256..=16 * MIB);
    check.range("websocket.join_timeout_ms", ws.join_timeout_ms, 10..=HOUR_MS);
    check.range("websocket.ping_interval_ms", ws.ping_interval_ms, 10..=HOUR_MS);
    check.range("websocket.pong_timeout_ms", ws.pong_timeout_ms, 10..=HOUR_MS);
    check.range("websocket.max_rooms_per_connection", ws.max_rooms_per_connection, 1..=1_024);
    check.range("websocket.messages_per_second", ws.messages_per_second, 1..=1_000_000);
    check.range("websocket.message_burst", ws.message_burst, 1..=1_000_000);
    check.range("websocket.compression_min_bytes", ws.compression_min_bytes, 0..=16 * MIB);
    check.range("websocket.compression_level", ws.compression_level, 1..=9);
    for (index, origin) in ws.allowed_origins.iter().enumerate() {
        if origin != "*" && !is_origin(origin) {
            let path = format!("websocket.allowed_origins[{index}]");
            let allowed = "\"*\", or scheme and host without a path, like \"https://live.example\"";
            check.fail(&path, format!("is {origin:?}"), allowed);
        }
    }
}

/// `scheme://host[:port]` as browsers write it: lower case, no path, no slash.
fn is_origin(text: &str) -> bool {
    let Some((scheme, host)) = text.split_once("://") else { return false };
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_:[]".contains(c);
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
    !scheme.is_empty() && scheme.chars().all(word) && !host.is_empty() && host.chars().all(plain)
}

fn rooms(config: &Config, check: &mut Check) {
    let rooms = &config.rooms;
    check.range("rooms.flush_interval_ms", rooms.flush_interval_ms, 1..=60_000);
    check.range("rooms.flush_events", rooms.flush_events, 1..=1_000_000);
    check.range("rooms.flush_bytes", rooms.flush_bytes, 1..=64 * MIB);
    check.range("rooms.frame_events", rooms.frame_events, 1..=1_000_000);
    check.range("rooms.frame_bytes", rooms.frame_bytes, 1_024..=64 * MIB);
    check.range("rooms.reserved_percent", rooms.reserved_percent, 0..=90);
    check.range("rooms.reserved_tier", rooms.reserved_tier, 0..=63);
    check.range("rooms.buffer_events", rooms.buffer_events, 1..=10_000_000);
    check.range("rooms.buffer_bytes", rooms.buffer_bytes, 1_024..=1_024 * MIB);
    check.range("rooms.history_events", rooms.history_events, 0..=10_000_000);
    check.range("rooms.history_bytes", rooms.history_bytes, 0..=4_096 * MIB);
    check.range("rooms.history_important", rooms.history_important, 0..=10_000_000);
    let important_bytes = rooms.history_important_bytes;
    check.range("rooms.history_important_bytes", important_bytes, 0..=4_096 * MIB);
    check.range("rooms.dedupe_sequenced", rooms.dedupe_sequenced, 0..=10_000_000);
    check.range("rooms.dedupe_sampled", rooms.dedupe_sampled, 0..=10_000_000);
    check.range("rooms.max_keys", rooms.max_keys, 1..=1_000_000);
    check.range("rooms.state_bytes", rooms.state_bytes, 1_024..=1_024 * MIB);
    for (path, name) in
        [("rooms.enter_kind", &rooms.enter_kind), ("rooms.leave_kind", &rooms.leave_kind)]
    {
        let known = config.kinds.get(name);
        if !name.is_empty() && known.is_none() {
            check.fail(path, format!("is {name:?}"), "the name of a kind in [kinds], or nothing");
        } else if known.is_some_and(|kind| kind.lane == LaneName::Important) {
            check.fail(path, format!("is {name:?}"), "a kind of another lane than important");
        }
    }
    check.range("rooms.acks_per_second", rooms.acks_per_second, 1..=10_000_000);
    check.range("rooms.pulls_per_second", rooms.pulls_per_second, 1..=10_000_000);
    check.range("rooms.carry_after_ms", rooms.carry_after_ms, 100..=60_000);
    check.range("rooms.carry_events", rooms.carry_events, 1..=100_000);
    check.range("rooms.resume_events", rooms.resume_events, 0..=1_000_000);
    check.range("rooms.online_interval_ms", rooms.online_interval_ms, 0..=HOUR_MS);
    check.range("rooms.max_rooms", rooms.max_rooms, 1..=100_000_000);
    check.range("rooms.idle_ms", rooms.idle_ms, 10..=30 * 24 * HOUR_MS);
    let (events, bytes) = (rooms.buffer_events, rooms.buffer_bytes);
    check.at_most("rooms.flush_events", rooms.flush_events, "rooms.buffer_events", events);
    check.at_most("rooms.flush_bytes", rooms.flush_bytes, "rooms.buffer_bytes", bytes);
    check.at_most("rooms.frame_bytes", rooms.frame_bytes, "rooms.buffer_bytes", bytes);
}

fn admission(config: &Config, check: &mut Check) {
    let admission = &config.admission;
    check.range("admission.queue_ms", admission.queue_ms, 1..=10_000);
    check.range("admission.burst_ms", admission.burst_ms, 1..=60_000);
    check.at_most(
        "admission.queue_ms",
        admission.queue_ms as usize,
        "admission.burst_ms",
        admission.burst_ms as usize,
    );
    check.range("admission.threshold_ms", admission.threshold_ms, 1..=10_000);
    check.range("admission.window_ms", admission.window_ms, 50..=60_000);
    check.range("admission.window_events", admission.window_events, 100..=1_000_000);
    check.range("admission.min_events", admission.min_events, 1..=100_000);
    check.range("admission.alpha_percent", admission.alpha_percent, 1..=50);
    check.range("admission.beta_percent", admission.beta_percent, 1..=50);
    check.range("admission.margin_percent", admission.margin_percent, 1..=50);
    check.range("admission.protected_tier", admission.protected_tier, 0..=63);
    check.range("admission.level_ttl_ms", admission.level_ttl_ms, 100..=60_000);
    check.range("admission.held_joins", admission.held_joins, 0..=1_000_000);
    check.range("admission.hold_ms", admission.hold_ms, 10..=60_000);
}

fn ingress(config: &Config, check: &mut Check) {
    let ingress = &config.ingress;
    check.range("ingress.max_body_bytes", ingress.max_body_bytes, 1_024..=256 * MIB);
    let per_request = ingress.max_events_per_request;
    check.range("ingress.max_events_per_request", per_request, 1..=1_000_000);
    check.range("ingress.max_connections", ingress.max_connections, 1..=1_000_000);
    let alike = ingress.application_connections;
    check.range("ingress.application_connections", alike, 1..=1_000_000);
    check.range("ingress.mailbox_events", ingress.mailbox_events, 1..=100_000_000);
    check.range("ingress.request_timeout_ms", ingress.request_timeout_ms, 10..=HOUR_MS);
    check.range("ingress.max_history_events", ingress.max_history_events, 1..=1_000_000);
    check.range("ingress.http2_streams", ingress.http2_streams, 1..=10_000);
    check.range("ingress.grpc_in_flight", ingress.grpc_in_flight, 1..=10_000);
    check.range("ingress.slice_us", ingress.slice_us, 50..=1_000_000);
}

fn limits(config: &Config, check: &mut Check) {
    let limits = &config.limits;
    let rates = [
        ("room", limits.room_events_per_second, limits.room_burst),
        ("user", limits.user_events_per_second, limits.user_burst),
        ("client", limits.client_events_per_second, limits.client_burst),
        ("application", limits.application_events_per_second, limits.application_burst),
    ];
    for (name, per_second, burst) in rates {
        check.range(&format!("limits.{name}_events_per_second"), per_second, 0..=100_000_000);
        check.range(&format!("limits.{name}_burst"), burst, 1..=100_000_000);
    }
    check.range("limits.keys", limits.keys, 1..=100_000_000);
}

fn auth(config: &Config, check: &mut Check) {
    let auth = &config.auth;
    check.range("auth.leeway_s", auth.leeway_s, 0..=3_600);
    check.range("auth.max_token_bytes", auth.max_token_bytes, 128..=65_536);
    for (path, value) in [("auth.audience", &auth.audience), ("auth.issuer", &auth.issuer)] {
        if value.as_ref().is_some_and(String::is_empty) {
            check.fail(path, "is empty", "a name, or leave the field out");
        }
    }
    if let Err(errors) = keys::load(auth) {
        check.errors.extend(errors);
    }
}

fn log(config: &Config, check: &mut Check) {
    if let Err(error) = EnvFilter::try_new(&config.log.filter) {
        let problem = format!("is {:?}: {error}", config.log.filter);
        check.fail("log.filter", problem, "\"info\", or \"warn,tidegate::auth=debug\"");
    }
}

fn kind_name(name: &str, check: &mut Check) {
    // No dots, which part a path, and no "__", which parts a variable's name.
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-:".contains(&b));
    if name.is_empty() || name.len() > MAX_KIND_BYTES || !plain || name.contains("__") {
        let allowed =
            format!("1 to {MAX_KIND_BYTES} letters, digits and _ - : with no two _ in a row");
        check.fail(&format!("kinds.{name}"), "is not the name of a kind", allowed);
    }
}

fn kind_rules(path: &str, kind: &KindConfig, config: &Config, check: &mut Check) {
    let field = |name: &str| format!("{path}.{name}");
    check.range(&field("tier"), kind.tier, 0..=63);
    check.range(&field("ttl_ms"), kind.ttl_ms, 0..=30 * 24 * HOUR_MS);
    check.range(&field("idle_reset_ms"), kind.idle_reset_ms, 0..=30 * 24 * HOUR_MS);
    merge_rules(path, kind, check);

    let size = kind.max_payload_bytes;
    check.range(&field("max_payload_bytes"), size, 1..=16 * MIB);
    let path = field("max_payload_bytes");
    let frame = config.rooms.frame_bytes.saturating_sub(EVENT_OVERHEAD);
    check.at_most(&path, size, "rooms.frame_bytes less 1024 for the rest of an event", frame);
    check.at_most(&path, size, "ingress.max_body_bytes", config.ingress.max_body_bytes);
    if kind.viewer_publish {
        let message = config.websocket.max_message_bytes;
        check.at_most(&path, size, "websocket.max_message_bytes (viewer_publish)", message);
    }
}

fn merge_rules(path: &str, kind: &KindConfig, check: &mut Check) {
    let field = |name: &str| format!("{path}.{name}");
    let merge = kind.merge;
    match (merge, kind.n) {
        (MergeName::Sample, None) => {
            check.fail(&field("n"), "is missing", "with merge = \"sample\", 1 to 10000");
        }
        (MergeName::Sample, Some(n)) => check.range(&field("n"), n, 1..=10_000),
        (_, Some(_)) => {
            check.fail(&field("n"), "means nothing here", "only with merge = \"sample\"")
        }
        (_, None) => {}
    }
    if merge == MergeName::Sample && kind.lane != LaneName::Sampled {
        let allowed = "with lane = \"sampled\", the only lane that may drop freely";
        check.fail(&field("merge"), "is \"sample\"", allowed);
    }
    if kind.by.is_some() && !matches!(merge, MergeName::Sum | MergeName::Latest) {
        check.fail(&field("by"), "means nothing here", "only with merge = \"sum\" or \"latest\"");
    }
    let combo = merge == MergeName::Sum && kind.by == Some(MergeKeyName::UserKey);
    if kind.idle_reset_ms > 0 && !combo {
        let allowed = "only with merge = \"sum\" and by = \"user_key\"";
        check.fail(&field("idle_reset_ms"), "means nothing here", allowed);
    }
}
